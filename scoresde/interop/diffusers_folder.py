"""Unconditional pixel-space pipelines of diffusers, read from a folder that ``save_pretrained`` wrote.

A folder contains ``model_index.json``, ``scheduler/scheduler_config.json`` and ``unet/`` with a config and weights. The
scheduler's config defines the chain of betas, the network's output, the clipping of x0, and whether the network learned
its variance. The weights are read only from safetensors files, which contain numbers and no code.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

import solvers
from solvers import InputError
from solvers.errors import positive_integer
from solvers.files import read_json
from solvers.foreign import diffusers as diffusers_labels
from solvers.libraries import library, without_traces
from solvers.noise.seeded import global_seed
from solvers.registry.outside import Origin

from ..array_files import read_shapes
from ..models.denoiser import Denoiser
from ..paths.chain_paths import ChainSDE
from .diffusers_config import Reading, config_of

PIPELINES = ("DDPMPipeline", "DDIMPipeline")
SUPPORTED = " and ".join(PIPELINES)
# components of pipelines that do more than apply a network to pixels
PARTS = {
    "vae": "a pipeline in the latent space of an autoencoder",
    "vqvae": "a pipeline in the latent space of an autoencoder",
    "text_encoder": "a pipeline conditioned on text",
    "bert": "a pipeline conditioned on text",
}


def read(folder: Path, trust: bool = False) -> Denoiser:
    """The denoiser of a pipeline's folder: its UNet on the ``ChainSDE`` of its scheduler, label "index".

    The network is in evaluation mode and its weights need no gradient. ``clip`` is the scheduler's
    ``clip_sample_range`` if ``clip_sample`` is true, ``learned_variance`` stands for ``variance_type="learned_range"``,
    and ``shape`` is (C, H, W) of the UNet. ``own_solver`` returns the solver that the pipeline itself would use.

    Args:
        folder: the pipeline's folder.
        trust: import the modules that the scheduler's config names, which runs their code.

    Raises:
        InputError: no such pipeline; a pipeline that is conditioned on text or works in a latent space; weights only as
            pickles; a scheduler with ``thresholding``, without a chain of betas, or with a variance that does not fit
            the network; a damaged file.
    """
    with _one_line(folder):
        return _read(folder, trust)


@contextlib.contextmanager
def _one_line(folder: Path) -> Iterator[None]:
    """Reports what diffusers raises about the values in a folder's files, which anybody may have written."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise InputError(f"{folder} is not a pipeline that can be read: {reason}") from None


def _read(folder: Path, trust: bool) -> Denoiser:
    config = _scheduler(folder)
    ranged = config.get("variance_type") == "learned_range"
    with _origin(folder, trust).limits():
        reading = _reading(folder, config)
    unet = _unet(folder)
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


def _origin(folder: Path, trust: bool) -> Origin:
    return Origin(str(folder / "scheduler" / "scheduler_config.json"), trusted=trust)


def own_solver(folder: str | Path, trust: bool = False) -> str:
    """The spec of the solver that a saved pipeline of diffusers itself would use, at its defaults.

    On ``ddpm_chain`` a DDPMScheduler is "ddpm" (``fixed_small``), "ddpm(variance=beta)" (``fixed_large``) or
    "ddpm(variance=learned)" (``learned_range``); a DDIMScheduler is "ddim". Over all N steps of the network its grid is
    ``leading``.

    Args:
        folder: the pipeline's folder.
        trust: as for ``read``.

    Raises:
        InputError: see ``read``; or the scheduler's method has no counterpart here.
    """
    path = Path(str(folder).removeprefix("diffusers:"))
    with _one_line(path):
        return _own_solver(path, trust)


def _own_solver(path: Path, trust: bool) -> str:
    config = _scheduler(path)
    with _origin(path, trust).limits():
        _reading(path, config)
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


def _json(path: Path) -> dict[str, Any]:
    document = read_json(path, "config")
    if not isinstance(document, dict):
        raise InputError(f"{path} is not a config of diffusers: it must contain a JSON object")
    return document


