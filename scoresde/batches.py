"""Batches: what a solve can start from, how it is cut into batches, and whether its outcome is finite."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

import solvers
from solvers import InputError

from .plan import Plan


def check_batch(name: str, x: Tensor, condition: Mapping[str, Tensor] | None = None) -> None:
    """Refuses what a solve cannot start from.

    Raises:
        InputError: x is not a batch (B, *) of finite floats, or a condition is not a tensor of B rows.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 2 or not x.numel():
        shown = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise InputError(f"{name} must be floats (B, *), at least one sample, got {shown}")
    if not torch.isfinite(x).all():
        raise InputError(f"{name} holds numbers that are not finite")
    check_conditions(condition, len(x))


def check_conditions(condition: Mapping[str, Tensor] | None, count: int) -> None:
    """Refuses conditions that do not have a row per sample.

    Raises:
        InputError: one is not a tensor of ``count`` rows.
    """
    for name, value in (condition or {}).items():
        if not isinstance(value, Tensor) or value.ndim == 0 or len(value) != count:
            shown = f"{len(value)} rows" if isinstance(value, Tensor) and value.ndim else "no rows"
            raise InputError(f"{name} has {shown} for {count} samples")


def batches_of(count: int, batch_size: int | None) -> list[slice]:
    """The rows of each batch; all in one where no size is given.

    Raises:
        InputError: the size is not a positive integer.
    """
    size = solvers.errors.positive_integer("batch_size", count if batch_size is None else batch_size)
    return [slice(i, min(i + size, count)) for i in range(0, count, size)]


def check_finite(x: Tensor, plan: Plan) -> None:
    """Refuses the outcome of a solve (B, *) that went astray.

    Raises:
        InputError: rows are not finite.
    """
    if lost := int((~torch.isfinite(x.flatten(1))).any(1).sum()):
        raise InputError(f"{lost} of {len(x)} samples of {plan.solver} on {plan.grid} are not finite")
