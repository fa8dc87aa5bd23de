"""What a benchmark measures: a run, a pipeline of diffusers, or a target; as it is named, and as it is loaded."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from ml_collections import ConfigDict
from torch import Tensor, nn

from solvers import InputError, generator
from solvers.registry.outside import Origin

from ...configs import default
from ...data.dataset import DataCard
from ...data.loading import load_whole
from ...data.rows import Rows
from ...io.result_files import fingerprint
from ...models.denoiser import Denoiser
from ...models.discrete.empirical import DiscreteEmpirical, ExactDiscrete
from ...models.discrete.model import DiscreteModel
from ...models.model import Model, as_model
from ...models.targets import Empirical, Exact, GaussianMixture
from ...paths.base import ModelLike, make_sde
from ...sampling.pictures import is_image
from .. import build, conditions
from ..config import override
from ..load import DIFFUSERS, load
from ..run import Run, load_run
from ..score import weights_of
from .targets import target_of

REFERENCES = 10_000  # samples with which a benchmark compares, of data that have more
DRAWS = 2000  # of a target: the time of a metric grows with their square
FREE = ("sampling", "device", "data.path")  # what may be changed of a run's config
_SETTINGS = ("device", "sampling.batch_size", "sampling.grid")  # what may be set where there is no run
_STREAM = 30  # label of the generator that draws the reference of a target


@dataclass(frozen=True)
class Source:
    """What a benchmark measures, by name: exactly one of the first three.

    Attributes:
        workdir: the folder of a run.
        diffusers: the folder of a pipeline of diffusers.
        target: a target's spec, see ``targets.target_of``.
        sde: the path of a target.
        reference: a file of real samples.
        overrides: ``--config.section.field=value`` arguments.
    """

    workdir: str | None = None
    diffusers: str | None = None
    target: str | None = None
    sde: str | None = None
    reference: str | None = None
    overrides: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """What it is, for a page."""
        return self.workdir or self.diffusers or f"{self.target}"

    @property
    def specs(self) -> list[str]:
        """Its texts that may name classes of other modules."""
        return [*(text.partition("=")[2] for text in self.overrides), *filter(None, (self.target, self.sde))]

    def record(self) -> dict[str, Any]:
        """What is given, as plain JSON types."""
        given = {"overrides": list(self.overrides)} if self.overrides else {}
        return {name: value for name, value in vars(self).items() if type(value) is str} | given

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Source:
        """The source of a ``record``.

        Raises:
            TypeError: it is none.
        """
        given = dict(document)
        overrides = given.pop("overrides", [])
        known = {f.name for f in fields(cls)}
        if not all(name in known and type(value) is str for name, value in given.items()):
            raise TypeError(f"the source is {given!r}")
        if not all(type(text) is str and text.startswith("--config.") for text in overrides):
            raise TypeError(f"the overrides are {overrides!r}")
        if len(given.keys() & {"workdir", "diffusers", "target"}) != 1:
            raise TypeError(f"the source is {given!r}")
        return cls(**given, overrides=tuple(overrides))


@dataclass(frozen=True)
class Subject:
    """What a benchmark measures, loaded.

    Attributes:
        source: its names.
        denoiser, shape: the model, and the shape of one sample.
        reference: real samples (M, *); None if there are none.
        facts: of the model and the reference: what decides the numbers of the rows.
        config: of which the device and the section ``sampling`` matter.
        about: more that a reader wants to know, for the header.
        low, high, bin_width: the range to display and the distance between levels, as in ``DataCard``.
        train, test: the data of a run; the first samples are drawn given the conditions of ``test``.
        texts: what tokens (B, *) stand for; None of numbers.
        run, card: the run, and the card of the data that were read for it.
        origin: the limits of what the config may name.
        dtype: of the states.
    """

    source: Source
    denoiser: ModelLike
    shape: tuple[int, ...]
    reference: Tensor | None
    facts: Mapping[str, Any]
    config: ConfigDict
    about: Mapping[str, Any] = field(default_factory=dict)
    low: float = -1.0
    high: float = 1.0
    bin_width: float | None = None
    train: Rows | None = None
    test: Rows | None = None
    texts: Callable[[Tensor], list[str]] | None = None
    run: Run | None = None
    card: DataCard | None = None
    origin: Origin = field(default_factory=lambda: Origin("a file"))
    dtype: torch.dtype = torch.float32

    def conditions(self, count: int) -> Mapping[str, Tensor]:
        """The conditions of so many samples."""
        return {} if self.test is None else conditions.of_test(self.test, count)


def subject_of(source: Source, trust: bool = False) -> Subject:
    """Loads what a source names.

    Args:
        trust: import the modules that files name, which runs their code.

    Raises:
        InputError: it cannot be loaded; an option does not belong to this kind of source; a reference cannot be read.
    """
    if source.target is None and source.sde is not None:
        raise InputError(f"--sde={source.sde} is the path of a target; {source.title} has its own")
    if source.workdir is not None:
        if source.reference is not None:
            raise InputError("--reference does not belong to a run, which is compared with its held-out data")
        return of_run(load_run(Path(source.workdir), source.overrides, FREE, trust), source)
    config = _settings(source)
    if source.diffusers is not None:
        return _of_pipeline(source, source.diffusers, config, trust)
    return _of_target(source, f"{source.target}", config)


def of_run(run: Run, source: Source) -> Subject:
    """A run, with its held-out data.

    Raises:
        InputError: the data cannot be read.
    """
    data = build.load_data(run.config, run.card)
    reference = data.test.first(REFERENCES).x
    facts = {
        "path": run.config.process or run.config.sde,
        "prediction": run.config.model.predicts,
        "step": run.step,
        "average": run.average and run.average.facts(),
        "weights": weights_of(run.denoiser.network),
        "reference": f"held-out {run.config.data.name}, {len(reference)} samples, {fingerprint(reference)}",
    }
    about = {"network": run.config.model.network, "config": run.config.to_dict()}
    words = run.config.process is not None and not is_image(reference)
    return Subject(
        source, run.denoiser, run.card.shape, reference, facts, run.config, about, run.card.low, run.card.high,
        run.card.bin_width, data.train, data.test, run.card.texts if words else None, run, data.card, run.origin,
    )  # fmt: skip


def _settings(source: Source) -> ConfigDict:
    """The default config with the fields that are set.

    Raises:
        InputError: a field that only a run has.
    """
    for text in source.overrides:
        name = text.partition("=")[0].removeprefix("--config.")
        if name not in _SETTINGS:
            raise InputError(f"{name} cannot be set without a run; accepted: {', '.join(_SETTINGS)}")
    return override(copy.deepcopy(default.get_config()), source.overrides)


def _of_pipeline(source: Source, folder: str, config: ConfigDict, trust: bool) -> Subject:
    found = load(f"{DIFFUSERS}{folder.removeprefix(DIFFUSERS)}", trust)
    if not isinstance(found, Denoiser):
        raise InputError(
            f"{folder} draws latents given prompts: write a factory that returns its denoiser with the prompts, see "
            "scoresde.guide, and name it by --target"
        )
    return _of_model(source, found, as_model(found), config)


def _of_target(source: Source, text: str, config: ConfigDict) -> Subject:
    made = target_of(text)
    if isinstance(made, DiscreteEmpirical):
        raise InputError(f"the target {text!r} has discrete states: its factory must return target.denoiser(process)")
    if isinstance(made, GaussianMixture | Empirical):
        made = made.denoiser(make_sde(source.sde or "vp"))
    elif source.sde is not None:
        raise InputError(f"{text!r} makes a denoiser, which has its own path: leave out --sde={source.sde}")
    try:
        model = as_model(made, None)
    except InputError as error:
        raise InputError(f"{text!r} makes neither a target nor a denoiser: {error}") from None
    return _of_model(source, made, model, config)


def _of_model(source: Source, denoiser: Any, model: Model, config: ConfigDict) -> Subject:
    """A model without a run: its reference is a file, or draws of its target if that is known.

    Raises:
        InputError: the reference cannot be read; nothing states the shape of a sample.
    """
    exact = isinstance(denoiser, Exact | ExactDiscrete)
    card, reference, words = _reference(source, denoiser)
    shape = model.shape if model.shape is not None or reference is None else tuple(reference.shape[1:])
    if shape is None:
        raise InputError(
            f"{source.title} states no shape of its samples: add --reference=FILE, or give its denoiser .shape"
        )
    low, high = (-1.0, 1.0) if card is None else (card.low, card.high)
    if card is None and exact and reference is not None and bool(reference.min() < reference.max()):
        low, high = (float(end) for end in reference.aminmax())
    discrete = isinstance(model, DiscreteModel)
    facts = {
        "path": str(model.process if isinstance(model, DiscreteModel) else model.sde),
        "prediction": "exact score" if exact else model.output.name,
        **({} if source.target is None else {"target": source.target}),
        "weights": weights_of(nn.ModuleList(model.modules)) if model.modules else None,
        "reference": words,
    }
    texts = _numbers if discrete and not (reference is not None and is_image(reference)) else None
    return Subject(
        source,
        denoiser,
        shape,
        reference,
        facts,
        config,
        low=low,
        high=high,
        bin_width=None if card is None else card.bin_width,
        texts=texts,
        dtype=torch.float64 if exact and not discrete else torch.float32,
    )


def _reference(source: Source, denoiser: Any) -> tuple[DataCard | None, Tensor | None, str]:
    """The card of a file, the real samples, and what they are in words."""
    if source.reference is not None:
        data = load_whole(source.reference)
        x = data.test.some(REFERENCES).x
        return data.card, x, f"{len(x)} samples of a file, {fingerprint(x)}"
    if isinstance(denoiser, Exact | ExactDiscrete):
        x = denoiser.target.sample(DRAWS, generator(0, _STREAM))
        return None, x, f"{len(x)} draws of the target, {fingerprint(x)}"
    return None, None, "none"


def _numbers(x: Tensor) -> list[str]:
    """Tokens (B, *) as their numbers."""
    return [" ".join(map(str, row)) for row in x.flatten(1).tolist()]
