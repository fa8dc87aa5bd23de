"""Linear operators: a mask, block means, the mean of channels, a matrix, random orthonormal rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from solvers import InputError, generator
from solvers.registry.ranges import Count, Range

from .base import LARGEST, SVD, Array, Operator, flat, numbers, operators, times


@operators.register("inpaint", aliases=("mask",), kind="linear", formula="y = the numbers of x where the mask is True")
@dataclass(frozen=True, eq=False)
class Inpaint(Operator):
    """The numbers of a sample that a mask shows: A is made of rows of the identity.

    Attributes:
        mask: True where a number is seen: a boolean tensor, or the name of a .npy file, of the shape of a sample or of
            its last dimensions, such as (H, W) for images (C, H, W). An observation (m,) contains the numbers seen.
    """

    mask: Array
    linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self._mask.dtype != torch.bool:
            raise InputError("inpaint: mask must be boolean, True where a number is seen; got numbers: give mask > 0")
        if not self._mask.any():
            raise InputError("inpaint: the mask shows nothing: it is False everywhere")

    @cached_property
    def _mask(self) -> Tensor:
        return numbers("mask", self.mask)

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (len(self._places(shape)[0]),)

    def __call__(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, self._places(tuple(x.shape[1:]))[0].to(x.device)]

    def adjoint(self, y: Tensor, shape: tuple[int, ...]) -> Tensor:
        self.check_observations(y, shape)
        x = y.new_zeros(len(y), math.prod(shape))
        return x.index_copy(1, self._places(shape)[0].to(y.device), y).view(len(y), *shape)

    def pinv(self, y: Tensor, shape: tuple[int, ...]) -> Tensor:
        return self.adjoint(y, shape)

    def svd(self, shape: tuple[int, ...]) -> SVD:
        seen, hidden = self._places(shape)
        order = torch.cat([seen, hidden])
        back = order.argsort()
        return SVD(
            torch.ones(len(seen), dtype=torch.float64),
            lambda x: x.flatten(1)[:, order.to(x.device)],
            lambda z: z[:, back.to(z.device)].view(len(z), *shape),
            lambda y: y,
            lambda z: z,
        )

    def _places(self, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """The indices of the numbers seen and of the others, in flattened samples."""
        own = tuple(self._mask.shape)
        if not own or own != tuple(shape)[len(shape) - len(own) :]:
            raise InputError(
                f"inpaint: the mask has the shape {own}, which is neither that of the samples, {tuple(shape)}, nor "
                "that of their last dimensions"
            )
        mask = self._mask.expand(shape).flatten()
        return mask.nonzero()[:, 0], (~mask).nonzero()[:, 0]


class _Means(Operator):
    """Means of n numbers each; a subclass sorts the numbers of samples into blocks (B, k, n), and back."""

    linear: ClassVar[bool] = True

    def blocks(self, x: Tensor) -> Tensor:
        """Samples (B, *) as blocks (B, k, n), whose means are the observations, in their order."""
        raise NotImplementedError

    def samples(self, blocks: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The samples (B, *shape) with these blocks (B, k, n)."""
        raise NotImplementedError

    def size(self, shape: tuple[int, ...]) -> int:
        """n."""
        return math.prod(shape) // math.prod(self.shape(shape))

    def __call__(self, x: Tensor) -> Tensor:
        observed = self.shape(tuple(x.shape[1:]))
        return self.blocks(x).mean(2).view(len(x), *observed)

    def adjoint(self, y: Tensor, shape: tuple[int, ...]) -> Tensor:
        return self.pinv(y, shape) / self.size(shape)

    def pinv(self, y: Tensor, shape: tuple[int, ...]) -> Tensor:
        self.check_observations(y, shape)
        return self.samples(y.flatten(1).unsqueeze(2).expand(-1, -1, self.size(shape)), shape)

    def svd(self, shape: tuple[int, ...]) -> SVD:
        observed, n = self.shape(shape), self.size(shape)
        k = math.prod(observed)
        # V is a reflection of each block that maps its mean to its first coordinate
        normal = torch.full((n,), -1 / math.sqrt(n), dtype=torch.float64)
        normal[0] += 1
        normal /= max(math.sqrt(2 - 2 / math.sqrt(n)), 1e-300)

        def reflected(blocks: Tensor) -> Tensor:
            w: Tensor = normal.to(blocks)
            return blocks - 2 * (blocks * w).sum(2, keepdim=True) * w

        def right(x: Tensor) -> Tensor:
            z = reflected(self.blocks(x))
            return torch.cat([z[:, :, 0], z[:, :, 1:].flatten(1)], 1)

        def from_right(z: Tensor) -> Tensor:
            blocks = torch.cat([z[:, :k].unsqueeze(2), z[:, k:].view(len(z), k, n - 1)], 2)
            return self.samples(reflected(blocks), shape)

        values = torch.full((k,), 1 / math.sqrt(n), dtype=torch.float64)
        return SVD(values, right, from_right, lambda y: y.flatten(1), lambda z: z.view(len(z), *observed))


