"""From names to objects: the only file that knows both.

A run is a folder: ``config.json`` (the config and the card of its data), ``train.jsonl``, ``checkpoints/``.
"""

from __future__ import annotations

import importlib.resources
import importlib.util
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

import torch
from absl import flags
from ml_collections import ConfigDict, config_flags
from torch import nn

from solvers import InputError, grids, make, resolve
from solvers.errors import positive_integer, unknown

from . import bound_losses, checkpoint  # noqa: F401  (the first registers its losses)
from .configs import default
from .data import Dataset, load
from .decoders import Decoder, Discretised, Gaussian
from .denoiser import Denoiser
from .learned_path import with_schedule
from .losses import Loss, losses
from .networks import networks
from .results import write_json
from .sde import make_sde
from .time_samplers import times
from .train import TrainingOptions

# what may change between the sessions of one training run
_FREE = (
    "device",
    "data.path",
    "training.steps",
    "training.learning_rate",
    "training.clip",
    "training.log_every",
    "training.checkpoint_every",
    "training.keep",
)
_FREE_SECTIONS = ("sampling", "likelihood")


@dataclass(frozen=True)
class DataCard:
    """What the other commands need to know of the training data: shape, range, bin width, standard deviation."""

    shape: tuple[int, ...]
    low: float
    high: float
    bin_width: float | None


@dataclass(frozen=True)
class Run:
    """A trained run, ready to be sampled and scored with its averaged weights."""

    config: ConfigDict
    denoiser: Denoiser
    card: DataCard
    step: int


def read_config(name: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """The config of a file (or, by its bare name, of one that comes with the library) with ``--config.x=y`` applied.

    Raises:
        InputError: no such file, no ``get_config`` in it, or an override of an unknown field or the wrong type.
    """
    path = Path(name)
    packaged = Path(str(importlib.resources.files("scoresde.configs")))
    if not path.is_file():
        beside = packaged / f"{path.stem}.py"
        if path.parent.name not in ("", "configs") or not beside.is_file():
            known = [p.stem for p in packaged.glob("*.py") if not p.stem.startswith("_")]
            raise unknown("config file", name, known, "(or give the path of a file)")
        path = beside
    spec = importlib.util.spec_from_file_location(f"scoresde_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise InputError(f"{name} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except (Exception, SystemExit) as error:
        raise InputError(f"{name}: {type(error).__name__}: {_line(error)}") from error
    if not isinstance(config, ConfigDict):
        raise InputError(f"{name}: get_config() must return a ConfigDict")
    return override(config, overrides)


def override(config: ConfigDict, overrides: Sequence[str]) -> ConfigDict:
    """A config with ``--config.section.field=value`` arguments applied.

    Raises:
        InputError: an unknown field, or a value of another type.
    """
    fields = dict(_flat(config))
    for argument in overrides:
        name, separator, _ = argument.partition("=")
        field = name.removeprefix("--config.")
        if not separator or field == name:
            raise InputError(f"cannot read {argument!r}; expected --config.section.field=value")
        if field not in fields:
            raise unknown("config field", field, fields)
    holder = flags.FlagValues()  # type: ignore[no-untyped-call]
    argv = ["scoresde", *overrides]
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=holder, sys_argv=argv)
        holder(argv)
    except (flags.Error, AttributeError, TypeError, ValueError) as error:
        raise InputError(_line(error)) from None
    return cast(ConfigDict, holder.config)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, (ConfigDict, dict)):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def load_data(config: ConfigDict, card: DataCard | None = None) -> Dataset:
    """The data set that a config names.

    Raises:
        InputError: it cannot be read, or its samples are not of the card's shape.
    """
    data = load(config.data.name, config.data.path, config.seed)
    if card is not None and data.shape != card.shape:
        raise InputError(f"the data are of shape {data.shape}, the model was trained on {card.shape}")
    return data


def card_of(config: ConfigDict, data: Dataset) -> DataCard:
    """The card of a data set; the config's bin width goes before the data's own."""
    width = config.data.bin_width
    return DataCard(data.shape, data.low, data.high, data.bin_width if width is None else width)


def device_of(config: ConfigDict) -> torch.device:
    """The device that a config names.

    Raises:
        InputError: it is not a device, or not one of this machine.
    """
    try:
        device = torch.device(config.device)
        torch.empty(0, device=device)
        if device.type == "meta":
            raise RuntimeError("it holds no numbers")
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"device {config.device!r} is not to be had: {_line(error).partition('. ')[0]}") from None
    return device


