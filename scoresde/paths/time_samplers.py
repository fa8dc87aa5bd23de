"""Time samplers: rules that draw the times at which a loss is trained or the integral of a bound is evaluated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from solvers import Registry
from solvers.registry.options import Options
from solvers.registry.ranges import AnyPositive, Range
from solvers.time_grids.network_steps import train_timesteps

from .base import SDE


class TimeSampler(Options):
    """A rule that draws times on a path. Each sampler is a frozen dataclass; its fields are its options."""

    def sample(self, sde: SDE, n: int, generator: torch.Generator) -> Tensor:
        """Draws n times (n,) in [t_min, t_max], float64 on the CPU."""
        raise NotImplementedError

    def __str__(self) -> str:
        return times.format(self)


times: Registry[TimeSampler] = Registry("time sampler", TimeSampler)


@times.register("uniform", reference="Song et al. 2021, arXiv:2011.13456, eq. 7")
@dataclass(frozen=True)
class Uniform(TimeSampler):
    """Uniform in t."""

    def sample(self, sde: SDE, n: int, generator: torch.Generator) -> Tensor:
        u = torch.rand(n, generator=generator, dtype=torch.float64)
        return (sde.t_min + (sde.t_max - sde.t_min) * u).clamp(sde.t_min, sde.t_max)


@times.register("lognormal", reference="Karras et al. 2022, arXiv:2206.00364, table 1")
@dataclass(frozen=True)
class LogNormal(TimeSampler):
    """Normal in the log of the noise level: log(sigma / alpha) ~ N(mean, std^2), clipped to the path's range."""

    mean: float = -1.2
    std: AnyPositive = 1.2

    def sample(self, sde: SDE, n: int, generator: torch.Generator) -> Tensor:
        return times_of_lams(sde, -self.mean - self.std * torch.randn(n, generator=generator, dtype=torch.float64))


@times.register("logsnr", reference="Kingma et al. 2021, arXiv:2107.00630, section 5")
@dataclass(frozen=True)
class LogSNR(TimeSampler):
    """Uniform in lam = log(alpha / sigma); with the target eps this is the weighting of the likelihood."""

    def sample(self, sde: SDE, n: int, generator: torch.Generator) -> Tensor:
        low, high = sde(sde.t_max).lam, sde(sde.t_min).lam
        return times_of_lams(sde, low + (high - low) * torch.rand(n, generator=generator, dtype=torch.float64))


@times.register("discrete", reference="Ho et al. 2020, arXiv:2006.11239, algorithm 1")
@dataclass(frozen=True)
class Discrete(TimeSampler):
    """Uniform over the nodes i = 0..N-1 of a chain, at t = t_min + i / (N - 1) (t_max - t_min).

    With the target eps this is DDPM's L_simple and, on VE, SMLD's loss with weights sigma^2 (Song and Ermon 2019,
    arXiv:1907.05600, eq. 6).

    ``num_train_timesteps`` is N; by default that of the SDE, or 1000 if the SDE has none.
    """

    num_train_timesteps: Annotated[int, Range(2)] | None = None

    def sample(self, sde: SDE, n: int, generator: torch.Generator) -> Tensor:
        count = train_timesteps(sde, self.num_train_timesteps)
        share = torch.randint(count, (n,), generator=generator).double() / (count - 1)
        return (1 - share) * sde.t_min + share * sde.t_max


@times.register("low_discrepancy", reference="Kingma et al. 2021, arXiv:2107.00630, appendix on low-discrepancy times")
@dataclass(frozen=True)
class LowDiscrepancy(TimeSampler):
    """Evenly spaced from one random start: the fractions u, u + 1/n, u + 2/n, ... modulo 1 of the path.

    Each single time is uniform, so means are unbiased; the n times together leave no gaps.

    Args:
        over: the range that the fractions divide: "t", or "logsnr" for the range of lam.
    """

    over: Literal["t", "logsnr"] = "t"

    def sample(self, sde: SDE, n: int, generator: torch.Generator) -> Tensor:
        share = (torch.rand(1, generator=generator, dtype=torch.float64) + torch.arange(n) / n) % 1
        if self.over == "t":
            return (sde.t_min + (sde.t_max - sde.t_min) * share).clamp(sde.t_min, sde.t_max)
        low, high = sde(sde.t_max).lam, sde(sde.t_min).lam
        return times_of_lams(sde, low + (high - low) * share)


def times_of_lams(sde: SDE, lam: Tensor) -> Tensor:
    """The times (n,) where log(alpha / sigma) = lam (n,), lam clipped to the path's range; float64 on the CPU."""
    low, high = sde(sde.t_max).lam, sde(sde.t_min).lam
    t = [sde.t_of_lam(value) for value in lam.clamp(low, high).tolist()]
    return torch.tensor(t, dtype=torch.float64).clamp(sde.t_min, sde.t_max)
