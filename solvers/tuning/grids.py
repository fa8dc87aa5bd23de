"""Grids tuned for a solver on a model: few steps, placed where they reduce the error most.

The reference is a fine solution of the probability-flow ODE from a batch of starts. First, dynamic programming over its
nodes finds the steps whose one-step errors have the least sum (Chen et al. 2024, arXiv:2405.11326, "Geometry-Inspired
Time Scheduling"). One-step errors ignore how errors propagate and cancel, and a multistep method's history. So
then the nodes are moved by a direct search on what counts, the error of the whole solve at its end.

>>> import torch
>>> from solvers.conformance.problems import VP, Mixture
>>> problem, x = Mixture(VP), torch.linspace(-2, 2, 64, dtype=torch.float64).view(-1, 1)
>>> tuned = tune_grid("ddim", problem, 4, trajectory(problem, x, VP))
>>> len(tuned.ratios), tuned.nfe, tuned.errors["tuned"] < 0.8 * tuned.errors["karras"]
(5, 4, True)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..budget import evaluations, steps_of_nfe
from ..errors import InputError, positive_integer
from ..loop import solve
from ..program.trace import trace
from ..time_grids.base import Grid, checked, grids
from ..time_grids.files import write_grid
from ..time_grids.noise_levels import time_of
from ..time_grids.rules import Explicit
from ..types.node import Node, Prediction, Rows
from ..types.problem import Problem, ProblemWrapper, as_problem
from ..types.schedule import Schedule
from ..types.solver import Solver, solvers
from .search import Array, cheapest_path, descend

# grids that a tuned grid is compared with, and from which the search may start
BUILT_IN = (
    "karras", "logsnr", "uniform", "quadratic", "kl_optimal", "beta", "flow_shift", "flow_shift(shift=1)",
    "polyexponential(rho=2)",
)  # fmt: skip
DYNAMIC_PROGRAMMING = "dynamic programming"
_COSTED = 64  # samples whose one-step errors are averaged; the search that follows uses all of them


@dataclass(frozen=True)
class Trajectory:
    """A fine solution of the probability-flow ODE, the reference of a tuning; ``trajectory`` computes it.

    Attributes:
        schedule: the path.
        nodes: from noise to data; if the last one has sigma = 0, grids tuned on this reference end there too.
        states: the states at the nodes (len(nodes), B, *).
        evaluations: what it cost: model evaluations of all samples together, if known.

    Raises:
        InputError: the states do not fit the nodes or are not finite, or the nodes run from data to noise.
    """

    schedule: Schedule
    nodes: tuple[Node, ...]
    states: Tensor
    evaluations: int = 0

    def __post_init__(self) -> None:
        checked(self.nodes, "the reference")
        if self.nodes[0].ratio < self.nodes[-1].ratio:
            raise InputError("the reference runs from data to noise: reverse its nodes and states")
        if self.states.ndim < 3 or len(self.states) != len(self.nodes) or not self.states.numel():
            raise InputError(f"a reference of {len(self.nodes)} nodes has states of {tuple(self.states.shape)}")
        if not torch.isfinite(self.states).all():
            raise InputError("the reference contains numbers that are not finite")

    @property
    def to_zero(self) -> bool:
        """Whether it ends at sigma = 0."""
        return self.nodes[-1].sigma == 0

    @property
    def range(self) -> tuple[float, float]:
        """The times of its last node with sigma > 0 and of its first node."""
        return self.nodes[-2 if self.to_zero else -1].t, self.nodes[0].t

    def rule(self, grid: str | Grid) -> Grid:
        """A grid with the reference's end."""
        return replace(grids.make(grid), end="zero" if self.to_zero else "t_min")

    def place(self, grid: str | Grid, steps: int) -> tuple[Node, ...]:
        """The nodes of a grid on the same range of times and with the same end."""
        return self.rule(grid).nodes(self.schedule, steps, *self.range)

    @torch.no_grad()
    def errors(self, solver: str | Solver, problem: Problem, nodes: Sequence[Node]) -> Tensor:
        """Mean square distance per coordinate (B,), float64, between a solver's outcome and the reference's last state.

        It is infinite where the outcome is not finite. If ``nodes`` begin at less noise than the reference, the start
        is the reference's, scaled to the path's standard deviation there, sqrt(alpha^2 + sigma^2), as samplers do.

        Raises:
            InputError: the solver draws noise or has no ``Program``, or the nodes end at a different sigma.
        """
        begin, end = self.nodes[0], self.nodes[-1]
        if not math.isclose(nodes[-1].ratio, end.ratio, rel_tol=1e-9):
            raise InputError(f"the grid ends at sigma={nodes[-1].sigma:g} and the reference at sigma={end.sigma:g}")
        start = self.states[0]
        if not math.isclose(nodes[0].ratio, begin.ratio, rel_tol=1e-9):
            start = math.hypot(nodes[0].alpha, nodes[0].sigma) / math.hypot(begin.alpha, begin.sigma) * start
        return self.squares(trace(solver, nodes, self.schedule).run(problem, start))

    def squares(self, outcome: Tensor) -> Tensor:
        """Mean square distance per coordinate (B,), float64, between outcomes (B, *) and the last states."""
        found = (outcome.double() - self.states[-1].double()).flatten(1).square().mean(1)
        return torch.where(found.isfinite(), found, math.inf)


