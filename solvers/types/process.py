"""Processes: what a path is for states without arithmetic, such as letters, levels and bits.

A state is a tensor (B, *) of whole numbers 0, ..., S - 1, the tokens. The forward process changes every token on its
own, with the generator Q (S, S) in the unit of its clock: Q[a, b] is the rate of a -> b, and rows sum to zero. Time
runs from the data, t = 0, to noise. Everything that reverses it follows from the transitions and one prediction:

    x0(c)       the law of the clean token given the whole noisy state; it sees its own noisy token
    loo(c)      the same given only the other tokens ("leave one out"): x0(c) ~ loo(c) P_t[c, x]
    ratios(y)   p_t(x with y in this place) / p_t(x), the concrete score: sum_c w(c) P_t[c, y] with w = x0 / P_t[., x]
    rates(y)    of the reverse process, x -> y: Q[y, x] ratios(y)
    posterior   of x_s given x_t, s < t: P_{s->t}[y, x] sum_c w(c) P_s[c, y]

Of masked states x0 and loo are equal, of others they are not; a model states which of the two it predicts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, NoReturn, overload

import torch
from torch import Tensor

from ..errors import InputError
from .node import AnyNode, T
from .schedule import Schedule
from .transition import Transition, one_hot

Clock = Literal["natural", "rate"]
"""The clock of a step: the process's natural clock, or the integral of the forward rate."""


@dataclass(frozen=True, slots=True)
class ProcessNode(AnyNode, Generic[T]):
    """What a time means on a process.

    Attributes:
        t: the time; in a solve a float, in training a tensor (B,).
        clocks: the integrals from 0 to t of the rates of the process's parts; most processes have one part.
    """

    t: T
    clocks: tuple[T, ...]

    @property
    def clock(self) -> T:
        """The integral of the whole rate from 0 to t."""
        total = self.clocks[0]
        for part in self.clocks[1:]:
            total = total + part
        return total

    @property
    def noise_level(self) -> float:
        """t: nodes are ordered by it."""
        return self.t  # type: ignore[return-value]  # in a solve the numbers are floats

    @property
    def clean(self) -> bool:
        """Whether the clock is 0."""
        return bool(self.clock == 0)

    @property
    def lam(self) -> NoReturn:
        """Discrete states have none.

        Raises:
            InputError: always.
        """
        raise _no_noise_level()

    @property
    def ratio(self) -> NoReturn:
        """Discrete states have none.

        Raises:
            InputError: always.
        """
        raise _no_noise_level()


def _no_noise_level() -> InputError:
    return InputError(
        "discrete states have no noise level sigma / alpha: use a grid in t or in the clock, such as uniform, "
        "quadratic, clock or explicit(times=[...])"
    )


@dataclass(frozen=True, slots=True)
class DiscretePrediction:
    """A model's prediction at a state x (B, *) of S-valued tokens.

    Attributes:
        x0: the law (B, *, S) of each clean token given all of x, its own noisy token included.
        ratios: the concrete score (B, *, S), 1 at y = x, of a model that predicts it; rates then use it.
        own: the law (B, *, S) that a network itself gives each token, also where x0 is certain, as of tokens that are
            not masked. It says how well a token fits the others, if the network has learned that.
    """

    x0: Tensor
    ratios: Tensor | None = None
    own: Tensor | None = None


