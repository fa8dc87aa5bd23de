"""Blur: circular convolution, by fast Fourier transforms."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from solvers import InputError
from solvers.registry.ranges import Positive

from .base import SVD, Array, Operator, numbers, operators

_TAIL = 5  # widths of a Gaussian kernel, beyond which it is below 4e-6 of its peak


def axes_of(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The lengths of the axes but the channels': (d,) of vectors, (L,) of signals (C, L), (H, W) of images."""
    return tuple(shape[min(1, len(shape) - 1) :])


def each(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A function of x (B, *) row by row on the CPU: a transform rounds differently in a batch of another size."""
    if x.device.type != "cpu" or len(x) < 2:
        return function(x)
    return torch.cat([function(x[i : i + 1]) for i in range(len(x))])


@operators.register("blur", kind="linear", formula="y = kernel * x, circular")
@dataclass(frozen=True, eq=False)
class Blur(Operator):
    """The circular convolution of each channel with a kernel; the observation has the shape of the sample.

    With the unitary transform F, A = F* k F with k the transform of the kernel; the singular values are |k|, and V is
    the Hartley basis Re F - Im F, in which every real even multiplier is diagonal.

    Attributes:
        kernel: one number for each offset, odd lengths with the centre in the middle: (n,) for vectors and signals,
            (n, n') for images; a tensor or the name of a .npy file.
        width: the standard deviation in pixels of a Gaussian kernel, which replaces ``kernel``.
    """

    kernel: Array | None = None
    width: Positive | None = None
    linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.kernel is None) == (self.width is None):
            raise InputError("blur: give either a kernel or the width of a Gaussian one")
        if self._kernel is not None and (not self._kernel.ndim or not all(n % 2 for n in self._kernel.shape)):
            raise InputError(f"blur: a kernel has odd lengths, with its centre; got {tuple(self._kernel.shape)}")

    @cached_property
    def _kernel(self) -> Tensor | None:
        return None if self.kernel is None else numbers("kernel", self.kernel).double()

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        axes, kernel = axes_of(shape), self._kernel
        if not axes:
            raise InputError("blur: samples need an axis")
        if kernel is not None and (
            kernel.ndim != len(axes) or any(n > m for n, m in zip(kernel.shape, axes, strict=True))
        ):
            raise InputError(
                f"blur: a kernel of shape {tuple(kernel.shape)} does not fit samples of shape {tuple(shape)}"
            )
        return tuple(shape)

    def __call__(self, x: Tensor) -> Tensor:
        return self._multiplied(x, self._spectrum(self.shape(tuple(x.shape[1:]))))

    def adjoint(self, y: Tensor, shape: tuple[int, ...]) -> Tensor:
        self.check_observations(y, shape)
        return self._multiplied(y, self._spectrum(shape).conj())

    def svd(self, shape: tuple[int, ...]) -> SVD:
        spectrum = self._spectrum(self.shape(shape))
        size, axes = spectrum.abs(), tuple(range(-spectrum.ndim, 0))
        kept = size > math.prod(spectrum.shape) * torch.finfo(torch.float64).eps * size.max()
        phase = torch.where(kept, spectrum / size.clamp_min(1e-300), torch.ones_like(spectrum))
        channels = math.prod(shape) // spectrum.numel()
        every = kept.flatten().repeat(channels)
        order = torch.cat([every.nonzero()[:, 0], (~every).nonzero()[:, 0]])
        back = order.argsort()

        def hartley(x: Tensor) -> Tensor:
            def one(row: Tensor) -> Tensor:
                f: Tensor = torch.fft.fftn(row, dim=axes, norm="ortho")
                return torch.real(f) - torch.imag(f)

            return each(one, x)

        def coordinates(x: Tensor) -> Tensor:
            return hartley(x).flatten(1)[:, order.to(x.device)]

        def combined(z: Tensor) -> Tensor:
            return hartley(z[:, back.to(z.device)].view(len(z), *shape))

        return SVD(
            size.flatten().repeat(channels)[order[: int(every.sum())]],
            coordinates,
            combined,
            lambda y: coordinates(self._multiplied(y, phase.conj())),
            lambda z: self._multiplied(combined(z), phase),
        )

    def _multiplied(self, x: Tensor, spectrum: Tensor) -> Tensor:
        """The samples (B, *) whose transforms are those of x (B, *) times a multiplier."""
        factor = spectrum.to(x.device, torch.promote_types(x.dtype, torch.complex32))
        axes = tuple(range(-spectrum.ndim, 0))
        return each(lambda row: torch.fft.ifftn(torch.fft.fftn(row, dim=axes) * factor, dim=axes).real, x)

    def _spectrum(self, shape: tuple[int, ...]) -> Tensor:
        """The transform of the kernel on the axes of a sample, complex128, exactly Hermitian."""
        axes = axes_of(shape)
        if axes not in self._spectra:
            spread = _gaussian(self.width, len(axes)) if self._kernel is None else self._kernel
            placed = torch.zeros(axes, dtype=torch.float64)
            # offsets from the centre; those of a kernel that is longer than the axis wrap around
            places = [(torch.arange(n) - n // 2) % length for n, length in zip(spread.shape, axes, strict=True)]
            placed.index_put_(tuple(torch.meshgrid(*places, indexing="ij")), spread, accumulate=True)
            f = torch.fft.fftn(placed)
            every = list(range(f.ndim))
            mirrored = f.roll([-1] * f.ndim, every).flip(every)  # f at the negative of each frequency
            self._spectra[axes] = 0.5 * (f + mirrored.conj())
        return self._spectra[axes]

    @cached_property
    def _spectra(self) -> dict[tuple[int, ...], Tensor]:
        return {}


def _gaussian(width: float | None, axes: int) -> Tensor:
    """A Gaussian kernel of this standard deviation along every axis, with sum 1."""
    assert width is not None
    reach = math.ceil(_TAIL * width)
    line = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float64) / width) ** 2)
    kernel = line / line.sum()
    for _ in range(axes - 1):
        kernel = kernel.unsqueeze(-1) * (line / line.sum())
    return kernel
