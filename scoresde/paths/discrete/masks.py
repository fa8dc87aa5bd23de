"""Processes that mask tokens, and do more than that: replace them as well, or mask values at rates of their own.

Their natural clock is -log P(a token is masked); if that depends on the token's value, of a value of power 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any

import torch
from torch import Tensor

from solvers import InputError
from solvers.registry.ranges import Range
from solvers.types.process import Clock, ProcessNode
from solvers.types.transition import MaskingByState, Mixing, Transition, one_hot

from .base import ENDLESS, ScheduledProcess, processes, row_of, spread
from .rank_one import States
from .schedules import ChainLinear, ProcessSchedule, Quotient, process_schedules, root


class Masking(ScheduledProcess):
    """The base class of processes with a mask, which is the value ``states``."""

    @property
    def mask(self) -> int:
        """The value that means "masked"."""
        return self.states

    def law_of(self, token: Tensor, masked: Tensor) -> Tensor:
        """The law (S,), or (B, 1, ..., S), of the probability of each value of the data and that of the mask."""
        if not token.ndim:
            return torch.cat([token.expand(self.states), masked[None]])
        return torch.cat([token.expand(*token.shape[:-1], self.states), masked], -1)


@processes.register(
    "mask_replace",
    aliases=("vq_diffusion", "mask_and_replace"),
    reference="Gu et al. 2021, arXiv:2111.14822, eq. 7-8",
    formula="a token is masked at rate g(t), until then drawn again from all values at rate a(t)",
)
@dataclass(frozen=True)
class MaskReplace(Masking):
    """Tokens are masked, and until then drawn again from all values alike.

    With A and G the integrals of the two rates a token x0 is y != mask with the probability
    exp(-G) (exp(-A) 1[y = x0] + (1 - exp(-A)) / states), and else masked. By default the two schedules are those of
    VQ-Diffusion, whose nodes are t = i / 100. Its natural clock is that of masking, -log(1 - exp(-G)).

    Args:
        states: the number of values of the data's tokens, 0 to states - 1; the mask is the value ``states``.
        schedule: of masking, exp(-G); VQ-Diffusion's 1 - gamma-bar.
        substitution: the schedule of drawing again, exp(-A); VQ-Diffusion's alpha-bar / (1 - gamma-bar). None: masks
            only.
    """

    states: States
    schedule: ProcessSchedule = field(default_factory=lambda: ChainLinear(first=0.999991, last=1e-5), kw_only=True)
    substitution: ProcessSchedule | None = field(default_factory=Quotient, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.substitution is not None:
            object.__setattr__(self, "substitution", process_schedules.make(self.substitution))
        if self.substitution is not None and self.substitution.t_max < self.t_max:
            raise InputError(
                f"mask_replace: the schedule of substitution ends at t={self.substitution.t_max:g}, before "
                f"t={self.t_max:g}, where that of masking ends"
            )

    @cached_property
    def prior(self) -> Tensor:
        """The law at t_max of a token that was any value alike; where exp(-G) is 0 there, the mask."""
        left = math.exp(-self(self.t_max).clocks[0])
        law = torch.full((self.values,), left / self.states, dtype=torch.float64)
        law[self.mask] = 1 - left
        return law

    def clocks(self, t: Tensor) -> tuple[Tensor, ...]:
        masking = self.schedule.clock(t)
        return masking, torch.zeros_like(masking) if self.substitution is None else self.substitution.clock(t)

    def transition(self, s: ProcessNode[Any], t: ProcessNode[Any], x: Tensor) -> Transition:
        masking, drawing = (spread(a, x) - spread(b, x) for a, b in zip(s.clocks, t.clocks, strict=True))
        again = -torch.exp(masking) * torch.expm1(drawing) / self.states
        return Mixing(torch.exp(masking + drawing), self.law_of(again, -torch.expm1(masking)), self.mask)

    def shares(self, t: ProcessNode[Any], x: Tensor) -> tuple[Tensor, Tensor]:
        """The shares of masking and of drawing again in the whole rate at t; they broadcast against laws of x."""
        time = torch.as_tensor(t.t, dtype=torch.float64)
        masking = self.schedule.rate(time)
        drawing = torch.zeros_like(masking) if self.substitution is None else self.substitution.rate(time)
        whole = masking + drawing
        plain = (whole > 0) & whole.isfinite()
        # an infinite rate, as at the end of a linear schedule, leaves no share to the other one
        share = torch.where(plain, masking / whole, (masking.isinf() | ~drawing.isinf()).double())
        other = torch.where(plain, drawing / whole, 1 - share)
        return spread(share, x), spread(other, x)

    def generator_rows(self, x: Tensor, t: ProcessNode[Any]) -> Tensor:
        masking, drawing = self.shares(t, x)
        law = self.law_of(drawing / self.states, masking)
        return torch.where((x == self.mask)[..., None], 0.0, law - one_hot(x, law))

    def generator_columns(self, x: Tensor, t: ProcessNode[Any]) -> Tensor:
        masking, drawing = self.shares(t, x)
        into = torch.where((x == self.mask)[..., None], masking, drawing / self.states)
        found = into - one_hot(x, self.prior.to(x.device))
        found[..., self.mask] = 0.0
        return found

    def speed(self, node: ProcessNode, clock: Clock = "natural") -> float:
        base = super().speed(node, clock)
        if clock == "rate":
            return base
        masking, drawing = (float(share) for share in self.shares(node, torch.zeros(1, dtype=torch.int64)))
        return base * (1 + drawing / masking) if masking > 0 else math.inf

    def time_of(self, reading: float, clock: Clock = "natural") -> float:
        if clock == "natural":
            return super().time_of(reading, clock)
        return float(self.times_of(torch.tensor([reading], dtype=torch.float64), clock))

    def times_of(self, readings: Tensor, clock: Clock = "natural") -> Tensor:
        if clock == "natural":
            return super().times_of(readings, clock)
        low = torch.zeros_like(readings)
        return root(lambda t: torch.stack(self.clocks(t)).sum(0).clamp_max(1e300) + readings, low, low + self.t_max)


@processes.register(
    "hybrid",
    aliases=("gidd",),
    reference="von Rutte et al. 2025, arXiv:2503.04482, eq. 9-13",
    formula="p_t ~ a x0 + (1 - a) mask + c 1 with c ~ (a (1 - a))^(gamma / 2), a of the schedule",
)
@dataclass(frozen=True)
class Hybrid(Masking):
    """Tokens are drawn again from a law that changes in time: first from all values alike, in the end the mask.

    The law of a token is (a x0 + (1 - a) mask + c 1) / C with C = 1 + states c; c is greatest at a = 1/2, where
    a share ``uniform`` of the tokens is neither masked nor kept. Masked tokens may become unmasked again. Its natural
    clock is -log((1 - a) / C).

    Args:
        states: the number of values of the data's tokens, 0 to states - 1; the mask is the value ``states``.
        uniform: the share of tokens that are drawn from all values alike, at a = 1/2; 0 is the absorbing process.
        gamma: how quickly that share rises.
    """

    states: States
    uniform: Annotated[float, Range(0, 1, "[)")] = 0.1
    gamma: Annotated[float, Range(0, 2, "(]")] = 1.0

    @cached_property
    def prior(self) -> Tensor:
        """The law at t_max without what is left of the clean token; where that is 0, the mask."""
        node = self(self.t_max)
        law = self._drawn(node, torch.zeros(1, 1, dtype=torch.int64))
        return law / law.sum()

    @property
    def _scale(self) -> float:
        """states c at a = 1 - a = 1."""
        return float(2.0**self.gamma) * self.uniform / (1 - self.uniform)

    def clocks(self, t: Tensor) -> tuple[Tensor, ...]:
        """-log a and log C, whose sum is -log alpha."""
        clock = self.schedule.clock(t)
        return clock, torch.log1p(self._spread_out(clock))

    def _spread_out(self, clock: Tensor) -> Tensor:
        """states c at -log a."""
        share = torch.exp(-clock) * -torch.expm1(-clock)
        return self._scale * torch.pow(share, self.gamma / 2)

    def _drawn(self, t: ProcessNode[Any], x: Tensor) -> Tensor:
        """The law of a token at t, times its probability, if it has been drawn again: (1 - alpha) pi."""
        clock = spread(t.clocks[0], x)
        token = self._spread_out(clock)
        total = 1 + token
        return self.law_of(token / self.states / total, -torch.expm1(-clock) / total)

    def transition(self, s: ProcessNode[Any], t: ProcessNode[Any], x: Tensor) -> Transition:
        keep = torch.exp(spread(s.clock, x) - spread(t.clock, x))
        law = self._drawn(t, x) - keep * self._drawn(s, x)
        return Mixing(keep, law.clamp_min(0))

    def law_at(self, t: ProcessNode[Any], x: Tensor) -> Tensor:
        """The law from which tokens are drawn at t, as it broadcasts against laws of states x."""
        clock = spread(t.clocks[0], x)
        left, gone = torch.exp(-clock), -torch.expm1(-clock)
        half = self.gamma / 2
        token = self._scale / self.states * left**half * ((1 - half) * gone + half * left)
        mask = gone ** (1 - half)
        total = self.states * token + mask
        some = total > 0
        total = torch.where(some, total, 1.0)
        return self.law_of(torch.where(some, token / total, 0.0), torch.where(some, mask / total, 1.0))

    def generator_columns(self, x: Tensor, t: ProcessNode[Any]) -> Tensor:
        law = self.law_at(t, x)
        into = law[x][..., None] if law.ndim == 1 else law.expand(*x.shape, -1).gather(-1, x[..., None])
        return into - one_hot(x, law)

    def generator_rows(self, x: Tensor, t: ProcessNode[Any]) -> Tensor:
        law = self.law_at(t, x)
        return law - one_hot(x, law)

    def masked(self, node: ProcessNode) -> float:
        return -math.expm1(-node.clocks[0]) * math.exp(-node.clocks[1])

    def speed(self, node: ProcessNode, clock: Clock = "natural") -> float:
        if clock == "rate":
            return 1.0
        # with k = (1 - a) a d log C / da the clocks change with a in the ratio of 1 - a - k to a + k
        at = min(node.clocks[0], ENDLESS)
        left, gone = math.exp(-at), -math.expm1(-at)
        token = float(self._spread_out(torch.tensor(at, dtype=torch.float64)))
        k = token / (1 + token) * self.gamma / 2 * (gone - left)
        return (gone - k) / (left + k) if left + k > 0 else math.inf

    def time_of(self, reading: float, clock: Clock = "natural") -> float:
        return float(self.times_of(torch.tensor([reading], dtype=torch.float64), clock))

    def times_of(self, readings: Tensor, clock: Clock = "natural") -> Tensor:
        # both clocks change with -log a alone
        low = torch.zeros_like(readings)
        if clock == "rate":
            known = readings > -math.inf
            at = root(lambda u: u + self._log_total(u) + readings, low, torch.where(known, -readings, 0.0))
        else:
            known = readings > 0
            at = root(lambda u: readings + log_gone(u.clamp_min(1e-300)) - self._log_total(u), low, low + ENDLESS)
        at = torch.where(known, at, math.inf)
        return torch.tensor([self.within(self.schedule.time_of(u)) for u in at.tolist()], dtype=torch.float64)

    def _log_total(self, clock: Tensor) -> Tensor:
        return torch.log1p(self._spread_out(clock))


@processes.register(
    "mask_by_state",
    aliases=("genmd4", "state_dependent_masking"),
    reference="Shi et al. 2024, arXiv:2406.04329, section 6",
    formula="a token of value c is masked with probability (1 - alpha)^powers[c], and then stays so",
)
@dataclass(frozen=True)
class MaskByState(Masking):
    """Tokens become masked as in the absorbing process, but each value on a clock of its own.

    With equal powers of 1 it is the absorbing process; values of greater powers are masked later, and so unmasked
    earlier. In its natural clock -log(1 - alpha) a masked token becomes c at the rate powers[c] x0(c). The law of a
    masked token depends on the time, and is not the one given the other tokens. Powers are fixed, not learned.

    Args:
        powers: a positive number for each value of the data's tokens.
    """

    powers: tuple[float, ...] | Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "powers", row_of(self.powers, "mask_by_state: powers"))
        super().__post_init__()
        if len(self.powers) < 2 or not all(0 < power < math.inf for power in self.powers):
            raise InputError("mask_by_state: powers must be at least two positive numbers, one for each value")

    @property
    def states(self) -> int:
        """The number of values of the data's tokens."""
        return len(self.powers)

    @cached_property
    def prior(self) -> Tensor:
        law = torch.zeros(self.values, dtype=torch.float64)
        law[self.mask] = 1.0
        return law

    def _logs(self, t: ProcessNode[Any], x: Tensor) -> tuple[Tensor, Tensor]:
        """-log alpha, and log P(masked) of each value, (states,) or (B, 1, ..., states)."""
        clock = spread(t.clocks[0], x).clamp_max(ENDLESS)
        powers = torch.tensor(self.powers, dtype=torch.float64, device=x.device)
        return clock, powers * log_gone(clock)

    def transition(self, s: ProcessNode[Any], t: ProcessNode[Any], x: Tensor) -> Transition:
        before, after = (self._logs(node, x)[1] for node in (s, t))
        left = -torch.expm1(before)  # of what is there at s
        lost = (torch.exp(after) - torch.exp(before)) / left
        keep = torch.expm1(after) / torch.expm1(before)
        # where all is masked no token is left; the logs stop at ENDLESS
        ended = (spread(t.clocks[0], x) == math.inf) & (spread(s.clocks[0], x) < math.inf)
        keep, lost = torch.where(ended, 0.0, keep), torch.where(ended, 1.0, lost.clamp_min(0))
        return MaskingByState(keep, lost, self.mask)

    def _hazards(self, t: ProcessNode[Any], x: Tensor) -> Tensor:
        """The rates of masking per unit of the clock, p (1 - alpha)^(p - 1) alpha / alpha_c with the powers p."""
        clock, masked = self._logs(t, x)
        powers = torch.tensor(self.powers, dtype=torch.float64, device=x.device)
        gone = log_gone(clock)
        return powers * torch.exp(masked - gone - clock) / -torch.expm1(masked)

    def generator_columns(self, x: Tensor, t: ProcessNode[Any]) -> Tensor:
        hazards = torch.nn.functional.pad(self._hazards(t, x), (0, 1)).expand(*x.shape, self.values)
        return torch.where((x == self.mask)[..., None], hazards, -hazards * one_hot(x, hazards))

    def generator_rows(self, x: Tensor, t: ProcessNode[Any]) -> Tensor:
        hazards = torch.nn.functional.pad(self._hazards(t, x), (0, 1)).expand(*x.shape, self.values)
        own = hazards.gather(-1, x[..., None])
        to_mask = one_hot(torch.full_like(x, self.mask), hazards)
        return own * (to_mask - one_hot(x, hazards))


def log_gone(clock: Tensor) -> Tensor:
    """log(1 - alpha) at clocks -log alpha, with all digits at both ends."""
    return torch.where(clock > math.log(2), torch.log1p(-torch.exp(-clock)), torch.log(-torch.expm1(-clock)))