class Process(Schedule):
    """A forward process of S-valued tokens, each on its own. A subclass has ``states``, ``t_min``, ``t_max``, nodes,
    transitions, the generator and the prior; everything else has a default.

    Attributes:
        states: the number of values of the data's tokens, 0 to states - 1.
        mask: the value that means "masked", and is no value of the data; None if there is none.
        ordinal: whether the values are ordered, so that differences of tokens have a meaning.
        mixture: whether a noisy token is its clean value with probability alpha, and otherwise drawn from one law.
    """

    if TYPE_CHECKING:  # read-only for a type checker; a dataclass may still declare them as fields

        @property
        def states(self) -> int:
            """The number of values of the data's tokens."""

        @property
        def mask(self) -> int | None:
            """The value that means "masked", which the data do not have."""

        @property
        def ordinal(self) -> bool:
            """Whether the values are ordered."""

    else:
        mask = None
        ordinal = False
    mixture: ClassVar[bool] = False

    @property
    def values(self) -> int:
        """The number S of values of a token, the mask included."""
        return self.states + (self.mask is not None)

    @property
    def prior(self) -> Tensor:
        """The law (S,) of a token at t_max from which samples start, float64."""
        raise NotImplementedError

    def transition(self, s: ProcessNode[Any], t: ProcessNode[Any], x: Tensor) -> Transition:
        """The transition from the less noisy node s to t, for states x (B, *): its numbers broadcast against laws."""
        raise NotImplementedError

    def generator_columns(self, x: Tensor, t: ProcessNode[Any]) -> Tensor:
        """Q[:, x] (B, *, S): the forward rates into the states x (B, *) at t, per unit of the clock."""
        raise NotImplementedError

    def generator_rows(self, x: Tensor, t: ProcessNode[Any]) -> Tensor:
        """Q[x, :] (B, *, S): the forward rates out of the states x (B, *) at t, per unit of the clock."""
        raise NotImplementedError

    def time_of(self, reading: float, clock: Clock = "natural") -> float:
        """The time at which a clock has the reading."""
        raise NotImplementedError

    def times_of(self, readings: Tensor, clock: Clock = "natural") -> Tensor:
        """The times (n,) at which a clock has the readings (n,), float64 on the CPU."""
        return torch.tensor([self.time_of(u, clock) for u in readings.tolist()], dtype=torch.float64)

    @property
    def clean(self) -> ProcessNode:  # type: ignore[override]  # the node of a process
        """The data: the node at t = 0."""
        return self(0.0)

    @overload  # type: ignore[override]  # a process has nodes of its own
    def __call__(self, t: float) -> ProcessNode: ...
    @overload
    def __call__(self, t: Tensor) -> ProcessNode[Tensor]: ...
    def __call__(self, t: Any) -> Any:
        """The node at a time; for times (B,), with one node for each sample."""
        raise NotImplementedError

    def nodes(self, times: Sequence[float]) -> list[ProcessNode]:  # type: ignore[override]
        return [self(t) for t in times]

    def t_of_lam(self, lam: float) -> float:
        """Discrete states have no lam.

        Raises:
            InputError: always.
        """
        raise _no_noise_level()

    def times_of_lams(self, lam: Tensor) -> Tensor:
        """Discrete states have no lam.

        Raises:
            InputError: always.
        """
        raise _no_noise_level()

    def reading(self, node: ProcessNode, clock: Clock = "natural") -> float:
        """What a clock shows at a node; it falls with t. The natural clock is -clock; of processes with a mask it is
        -log P(a token is masked), on which masked tokens of an absorbing process are filled at the constant rate 1."""
        return -node.clock

    def speed(self, node: ProcessNode, clock: Clock = "natural") -> float:
        """By how much the integral of the rate falls where the clock grows by one."""
        return 1.0

    def between(self, t: ProcessNode, s: ProcessNode, share: float, clock: Clock = "natural") -> ProcessNode:
        """The node after a share of a clock's way from t to s."""
        now, then = self.reading(t, clock), self.reading(s, clock)
        return self(self.time_of((1 - share) * now + share * then, clock))

    def elapsed(self, t: ProcessNode, s: ProcessNode, clock: Clock = "natural") -> float:
        """What a clock counts from t to s.

        Raises:
            InputError: the clock is infinite at one of them.
        """
        span = self.reading(s, clock) - self.reading(t, clock)
        if not math.isfinite(span):
            end = t if not math.isfinite(self.reading(t, clock)) else s
            raise InputError(f"the {clock} clock of {self} is infinite at t={end.t:g}: leave this time out of the grid")
        return span

    # from here on all follows from the above

    def marginal(self, x: Tensor, t: ProcessNode[Any]) -> Tensor:
        """The law (B, *, S) of x_t given the clean states x (B, *)."""
        return self.transition(self.clean, t, x).rows(x)

    def weights(self, x0: Tensor, x: Tensor, t: ProcessNode[Any]) -> Tensor:
        """w = x0 / P_t[., x] (B, *, S), 0 where the transition is impossible; sum_c w(c) P_t[c, x] = 1."""
        seen = self.transition(self.clean, t, x).columns(x)
        possible = seen > 0
        return torch.where(possible, x0 / torch.where(possible, seen, 1.0), 0.0)

    def x0_of_loo(self, loo: Tensor, x: Tensor, t: ProcessNode[Any]) -> Tensor:
        """The law of the clean tokens that sees its own noisy token, ~ loo(c) P_t[c, x]; the token x itself where that
        is 0 throughout."""
        return _normalised(loo * self.transition(self.clean, t, x).columns(x), x)

    def loo_of_x0(self, x0: Tensor, x: Tensor, t: ProcessNode[Any]) -> Tensor:
        """The law of the clean tokens that does not see its own noisy token, ~ x0(c) / P_t[c, x]; 0 where x is
        impossible after c."""
        return _normalised(self.weights(x0, x, t), x)

    def x0_of_ratios(self, ratios: Tensor, x: Tensor, t: ProcessNode[Any]) -> Tensor:
        """The law of the clean tokens whose concrete score is ``ratios`` (B, *, S), 1 at y = x; negative
        probabilities, of scores that no law has, become 0."""
        law = self.transition(self.clean, t, x).pull(ratios)
        return self.x0_of_loo(law.clamp_min(0), x, t)

    def possible(self, x0: Tensor, x: Tensor, t: ProcessNode[Any]) -> Tensor:
        """``x0`` without the clean tokens after which x is impossible, as a law."""
        seen = self.transition(self.clean, t, x).columns(x)
        return _normalised(torch.where(seen > 0, x0, 0.0), x)

    def ratios(self, prediction: DiscretePrediction, x: Tensor, t: ProcessNode[Any]) -> Tensor:
        """The concrete score (B, *, S): p_t(x with y in this place) / p_t(x), 1 at y = x.

        From laws of clean tokens it is right where the forward process moves y to x, which rates need.
        """
        if prediction.ratios is not None:
            return prediction.ratios
        return self.transition(self.clean, t, x).push(self.weights(prediction.x0, x, t))

    def rates(self, prediction: DiscretePrediction, x: Tensor, t: ProcessNode, clock: Clock = "natural") -> Tensor:
        """The rates (B, *, S) of the reverse process out of x, per unit of a clock; 0 at y = x."""
        found = self.speed(t, clock) * self.generator_columns(x, t) * self.ratios(prediction, x, t)
        return found.scatter_(-1, x[..., None], 0.0)

    def posterior(self, x0: Tensor, x: Tensor, t: ProcessNode[Any], s: ProcessNode[Any]) -> Tensor:
        """The law (B, *, S) of x_s given x_t = x, each token on its own, if x0 is that of the clean tokens."""
        back = self.transition(s, t, x).columns(x)
        return back * self.transition(self.clean, s, x).push(self.weights(x0, x, t))


def _normalised(law: Tensor, x: Tensor) -> Tensor:
    total = law.sum(-1, keepdim=True)
    some = total != 0  # also NaN, which stays so
    return torch.where(some, law / torch.where(some, total, 1.0), one_hot(x, law))