@torch.no_grad()
def trajectory(
    problem: Problem,
    x: Tensor,
    schedule: Schedule,
    grid: str | Grid = "logsnr",
    steps: int = 96,
    solver: str | Solver = "rk4",
    *,
    t_min: float | None = None,
    t_max: float | None = None,
) -> Trajectory:
    """The reference of a tuning: the states of a batch at every node of an accurate solve.

    Args:
        problem: the path and the model.
        x: the starts (B, *) at t_max, in the dtype of the solve; float64 if the model allows it.
        schedule: the path.
        grid, steps: the nodes. ``logsnr(end=zero)`` ends at sigma = 0, and so do the grids tuned on this reference.
        solver: a deterministic solver; an adaptive one solves every interval to its tolerances.
        t_min, t_max: the range of times; None means the grid's default.

    Raises:
        InputError: the solver draws noise, or the grid rejects its arguments.
    """
    method, nodes = solvers.make(solver), grids.make(grid).nodes(schedule, steps, t_min, t_max)
    if method.stochastic:
        raise InputError(f"{method} draws noise: a reference needs a deterministic solver")
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 2:
        raise InputError("x must be floats (B, *)")
    states = [x]
    made = solve(method, problem, x, nodes, hooks=[lambda state, node: states.append(state)])
    return Trajectory(schedule, nodes, torch.stack(states), int(made.nfe.sum()))


