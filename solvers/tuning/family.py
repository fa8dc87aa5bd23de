"""One program for many models: coefficients tuned over a family of problems, for models that the tuning never sees.

In the coordinates x / alpha and sigma / alpha all Gaussian paths have one ODE, so a family on one path serves all of
them; and if the data of every problem have the standard deviation 1, the table's noise levels are relative to it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..budget import steps_of_nfe
from ..errors import InputError, positive_integer
from ..types.node import Node
from ..types.problem import Problem
from ..types.solver import Solver, solvers
from .descent import Descent, Progress, Rule
from .grids import Trajectory, tunable
from .numbers import FreeNumbers, Theory, groups_of
from .table import Table

LEAST = 1e-4
"""Added to the root-mean-square error of a problem, as a share of the data's deviation 1: an error may be exactly 0."""


class Case(NamedTuple):
    """A problem, and the truth from some starts."""

    problem: Problem
    truth: Trajectory


@dataclass(frozen=True)
class Family:
    """What ``tune_family`` found.

    Attributes:
        table: the numbers.
        solver, grid: where they started.
        start, best: the geometric mean over the validation cases of the root-mean-square error per coordinate, before
            and after.
        iterations: the number of iterations.
        seconds: the wall time, without that of the truths.
    """

    table: Table
    solver: str
    grid: str
    start: float
    best: float
    iterations: int
    seconds: float


def tune_family(
    starts: Sequence[tuple[str, str]],
    nfe: int,
    cases: Sequence[Case],
    validation: Sequence[Case],
    *,
    free: str | Sequence[str] = ("nodes", "predictions", "states"),
    iterations: int = 700,
    batch: int = 16,
    seed: int = 0,
    progress: Callable[[Progress], None] | None = None,
) -> Family:
    """The table with ``nfe`` evaluations whose errors are least over a family of problems.

    The loss is the mean over cases of the log of the root-mean-square error at the end, so that no case dominates.

    Args:
        starts: solvers and grids; the tuning starts from the pair that is best on the validation cases.
        nfe: the budget.
        cases: the family, all on one path and of one range of noise levels.
        validation: other problems, which decide what is returned, and when the tuning ends.
        free, iterations, seed: as for ``tune_program``.
        batch: how many cases an iteration uses.
        progress: receives a ``Progress`` after every validation.

    Raises:
        InputError: cases are missing or have different ranges of noise levels; no start suits the budget; see also
            ``tune_program``.
    """
    began = time.perf_counter()
    positive_integer("nfe", nfe)
    if not cases or not validation:
        raise InputError("a family needs at least one case to tune on and one to validate")
    truth = cases[0].truth
    ends = truth.nodes[0], truth.nodes[-1]
    for case in (*cases, *validation):
        if not all(math.isclose(a.ratio, b.ratio, rel_tol=1e-9) for a, b in zip(ends, _ends(case), strict=True)):
            raise InputError("the cases of a family have one range of noise levels")
    start, grid, method, levels = _best_start(starts, nfe, validation)
    numbers = FreeNumbers(Theory(method, truth.schedule, *ends), levels, groups_of(free))

    def loss(at: Tensor, rows: Tensor) -> Tensor:
        table = numbers.table(at)
        return torch.stack([_log_error(table, cases[int(i)]) for i in rows]).mean().exp()

    rule = Rule(
        loss=loss, validate=lambda at: _value(numbers.table(at), validation), samples=(len(cases), batch),
        iterations=iterations, seed=seed, nfe=nfe, save=lambda state: None, hook=progress,
        forwards=lambda: 0,
    )  # fmt: skip
    state = rule.run(Descent.new(numbers.count))
    table = numbers.table(state.best_numbers)
    return Family(table, str(method), grid, start, state.best, state.iteration, time.perf_counter() - began)


def _best_start(
    starts: Sequence[tuple[str, str]], nfe: int, validation: Sequence[Case]
) -> tuple[float, str, Solver, tuple[float, ...]]:
    """The start that is best on the validation cases: its error, grid, solver, and the levels of its inner nodes."""
    truth = validation[0].truth
    found = []
    for name, grid in starts:
        method = tunable(solvers.make(name))
        steps = steps_of_nfe(method, truth.rule(grid), truth.schedule, nfe, *truth.range)
        levels = tuple(-node.lam for node in truth.place(grid, steps)[1:-1])
        table = Theory(method, truth.schedule, *_ends(validation[0])).table(levels)
        if table.nfe == nfe:
            found.append((_value(table, validation), grid, method, levels))
    if not found:
        raise InputError(f"no start spends {nfe} evaluations")
    return min(found, key=lambda one: one[0])


def _ends(case: Case) -> tuple[Node, Node]:
    return case.truth.nodes[0], case.truth.nodes[-1]


def _log_error(table: Table, case: Case) -> Tensor:
    """log(root-mean-square error per coordinate + LEAST) of a table on a case."""
    problem, truth = case
    first, last = truth.nodes[0], truth.nodes[-1]
    outcome = last.alpha * table.run(problem, truth.states[0] / first.alpha, truth.schedule)
    square = (outcome.double() - truth.states[-1].double()).square().mean()
    return 0.5 * (square + LEAST**2).log()


@torch.no_grad()
def _value(table: Table, cases: Sequence[Case]) -> float:
    value = float(torch.stack([_log_error(table, case) for case in cases]).mean().exp())
    return value if math.isfinite(value) else math.inf
