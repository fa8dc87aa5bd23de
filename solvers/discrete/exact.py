"""Solvers of discrete states without a step error: they draw the times at which tokens change.

The number of evaluations is random, and differs between samples. A sample draws random numbers only while it has
evaluations, so that it does not depend on the others.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..registry.ranges import Inside
from ..types.process import Process, ProcessNode
from ..types.solver import Noise, Step, as_source, solvers
from .base import DiscreteSolver, OneOf, evaluated

log = logging.getLogger("solvers")
_NOISE = 16.0  # a clock at which 1e-7 of the tokens have kept their value, for one that is infinite
_COARSEST = 2.0  # by how much the time left to the data falls in a part of a step that has one bound


class Exact(DiscreteSolver):
    """The base class: ``events`` moves some samples by one event each, until none is left."""

    def step(self, problem: Any, x: Tensor, t: Any, s: Any, carry: Any, noise: Noise | None) -> Step:
        assert noise is not None  # see solve: the solver is stochastic
        return self.events(problem, x, t, s, as_source(noise))._replace(carry=carry)

    def to_data(self, problem: Any, x: Tensor, t: Any, s: Any, carry: Any, noise: Noise | None) -> Step:
        return self.step(problem, x, t, s, carry, noise)

    def events(self, problem: Any, x: Tensor, t: ProcessNode, s: ProcessNode, noise: Any) -> Step:
        """The state (B, *) at s, from x at t, with the number of moves and of other events of each sample (B,)."""
        raise NotImplementedError


@solvers.register(
    "first_hitting",
    aliases=("fhs",),
    kind="exact",
    order=math.inf,
    adaptive=True,
    native="x0",
    reference="Zheng et al. 2024, arXiv:2409.02908, proposition 4.1",
    formula="1 - alpha falls to (1 - alpha) U^(1/n), n tokens masked; one of them, picked evenly, becomes y ~ x0",
    note="for processes with a mask; one evaluation for each masked token",
)
@dataclass(frozen=True)
class FirstHitting(Exact):
    """Tokens are unmasked one by one, at the exact random times of the reverse process."""

    def check(self, process: Process) -> None:
        if process.mask is None or not process.mixture:
            raise InputError(f"first_hitting unmasks tokens, which {process} does not mask: use uniformization")

    def events(self, problem: Any, x: Tensor, t: ProcessNode, s: ProcessNode, noise: Any) -> Step:
        process, x = problem.path, x.clone()
        end = process.reading(s)
        reading = torch.full((len(x),), process.reading(t), dtype=torch.float64)
        rows, moves = torch.arange(len(x)), torch.zeros(len(x), dtype=torch.long)
        while True:
            left = (x[rows] == process.mask).flatten(1).sum(1).cpu()
            rows, left = rows[left > 0], left[left > 0]
            if len(rows):  # on the natural clock the rate of each masked token is one
                reading[rows] += -torch.log(_one(noise.select(rows), t, s)) / left
                rows = rows[reading[rows] < end]
            if not len(rows):
                return Step(x, accepted=moves)
            there = process(process.times_of(reading[rows]))
            x0 = evaluated(problem.select(rows), x[rows], there).x0
            x[rows] = OneOf(unmasked(x0, x[rows], process.mask), x[rows]).draw(partial(noise.select(rows), t, s))
            moves[rows] += 1


def unmasked(x0: Tensor, x: Tensor, mask: int) -> Tensor:
    """The law (B, *, S) of the next token that is unmasked and of its value: every masked one alike, by its law x0."""
    masked = x == mask
    count = masked.flatten(1).sum(1).clamp_min(1).view(-1, *(1,) * x.ndim)
    return torch.where(masked[..., None], x0 / count, 0.0)


@solvers.register(
    "uniformization",
    kind="exact",
    order=math.inf,
    adaptive=True,
    native="rates",
    reference="Chen and Ying 2024, arXiv:2402.08095, algorithm 1; van Dijk 1992, Stoch. Proc. Appl. 42, 127",
    formula="candidates at a rate that bounds those out of the state; each becomes a move to y with probability "
    "r(y) / bound",
    note="exact if the rates stay below their bound, as those of exact models do; a rate above it is cut and logged. "
    "Evaluations are random: their mean is the bound times the step, summed over the parts of the steps",
)
@dataclass(frozen=True)
class Uniformization(Exact):
    """Candidates for moves come at a rate that bounds those out of a state, in a part of a step; some are accepted.

    The bound is a sum over the tokens, of the largest rate out of each that any data could have; it is constant until a
    token moves. A step is divided where the bound would become loose, so that the grid need not be fine. Just before
    the data, rates have no bound: all tokens are then drawn at once.

    Args:
        last: the share of tokens that are still noisy where they are drawn at once; an error of this size is left.
    """

    last: Inside = 1e-5

    def to_data(self, problem: Any, x: Tensor, t: Any, s: Any, carry: Any, noise: Noise | None) -> Step:
        process = problem.path
        near = process(process.time_of(math.log1p(-self.last), "rate"))
        if near.clock >= t.clock:
            return DiscreteSolver.to_data(self, problem, x, t, s, carry, noise)
        step = self.step(problem, x, t, near, carry, noise)
        return DiscreteSolver.to_data(self, problem, step.x, near, s, carry, noise).after(step)

    def events(self, problem: Any, x: Tensor, t: ProcessNode, s: ProcessNode, noise: Any) -> Step:
        step = Step(x)
        for start, end in _parts(problem.path, t, s):
            step = self._part(problem, step.x, start, end, noise).after(step)
        return step

    def _part(self, problem: Any, x: Tensor, t: ProcessNode, s: ProcessNode, noise: Any) -> Step:
        """The state at s, from x (B, *) at t, with one bound of the rates out of each value."""
        process, x = problem.path, x.clone()
        bounds = torch.maximum(_bounds(process, t), _bounds(process, s)).to(x.device)
        start, span = process.reading(t, "rate"), process.elapsed(t, s, "rate")
        rows, passed = torch.arange(len(x)), torch.zeros(len(x), dtype=torch.float64)
        events = torch.zeros(2, len(x), dtype=torch.long)
        while True:
            # waiting times are exponential; the bound is that of the state, which changes only at candidates
            bound = bounds[x[rows]].flatten(1).sum(1).cpu()
            passed[rows] += -torch.log(_one(noise.select(rows), t, s)) / bound
            ahead = passed[rows] < span
            rows, bound = rows[ahead], bound[ahead].to(x.device)
            if not len(rows):
                return Step(x, accepted=events[0], rejected=events[1])
            there, before = process(process.times_of(start + passed[rows], "rate")), x[rows]
            rates = process.rates(evaluated(problem.select(rows), before, there), before, there, "rate")
            total = rates.flatten(1).sum(1)
            if bool((total > bound * (1 + 1e-9)).any()):
                row = int((total / bound).argmax())
                log.warning("%s: a rate of %.4g exceeds its bound %.4g and is cut", self, total[row], bound[row])
            law = rates / torch.maximum(total, bound).view(-1, *(1,) * x.ndim)
            x[rows] = OneOf(law, before).draw(partial(noise.select(rows), t, s))
            moved = (x[rows] != before).flatten(1).any(1).cpu()
            events[0, rows[moved]] += 1
            events[1, rows[~moved]] += 1


def _one(noise: Any, t: ProcessNode, s: ProcessNode) -> Tensor:
    """One uniform number (B,) for each sample, on the CPU, where times are computed."""
    found: Tensor = noise(t, s).flatten(1)[:, 0]
    return found.cpu()


def _parts(process: Process, t: ProcessNode, s: ProcessNode) -> Iterator[tuple[ProcessNode, ProcessNode]]:
    """The parts of a step; in each the clock falls to a half at least. From pure noise, they begin near it."""
    if not math.isfinite(t.clock):
        t = process(process.time_of(-_NOISE, "rate"))
    while t.clock > _COARSEST * s.clock:
        middle = process(process.time_of(-t.clock / _COARSEST, "rate"))
        yield t, middle
        t = middle
    if t.clock > s.clock:
        yield t, s


def _bounds(process: Process, s: ProcessNode) -> Tensor:
    """The largest rates (S,) out of a token of each value at s, per unit of the clock, over all laws of its clean
    value."""
    values = torch.arange(process.values)
    seen = process.transition(process.clean, s, values).rows(values[: process.states])  # P_s[c, y]
    into = process.generator_columns(values[:, None], s)[:, 0].fill_diagonal_(0.0)  # Q[y, x] at [x, y]
    return torch.where(seen > 0, (seen @ into.T) / seen, 0.0).amax(0)
