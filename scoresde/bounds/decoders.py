"""Decoders: the last step of a variational bound, the density or probability of data x0 under N(mean, variance).

For discrete data, the probability of a level is the mass of its bin (Ho et al. 2020, arXiv:2006.11239, eq. 13).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from solvers import InputError, Registry
from solvers.registry.options import Options


class Decoder(Options):
    """A rule for p(x0 | x) from a Gaussian. Each decoder is a frozen dataclass; its fields are its options."""

    def log_prob(self, x0: Tensor, mean: Tensor, variance: Any) -> Tensor:
        """The log of a density, or of a level's probability, in nats for each number (B, *).

        ``variance`` must broadcast to ``mean`` (B, *).
        """
        raise NotImplementedError

    def __str__(self) -> str:
        return decoders.format(self)


decoders: Registry[Decoder] = Registry("decoder", Decoder)


@decoders.register("gaussian")
@dataclass(frozen=True)
class Gaussian(Decoder):
    """The normal density, for continuous data."""

    def log_prob(self, x0: Tensor, mean: Tensor, variance: Any) -> Tensor:
        v = torch.as_tensor(variance, dtype=mean.dtype, device=mean.device)
        return -0.5 * ((x0 - mean) ** 2 / v + torch.log(2 * math.pi * v))


@decoders.register("discretised", reference="Ho et al. 2020, arXiv:2006.11239, eq. 13")
@dataclass(frozen=True)
class Discretised(Decoder):
    """The normal mass of a level's bin, [x0 - bin_width / 2, x0 + bin_width / 2].

    The lowest and the highest level also have the mass beyond their bins, so that all levels sum to one.

    Args:
        bin_width: the distance between levels.
        low, high: the lowest and the highest level.

    Raises:
        InputError: the bin width is not positive, or the range from low to high is not a whole number of bins.
    """

    bin_width: float
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 < self.bin_width < math.inf and -math.inf < self.low < self.high < math.inf):
            raise InputError(
                f"discretised: needs bin_width > 0 and low < high, all finite, got {self.bin_width:g}, "
                f"{self.low:g} and {self.high:g}"
            )
        bins = (self.high - self.low) / self.bin_width
        if abs(bins - round(bins)) > 1e-6 * bins:
            raise InputError(
                f"discretised: levels {self.bin_width:g} apart do not fit the range from {self.low:g} to {self.high:g}"
            )

    @property
    def levels(self) -> Tensor:
        """All levels (K,), float64."""
        return torch.linspace(
            self.low, self.high, 1 + round((self.high - self.low) / self.bin_width), dtype=torch.float64
        )

    def check(self, x0: Tensor) -> None:
        """Rejects data (B, *) that are not at the levels.

        Raises:
            InputError: a number differs from every level by more than a thousandth of a bin.
        """
        place = (x0.detach().cpu().double() - self.low) / self.bin_width
        wrong = (place - place.round().clamp(0, len(self.levels) - 1)).abs() > 1e-3
        if wrong.any():
            raise InputError(
                f"{self} needs data at its levels, got {float(x0[wrong.to(x0.device)][0]):g}; for data that were "
                "spread over their bins use the decoder gaussian"
            )

    def log_prob(self, x0: Tensor, mean: Tensor, variance: Any) -> Tensor:
        std = torch.as_tensor(variance, dtype=mean.dtype, device=mean.device).sqrt()
        half = 0.5 * self.bin_width
        gap = x0 - mean
        # the interval [a, b] in standard deviations, mirrored into the lower tail, where log_ndtr is accurate
        a, b = (gap - half) / std, (gap + half) / std
        a = torch.where(x0 < self.low + half, -math.inf, a)
        b = torch.where(x0 > self.high - half, math.inf, b)
        upper = gap > 0
        a, b = torch.where(upper, -b, a), torch.where(upper, -a, b)
        log_a, log_b = torch.special.log_ndtr(a), torch.special.log_ndtr(b)
        ratio = torch.exp((log_a - log_b).clamp(max=0.0))
        mass: Tensor = log_b + torch.log1p(-ratio.clamp(max=1 - torch.finfo(mean.dtype).eps))
        return mass


@decoders.register("levels", reference="Kingma et al. 2021, arXiv:2107.00630")
@dataclass(frozen=True)
class Levels(Discretised):
    """The normal density at the levels, normalised over all levels.

    log p = -(x0 - mean)^2 / (2 v) - log sum_k exp(-(x_k - mean)^2 / (2 v)). All levels are in memory at once:
    (B, *, K).
    """

    def log_prob(self, x0: Tensor, mean: Tensor, variance: Any) -> Tensor:
        v = torch.as_tensor(variance, dtype=mean.dtype, device=mean.device)
        gaps = mean.unsqueeze(-1) - self.levels.to(mean)
        exponents = -0.5 * gaps**2 / (v.unsqueeze(-1) if v.ndim else v)
        mass: Tensor = -0.5 * (x0 - mean) ** 2 / v - torch.logsumexp(exponents, -1)
        return mass
