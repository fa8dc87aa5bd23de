"""Batching of samples, and checks of the inputs and the result of a solve."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import solvers
from solvers import BrownianNoise, InputError, SeededNoise
from solvers.errors import unknown

from .. import progress
from .plan import Plan

Source = SeededNoise | BrownianNoise
SOURCES: dict[str, type[SeededNoise] | type[BrownianNoise]] = {"seeded": SeededNoise, "brownian": BrownianNoise}


@dataclass(frozen=True)
class Batching:
    """The batch size, device and dtype of a solve, and whether it shows a progress bar.

    Attributes:
        batch_size: the number of samples in a batch, by default all. It does not change the samples.
        device: the device of the model.
        dtype: the dtype of the states that the model receives.
        progress: show a progress bar over the steps.

    Raises:
        InputError: the dtype is not a float type.
    """

    batch_size: int | None = None
    device: torch.device | str = "cpu"
    dtype: torch.dtype = torch.float32
    progress: bool = False

    def __post_init__(self) -> None:
        if not self.dtype.is_floating_point:
            raise InputError(f"dtype must be a float type, got {self.dtype}")

    def rows(self, count: int) -> list[slice]:
        """The rows of each batch of ``count`` samples.

        Raises:
            InputError: the batch size is not a positive integer.
        """
        return batches_of(count, self.batch_size)

    def bar(self, steps: int, label: str) -> Any:
        """A progress bar over ``steps`` steps."""
        return progress.bar(total=steps, desc=label, disable=not self.progress)


def check_draws(seeds: Iterable[int], shape: Iterable[int]) -> tuple[list[int], tuple[int, ...]]:
    """Returns the seeds as a list and the shape of a sample as a tuple, both checked.

    Raises:
        InputError: either is not a list, or a length in the shape is not a positive integer.
    """
    if not isinstance(seeds, Iterable) or not isinstance(shape, Iterable):
        raise InputError(f"seeds and shape must be lists of integers, got {seeds!r} and {shape!r}")
    found, lengths = list(seeds), tuple(shape)
    for length in lengths:
        solvers.errors.positive_integer("every length in shape", length)
    return found, lengths


def check_start(x_init: Tensor | None, count: int, shape: tuple[int, ...]) -> None:
    """Rejects starting states that are not ``count`` states of ``shape``.

    Raises:
        InputError: ``x_init`` has a different shape or is not a batch of finite floats.
    """
    if x_init is None:
        return
    if tuple(x_init.shape) != (count, *shape):
        raise InputError(f"x_init must have shape {(count, *shape)}, a state per seed, got {tuple(x_init.shape)}")
    check_batch("x_init", x_init)


def check_batch(name: str, x: Tensor, condition: Mapping[str, Tensor] | None = None) -> None:
    """Rejects a batch that a solve cannot start from.

    Raises:
        InputError: x is not a batch (B, *) of finite floats, or a condition is not a tensor of B rows.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 2 or not x.numel():
        shown = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise InputError(f"{name} must be floats (B, *), at least one sample, got {shown}")
    if not torch.isfinite(x).all():
        raise InputError(f"{name} contains numbers that are not finite")
    check_conditions(condition, len(x))


def check_conditions(condition: Mapping[str, Tensor] | None, count: int) -> None:
    """Rejects conditions that do not have one row per sample.

    Raises:
        InputError: a condition is not a tensor of ``count`` rows.
    """
    for name, value in (condition or {}).items():
        if not isinstance(value, Tensor) or value.ndim == 0 or len(value) != count:
            shown = f"{len(value)} rows" if isinstance(value, Tensor) and value.ndim else "no rows"
            raise InputError(f"the condition {name} has {shown} for {count} samples; give one row per sample")


def batches_of(count: int, batch_size: int | None) -> list[slice]:
    """The rows of each batch; one batch of all rows if ``batch_size`` is None.

    Raises:
        InputError: the size is not a positive integer.
    """
    size = solvers.errors.positive_integer("batch_size", count if batch_size is None else batch_size)
    return [slice(i, min(i + size, count)) for i in range(0, count, size)]


def check_source(noise: str) -> None:
    """Checks the name of a kind of noise.

    Raises:
        InputError: it is neither ``seeded`` nor ``brownian``.
    """
    if noise not in SOURCES:
        raise unknown("noise", noise, SOURCES)


def check_finite(x: Tensor, plan: Plan) -> None:
    """Rejects the result (B, *) of a solve if it is not finite.

    Raises:
        InputError: some rows are not finite.
    """
    if lost := int((~torch.isfinite(x.flatten(1))).any(1).sum()):
        raise InputError(f"{lost} of {len(x)} samples of {plan.solver} on {plan.grid} are not finite")
