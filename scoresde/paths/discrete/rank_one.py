"""Processes whose tokens keep their value or are drawn again from one law: uniform, absorbing, unigram, binomial.

P_{s->t} = a I + (1 - a) 1 nu^T with a = alpha_t / alpha_s. Per unit of the clock -log alpha the generator is
Q = 1 nu^T - I.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

import torch
from torch import Tensor

from solvers import InputError
from solvers.registry.ranges import Range
from solvers.types.process import Clock, DiscretePrediction, ProcessNode
from solvers.types.transition import Mixing, Transition, one_hot

from .base import ScheduledProcess, processes, row_of, spread

States = Annotated[int, Range(2)]


class Resampling(ScheduledProcess):
    """The base class of processes that draw tokens again from a law ``nu``."""

    mixture = True

    @property
    def nu(self) -> Tensor:
        """The law (S,) from which tokens are drawn again, float64."""
        raise NotImplementedError

    @property
    def prior(self) -> Tensor:
        return self.nu

    def transition(self, s: ProcessNode[Any], t: ProcessNode[Any], x: Tensor) -> Transition:
        fall = spread(s.clock, x) - spread(t.clock, x)
        return Mixing(torch.exp(fall), -torch.expm1(fall) * self.nu.to(x.device))

    def generator_columns(self, x: Tensor, t: ProcessNode[Any]) -> Tensor:
        nu = self.nu.to(x.device)
        return nu[x][..., None] - one_hot(x, nu)

    def generator_rows(self, x: Tensor, t: ProcessNode[Any]) -> Tensor:
        nu = self.nu.to(x.device)
        return nu - one_hot(x, nu)


@processes.register(
    "uniform",
    aliases=("multinomial",),
    reference="Hoogeboom et al. 2021, arXiv:2102.05379, eq. 11-13; Austin et al. 2021, arXiv:2107.03006",
    formula="P = a I + (1 - a) 1 1^T / S",
)
@dataclass(frozen=True)
class Uniform(Resampling):
    """Tokens are drawn again from all values alike: multinomial diffusion."""

    states: States

    @cached_property
    def nu(self) -> Tensor:
        return torch.full((self.states,), 1 / self.states, dtype=torch.float64)


@processes.register(
    "binomial",
    reference="Sohl-Dickstein et al. 2015, arXiv:1503.03585, table C.1",
    formula="x_t ~ Bernoulli(a x_s + (1 - a) / 2)",
)
@dataclass(frozen=True)
class Binomial(Resampling):
    """Bits that are drawn again from a fair coin: ``uniform`` with two values."""

    states = 2

    @cached_property
    def nu(self) -> Tensor:
        return torch.full((2,), 0.5, dtype=torch.float64)


@processes.register(
    "rank_one",
    aliases=("unigram",),
    reference="Austin et al. 2021, arXiv:2107.03006, appendix A",
    formula="P = a I + (1 - a) 1 nu^T",
)
@dataclass(frozen=True)
class RankOne(Resampling):
    """Tokens are drawn again from any law, such as the frequencies of the letters of a text.

    Args:
        law: the S probabilities; they are divided by their sum.
    """

    law: tuple[float, ...] | Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "law", row_of(self.law, "rank_one: law"))
        super().__post_init__()
        if len(self.law) < 2 or not all(p >= 0 for p in self.law) or not 0 < sum(self.law) < float("inf"):
            raise InputError("rank_one: law must be at least two numbers of at least 0, not all of them 0")

    @property
    def states(self) -> int:
        """The number of values of a token."""
        return len(self.law)

    @cached_property
    def nu(self) -> Tensor:
        law = torch.tensor(self.law, dtype=torch.float64)
        return law / law.sum()


@processes.register(
    "absorbing",
    aliases=("mask", "masked"),
    reference="Austin et al. 2021, arXiv:2107.03006; Sahoo et al. 2024, arXiv:2406.07524",
    formula="a token is masked with probability 1 - a, and then stays so",
)
@dataclass(frozen=True)
class Absorbing(Resampling):
    """Tokens become masked, one value more than the data have, and stay so.

    The reverse process fills each masked token at the constant rate 1 of its natural clock -log(1 - alpha).
    The law of a masked token given the others does not depend on the time.

    Args:
        states: the number of values of the data's tokens, 0 to states - 1; the mask is the value ``states``.
    """

    states: States

    @property
    def mask(self) -> int:
        """The value that means "masked"."""
        return self.states

    @cached_property
    def nu(self) -> Tensor:
        law = torch.zeros(self.values, dtype=torch.float64)
        law[self.mask] = 1.0
        return law

    def rates(self, prediction: DiscretePrediction, x: Tensor, t: ProcessNode, clock: Clock = "natural") -> Tensor:
        if clock == "rate" or prediction.ratios is not None:
            return super().rates(prediction, x, t, clock)
        # where alpha is 0 the speed of the natural clock is infinite and the ratios are 0
        masked = (x == self.mask)[..., None]
        return torch.where(masked, prediction.x0, 0.0).index_fill(-1, torch.tensor(self.mask, device=x.device), 0.0)
