"""The paths of the papers: VP, sub-VP, VE, EDM, cosine and rectified flow.

``alpha`` and ``sigma`` accept tensors of any float dtype and use ``expm1`` where 1 - exp(-x) would cancel. Every path
here has a closed form for its inverse t(lam).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from solvers import InputError
from solvers.registry.ranges import Positive
from solvers.time_grids import beta_schedules
from solvers.time_grids.beta_schedules import Array

from .base import SDE, sdes


def _require(sde: SDE, *conditions: tuple[bool, str]) -> None:
    if not sde.t_min < sde.t_max:
        raise InputError(f"{type(sde).__name__}: t_min={sde.t_min:g} must be less than t_max={sde.t_max:g}")
    for holds, message in conditions:
        if not holds:
            raise InputError(f"{type(sde).__name__}: {message}")


class Closed(SDE):
    """The base class of paths whose inverse t(lam) has a closed form, on numbers and arrays alike."""

    def inverse(self, lam: Any) -> Any:
        """The times where log(alpha / sigma) = lam, in numpy's functions: a number, or an array (n,) in float64."""
        raise NotImplementedError

    def t_of_lam(self, lam: float) -> float:
        return float(self.inverse(lam))

    def times_of_lams(self, lam: Tensor) -> Tensor:
        times: Array = self.inverse(lam.double().cpu().numpy())
        return torch.from_numpy(times).clamp(self.t_min, self.t_max)

    def __init_subclass__(cls, **options: Any) -> None:
        """A path with its own alpha or sigma does not inherit the inverse of another path."""
        super().__init_subclass__(**options)
        if {"alpha", "sigma", "integral"} & vars(cls).keys() and "inverse" not in vars(cls):
            cls.times_of_lams = SDE.times_of_lams  # type: ignore[method-assign]
            if "t_of_lam" not in vars(cls):
                cls.t_of_lam = SDE.t_of_lam  # type: ignore[method-assign]


