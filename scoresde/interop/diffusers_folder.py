"""Pipelines of diffusers, read from a folder that ``save_pretrained`` wrote.

A folder contains ``model_index.json``, ``scheduler/scheduler_config.json`` and a folder with a config and weights for
each network. A DDPMPipeline or DDIMPipeline, a UNet on pixels, is read as a ``Denoiser``; a pipeline in the latent
space of an autoencoder as a ``LatentPipeline``. The scheduler's config defines the chain of betas, the network's
output, the clipping of x0, and whether the network learned its variance.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import solvers
from solvers import InputError
from solvers.foreign import diffusers as diffusers_labels

from ..models.denoiser import Denoiser
from . import latent_folder
from .diffusers_parts import has, index_of, one_line, origin_of_scheduler, read_network, reading_of, scheduler_config
from .latent_pipeline import LatentPipeline

PIXELS = ("DDPMPipeline", "DDIMPipeline")
PIPELINES = (*PIXELS, *latent_folder.PIPELINES)
SUPPORTED = f"{', '.join(PIPELINES[:-1])} and {PIPELINES[-1]}"
# parts of pipelines that load does not support, the most telling first
PARTS = {
    "text_encoder_2": "a pipeline with several text encoders",
    "text_encoder": "a pipeline conditioned on text",
    "bert": "a pipeline conditioned on text",
    "vae": "a pipeline in the latent space of an autoencoder",
    "vqvae": "a pipeline in the latent space of an autoencoder",
}


def read(folder: Path, trust: bool = False) -> Denoiser | LatentPipeline:
    """The model of a pipeline's folder.

    A UNet on pixels becomes a ``Denoiser`` on the ``ChainSDE`` of its scheduler, label "index". The network is in
    evaluation mode and its weights need no gradient. ``clip`` is the scheduler's ``clip_sample_range`` if
    ``clip_sample`` is true, ``learned_variance`` stands for ``variance_type="learned_range"``, and ``shape`` is
    (C, H, W) of the UNet. For pipelines with an autoencoder see ``scoresde.interop.latent_folder``. ``own_solver``
    and ``own_grid`` return the solver and the grid that the pipeline itself would use.

    Args:
        folder: the pipeline's folder.
        trust: import the modules that the scheduler's config names, which runs their code.

    Raises:
        InputError: no such pipeline, or one that is not supported; weights only as pickles; a scheduler with
            ``thresholding``, without a chain of betas, or with a variance that does not fit the network; a damaged
            file.
    """
    with one_line(folder):
        index = _index(folder)
        config = _config(folder, index)
        with origin_of_scheduler(folder, trust).limits():
            reading = reading_of(folder, config)
        if index["_class_name"] in latent_folder.PIPELINES:
            return latent_folder.read(folder, index, reading)
        return _pixels(folder, config, reading)


def own_solver(folder: str | Path, trust: bool = False) -> str:
    """The spec of the solver that a saved pipeline of diffusers itself would use, at its defaults.

    On ``ddpm_chain`` a DDPMScheduler is "ddpm" (``fixed_small``), "ddpm(variance=beta)" (``fixed_large``) or
    "ddpm(variance=learned)" (``learned_range``); a DDIMScheduler is "ddim". The spec contains the scheduler's
    ``lower_order_final``, which some classes apply only to fewer than 15 steps.

    Args:
        folder: the pipeline's folder.
        trust: as for ``read``.

    Raises:
        InputError: see ``read``; or the scheduler's method has no counterpart here.
    """
    path = Path(str(folder).removeprefix("diffusers:"))
    with one_line(path):
        return _own_solver(path, trust)


def own_grid(folder: str | Path, trust: bool = False) -> str:
    """The spec of the grid that a saved pipeline of diffusers itself would use, such as "leading(steps_offset=1)".

    Args:
        folder: the pipeline's folder.
        trust: as for ``read``.

    Raises:
        InputError: see ``read``.
    """
    path = Path(str(folder).removeprefix("diffusers:"))
    with one_line(path):
        config = _config(path, _index(path))
        with origin_of_scheduler(path, trust).limits():
            reading = reading_of(path, config)
            return str(config.get("grid") or reading.spacing(config))


def _index(folder: Path) -> dict[str, Any]:
    """The index of a pipeline of a supported class.

    Raises:
        InputError: the folder contains no pipeline, or one that is not supported.
    """
    index = index_of(folder)
    name = index.get("_class_name")
    if name in latent_folder.PIPELINES:
        return index
    for part, words in PARTS.items():
        if has(index, part):
            raise InputError(f"{folder} is {words} ({name}), which load does not support; it supports {SUPPORTED}")
    if name not in PIXELS:
        raise InputError(f"{folder} is a {name}, which load does not support; it supports {SUPPORTED}")
    return index


def _config(folder: Path, index: dict[str, Any]) -> dict[str, Any]:
    """The complete config of the pipeline's scheduler, as the pipeline uses it."""
    config = scheduler_config(folder)
    return {**config, **latent_folder.changed(index["_class_name"], config)}


def _pixels(folder: Path, config: dict[str, Any], reading: Any) -> Denoiser:
    """The denoiser of a UNet on pixels."""
    ranged = config.get("variance_type") == "learned_range"
    unet = read_network(folder / "unet", {"UNet2DModel": "UNet2DModel"})
    inputs, outputs = int(unet.config.in_channels), int(unet.config.out_channels)
    if outputs != (1 + ranged) * inputs:
        raise InputError(
            f"{folder}: the UNet returns {outputs} channels for {inputs}, but the scheduler's variance_type is "
            f"{config.get('variance_type')!r}"
        )
    size = unet.config.sample_size
    sides = (size, size) if isinstance(size, int) else size
    return Denoiser(
        unet,
        reading.sde,
        reading.output.name,
        reading.label,
        reading.output.sigma_data,
        learned_variance=ranged,
        clip=float(config.get("clip_sample_range", 1.0)) if config.get("clip_sample") else None,
        shape=None if sides is None else (inputs, *map(int, sides)),
    )


def _own_solver(path: Path, trust: bool) -> str:
    config = _config(path, _index(path))
    with origin_of_scheduler(path, trust).limits():
        reading_of(path, config)
        if "solver" in config:  # a scheduler of ours
            return str(solvers.make(config["solver"]))
    name = config["source_class"]
    if name == "DDIMScheduler" and config.get("clip_sample"):
        raise InputError(
            f"{path}: DDIMScheduler with clip_sample=True keeps an eps that does not fit the clipped x0, which has no "
            "counterpart here; its samples differ from those of ddim"
        )
    if config.get("variance_type") == "learned_range":
        return "ddpm(variance=learned)"
    flags = {key: value for key, value in config.items() if key in diffusers_labels.FLAGS or key == "variance_type"}
    flags = {key: value for key, value in flags.items() if value is not None and value != ""}
    return diffusers_labels.read(name, ", ".join(f"{key}={value!r}" for key, value in flags.items()))[0]
