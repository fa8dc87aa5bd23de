"""Schedules of discrete processes: alpha(t), the probability that a token has not been drawn again by time t.

A schedule has the integral of its rate, clock(t) = -log alpha(t), and its inverse. Times run over [0, t_max]; alpha(0)
is 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch import Tensor

from solvers import InputError, Registry
from solvers.registry.options import Options
from solvers.registry.ranges import Inside, Positive, Range

from ..base import SDE, sdes
from ..standard import VP


class ProcessSchedule(Options):
    """alpha(t) of a discrete process. A subclass has ``clock`` and ``time_of``."""

    t_max: float = 1.0

    def clock(self, t: Tensor) -> Tensor:
        """-log alpha(t) at times t; infinite where alpha is 0."""
        raise NotImplementedError

    def time_of(self, clock: float) -> float:
        """The time at which -log alpha is ``clock``."""
        raise NotImplementedError

    def rate(self, t: Tensor) -> Tensor:
        """The rate at times t, d clock / dt."""
        with torch.enable_grad():
            time = t.detach().double().requires_grad_()
            (found,) = torch.autograd.grad(self.clock(time).sum(), time)
        return found

    def __str__(self) -> str:
        return process_schedules.format(self)


process_schedules: Registry[ProcessSchedule] = Registry("process schedule", ProcessSchedule)


@process_schedules.register("linear", formula="alpha = 1 - t", reference="Sahoo et al. 2024, arXiv:2406.07524")
@dataclass(frozen=True)
class Linear(ProcessSchedule):
    """alpha = 1 - t: equal times mask the same share of tokens.

    A chain of N steps has beta_i = 1 / (N - i + 1), as in Sohl-Dickstein et al. 2015 and, for masks, D3PM.
    """

    def clock(self, t: Tensor) -> Tensor:
        return -torch.log1p(-t)

    def time_of(self, clock: float) -> float:
        return -math.expm1(-clock)


@process_schedules.register(
    "cosine",
    formula="alpha = cos(pi/2 (t + s) / (1 + s)) / cos(pi/2 s / (1 + s)), to the given power",
    reference="Nichol and Dhariwal 2021, arXiv:2102.09672, eq. 17; Hoogeboom et al. 2021, arXiv:2102.05379",
)
@dataclass(frozen=True)
class Cosine(ProcessSchedule):
    """A cosine that starts slowly; ``power`` 2 is the alpha-bar of Nichol and Dhariwal and of D3PM's uniform process, 1
    the one of multinomial diffusion."""

    offset: float = 0.008
    power: Positive = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.offset < 1:
            raise InputError(f"cosine: offset must lie in [0, 1), got {self.offset:g}")

    def _angle(self, t: float) -> float:
        return 0.5 * math.pi * (t + self.offset) / (1 + self.offset)

    def clock(self, t: Tensor) -> Tensor:
        # cos a / cos b = 1 - 2 sin((a + b) / 2) sin((a - b) / 2) / cos b, which keeps its digits at t = 0
        start = self._angle(0.0)
        half = 0.25 * math.pi * t / (1 + self.offset)
        fall = 2 * torch.sin(start + half) * torch.sin(half) / math.cos(start)
        return -self.power * torch.log1p(-fall.clamp_max(1.0))

    def time_of(self, clock: float) -> float:
        share = math.exp(-clock / self.power) * math.cos(self._angle(0.0))
        return max(0.0, math.acos(min(1.0, share)) * 2 / math.pi * (1 + self.offset) - self.offset)


@process_schedules.register("constant", formula="alpha = exp(-speed t), t up to t_max")
@dataclass(frozen=True)
class Constant(ProcessSchedule):
    """A constant rate: alpha falls to exp(-speed t_max)."""

    speed: Positive = 1.0
    t_max: Positive = 8.0

    def clock(self, t: Tensor) -> Tensor:
        return self.speed * t

    def time_of(self, clock: float) -> float:
        return clock / self.speed


@process_schedules.register(
    "geometric",
    formula="-log alpha = low (high / low)^t - low",
    reference="Lou et al. 2023, arXiv:2310.16834, section 5.1",
)
@dataclass(frozen=True)
class Geometric(ProcessSchedule):
    """The integral of the rate grows geometrically in t, from 0 to ``high``."""

    low: Positive = 1e-3
    high: Positive = 20.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.low < self.high:
            raise InputError(f"geometric: low must be below high={self.high:g}, got {self.low:g}")

    def clock(self, t: Tensor) -> Tensor:
        return self.low * torch.expm1(t * math.log(self.high / self.low))

    def time_of(self, clock: float) -> float:
        return math.log1p(clock / self.low) / math.log(self.high / self.low)


@process_schedules.register(
    "loglinear", formula="alpha = 1 - (1 - least) t", reference="Lou et al. 2023, arXiv:2310.16834, section 5.1"
)
@dataclass(frozen=True)
class LogLinear(ProcessSchedule):
    """alpha = 1 - (1 - least) t: linear, but a share ``least`` is left at t = 1, where the clock is then finite."""

    least: Inside = 1e-3

    def clock(self, t: Tensor) -> Tensor:
        return -torch.log1p(-(1 - self.least) * t)

    def time_of(self, clock: float) -> float:
        return -math.expm1(-clock) / (1 - self.least)


@process_schedules.register(
    "chain_linear",
    formula="alpha at the nodes i / steps, i >= 1, falls linearly from first to last; alpha(0) = 1",
    reference="Gu et al. 2021, arXiv:2111.14822, section 5",
)
@dataclass(frozen=True)
class ChainLinear(ProcessSchedule):
    """alpha of a chain that is linear from its first step to its last one, as VQ-Diffusion's; between nodes linear."""

    first: Inside = 0.99999
    last: Inside = 9e-6
    steps: Annotated[int, Range(2)] = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.last < self.first:
            raise InputError(f"chain_linear: last must be below first={self.first:g}, got {self.last:g}")

    def clock(self, t: Tensor) -> Tensor:
        at = t * self.steps
        start, slope = 1 - self.first, (self.first - self.last) / (self.steps - 1)
        return -torch.log1p(-torch.where(at <= 1, start * at, start + slope * (at - 1)))

    def time_of(self, clock: float) -> float:
        gone, start = -math.expm1(-clock), 1 - self.first
        if gone <= start:
            return gone / start / self.steps
        return (1 + (gone - start) / (self.first - self.last) * (self.steps - 1)) / self.steps


