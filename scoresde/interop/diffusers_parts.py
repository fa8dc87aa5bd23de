"""The parts of a folder that a pipeline of diffusers was saved to: its index, its scheduler, and networks of diffusers.

Weights are read only from safetensors files, which contain numbers and no code. A folder may come from anybody: what a
config claims is compared with the weights that are there before memory is allocated.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from solvers import InputError
from solvers.errors import positive_integer
from solvers.files import read_json
from solvers.libraries import without_traces
from solvers.noise.seeded import global_seed
from solvers.registry.outside import Origin

from ..io.array_files import read_shapes
from ..paths.chain_paths import ChainSDE
from .diffusers_config import Reading, config_of

# entries of configs that count layers, of all networks that are read
_DEPTHS = ("layers_per_block", "transformer_layers_per_block", "num_layers", "num_hidden_layers")
_PLAIN = re.compile(r"[a-z_]+(-\d+-of-\d+)?\.safetensors")  # the name of a file of weights without a variant
_VARIANT = re.compile(r"\.([a-z0-9_]+)(-\d+-of-\d+)?\.safetensors")


@contextlib.contextmanager
def one_line(folder: Path) -> Iterator[None]:
    """Reports what diffusers raises about the values in a folder's files, which anybody may have written."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise InputError(f"{folder} is not a pipeline that can be read: {reason}") from None


def config_file(path: Path) -> dict[str, Any]:
    """The JSON object in a config's file.

    Raises:
        InputError: it cannot be read, or is something else.
    """
    document = read_json(path, "config")
    if not isinstance(document, dict):
        raise InputError(f"{path} is not a config of diffusers: it must contain a JSON object")
    return document


def index_of(folder: Path) -> dict[str, Any]:
    """The index of a pipeline: its class and its parts.

    Raises:
        InputError: diffusers is not installed, or the folder contains no pipeline.
    """
    try:
        with without_traces():
            import diffusers  # noqa: F401
    except ModuleNotFoundError:
        raise InputError(f'{folder}: reading it needs diffusers: pip install "scoresde[images]"') from None
    if not (folder / "model_index.json").is_file():
        raise InputError(f"{folder} is not a pipeline of diffusers: it contains no model_index.json")
    return config_file(folder / "model_index.json")


def has(index: Mapping[str, Any], part: str) -> bool:
    """Whether an index names a part; its entry is a library and a class, or twice null."""
    return isinstance(index.get(part), list) and bool(index[part]) and index[part][0] is not None


def scheduler_config(folder: Path) -> dict[str, Any]:
    """The complete config of a pipeline's scheduler.

    Raises:
        InputError: it cannot be read.
    """
    config = config_file(folder / "scheduler" / "scheduler_config.json")
    if "num_train_timesteps" in config:  # diffusers makes lists of that length
        positive_integer("num_train_timesteps", config["num_train_timesteps"])
    return config_of(config)


def origin_of_scheduler(folder: Path, trust: bool) -> Origin:
    """The limits of what a folder's scheduler may name."""
    return Origin(str(folder / "scheduler" / "scheduler_config.json"), trusted=trust)


def reading_of(folder: Path, config: Mapping[str, Any]) -> Reading:
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


def weights_in(path: Path, config: Mapping[str, Any]) -> list[Path]:
    """The files of weights in a part's folder, after a look at what else it contains.

    Raises:
        InputError: quantised weights, a pipe or a device, no weights in safetensors, or far too many layers.
    """
    if "quantization_config" in config:
        raise InputError(f"{path} has quantised weights, which load does not support")
    if strange := sorted(p.name for p in path.iterdir() if not (p.is_file() or p.is_dir())):
        raise InputError(f"{path / strange[0]} is a pipe or a device, not a file")
    files = sorted(path.glob("*.safetensors"))
    if not files:
        found = sorted(p.name for p in path.iterdir() if p.suffix in (".bin", ".pt", ".ckpt", ".msgpack"))
        others = f"only {', '.join(found)}, which could run code when read" if found else "and no other weights"
        raise InputError(f"{path} has no weights in safetensors, {others}; save it with safe_serialization=True")
    return files


def refuse_claims(path: Path, config: Mapping[str, Any], files: list[Path], make: Any) -> None:
    """Compares the network that a config describes with its weights, before memory is allocated.

    Args:
        make: config -> the network, called on the device "meta".

    Raises:
        InputError: the network has more than twice as many numbers as the files of weights.
    """
    shapes = [shape for file in files for shape in read_shapes(file, "weights").values()]
    counts = [count for key in _DEPTHS for count in _numbers(config.get(key, 1))]
    if max(*counts, len(config.get("block_out_channels", ()))) > len(shapes):  # too many to make even one of each
        raise InputError(f"{path}: the config describes more layers than there are weights, {len(shapes)}")
    with torch.device("meta"):
        claimed = sum(value.numel() for value in make(dict(config)).state_dict().values())
    if claimed > 2 * (there := sum(map(math.prod, shapes))):
        raise InputError(f"{path}: the config describes {claimed:,} weights, and the files contain {there:,}")


def _numbers(value: Any) -> Iterator[Any]:
    """The numbers in a number or in nested lists of numbers."""
    if isinstance(value, (list, tuple)):
        for part in value:
            yield from _numbers(part)
    else:
        yield value


def read_network(path: Path, classes: Mapping[str, str]) -> Any:
    """A network of diffusers in float32, in evaluation mode, whose weights need no gradient.

    Args:
        path: its folder.
        classes: the names that its config may have, each with the class of diffusers that reads it.

    Raises:
        InputError: a different network, no weights in safetensors, or weights that do not fit.
    """
    config = config_file(path / "config.json")
    name = config.get("_class_name")
    if not isinstance(name, str) or name not in classes:
        raise InputError(f"{path} is a {name}, which load does not support; it supports {', '.join(classes)}")
    files = weights_in(path, config)
    with without_traces():
        import diffusers

        made: Any = getattr(diffusers, classes[name])
    refuse_claims(path, config, files, made.from_config)
    plain = any(_PLAIN.fullmatch(file.name) for file in files)
    variant = None if plain else next((m[1] for file in files if (m := _VARIANT.search(file.name))), None)
    try:
        with without_traces(), global_seed(0):  # its first weights, which are replaced, do not move the generator
            network, found = made.from_pretrained(
                str(path),
                variant=variant,
                use_safetensors=True,
                local_files_only=True,
                low_cpu_mem_usage=False,
                output_loading_info=True,
            )
    except Exception as error:  # from diffusers, safetensors or torch: a damaged file, or another network's weights
        raise InputError(f"{path}: {' '.join(str(error).split())[:200]}") from None
    if astray := [*found["missing_keys"], *found["unexpected_keys"]]:
        raise InputError(f"{path}: the weights do not fit the config; they differ in {astray[0]}")
    return network.eval().requires_grad_(False)