@dataclass(frozen=True)
class TunedGrid:
    """A grid found by ``tune_grid``, with its errors and those of other grids.

    Attributes:
        solver: the spec of the solver that the grid was tuned for.
        nfe: model evaluations of a solve on it, as counted.
        ratios: the noise levels sigma / alpha, greatest first; a last 0 is sigma = 0.
        samples: the number of samples for the tuning, and the number held out.
        errors: root-mean-square distance per coordinate to the reference on the tuning samples, by grid: "tuned",
            "dynamic programming", then the built-in grids by their specs.
        held_out: the same on samples that the tuning did not use; empty without held-out samples.
    """

    solver: str
    nfe: int
    ratios: tuple[float, ...]
    samples: tuple[int, int]
    errors: Mapping[str, float] = field(repr=False)
    held_out: Mapping[str, float] = field(repr=False)

    @property
    def steps(self) -> int:
        """The number of steps, including one to sigma = 0."""
        return len(self.ratios) - 1

    @property
    def grid(self) -> Explicit:
        """The grid in the form that every entry point accepts: ``sample(..., grid=tuned.grid)``."""
        return Explicit(ratios=self.ratios)

    def save(self, path: str | Path, **facts: Any) -> None:
        """Writes the grid to a file; ``grid="file:PATH"`` then names it in a config, on the command line and in Python.

        Args:
            path: the file.
            facts: further entries of the file, such as ``seeds`` and the model; any values that JSON can represent.

        Raises:
            InputError: the file cannot be written, or a fact has the name of an entry that the file has already.
        """
        own = {
            "solver": self.solver,
            "nfe": self.nfe,
            "samples": {"tuning": self.samples[0], "held_out": self.samples[1]},
            "errors": dict(self.errors),
            "held_out": dict(self.held_out),
            "versions": {"scoresde": installed("scoresde"), "torch": torch.__version__},
        }
        for name in facts:
            if name in own or name in ("format", "version", "ratios"):
                raise InputError(f"the grid's file has {name!r} of its own; use a different name")
        write_grid(path, self.ratios, {**own, **facts})

    def __str__(self) -> str:
        levels = " ".join(f"{r:.4g}" for r in self.ratios)
        titles = [f"tuning ({self.samples[0]})", *([f"held out ({self.samples[1]})"] if self.held_out else [])]
        lines = [
            f"{self.steps} steps for {self.solver}, {self.nfe} NFE",
            f"sigma / alpha: {levels}",
            f"{'RMS error per coordinate':32s}" + "".join(f"{title:>18s}" for title in titles),
        ]
        for name in ("tuned", *sorted(set(self.errors) - {"tuned"}, key=lambda key: self.errors[key])):
            found = [self.errors[name], *([self.held_out[name]] if self.held_out else [])]
            lines.append(f"{name:32s}" + "".join(f"{value:18.4g}" for value in found))
        return "\n".join(lines)


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def tune_grid(
    solver: str | Solver,
    problem: Problem,
    nfe: int,
    reference: Trajectory,
    *,
    held_out: Trajectory | None = None,
    starts: int = 2,
    runs: int = 400,
) -> TunedGrid:
    """The nodes on which a solver comes closest to the truth with ``nfe`` model evaluations.

    The first node and the last are the reference's; those between are chosen, first by dynamic programming, then by a
    direct search of the least mean square error at the end, which begins at the best of that path and of the built-in
    grids.

    Args:
        solver: a deterministic linear one, see ``solvers.info(name).linear``.
        problem: the path and the model, of the reference's samples.
        nfe: the budget of a solve; as many steps as it affords.
        reference: the truth, see ``trajectory``. Hundreds of samples, where the error varies from one to the next: a
            grid that is best for a few is not for others.
        held_out: another truth of ``problem``, on which the result is measured as well.
        starts: searches, from the best so many grids; the best outcome is taken.
        runs: solves of the whole batch that a search may take.

    Raises:
        InputError: the solver draws noise, chooses its own steps or has no ``Program``; nfe is not a positive integer
            or leaves no node to place; the reference has fewer steps, or the held-out one another range.
    """
    method = tunable(solver)
    positive_integer("starts", starts)
    positive_integer("runs", runs)
    if held_out is not None and (held_out.range, held_out.to_zero) != (reference.range, reference.to_zero):
        raise InputError(f"held_out covers the times {held_out.range}, the reference {reference.range}")
    found = _candidates(method, problem, nfe, reference)
    errors = {name: _mean(reference.errors(method, problem, nodes)) for name, nodes in found.items()}
    best: tuple[float, Array] | None = None
    for name in sorted(errors, key=lambda key: errors[key])[:starts]:
        outcome = _searched(method, problem, reference, found[name], errors[name], runs)
        best = outcome if best is None or outcome[0] < best[0] else best
    assert best is not None
    found = {"tuned": _nodes(reference, best[1]), **found}
    errors = {"tuned": best[0], **errors}
    unseen = {}
    if held_out is not None:
        unseen = {name: math.sqrt(_mean(held_out.errors(method, problem, nodes))) for name, nodes in found.items()}
    return TunedGrid(
        solver=str(method),
        nfe=evaluations(method, reference.schedule, found["tuned"]),
        ratios=tuple(node.ratio for node in found["tuned"]),
        samples=(reference.states.shape[1], 0 if held_out is None else held_out.states.shape[1]),
        errors={name: math.sqrt(value) for name, value in errors.items()},
        held_out=unseen,
    )


