"""The options of a training run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch

from solvers import InputError
from solvers.errors import number, positive_integer, unknown

from .averages import Decay, Power, decays_of
from .schedules import Schedule, schedules, warm_up

PRECISIONS = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""The dtype of the network's products and convolutions under ``torch.autocast``; None leaves the network as it is."""


@dataclass(frozen=True)
class TrainingOptions:
    """The options of ``train``.

    Attributes:
        steps: updates in total, including those before a resumption.
        batch_size: samples per update, of all processes together; batches run on across the ends of epochs, so that all
            have this size.
        learning_rate, weight_decay: AdamW's.
        warmup: updates over which the learning rate rises linearly; 0 for none.
        schedule: the learning rate after the warm-up: "constant", "cosine(end=0)" or "inverse_sqrt(after=2000)", see
            ``schedules``.
        clip: the largest norm of the gradient; longer gradients are scaled down to it; inf for no limit.
        averages: the averages of the weights, as specs, see ``averages``. The first is the one that is used.
        precision: "float32", or "bf16" or "fp16" for mixed precision: the weights stay in float32, and the network's
            products are computed in 16 bits. With fp16 the loss is scaled; an update whose gradient overflows is
            skipped, counted and logged.
        accumulate: the number of parts, one after the other, in which a process computes its share of a batch. It
            saves memory and does not change the gradient but for rounding, unless the network mixes the samples of a
            batch.
        compile: run the network through ``torch.compile`` while it is trained.
        seed: the seed of everything random.
        log_every, checkpoint_every: updates between log lines and between checkpoints; the first update is also logged,
            and the last one always writes a checkpoint.
        evaluate_every: updates between calls of the watchers, see ``Training.run``; 0 for none.
        keep: how many checkpoints to keep, the last ones.
        keep_every: also keep the checkpoints after a multiple of so many updates; None for none.
        snapshot_every: updates between snapshots of the power averages, from which ``posthoc`` reconstructs others;
            None for none.
        max_minutes: after so many minutes, counted from when this call starts to train, a checkpoint is written and the
            call returns; None for no limit.
        bin_width: spread each batch uniformly over bins of this width; None for continuous data.
        workdir: where ``train.jsonl`` and ``checkpoints/`` go; None to write nothing.
    """

    steps: int = 2000
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    warmup: int = 100
    schedule: str = "constant"
    clip: float = 1.0
    averages: str | tuple[str | Decay, ...] = "ema(decay=0.999)"
    precision: Literal["float32", "bf16", "fp16"] = "float32"
    accumulate: int = 1
    compile: bool = False
    seed: int = 0
    log_every: int = 50
    checkpoint_every: int = 500
    evaluate_every: int = 1000
    keep: int = 2
    keep_every: int | None = None
    snapshot_every: int | None = None
    max_minutes: float | None = None
    bin_width: float | None = None
    workdir: Path | None = None

    def __post_init__(self) -> None:
        for name in (
            "steps", "batch_size", "log_every", "checkpoint_every", "keep", "accumulate",
        ):  # fmt: skip
            positive_integer(name, getattr(self, name))
        for name in ("keep_every", "snapshot_every"):
            if getattr(self, name) is not None:
                positive_integer(name, getattr(self, name))
        if not any(isinstance(decay, Power) for decay in decays_of(self.averages)) and self.snapshot_every is not None:
            raise InputError(f"snapshot_every stores power averages, and averages names none: {self.averages}")
        for name in ("warmup", "evaluate_every"):
            if getattr(self, name) != 0:
                positive_integer(name, getattr(self, name))
        for name, least in (("learning_rate", "positive"), ("weight_decay", "at least 0")):
            _check_number(name, getattr(self, name), least)
        if self.clip != math.inf:
            _check_number("clip", self.clip, "positive")
        for name in ("bin_width", "max_minutes"):
            if getattr(self, name) is not None:
                _check_number(name, getattr(self, name), "positive or None")
        if type(self.compile) is not bool:
            raise InputError(f"compile must be True or False, got {self.compile!r}")
        if self.precision not in PRECISIONS:
            raise unknown("precision", self.precision, PRECISIONS)
        if self.accumulate > self.batch_size:
            raise InputError(f"accumulate={self.accumulate}: a batch of {self.batch_size} has fewer samples than parts")
        _ = self.rule

    @cached_property
    def rule(self) -> Schedule:
        """The schedule."""
        return schedules.make(self.schedule)

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of the update that follows ``step`` updates."""
        factor = warm_up(step, self.warmup) * self.rule.factor(step, self.steps, self.warmup)
        return self.learning_rate * factor


def _check_number(name: str, value: object, least: str) -> None:
    """Checks a finite number that must be positive or, where ``least`` says so, at least 0.

    Raises:
        InputError: it is no such number.
    """
    found = number(name, value)
    if not math.isfinite(found) or found < 0 or (found == 0 and "0" not in least):
        raise InputError(f"{name} must be {least}, got {value!r}")
