"""Time samplers: rules that draw the times at which a loss is trained or the integral of a bound is evaluated.

A sampler is a quantile function: it maps a fraction u in (0, 1) to a time, and uniform fractions to times of its law.
The fractions come from elsewhere: independent ones for the rows of a batch, or evenly spaced ones
(``LowDiscrepancy``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch import Tensor

from solvers import Registry
from solvers.noise.draws import Draws, Stream
from solvers.registry.options import Options
from solvers.registry.ranges import AnyPositive, Range
from solvers.time_grids.network_steps import train_timesteps

from .base import SDE


class TimeSampler(Options):
    """A rule that draws times on a path. Each sampler is a frozen dataclass; its fields are its options."""

    def times_at(self, sde: SDE, u: Tensor) -> Tensor:
        """The times (n,) in [t_min, t_max] at fractions u (n,) in (0, 1), rising in u; both float64 on the CPU."""
        raise NotImplementedError

    def fractions(self, draws: Draws, stream: Stream = "times") -> Tensor:
        """The fractions (B,) of the rows of a batch, float64 on the CPU: each is uniform in (0, 1)."""
        return draws.uniform(stream)[:, 0]

    def sample(self, sde: SDE, draws: Draws, stream: Stream = "times") -> Tensor:
        """The times (B,) of the rows of a batch, float64 on the CPU."""
        return self.times_at(sde, self.fractions(draws, stream))

    def __str__(self) -> str:
        return times.format(self)


times: Registry[TimeSampler] = Registry("time sampler", TimeSampler)


@times.register("uniform", reference="Song et al. 2021, arXiv:2011.13456, eq. 7")
@dataclass(frozen=True)
class Uniform(TimeSampler):
    """Uniform in t."""

    def times_at(self, sde: SDE, u: Tensor) -> Tensor:
        return (sde.t_min + (sde.t_max - sde.t_min) * u).clamp(sde.t_min, sde.t_max)


@times.register("lognormal", reference="Karras et al. 2022, arXiv:2206.00364, table 1")
@dataclass(frozen=True)
class LogNormal(TimeSampler):
    """Normal in the log of the noise level: log(sigma / alpha) ~ N(mean, std^2), clipped to the path's range."""

    mean: float = -1.2
    std: AnyPositive = 1.2

    def times_at(self, sde: SDE, u: Tensor) -> Tensor:
        return sde.times_of_lams(-self.mean - self.std * torch.special.ndtri(u))


@times.register("logsnr", reference="Kingma et al. 2021, arXiv:2107.00630, section 5")
@dataclass(frozen=True)
class LogSNR(TimeSampler):
    """Uniform in lam = log(alpha / sigma); with unit weight on the error of eps this is the likelihood's weighting."""

    def times_at(self, sde: SDE, u: Tensor) -> Tensor:
        high, low = sde(torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64)).lam.tolist()
        return sde.times_of_lams(high - (high - low) * u)


@times.register("discrete", reference="Ho et al. 2020, arXiv:2006.11239, algorithm 1")
@dataclass(frozen=True)
class Discrete(TimeSampler):
    """Uniform over the nodes i = 0..N-1 of a chain, at t = t_min + i / (N - 1) (t_max - t_min).

    With unit weight on the error of eps this is DDPM's L_simple and, on VE, SMLD's loss with weights sigma^2 (Song and
    Ermon 2019, arXiv:1907.05600, eq. 6).

    ``num_train_timesteps`` is N; by default that of the SDE, or 1000 if the SDE has none.
    """

    num_train_timesteps: Annotated[int, Range(2)] | None = None

    def times_at(self, sde: SDE, u: Tensor) -> Tensor:
        count = train_timesteps(sde, self.num_train_timesteps)
        share = (u * count).floor().clamp(0, count - 1) / (count - 1)
        return (1 - share) * sde.t_min + share * sde.t_max


@times.register("low_discrepancy", reference="Kingma et al. 2021, arXiv:2107.00630, appendix on low-discrepancy times")
@dataclass(frozen=True)
class LowDiscrepancy(TimeSampler):
    """Evenly spaced from one random start: the fractions u, u + 1/B, u + 2/B, ... modulo 1 for the B rows of a batch.

    Each single time has the law of the sampler ``over``, so means are unbiased; the B times together leave no gaps.

    Args:
        over: the sampler whose fractions are spread.
    """

    over: TimeSampler = field(default=Uniform())

    def times_at(self, sde: SDE, u: Tensor) -> Tensor:
        return self.over.times_at(sde, u)

    def fractions(self, draws: Draws, stream: Stream = "times") -> Tensor:
        places = torch.tensor(draws.places, dtype=torch.float64)
        return (draws.shared(stream) + places / draws.batch) % 1