def tunable(solver: str | Solver) -> Solver:
    """The solver, if there is a grid to tune for it."""
    method = solvers.make(solver)
    if method.stochastic:
        raise InputError(f"{method} draws noise: a grid is tuned for deterministic solvers")
    if method.adaptive:
        raise InputError(f"{method} chooses its own steps: it has no grid to tune")
    if not method.linear:
        raise InputError(f"{method} has no program, which tuning runs: {method.nonlinear}")
    return method


def _candidates(method: Solver, problem: Problem, nfe: int, reference: Trajectory) -> dict[str, tuple[Node, ...]]:
    """The grids where a search may start, of as many steps as the budget affords: dynamic programming's, then the
    built-in ones that suit the path."""
    steps = steps_of_nfe(method, reference.rule("logsnr"), reference.schedule, nfe, *reference.range)
    if steps < 2:
        raise InputError(f"nfe={nfe} is too small for {method}: one step leaves no node to place")
    if steps > len(reference.nodes) - 1:
        raise InputError(f"the reference has {len(reference.nodes) - 1} steps, too few for the {steps} of {method}")
    path = cheapest_path(step_costs(method, problem, reference), steps)
    found = {DYNAMIC_PROGRAMMING: tuple(reference.nodes[i] for i in path)}
    for spec in BUILT_IN:
        with suppress(InputError):  # a rule that this path or so few steps do not suit
            found[spec] = reference.place(spec, steps)
    return found


def _searched(
    method: Solver, problem: Problem, reference: Trajectory, nodes: Sequence[Node], start: float, runs: int
) -> tuple[float, Array]:
    """The least mean square error that a search from these nodes finds, and log(sigma / alpha) of the inner nodes."""

    def error(levels: Array) -> float:
        return _mean(reference.errors(method, problem, _nodes(reference, levels)))

    low, high = (math.log(node.ratio) for node in (reference.schedule(t) for t in reference.range))
    levels = np.array([math.log(node.ratio) for node in nodes[1:-1]])
    return descend(error, levels, start, high, low, runs, closed=reference.to_zero)


def _mean(squares: Tensor) -> float:
    return float(squares.mean())


def _nodes(reference: Trajectory, levels: Array) -> tuple[Node, ...]:
    """The reference's first and last nodes, and between them nodes with log(sigma / alpha) at ``levels``."""
    schedule, (lo, hi) = reference.schedule, reference.range
    inner = (schedule(time_of(schedule, math.exp(float(level)), lo, hi)) for level in levels)
    return (reference.nodes[0], *inner, reference.nodes[-1])


class _Remembered(ProblemWrapper):
    """A problem whose prediction at one state and node is known."""

    def __init__(self, problem: Problem, x: Tensor, node: Node) -> None:
        super().__init__(problem)
        self.x, self.at, self.answer = x, node, problem.predict(x, node)

    def predict(self, x: Tensor, node: Any) -> Prediction:
        known = not isinstance(node.t, Tensor) and node == self.at and torch.equal(x, self.x)
        return self.answer if known else self.problem.predict(x, node)

    def select(self, rows: Rows) -> Problem:
        return self.problem.select(rows)


@torch.no_grad()
def step_costs(solver: Solver, problem: Problem, reference: Trajectory) -> Array:
    """The error of a step from node i to node j (n, n): root mean square per coordinate of the error in x / alpha.

    Each step starts from the reference's state, for a multistep method without history. Infinite where j <= i.
    """
    nodes, count = reference.nodes, min(_COSTED, reference.states.shape[1])
    states, part = reference.states[:, :count], as_problem(problem).select(slice(0, count))
    costs = np.full((len(nodes), len(nodes)), math.inf)
    for i, t in enumerate(nodes[:-1]):
        x = states[i]
        known = _Remembered(part, x, t)
        for j in range(i + 1, len(nodes)):
            gap = (solve(solver, known, x, (t, nodes[j])).x - states[j]) / nodes[j].alpha
            costs[i, j] = math.sqrt(float(gap.double().square().mean()))
    return np.where(np.isfinite(costs), costs, math.inf)