@process_schedules.register("quotient", formula="alpha = alpha of whole / alpha of part")
@dataclass(frozen=True)
class Quotient(ProcessSchedule):
    """What is left of a schedule without a part of it; by default VQ-Diffusion's alpha-bar without its masking."""

    whole: ProcessSchedule = ChainLinear()
    part: ProcessSchedule = ChainLinear(first=0.999991, last=1e-5)

    def __post_init__(self) -> None:
        super().__post_init__()
        times = torch.linspace(0, self.t_max, 1001, dtype=torch.float64)[:-1]
        if bool((self.clock(times).diff() < -1e-12).any()):
            raise InputError(
                f"quotient: alpha of {self.part} falls faster than that of {self.whole}, of which it is part"
            )

    @property
    def t_max(self) -> float:  # type: ignore[override]
        """The earlier end of the two."""
        return min(self.whole.t_max, self.part.t_max)

    def clock(self, t: Tensor) -> Tensor:
        return self.whole.clock(t) - self.part.clock(t)

    def time_of(self, clock: float) -> float:
        ends = torch.tensor([[0.0], [self.t_max]], dtype=torch.float64)
        return float(root(lambda t: self.clock(t) - clock, ends[0], ends[1]))


@process_schedules.register(
    "mutual_information",
    formula="I(x_t; x_0) / log(states) = 1 - t, for data of all values alike",
    reference="Austin et al. 2021, arXiv:2107.03006, section 3.3 and appendix A.7",
)
@dataclass(frozen=True)
class MutualInformation(ProcessSchedule):
    """A uniform process loses the information on each token at a constant rate. Of masks this is ``linear``."""

    states: Annotated[int, Range(2)] = 2

    def information(self, alpha: Tensor) -> Tensor:
        """I(x_t; x_0) / log(states) of the uniform process."""
        n = self.states
        kept, other = (n - 1) * alpha, -alpha
        parts: Tensor = torch.special.xlog1py(1 + kept, kept) + (n - 1) * torch.special.xlog1py(1 + other, other)
        return parts / (n * math.log(n))

    def clock(self, t: Tensor) -> Tensor:
        low, high = torch.full_like(t, -90.0), torch.full_like(t, 4.0)  # of log(-log alpha)
        for _ in range(64):
            middle = (low + high) / 2
            above = self.information(torch.exp(-torch.exp(middle))) > 1 - t
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        found = torch.where(t <= 0, 0.0, torch.where(t >= 1, math.inf, torch.exp(high)))
        if not t.requires_grad:
            return found
        rate = self._rate(found)  # halving has no gradient
        return found.detach() + torch.where(rate.isfinite(), rate, 0.0) * (t - t.detach())

    def time_of(self, clock: float) -> float:
        return 1 - float(self.information(torch.tensor(math.exp(-clock), dtype=torch.float64)))

    def rate(self, t: Tensor) -> Tensor:
        return self._rate(self.clock(t.detach().double()))

    def _rate(self, clock: Tensor) -> Tensor:
        n, alpha = self.states, torch.exp(-clock)
        slope = (n - 1) / n * (torch.log1p((n - 1) * alpha) - torch.log1p(-alpha)) / math.log(n)
        return 1 / (alpha * slope)


