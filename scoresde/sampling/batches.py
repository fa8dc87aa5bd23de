"""Batching of samples, and checks of the inputs and the result of a solve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import solvers
from solvers import BrownianNoise, InputError, Node, SeededNoise
from solvers.errors import unknown
from solvers.noise.uniform import UniformNoise

from ..io import progress
from ..io.inputs import conditions_of, tensor_of
from ..models.faults import report_faults, start_faults
from ..models.model import Model
from .discrete import tokens_of

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


def check_start(
    x_init: Tensor | None, count: int, shape: tuple[int, ...], node: Node | None = None, model: Model | None = None
) -> None:
    """Rejects starting states that are not ``count`` states of ``shape``; warns if they do not suit their ``node``.

    Raises:
        InputError: ``x_init`` has a different shape or is not a batch of finite floats.
    """
    if x_init is None:
        return
    if tuple(x_init.shape) != (count, *shape):
        raise InputError(f"x_init must have shape {(count, *shape)}, a state per seed, got {tuple(x_init.shape)}")
    if model is not None and model.space == "discrete":
        tokens_of("x_init", x_init, model.sde)
        return
    batch_of("x_init", x_init)
    if node is not None:
        report_faults(start_faults(x_init, node))


def batch_of(name: str, x: Any, condition: Any = None, model: Model | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    """A batch (B, *) that a solve can start from, and its conditions, as tensors on one device.

    The conditions are those of the model's network, if there is a model, and those that it brings along.

    Raises:
        InputError: x is not a batch of finite floats; see also ``inputs.conditions_of``.
    """
    x = tensor_of(name, x)
    if not x.is_floating_point() or x.ndim < 2 or not x.numel():
        raise InputError(f"{name} must be floats (B, *), at least one sample, got {x.dtype} of shape {tuple(x.shape)}")
    if not torch.isfinite(x).all():
        rows = torch.nonzero(~torch.isfinite(x.detach().flatten(1)).all(1)).flatten().tolist()
        shown = ", ".join(map(str, rows[:10])) + (f" and {len(rows) - 10} more" if len(rows) > 10 else "")
        raise InputError(f"{name} contains numbers that are not finite, in sample{'s' * (len(rows) > 1)} {shown}")
    known, given = ((), {}) if model is None else (model.conditions, model.given)
    return x, conditions_of(condition, len(x), x.device, known, given)


def batches_of(count: int, batch_size: int | None) -> list[slice]:
    """The rows of each batch; one batch of all rows if ``batch_size`` is None.

    Raises:
        InputError: the size is not a positive integer.
    """
    size = solvers.errors.positive_integer("batch_size", count if batch_size is None else batch_size)
    return [slice(i, min(i + size, count)) for i in range(0, count, size)]


def check_source(noise: str, space: str = "gaussian") -> type[Source]:
    """The class of a kind of noise, from its name.

    Raises:
        InputError: it is neither ``seeded`` nor ``brownian``; or ``brownian`` for discrete states.
    """
    if space == "discrete":
        if noise != "seeded":
            raise InputError(f"discrete states have seeded noise only, got {noise!r}")
        return UniformNoise
    if noise not in SOURCES:
        raise unknown("noise", noise, SOURCES)
    return SOURCES[noise]
