"""Trained models, loaded from a folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solvers import InputError
from solvers.libraries import without_traces

from ..models.denoiser import Denoiser
from ..models.faults import blind, report_faults, setting_faults

if TYPE_CHECKING:
    from torch import Tensor

    from ..interop.latent_pipeline import LatentPipeline

DIFFUSERS = "diffusers:"
_SIDE = 16  # of the latents at which a network is looked at


def load(source: str | Path, trust: bool = False, ema: float | None = None) -> Any:
    """The denoiser of a trained model, or a run's classifier, with averaged weights and in evaluation mode.

    Of a run with a process it is a ``DiscreteDenoiser``.

    It is on the device of the run's config, or on the CPU. ``denoiser.shape`` is the shape of a sample if the folder
    states it; ``denoiser.network`` is a module. Nothing is downloaded, and files of diffusers are never unpickled.
    A pipeline for texts or classes in the latent space of an autoencoder is a ``LatentPipeline`` with a ``denoiser``.

    Args:
        source: the folder of a run of ``scoresde train``; or "diffusers:FOLDER", a folder that diffusers' DDPMPipeline,
            DDIMPipeline, StableDiffusionPipeline or DiTPipeline was saved to, see
            ``scoresde.interop.diffusers_folder``.
        trust: import the modules that the folder's files name, such as that of the network "mine:Net"; this runs their
            code.
        ema: for a run: the relative standard deviation of a power average of the weights, which snapshots can
            reconstruct, see ``scoresde.training.posthoc``; by default that of the run's config, or the first of its
            averages.

    Raises:
        InputError: the folder is neither, or contains a model that is not supported, or names a module and is not
            trusted.
    """
    if not isinstance(source, (str, os.PathLike)):
        raise InputError(f"load takes the folder of a run, or {DIFFUSERS}FOLDER, got {source!r:.60}")
    text = str(source)
    if text.startswith(DIFFUSERS):
        if ema is not None:
            raise InputError(f"ema={ema!r} chooses an average of a run; a folder of diffusers has one set of weights")
        with without_traces():
            from ..interop import diffusers_folder  # here, because it needs diffusers

        found = diffusers_folder.read(Path(text.removeprefix(DIFFUSERS)), trust)
        if isinstance(found, Denoiser):
            return _looked_at(found, text)
        _looked_at(_small(found), text, found.null)
        return found
    path = Path(source)
    if (path / "model_index.json").is_file():
        raise InputError(f"{path} is a pipeline of diffusers: load('{DIFFUSERS}{path}')")
    if not path.is_dir():
        raise InputError(f"no folder {text!r}; load takes the folder of a run, or {DIFFUSERS}FOLDER")
    from .run import FREE, load_model  # here, because it imports the packages of the command line

    overrides = [] if ema is None else [f"--config.sampling.ema={ema}"]
    model, _ = load_model(path, overrides, FREE, trust)
    return _looked_at(model, text) if isinstance(model, Denoiser) else model


def _small(pipeline: LatentPipeline) -> Denoiser:
    """The denoiser of latents of a size at which its network is looked at in little time."""
    denoiser = pipeline.denoiser
    if not pipeline.resizable or denoiser.shape is None:
        return denoiser
    return replace(denoiser, shape=(denoiser.shape[0], *(min(side, _SIDE) for side in denoiser.shape[1:])))


def _looked_at(denoiser: Denoiser, source: str, given: Mapping[str, Tensor] | None = None) -> Denoiser:
    """The denoiser, after a warning if its settings do not suit its network; ``scoresde.check`` looks at more.

    Args:
        given: the conditions of one sample, see ``blind``.

    Raises:
        InputError: the network, whose settings come from a file, cannot be evaluated.
    """
    try:
        faults = [*setting_faults(denoiser), *blind(denoiser, given=given)]
    except InputError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise InputError(f"the network of {source} cannot be evaluated: {reason}") from error
    report_faults(faults)
    return denoiser