@process_schedules.register(
    "gaussian_path",
    formula="alpha = (alpha of the path)^power",
    reference="Sohl-Dickstein et al. 2015, arXiv:1503.03585, table C.1",
)
@dataclass(frozen=True)
class GaussianPath(ProcessSchedule):
    """alpha of a path of Gaussian states, to a power.

    With 2, chains of the two have equal betas: numbers become sqrt(1 - beta_i) x_{i-1} + sqrt(beta_i) z, and tokens are
    drawn again with probability beta_i, as in the binomial process of 2015.

    Raises:
        InputError: alpha of the path is not 1 at t = 0, or does not fall.
    """

    path: SDE = field(default_factory=VP)
    power: Positive = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "path", sdes.make(self.path))
        times = torch.linspace(0, self.t_max, 1001, dtype=torch.float64)
        alpha = self.path.alpha(times)
        if float(alpha[0]) != 1 or bool((alpha.diff() >= 0).any()):
            raise InputError(f"gaussian_path: alpha of {self.path} does not fall from 1 at t=0: use vp or cosine")

    @property
    def t_max(self) -> float:  # type: ignore[override]
        """The end of the path."""
        return self.path.t_max

    def clock(self, t: Tensor) -> Tensor:
        return 0.0 - self.power * torch.log(self.path.alpha(t))

    def time_of(self, clock: float) -> float:
        ends = torch.tensor([[0.0], [self.t_max]], dtype=torch.float64)
        return float(root(lambda t: self.clock(t) - clock, ends[0], ends[1]))


def root(f: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> Tensor:
    """The zeros (n,) of n increasing functions, of which f(t (n,)) are the values (n,), by halving.

    They lie between low (n,) and high (n,), float64; the nearer end is returned where there is none.
    """
    below, above = f(low) >= 0, f(high) <= 0
    found, end = low, high
    while bool(((found < (middle := (found + end) / 2)) & (middle < end)).any()):
        right = f(middle) >= 0
        found, end = torch.where(right, found, middle), torch.where(right, middle, end)
    return torch.where(below, low, torch.where(above, high, end))
