"""Processes whose tokens move at the rates of a table, such as grey levels that move to levels nearby.

The transition over a clock c is exp(c Q). It is summed and multiplied from numbers of at least 0 only, so that every
probability, however small, has a relative accuracy of about 1e-13; from eigenvalues it would be absolute, and small
probabilities would be rounding errors, by which posteriors divide.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from solvers import InputError
from solvers.registry.ranges import Positive
from solvers.types.process import ProcessNode
from solvers.types.transition import Matrix, Transition

from .base import ScheduledProcess, processes
from .rank_one import States

TERMS, SQUARINGS = 16, 4  # of the series, for clocks of at most 1/2; the least number, so that all values are reached


class Dense(ScheduledProcess):
    """The base class of processes with a table of rates; a subclass has ``generator``, and ``prior`` if it is known."""

    @property
    def generator(self) -> Tensor:
        """Q (S, S), float64, per unit of the clock."""
        raise NotImplementedError

    @cached_property
    def prior(self) -> Tensor:
        """The law that the process does not change."""
        return stationary(self.generator)

    @cached_property
    def _series(self) -> tuple[float, Tensor]:
        """The greatest rate q, and (I + Q / q)^k / k! as (TERMS + 1, S, S)."""
        rates = self.generator
        greatest = float(-rates.diagonal().min())
        jumps = torch.eye(len(rates), dtype=torch.float64) + rates / greatest
        jumps = jumps.clamp_min(0)
        powers = [torch.eye(len(rates), dtype=torch.float64)]
        for k in range(1, TERMS + 1):
            powers.append(powers[-1] @ jumps / k)
        return greatest, torch.stack(powers)

    def power(self, clock: Tensor) -> Tensor:
        """exp(clock Q): (S, S) for one clock, (B, S, S) for B of them; at an infinite clock its limit."""
        greatest, powers = self._series
        ended = clock.isinf()
        duration = torch.where(ended, 0.0, greatest * clock)
        squarings = max(SQUARINGS, math.ceil(math.log2(max(1e-300, float(duration.max())))) + 1)
        terms = torch.pow(duration[..., None] / 2**squarings, torch.arange(TERMS + 1, dtype=torch.float64))
        found = torch.einsum("...k,kij->...ij", terms, powers)
        for _ in range(squarings):
            found = found / found.sum(-1, keepdim=True)
            found = found @ found
        found = found / found.sum(-1, keepdim=True)
        return torch.where(ended[..., None, None], self.prior, found)

    @cached_property
    def _remembered(self) -> Any:
        """``power`` of a number; a step needs the same few several times."""
        return lru_cache(maxsize=32)(lambda clock: self.power(torch.tensor(clock, dtype=torch.float64)))

    def transition(self, s: ProcessNode[Any], t: ProcessNode[Any], x: Tensor) -> Transition:
        clock = t.clock - s.clock
        found = self.power(clock.double().cpu()) if isinstance(clock, Tensor) else self._remembered(float(clock))
        return Matrix(found.to(x.device))

    def generator_columns(self, x: Tensor, t: ProcessNode[Any]) -> Tensor:
        return self.generator.mT.to(x.device)[x]

    def generator_rows(self, x: Tensor, t: ProcessNode[Any]) -> Tensor:
        return self.generator.to(x.device)[x]


def stationary(rates: Tensor) -> Tensor:
    """The law (S,) that a generator (S, S) does not change.

    Raises:
        InputError: there are several, so that the end of the process depends on its start.
    """
    table = rates.numpy()
    sizes = np.linalg.svd(table, compute_uv=False)
    if sizes[-2] <= 1e-12 * sizes[0]:
        raise InputError(
            "dense_rate: the process ends in different laws from different values, as some values never lead to "
            "others; a prior needs a single one"
        )
    equations = np.vstack([table.T / sizes[0], np.ones(len(table))])
    wanted = np.append(np.zeros(len(table)), 1.0)
    law = torch.from_numpy(np.linalg.lstsq(equations, wanted, rcond=None)[0]).clamp_min(0)
    return law / law.sum()


def table_of(values: Any, name: str, ndim: int) -> Tensor:
    """A table of numbers as float64; its last two dimensions are equal, and at least 2.

    Raises:
        InputError: the values are no such table.
    """
    try:
        table = torch.as_tensor(values, dtype=torch.float64).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"{name} must be numbers in rows of equal length") from None
    if table.ndim != ndim or table.shape[-1] != table.shape[-2] or table.shape[-1] < 2 or not len(table):
        wanted = "(S, S)" if ndim == 2 else "(T, S, S)"
        raise InputError(f"{name} must have the shape {wanted} with S of at least 2, got {tuple(table.shape)}")
    if not bool(table.isfinite().all()):
        raise InputError(f"{name} must be finite")
    return table


@processes.register(
    "dense_rate",
    reference="Campbell et al. 2022, arXiv:2205.14987, section 4.1",
    formula="P = exp((clock(t) - clock(s)) Q)",
)
@dataclass(frozen=True)
class DenseRate(Dense):
    """Tokens move between values at the rates of a table, times the rate of the schedule.

    Args:
        table: Q (S, S), Q[a, b] the rate of a -> b; rows sum to 0.
        ordinal: whether the values are ordered, so that differences of tokens have a meaning.

    Raises:
        InputError: a rate is negative, a row does not sum to 0, or the process ends in several laws.
    """

    table: tuple[tuple[float, ...], ...] | Tensor
    ordinal: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        table = table_of(self.table, "dense_rate: the table", 2)
        scale = float(table.abs().max())
        inside = table - torch.diag(table.diagonal())
        if bool((inside < 0).any()):
            a, b = (int(i) for i in (inside < 0).nonzero()[0])
            raise InputError(f"dense_rate: the rate {a} -> {b} is {float(table[a, b]):g}; rates are at least 0")
        wrong = table.sum(1).abs() > 1e-6 * scale
        if bool(wrong.any()) or not scale:
            row = int(wrong.nonzero()[0]) if scale else 0
            what = f"row {row} sums to {float(table[row].sum()):g}; rows of rates sum to 0" if scale else "all are 0"
            raise InputError(f"dense_rate: {what}")
        exact = inside - torch.diag(inside.sum(1))
        object.__setattr__(self, "table", tuple(tuple(row) for row in exact.tolist()))
        _ = self.prior  # raises

    @property
    def states(self) -> int:
        """The number of values of a token."""
        return len(self.table)

    @cached_property
    def generator(self) -> Tensor:
        return torch.tensor(self.table, dtype=torch.float64)

    def __str__(self) -> str:
        return super().__str__() if self.states <= 8 else f"dense_rate({self.states} x {self.states})"


@processes.register(
    "birth_death",
    reference="Campbell et al. 2022, arXiv:2205.14987, appendix",
    formula="a -> a + 1 and a -> a - 1 at rate 1",
)
@dataclass(frozen=True)
class BirthDeath(Dense):
    """Ordered values move to their neighbours, and in the end have the law of all values alike.

    That law is reached only where the clock is far above states^2 / pi^2.
    """

    states: States
    ordinal = True

    @cached_property
    def generator(self) -> Tensor:
        ones = torch.ones(self.states - 1, dtype=torch.float64)
        table = torch.diag(ones, 1) + torch.diag(ones, -1)
        return table - torch.diag(table.sum(1))

    @cached_property
    def prior(self) -> Tensor:
        return torch.full((self.states,), 1 / self.states, dtype=torch.float64)


@processes.register(
    "discretised_gaussian",
    aliases=("gaussian_rate",),
    reference="Campbell et al. 2022, arXiv:2205.14987, appendix",
    formula="Q[a, b] = exp(-(|a - b| - 1)^2 / width^2) toward the centre, back by detailed balance",
)
@dataclass(frozen=True)
class DiscretisedGaussian(Dense):
    """Ordered values move to values nearby, and in the end have a discretised normal law; for grey levels.

    The published schedule is geometric(low=3, high=300).

    Args:
        states: the number S of values.
        width: how far a move goes.
        spread: the standard deviation of the law in the end, in values; its mean is the value S/2 - 1.
    """

    states: States
    width: Positive = 6.0
    spread: Positive = 512.0
    ordinal = True

    @cached_property
    def prior(self) -> Tensor:
        place = torch.arange(self.states, dtype=torch.float64) + 1 - self.states / 2
        return torch.softmax(-(place**2) / (2 * self.spread**2), 0)

    @cached_property
    def generator(self) -> Tensor:
        a, b = (torch.arange(self.states, dtype=torch.float64).view(shape) for shape in ((-1, 1), (1, -1)))
        rate = torch.exp(-(((a - b).abs() - 1) ** 2) / self.width**2)
        # of a pair the value farther from the centre, or else the lower one, moves at this rate
        inward = torch.where(a < b, a + b <= self.states - 1, a + b > self.states - 1)
        table = torch.where(inward, rate, rate * self.prior / self.prior[:, None]).fill_diagonal_(0.0)
        return table - torch.diag(table.sum(1))
