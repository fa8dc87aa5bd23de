"""A run's folder: ``config.json`` (the config and the data card), ``train.jsonl``, ``checkpoints/``, ``snapshots/``."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from solvers import InputError
from solvers.registry.outside import Origin
from solvers.registry.registry import outside_names

from ..data.dataset import DataCard
from ..models.classifier import Classifier
from ..models.denoiser import Denoiser
from ..models.discrete.denoiser import DiscreteDenoiser
from ..training import checkpoint, posthoc
from ..training.weights import load_state
from .build import build_model, refuse_other_shapes
from .config import line, override
from .saved import refuse_other_config, saved

FREE = ("sampling", "likelihood", "device", "data.path")
"""The fields and sections of a config that may change after the training."""


@dataclass(frozen=True)
class Run:
    """A trained run with its averaged weights, ready for sampling and scoring.

    The objects that its config names are made inside of ``origin.limits()``. ``average`` says which average the weights
    are; None before the training.
    """

    config: ConfigDict
    denoiser: Any  # a Denoiser, or a DiscreteDenoiser
    card: DataCard
    step: int
    origin: Origin
    average: posthoc.Chosen | None = None


def load_run(
    workdir: Path,
    overrides: Sequence[str] = (),
    free: Sequence[str] = FREE,
    trust: bool = False,
) -> Run:
    """Loads the run of a denoiser from its folder: the config, the data card, and the averaged weights.

    They are those of the last checkpoint.

    The config's ``sampling.ema`` chooses the average, see ``posthoc.average_of``.

    Args:
        overrides: ``--config.section.field=value`` arguments.
        free: the fields and sections that the overrides may change.
        trust: import the modules of the classes that the config names, which runs their code; those that the overrides
            name are imported anyway.

    Raises:
        InputError: see ``load_model``; also if the run is a classifier.
    """
    model, rest = load_model(workdir, overrides, free, trust)
    if isinstance(model, Classifier):
        raise InputError(
            f"{workdir} is a classifier, which draws no samples and has no density: scoresde.load({str(workdir)!r}) "
            "returns it for guidance"
        )
    return Run(denoiser=model, **rest)


def load_model(
    workdir: Path, overrides: Sequence[str], free: Sequence[str], trust: bool
) -> tuple[Denoiser | DiscreteDenoiser | Classifier, dict[str, Any]]:
    """The model of a run, and the other fields of its ``Run``; see ``load_run``.

    Raises:
        InputError: the folder is not a run, or contains no checkpoint, or its checkpoint is damaged or does not fit its
            config; an override changes a field that is not free; the config names a class of another module and is not
            trusted.
    """
    there, card, *_ = saved(workdir)
    config = override(copy.deepcopy(there), overrides)
    advice = f"only {', '.join(free[:-1])} and {free[-1]} can be overridden here"
    refuse_other_config(workdir, there, config, advice, free)
    last = checkpoint.load_latest(workdir)
    if last is None:
        raise InputError(f"{workdir} contains no checkpoint; run scoresde train first")
    folder, kept = last
    average, chosen = posthoc.average_of(workdir, kept, config.sampling.ema)
    specs = [text.partition("=")[2] for text in overrides if not text.startswith("--config.data.")]
    typed = frozenset(name for text in specs for name in outside_names(text))
    origin = Origin(str(workdir / "config.json"), typed, trust)
    try:
        with origin.limits():
            refuse_other_shapes(config, card, average)
            model, network = build_model(config, card)
        load_state(network, average)
    except RuntimeError as error:
        raise InputError(f"{folder} does not fit the network {config.model.network!r}: {line(error)}") from None
    network.eval().requires_grad_(False)
    if isinstance(model, Denoiser) and (noise := model.condition_noise) is not None:
        path = noise.path and not config.sampling.fresh_conditions
        model = replace(model, condition_noise=replace(noise.after(kept.step), path=path))
    return model, {"config": config, "card": card, "step": kept.step, "origin": origin, "average": chosen}
