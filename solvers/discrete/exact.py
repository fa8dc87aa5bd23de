"""Solvers of discrete states without a step error: they draw the times at which tokens change.

The number of evaluations is random, and differs between samples. A sample draws random numbers only while it has
evaluations, so that it does not depend on the others.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..types.process import Clock, Process, ProcessNode
from ..types.solver import Noise, Step, as_source, solvers
from .base import DiscreteSolver, OneOf, evaluated

log = logging.getLogger("solvers")


class Exact(DiscreteSolver):
    """The base class: ``events`` moves some samples by one event each, until none is left."""

    def step(self, problem: Any, x: Tensor, t: Any, s: Any, carry: Any, noise: Noise | None) -> Step:
        assert noise is not None  # see solve: the solver is stochastic
        return Step(self.events(problem, x, t, s, as_source(noise)), carry)

    def to_data(self, problem: Any, x: Tensor, t: Any, s: Any, carry: Any, noise: Noise | None) -> Step:
        return self.step(problem, x, t, s, carry, noise)

    def events(self, problem: Any, x: Tensor, t: ProcessNode, s: ProcessNode, noise: Any) -> Tensor:
        """The state (B, *) at s, from x at t."""
        raise NotImplementedError


@solvers.register(
    "first_hitting",
    aliases=("fhs",),
    kind="exact",
    order=None,
    native="x0",
    reference="Zheng et al. 2024, arXiv:2409.02908, proposition 4.1",
    formula="1 - alpha falls to (1 - alpha) U^(1/n), n tokens masked; one of them, picked evenly, becomes y ~ x0",
    note="exact, for processes with a mask; one evaluation for each token, on any grid",
)
@dataclass(frozen=True)
class FirstHitting(Exact):
    """Tokens are unmasked one by one, at the exact random times of the reverse process."""

    def check(self, process: Process) -> None:
        if process.mask is None or not process.mixture:
            raise InputError(f"first_hitting unmasks tokens, which {process} does not mask: use uniformization")

    def events(self, problem: Any, x: Tensor, t: ProcessNode, s: ProcessNode, noise: Any) -> Tensor:
        process, x = problem.path, x.clone()
        end = process.reading(s)
        reading = torch.full((len(x),), process.reading(t), dtype=torch.float64)
        rows = torch.arange(len(x))
        while True:
            left = (x[rows] == process.mask).flatten(1).sum(1).cpu()
            rows = rows[left > 0]
            if not len(rows):
                return x
            source = noise.select(rows)
            # on the natural clock the rate of each masked token is one
            wait = -torch.log(_one(source(t, s)).cpu()) / left[left > 0]
            reading[rows] += wait
            rows = rows[reading[rows] < end]
            if not len(rows):
                return x
            times = [process.time_of(float(u)) for u in reading[rows]]
            there = process(torch.tensor(times, dtype=torch.float64))
            part, some = problem.select(rows), noise.select(rows)
            x0 = evaluated(part, x[rows], there).x0
            x[rows] = OneOf(unmasked(x0, x[rows], process.mask), x[rows]).draw(partial(some, t, s))


def unmasked(x0: Tensor, x: Tensor, mask: int) -> Tensor:
    """The law (B, *, S) of the next token that is unmasked and of its value: every masked one alike, by its law x0."""
    masked = x == mask
    count = masked.flatten(1).sum(1).clamp_min(1).view(-1, *(1,) * x.ndim)
    return torch.where(masked[..., None], x0 / count, 0.0)


@solvers.register(
    "uniformization",
    kind="exact",
    order=None,
    native="rates",
    reference="Chen and Ying 2024, arXiv:2402.08095, algorithm 1; van Dijk 1992, Stoch. Proc. Appl. 42, 127",
    formula="candidates at a rate that bounds all others; each becomes a move to y with probability r(y) / bound",
    note="exact if the rates stay below their bound, as those of exact models do; a model that exceeds it is logged. "
    "Evaluations are random: their mean is the bound times the step, summed over the steps",
)
@dataclass(frozen=True)
class Uniformization(Exact):
    """Candidates for moves come at a constant rate that bounds the rates of a step; each is accepted or not.

    The bound of a step is the largest rate that any data could have at its less noisy end.

    Args:
        clock: the clock of a step.
    """

    clock: Clock = "natural"

    def to_data(self, problem: Any, x: Tensor, t: Any, s: Any, carry: Any, noise: Noise | None) -> Step:
        return DiscreteSolver.to_data(self, problem, x, t, s, carry, noise)  # rates may be infinite at the data

    def events(self, problem: Any, x: Tensor, t: ProcessNode, s: ProcessNode, noise: Any) -> Tensor:
        process, x = problem.path, x.clone()
        bound = x[0].numel() * _bound(process, s, self.clock)
        start, span = process.reading(t, self.clock), process.elapsed(t, s, self.clock)
        rows, passed = torch.arange(len(x)), torch.zeros(len(x), dtype=torch.float64)
        while True:
            # the times of a Poisson process are sums of exponential waiting times
            passed[rows] += -torch.log(_one(noise.select(rows)(t, s)).cpu()) / bound
            rows = rows[passed[rows] < span]
            if not len(rows):
                return x
            times = [process.time_of(start + float(u), self.clock) for u in passed[rows]]
            there = process(torch.tensor(times, dtype=torch.float64))
            part, some = problem.select(rows), noise.select(rows)
            rates = process.rates(evaluated(part, x[rows], there), x[rows], there, self.clock)
            total = rates.flatten(1).sum(1)
            if bool((total > bound * (1 + 1e-9)).any()):
                log.warning("%s: a rate of %.4g exceeds its bound %.4g and is cut", self, float(total.max()), bound)
            scale = 1 / torch.clamp(total, min=bound)
            law = rates * scale.view(-1, *(1,) * x.ndim)
            x[rows] = OneOf(law, x[rows]).draw(partial(some, t, s))


def _one(uniform: Tensor) -> Tensor:
    """The first uniform number (B,) of each sample."""
    return uniform.flatten(1)[:, 0]


def _bound(process: Process, s: ProcessNode, clock: Clock) -> float:
    """The largest rate out of a token at s, over all its values and all laws of its clean value."""
    values = torch.arange(process.values)
    seen = process.transition(process.clean, s, values).rows(values[: process.states])  # P_s[c, y]
    largest = 0.0
    for x in range(process.values):
        column = process.generator_columns(values[x : x + 1, None], s)[0, 0].clone()
        column[x] = 0.0
        possible = seen[:, x] > 0
        if bool(possible.any()):
            out = (seen[possible] / seen[possible, x, None]) @ column
            largest = max(largest, float(out.max() * process.speed(s, clock)))
    return largest
