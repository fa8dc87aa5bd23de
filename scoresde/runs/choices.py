"""Settings that the data decide, where the user names a path and no config; written as a config to read and change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from ml_collections import ConfigDict

from solvers import InputError

from ..configs import default
from ..data.dataset import DataCard, Dataset
from . import build
from .config import flat, override

NAME = "config.py"
_LEAST_IMAGE = 16  # smaller pictures are vectors: convolutions need room
_COARSEST = 8  # the finest resolution is halved until it is at most this
_EPOCHS, _FEWEST = 1000, 2000  # at most so many passes over the data, but at least so many updates


class Choice(NamedTuple):
    """A field of the config, its value, and why; no reason for what the user gave."""

    field: str
    value: Any
    reason: str = ""


@dataclass(frozen=True, eq=False)
class Chosen:
    """A config that was made for some data.

    Attributes:
        config: the config.
        data: the data, which were read to choose.
        choices: what differs from the default config.
    """

    config: ConfigDict
    data: Dataset
    choices: tuple[Choice, ...]

    def summary(self) -> str:
        """What was chosen and why, a line for each choice."""
        width = max(len(f"{choice.field} = {choice.value}") for choice in self.choices)
        lines = [f"  {f'{c.field} = {c.value}':{width}}  {c.reason}".rstrip() for c in self.choices]
        return "\n".join(["chosen by the data, each to be replaced by --config.FIELD=VALUE:", *lines])

    def text(self, command: str) -> str:
        """The config as a file, which ``--config=`` reads."""
        lines = [
            f"    config.{choice.field} = {choice.value!r}{f'  # {choice.reason}' if choice.reason else ''}"
            for choice in self.choices
        ]
        return "\n".join(
            [
                f'"""Written by: {_quoted(command)}"""',
                "",
                "from scoresde.configs.default import ConfigDict",
                "from scoresde.configs.default import get_config as default",
                "",
                "",
                "def get_config() -> ConfigDict:",
                "    config = default()",
                *lines,
                "    return config",
                "",
            ]
        )


def choose(name: str, path: str, overrides: Sequence[str] = ()) -> Chosen:
    """Reads data and chooses the settings that suit them; what the user gives is not chosen.

    Args:
        name, path: the data, as ``config.data`` has them.
        overrides: ``--config.section.field=value`` arguments.

    Raises:
        InputError: the data cannot be read, or an override is invalid.
    """
    cfg = override(default.get_config(), [f"--config.data.name={name}", f"--config.data.path={path}", *overrides])
    given = {text.partition("=")[0].removeprefix("--config.") for text in overrides}
    if cfg.process is not None:
        raise InputError(
            "settings are chosen for numbers; for a process name a config, such as --config=text_absorbing"
        )
    if "device" not in given:
        cfg.device = _device()
    data = build.load_data(cfg)
    made = [Choice("data.name", name), Choice("data.path", path)]
    steps = cfg.training.steps if "training.steps" in given else None
    found = choices(data.card, torch.device(cfg.device).type, steps)
    made += [choice for choice in found if choice.field not in given]
    plain, fields = dict(flat(default.get_config())), dict(flat(cfg))
    made += [Choice(field, fields[field], "given") for field in fields if field in given and field not in _DATA]
    for choice in made:
        override(cfg, [f"--config.{choice.field}={choice.value}"])
    kept = tuple(choice for choice in made if choice.reason == "given" or choice.value != plain[choice.field])
    return Chosen(cfg, data, kept)


_DATA = ("data.name", "data.path")


def choices(card: DataCard, device: str, updates: int | None = None) -> list[Choice]:
    """The settings for data of a card on a device: "cpu", "cuda" or "mps".

    Args:
        updates: the number of updates, if the user gave it.
    """
    samples, size = card.samples[0], math.prod(card.shape)
    fast = device != "cpu"
    found = [Choice("device", device, "the accelerator of this machine" if fast else "no accelerator is here")]
    if convolutional(card.shape):
        network, reason, rate = _unet(card.shape, fast)
        batch = 128 if size <= 3 * 32**2 else 64 if size <= 3 * 64**2 else 16
        batch, steps, rows = (batch, 100_000, 64) if fast else (batch // 2, 20_000, 0)
    else:
        network = f"mlp(width={256 if size <= 256 else 512}, depth=3)"
        reason, rate = f"{size} numbers a sample, no picture of {_LEAST_IMAGE} pixels or more", 2e-3
        batch, steps, rows = 256 if size <= 64 else 128, 10_000, 32
    while batch > max(1, samples):
        batch //= 2
    enough = max(_FEWEST, _EPOCHS * samples // batch)
    limit = (
        f"{_EPOCHS:,} passes over {samples:,} samples" if enough < steps else "a start; the page shows what it brings"
    )
    steps = updates or min(steps, enough)
    decay = 0.9999 if steps >= 100_000 else 0.9995 if steps >= 20_000 else 0.999
    every = max(min(250, steps), steps // 10)
    return [
        *found,
        Choice("model.network", network, reason),
        Choice("training.batch_size", batch, "by the size of a sample"),
        Choice("training.steps", steps, limit),
        Choice("training.learning_rate", rate, "as is usual for this network"),
        Choice("training.averages", f"ema(decay={decay})", "by the number of updates"),
        Choice("training.evaluate_every", every, f"{steps // every} times in all"),
        Choice("training.checkpoint_every", every, "as often"),
        Choice("training.evaluate_likelihood", rows, "held-out samples, each time" if rows else "slow on this device"),
    ]


def convolutional(shape: tuple[int, ...]) -> bool:
    """Whether samples of a shape are pictures for which a U-Net is made."""
    return (
        len(shape) == 3 and shape[0] in (1, 3) and min(shape[1:]) >= _LEAST_IMAGE and not any(n % 2 for n in shape[1:])
    )


def _unet(shape: tuple[int, ...], fast: bool) -> tuple[str, str, float]:
    """A U-Net for pictures, the reason, and a learning rate."""
    _, height, width = shape
    levels, sides = 1, [height, width]
    while max(sides) > _COARSEST and not any(side % 2 for side in sides) and levels < 5:
        levels, sides = levels + 1, [side // 2 for side in sides]
    first, most = (64, 256) if fast else (32, 64)
    channels = [min(first * 2**level, most) for level in range(levels)]
    attention = f", layers=2, attention=[{levels - 1}]" if fast else ""
    spec = f"unet(channels={channels}{attention})"
    return spec, f"pictures of {height}x{width}, down to {sides[0]}x{sides[1]}", 2e-4 if fast else 5e-4


def _device() -> str:
    """The fastest device of this machine."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _quoted(text: str) -> str:
    """A text inside of a docstring of three quotes: on one line, without what would end it or start an escape."""
    return " ".join(text.split()).replace("\\", "\\\\").replace('"', '\\"')