def build_denoiser(config: ConfigDict, shape: tuple[int, ...]) -> tuple[Denoiser, nn.Module]:
    """The denoiser of a config and the network inside it, its weights drawn from the seed."""
    if not 0 <= config.seed < 2**63:
        raise InputError(f"seed must be at least 0 and below 2^63, got {config.seed}")
    torch.manual_seed(config.seed)
    model, recipe = config.model, networks.make(config.model.network)
    network = recipe.build(shape, outputs=2) if model.learned_variance else recipe.build(shape)
    sde = make_sde(config.sde)
    network = with_schedule(network, sde).to(device_of(config))
    denoiser = Denoiser(
        network,
        sde,
        model.predicts,
        model.time_label,
        model.sigma_data,
        model.num_train_timesteps,
        round_labels=model.round_labels,
        learned_variance=model.learned_variance,
        shape=shape,
    )
    return denoiser, network


def build_loss(config: ConfigDict, card: DataCard) -> Loss:
    """The training loss of a config, with its target, its times and the decoder that its data need."""
    loss: Any = losses.make(config.training.loss)
    given = {"target": config.training.target, "times": times.make(config.training.times)}
    if getattr(loss, "decoder", 0) is None:
        given["decoder"] = build_decoder(config, card)
    names = {field.name for field in fields(loss)}
    made: Loss = replace(loss, **{name: value for name, value in given.items() if name in names})
    return made


def build_decoder(config: ConfigDict, card: DataCard) -> Decoder:
    """The last step of a bound: the mass of a level's bin where the data are discrete and not spread over their bins,
    else the density."""
    if card.bin_width is None or config.data.dequantise:
        return Gaussian()
    return Discretised(card.bin_width, card.low, card.high)


def build_options(config: ConfigDict, card: DataCard, workdir: Path | None) -> TrainingOptions:
    """The training options of a config."""
    training = {k: v for k, v in config.training.items() if k not in ("loss", "target", "times")}
    width = card.bin_width if config.data.dequantise else None
    return TrainingOptions(**training, seed=config.seed, bin_width=width, workdir=workdir)


def solve_options(section: ConfigDict) -> dict[str, Any]:
    """``sampling`` or ``likelihood`` as arguments of ``sample`` or ``log_prob``; ``nfe`` goes before ``steps``."""
    solver = make(resolve(section.solver)[0])
    own_steps = solver.adaptive or solver.nodes is not None or (section.grid and grids.make(section.grid).fixed)
    steps = None if own_steps or section.nfe is not None else section.steps
    return {
        "solver": section.solver,
        "grid": section.grid,
        "steps": steps,
        "nfe": section.nfe,
        "batch_size": section.batch_size,
        **({"noise": section.noise} if "noise" in section else {}),
    }


def claim(workdir: Path, config: ConfigDict, card: DataCard) -> None:
    """Writes ``config.json`` into a run's folder, new or of the same config.

    Raises:
        InputError: the folder holds a run of another config; the message names the first field that differs.
    """
    if checkpoint.latest(workdir) is not None:
        if not (workdir / "config.json").exists():
            raise InputError(f"{workdir} holds checkpoints but no config.json; take another --workdir")
        _refuse_another(workdir, _read(workdir)[0], config, "take another --workdir")
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / "config.json", {"config": config.to_dict(), "data": asdict(card)})


def _refuse_another(workdir: Path, saved: ConfigDict, config: ConfigDict, advice: str) -> None:
    old, new = dict(_flat(saved)), dict(_flat(config))
    for field in new:
        if field in _FREE or field.partition(".")[0] in _FREE_SECTIONS or old[field] == new[field]:
            continue
        raise InputError(
            f"{workdir} holds a run of another config: {field} is {old[field]!r} there and {new[field]!r} here; "
            f"{advice}"
        )


def _read(workdir: Path) -> tuple[ConfigDict, DataCard]:
    path = workdir / "config.json"
    if not path.is_file():
        raise InputError(f"{workdir} is not a run: it holds no config.json")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        config = default.get_config()
        config.update(document["config"])
        data = document["data"]
        shape = tuple(positive_integer("shape", length) for length in data["shape"])
        return config, DataCard(shape, data["low"], data["high"], data["bin_width"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged or of another version: {_line(error)}") from None


def load_run(workdir: Path, overrides: Sequence[str] = ()) -> Run:
    """A run from its folder: config, averaged weights of the last checkpoint, data card.

    Raises:
        InputError: the folder is not a run, holds no checkpoint, or one that is damaged or does not fit its config.
    """
    saved_config, card = _read(workdir)
    config = override(_read(workdir)[0], overrides)
    _refuse_another(workdir, saved_config, config, "only sampling, likelihood, device and data.path can be overridden")
    folder = checkpoint.latest(workdir)
    if folder is None:
        raise InputError(f"{workdir} holds no checkpoint; run scoresde train first")
    saved = checkpoint.load(folder)
    denoiser, network = build_denoiser(config, card.shape)
    try:
        network.load_state_dict(dict(saved.ema))
    except RuntimeError as error:
        raise InputError(f"{folder} does not fit the network {config.model.network!r}: {_line(error)}") from None
    network.eval().requires_grad_(False)
    return Run(config, denoiser, card, saved.step)