@operators.register("downsample", kind="linear", formula="y = means of blocks of factor x factor")
@dataclass(frozen=True)
class Downsample(_Means):
    """The means of blocks of ``factor`` numbers along each axis but the channels'; A A^T = I / factor^axes.

    Vectors (d,) have one axis, signals (C, L) one, images (C, H, W) two.
    """

    factor: Annotated[int, Range(2)]

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        first = min(1, len(shape) - 1)  # axes before it are channels
        if not shape or any(length % self.factor for length in shape[first:]):
            raise InputError(f"downsample: the factor {self.factor} does not divide samples of shape {tuple(shape)}")
        return (*shape[:first], *(length // self.factor for length in shape[first:]))

    def blocks(self, x: Tensor) -> Tensor:
        channels, axes = self._axes(tuple(x.shape[1:]))
        split = x.view(len(x), channels, *(part for length in axes for part in (length, self.factor)))
        return split.permute(self._order(len(axes))).reshape(len(x), -1, self.factor ** len(axes))

    def samples(self, blocks: Tensor, shape: tuple[int, ...]) -> Tensor:
        channels, axes = self._axes(shape)
        split = blocks.reshape(len(blocks), channels, *axes, *(self.factor for _ in axes))
        order = torch.tensor(self._order(len(axes))).argsort().tolist()
        return split.permute(order).reshape(len(blocks), *shape)

    def _axes(self, shape: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
        """The number of channels, and of blocks along each axis."""
        observed = self.shape(shape)
        return (1, observed) if len(shape) == 1 else (shape[0], observed[1:])

    def _order(self, axes: int) -> list[int]:
        return [0, 1, *range(2, 2 + 2 * axes, 2), *range(3, 3 + 2 * axes, 2)]


@operators.register("gray", aliases=("colorization", "colourisation"), kind="linear", formula="y = mean of channels")
@dataclass(frozen=True)
class Gray(_Means):
    """The mean of the channels of images (C, H, W) or signals (C, L), (1, H, W) or (1, L); A A^T = I / C."""

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if len(shape) < 2 or shape[0] < 2:
            raise InputError(f"gray: samples need channels, such as (3, H, W), got the shape {tuple(shape)}")
        return (1, *shape[1:])

    def blocks(self, x: Tensor) -> Tensor:
        return x.flatten(2).mT.contiguous()

    def samples(self, blocks: Tensor, shape: tuple[int, ...]) -> Tensor:
        return blocks.mT.reshape(len(blocks), *shape)


class _Dense(Operator):
    """A matrix (m, d) times the flattened sample; a subclass returns the matrix."""

    linear: ClassVar[bool] = True

    def matrix(self, shape: tuple[int, ...]) -> Tensor:
        raise NotImplementedError

    def __call__(self, x: Tensor) -> Tensor:
        return times(self.matrix(tuple(x.shape[1:])), flat(self, x))

    def adjoint(self, y: Tensor, shape: tuple[int, ...]) -> Tensor:
        self.check_observations(y, shape)
        return times(self.matrix(shape).T.contiguous(), y).view(len(y), *shape)


@operators.register("matrix", kind="linear", formula="y = A x")
@dataclass(frozen=True, eq=False)
class Matrix(_Dense):
    """A matrix times the flattened sample.

    Attributes:
        values: (m, d), a tensor or the name of a .npy file; an observation has the shape (m,).
    """

    values: Array

    def __post_init__(self) -> None:
        super().__post_init__()
        if self._values.dtype == torch.bool:
            raise InputError("matrix: values must be numbers, got booleans")

    @cached_property
    def _values(self) -> Tensor:
        return numbers("matrix", self.values, ndim=2)

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        m, d = self._values.shape
        if math.prod(shape) != d:
            raise InputError(
                f"matrix: {m} x {d} does not apply to samples of shape {tuple(shape)}, {math.prod(shape)} numbers"
            )
        return (m,)

    def matrix(self, shape: tuple[int, ...]) -> Tensor:
        return self._values


@lru_cache(maxsize=8)
def orthonormal(d: int, seed: int) -> Tensor:
    """A random orthonormal basis (d, d), float64, uniform: its rows are the vectors."""
    drawn = torch.randn(d, d, dtype=torch.float64, generator=generator(seed, 0))
    q, r = torch.linalg.qr(drawn)
    columns: Tensor = q * r.diagonal().sign()  # without the signs the basis would not be uniform
    return columns.T.contiguous()


@operators.register("sense", aliases=("compressed_sensing",), kind="linear", formula="y = m random orthonormal rows, x")
@dataclass(frozen=True)
class Sense(_Dense):
    """Products with ``m`` random orthonormal vectors, the same for equal seeds; A A^T = I."""

    m: Count
    seed: Annotated[int, Range(0)] = 0

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        d = math.prod(shape)
        if d > LARGEST:
            raise InputError(f"sense: samples have {d} numbers, at most {LARGEST} are possible")
        if self.m > d:
            raise InputError(f"sense: m={self.m} is more than the {d} numbers of a sample of shape {tuple(shape)}")
        return (self.m,)

    def matrix(self, shape: tuple[int, ...]) -> Tensor:
        return orthonormal(math.prod(shape), self.seed)[: self.m]

    def pinv(self, y: Tensor, shape: tuple[int, ...]) -> Tensor:
        return self.adjoint(y, shape)

    def svd(self, shape: tuple[int, ...]) -> SVD:
        self.shape(shape)
        basis = orthonormal(math.prod(shape), self.seed)
        back = basis.T.contiguous()
        same: Callable[[Tensor], Tensor] = torch.clone
        return SVD(
            torch.ones(self.m, dtype=torch.float64),
            lambda x: times(basis, x.flatten(1)),
            lambda z: times(back, z).view(len(z), *shape),
            same,
            same,
        )