def _scheduler(folder: Path) -> dict[str, Any]:
    """The complete config of the pipeline's scheduler.

    Raises:
        InputError: the folder contains no pipeline, or one that is more than a UNet on pixels.
    """
    try:
        with without_traces():
            import diffusers  # noqa: F401
    except ModuleNotFoundError:
        raise InputError(f'{folder}: reading it needs diffusers: pip install "scoresde[images]"') from None
    if not (folder / "model_index.json").is_file():
        raise InputError(f"{folder} is not a pipeline of diffusers: it contains no model_index.json")
    index = _json(folder / "model_index.json")
    name = index.get("_class_name")
    for part, words in PARTS.items():
        if isinstance(index.get(part), list) and index[part][0] is not None:
            raise InputError(f"{folder} is {words} ({name}), which load does not support; it supports {SUPPORTED}")
    if name not in PIPELINES:
        raise InputError(f"{folder} is a {name}, which load does not support; it supports {SUPPORTED}")
    config = _json(folder / "scheduler" / "scheduler_config.json")
    if "num_train_timesteps" in config:  # diffusers makes lists of that length
        positive_integer("num_train_timesteps", config["num_train_timesteps"])
    return config_of(config)


def _reading(folder: Path, config: Mapping[str, Any]) -> Reading:
    """The path, output and time label of the scheduler's config.

    Raises:
        InputError: an entry of the config has no counterpart here.
    """
    known = dict(config)
    if known.get("thresholding"):  # a scheduler supports it, a denoiser does not
        raise InputError(f"{folder}: the config's thresholding=True has no counterpart here")
    if known.get("variance_type") == "learned_range":  # a denoiser supports it, a scheduler does not
        del known["variance_type"]
    try:
        reading = Reading.of(known)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from None
    if not isinstance(reading.sde, ChainSDE):
        raise InputError(f"{folder}: the scheduler is on {reading.sde}, not on a chain of betas")
    return reading


def _unet(folder: Path) -> Any:
    """The pipeline's UNet2DModel.

    Raises:
        InputError: a different network, no weights in safetensors, or weights that do not fit.
    """
    path = folder / "unet"
    config = _json(path / "config.json")
    name = config.get("_class_name")
    if name != "UNet2DModel":
        raise InputError(f"{path} is a {name}, which load does not support; it supports UNet2DModel")
    if "quantization_config" in config:
        raise InputError(f"{path} has quantised weights, which load does not support")
    if strange := sorted(p.name for p in path.iterdir() if not (p.is_file() or p.is_dir())):
        raise InputError(f"{path / strange[0]} is a pipe or a device, not a file")
    if not any(path.glob("*.safetensors")):
        found = sorted(p.name for p in path.iterdir() if p.suffix in (".bin", ".pt", ".ckpt", ".msgpack"))
        others = f"only {', '.join(found)}, which could run code when read" if found else "and no other weights"
        raise InputError(f"{path} has no weights in safetensors, {others}; save it with safe_serialization=True")
    _refuse_claims(path, config)
    try:
        with without_traces(), global_seed(0):  # its first weights, which are replaced, do not move the generator
            unet, found = library("diffusers").UNet2DModel.from_pretrained(
                str(path),
                use_safetensors=True,
                local_files_only=True,
                low_cpu_mem_usage=False,
                output_loading_info=True,
            )
    except Exception as error:  # from diffusers, safetensors or torch: a damaged file, or another network's weights
        raise InputError(f"{path}: {' '.join(str(error).split())[:200]}") from None
    if astray := [*found["missing_keys"], *found["unexpected_keys"]]:
        raise InputError(f"{path}: the weights do not fit the config; they differ in {astray[0]}")
    return unet.eval().requires_grad_(False)


def _refuse_claims(path: Path, config: dict[str, Any]) -> None:
    """Compares the network that a config describes with its weights, before memory is allocated.

    Raises:
        InputError: the network has more than twice as many numbers as the files of weights.
    """
    with without_traces():
        import diffusers

        make: Any = diffusers.UNet2DModel
    shapes = [shape for file in path.glob("*.safetensors") for shape in read_shapes(file, "weights").values()]
    blocks = config.get("block_out_channels", ())
    if max(config.get("layers_per_block", 1), len(blocks)) > len(shapes):  # too many layers to make even one of each
        raise InputError(f"{path}: the config describes more layers than there are weights, {len(shapes)}")
    with torch.device("meta"):
        claimed = sum(value.numel() for value in make.from_config(config).state_dict().values())
    if claimed > 2 * (there := sum(map(math.prod, shapes))):
        raise InputError(f"{path}: the config describes {claimed:,} weights, and the files contain {there:,}")