@sdes.register("vp", aliases=("vpsde", "ddpm"), reference="Song et al. 2021, arXiv:2011.13456, eq. 32-33")
@dataclass(frozen=True)
class VP(Closed):
    """Variance preserving, linear beta: alpha = exp(-B / 2), sigma^2 = 1 - exp(-B), B = int_0^t beta."""

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: Positive = field(default=1e-3, kw_only=True)
    t_max: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self, (0 < self.beta_min < self.beta_max, "needs 0 < beta_min < beta_max"))

    def integral(self, t: Tensor) -> Tensor:
        """The integral B(t) = int_0^t beta."""
        return beta_schedules.integral(t, self.beta_min, self.beta_max - self.beta_min)

    def beta(self, t: Tensor) -> Tensor:
        """The rate beta(t)."""
        return self.beta_min + (self.beta_max - self.beta_min) * t

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-0.5 * self.integral(t))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(-self.integral(t)))

    def derivatives(self, t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        half_beta = 0.5 * self.beta(t)
        return -half_beta * alpha, half_beta * alpha**2 / sigma

    def inverse(self, lam: Any) -> Any:
        # 1 / alpha^2 = 1 + exp(-2 lam), so B = log(1 + exp(-2 lam))
        integral = np.logaddexp(0.0, -2 * lam)
        return beta_schedules.time_of_integral(integral, self.beta_min, self.beta_max - self.beta_min)


@sdes.register("subvp", aliases=("sub-vp", "subvpsde"), reference="Song et al. 2021, arXiv:2011.13456, eq. 29")
@dataclass(frozen=True)
class SubVP(VP):
    """sub-VP: alpha as in VP, sigma = 1 - exp(-B)."""

    t_min: Positive = field(default=1e-2, kw_only=True)

    def sigma(self, t: Tensor) -> Tensor:
        return -torch.expm1(-self.integral(t))

    def derivatives(self, t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        beta = self.beta(t)
        return -0.5 * beta * alpha, beta * alpha**2

    def inverse(self, lam: Any) -> Any:
        # sigma / alpha = 2 sinh(B / 2)
        integral = 2 * np.arcsinh(0.5 * np.exp(-lam))
        return beta_schedules.time_of_integral(integral, self.beta_min, self.beta_max - self.beta_min)


@sdes.register("ve", aliases=("vesde", "smld"), reference="Song et al. 2021, arXiv:2011.13456, eq. 30-31")
@dataclass(frozen=True)
class VE(Closed):
    """Variance exploding: alpha = 1, sigma = sigma_min (sigma_max / sigma_min)^t."""

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    t_min: float = field(default=0.0, kw_only=True)
    t_max: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self, (0 < self.sigma_min < self.sigma_max, "needs 0 < sigma_min < sigma_max"))

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * torch.exp(t * math.log(self.sigma_max / self.sigma_min))

    def derivatives(self, t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(t), math.log(self.sigma_max / self.sigma_min) * sigma

    def inverse(self, lam: Any) -> Any:
        return (-lam - math.log(self.sigma_min)) / math.log(self.sigma_max / self.sigma_min)


@sdes.register("edm", reference="Karras et al. 2022, arXiv:2206.00364, table 1")
@dataclass(frozen=True)
class EDM(Closed):
    """EDM's path: alpha = 1, sigma = t."""

    t_min: Positive = field(default=0.002, kw_only=True)
    t_max: float = field(default=80.0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def derivatives(self, t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(t), torch.ones_like(t)

    def inverse(self, lam: Any) -> Any:
        return np.exp(-lam)


@sdes.register("cosine", reference="Nichol and Dhariwal 2021, arXiv:2102.09672, eq. 17, in continuous time")
@dataclass(frozen=True)
class Cosine(Closed):
    """Variance preserving, alpha = cos(u) / cos(u_0) with u = (t + offset) / (1 + offset) pi / 2."""

    offset: Positive = beta_schedules.OFFSET
    t_min: Positive = field(default=1e-3, kw_only=True)
    t_max: float = field(default=0.995, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self, (self.t_max < 1, "needs t_max < 1, where alpha is 0"))

    def _angle(self, t: Tensor) -> Tensor:
        return (t + self.offset) * (0.5 * math.pi / (1 + self.offset))

    @property
    def _start(self) -> float:
        return 0.5 * math.pi * self.offset / (1 + self.offset)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.cos(self._angle(t)) / math.cos(self._start)

    def sigma(self, t: Tensor) -> Tensor:
        # 1 - alpha^2 = sin(u - u_0) sin(u + u_0) / cos(u_0)^2
        swing = t * (0.5 * math.pi / (1 + self.offset))
        return torch.sqrt(torch.sin(swing) * torch.sin(swing + 2 * self._start)) / math.cos(self._start)

    def derivatives(self, t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        # alpha^2 + sigma^2 = 1, so sigma' = -alpha alpha' / sigma
        dalpha = -torch.sin(self._angle(t)) * (0.5 * math.pi / (1 + self.offset) / math.cos(self._start))
        return dalpha, -alpha * dalpha / sigma

    def inverse(self, lam: Any) -> Any:
        ratio = np.exp(-lam)
        alpha = 1 / np.hypot(1, ratio)
        cos = alpha * math.cos(self._start)
        sin = np.hypot(math.sin(self._start), ratio * cos)
        return np.arctan2(sin, cos) * (1 + self.offset) / (0.5 * math.pi) - self.offset


@sdes.register("rectified_flow", aliases=("rf", "flow", "condot"), reference="Liu et al. 2022, arXiv:2209.03003, eq. 1")
@dataclass(frozen=True)
class RectifiedFlow(Closed):
    """Straight lines from data to noise: alpha = 1 - t, sigma = t (t = 0 is data, t = 1 is noise)."""

    t_min: Positive = field(default=1e-3, kw_only=True)
    t_max: float = field(default=0.999, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self, (self.t_max < 1, "needs t_max < 1, where alpha is 0"))

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def derivatives(self, t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return -torch.ones_like(t), torch.ones_like(t)

    def inverse(self, lam: Any) -> Any:
        return 1 / (1 + np.exp(lam))
