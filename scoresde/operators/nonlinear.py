"""Nonlinear operators: Fourier magnitudes, a saturating measurement, rounding, a function of yours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from solvers import InputError
from solvers.registry.ranges import Count, Positive, Range

from .base import Operator, flat, operators, times
from .blur import axes_of, each
from .linear import Sense


@operators.register("phase", aliases=("phase_retrieval",), kind="nonlinear", formula="y = |F x|")
@dataclass(frozen=True)
class Phase(Operator):
    """The magnitudes of the unitary Fourier transform of each channel; -x and shifts of x have the same observation.

    Attributes:
        oversample: the axes are first lengthened with zeros by this factor, which leaves fewer samples with the same
            observation.
    """

    oversample: Count = 1

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if not shape:
            raise InputError("phase: samples need an axis")
        axes = axes_of(shape)
        return (*shape[: len(shape) - len(axes)], *(self.oversample * length for length in axes))

    def __call__(self, x: Tensor) -> Tensor:
        lengths = axes_of(self.shape(tuple(x.shape[1:])))
        axes = tuple(range(-len(lengths), 0))
        return each(lambda row: torch.fft.fftn(row, s=lengths, dim=axes, norm="ortho").abs(), x)


@operators.register("tanh", kind="nonlinear", formula="y = tanh(scale B x), B with m random orthonormal rows")
@dataclass(frozen=True)
class Tanh(Operator):
    """Products with ``m`` random orthonormal vectors, as ``sense`` has them, that saturate: tanh(scale B x)."""

    m: Count
    scale: Positive = 1.0
    seed: Annotated[int, Range(0)] = 0

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return self._inner.shape(shape)

    def __call__(self, x: Tensor) -> Tensor:
        flattened = flat(self, x)
        return torch.tanh(self.scale * times(self._inner.matrix(tuple(x.shape[1:])), flattened))

    @property
    def _inner(self) -> Sense:
        return Sense(self.m, self.seed)


@operators.register("quantise", aliases=("quantize",), kind="nonlinear", formula="y = the nearest level")
@dataclass(frozen=True)
class Quantise(Operator):
    """Each number rounded to the nearest of ``levels`` values at equal distances from ``low`` to ``high``.

    Its gradient is 0: methods that take the gradient of the residual learn nothing from it.
    """

    levels: Annotated[int, Range(2)]
    low: float = -1.0
    high: float = 1.0
    differentiable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.low < self.high:
            raise InputError(f"quantise: low must be below high, got {self.low:g} and {self.high:g}")

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(shape)

    def __call__(self, x: Tensor) -> Tensor:
        step = (self.high - self.low) / (self.levels - 1)
        return self.low + step * ((x.clamp(self.low, self.high) - self.low) / step).round()


@operators.register("custom", kind="nonlinear", formula="y = function(x)", note="for Python: its function is no text")
@dataclass(frozen=True, eq=False)
class Custom(Operator):
    """A differentiable function of yours, which need not be linear: samples (B, *) to observations (B, *m).

    For a linear one, derive from ``Operator`` and set ``linear``: its adjoint then follows by autograd.
    """

    function: Callable[[Tensor], Tensor]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not callable(self.function):
            raise InputError(f"custom: function must be a function of samples (B, *), got {self.function!r:.60}")

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if shape not in self._shapes:
            with torch.no_grad():
                try:
                    found = self(torch.zeros(1, *shape))
                except RuntimeError:  # a function of float64 numbers only
                    found = self(torch.zeros(1, *shape, dtype=torch.float64))
            self._shapes[shape] = tuple(found.shape[1:])
        return self._shapes[shape]

    @cached_property
    def _shapes(self) -> dict[tuple[int, ...], tuple[int, ...]]:
        return {}

    def __call__(self, x: Tensor) -> Tensor:
        found = self.function(x)
        if not isinstance(found, Tensor) or found.ndim < 1 or len(found) != len(x):
            given = f"a tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise InputError(f"custom: the function must return one observation per sample, ({len(x)}, *), got {given}")
        return found
