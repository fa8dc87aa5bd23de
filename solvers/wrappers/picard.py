"""Parallel in time: evaluates many steps of a solver at once and iterates until they agree with sequential steps."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..one_step.ancestral import DDIM
from ..registry.ranges import Count, NonNegative
from ..types.node import Node, Prediction, Rows
from ..types.problem import Problem, ProblemWrapper
from ..types.solver import Noise, Solver, Step, solvers
from .base import Wrapper, require
from .correctors import in_float64

Draws = tuple[Tensor, ...]


class _NeedsPrediction(Exception):
    """Raised where a step needs a prediction that has not been made yet."""

    def __init__(self, x: Tensor, node: Node) -> None:
        self.x, self.node = x, node


class _Replay(ProblemWrapper):
    """A problem and noise source that replay a step from stored predictions and draws.

    The first prediction that is not stored raises ``_NeedsPrediction``.
    """

    def __init__(self, problem: Problem, answers: Sequence[Prediction], draws: Sequence[Tensor]) -> None:
        super().__init__(problem)
        self.answers, self.draws = iter(answers), iter(draws)

    def predict(self, x: Tensor, node: Any) -> Prediction:
        try:
            return next(self.answers)
        except StopIteration:
            raise _NeedsPrediction(x, node) from None

    def __call__(self, t: Node, s: Node) -> Tensor:
        return next(self.draws)


class _Tape(ProblemWrapper):
    """A problem that predicts zeros and a noise source that records its draws: those of one step, in order."""

    def __init__(self, problem: Problem, noise: Noise) -> None:
        super().__init__(problem)
        self.noise = noise
        self.draws: list[Tensor] = []

    def predict(self, x: Tensor, node: Any) -> Prediction:
        return Prediction(0.0 * x, 0.0 * x, 0.0 * x)

    def __call__(self, t: Node, s: Node) -> Tensor:
        self.draws.append(self.noise(t, s))
        return self.draws[-1]


@dataclass(frozen=True)
class _Window:
    """The carry of ``picard``: the states that the sweeps have computed so far.

    Attributes:
        nodes: the grid.
        carry: the inner solver's carry, from its ``init``.
        index: the index of the node that the solve has reached.
        points: the state (B, *) at each node: final up to ``reached``, a guess after it.
        draws: the noise draws of the step from each node.
        reached: for every sample, the index of its last final state (B,).
        guessed: for every sample, the index of its last guess (B,).
    """

    nodes: tuple[Node, ...]
    carry: Any
    index: int
    points: dict[int, Tensor]
    draws: dict[int, Draws]
    reached: Tensor
    guessed: Tensor


@solvers.register(
    "picard",
    aliases=("paradigms", "parallel"),
    kind="ODE/SDE",
    order=1,
    nonlinear="it sweeps until the samples agree",
    evaluations=20,
    reference="Shih et al. 2023, arXiv:2305.16317, algorithm 1",
    formula="y_{j+1} = y_i + sum_{l=i..j} (Phi_l(y_l) - y_l), y = x / alpha, for the whole window at once",
    note="saves time, not evaluations: a Solution has fewer calls than steps, and a larger nfe",
)
@dataclass(frozen=True)
class Picard(Wrapper):
    """Parallel sampling: one call of the model evaluates a window of steps; sweeps repeat until the window converges.

    With Phi_l the solver's step from node l and y = x / alpha, a sweep sets
    y_{j+1} = y_i + sum_{l=i..j} (Phi_l(y_l) - y_l) for every j of the window. All Phi_l are evaluated at the guesses of
    the previous sweep. The first state is then exact. The states after it are final up to the first one that moved by
    more than ``tolerance`` times sqrt(alpha^2 + sigma^2), in root mean square. The window then moves past them.

    tolerance = 0 means up to rounding: the outcome is that of the solver alone. 1e-3 is enough for images. Each sample
    has its own window, one call of the model sweeps every sample once, and a sample's sweeps do not depend on the
    others. The noise of a step is drawn once, in the order of the steps. If a hook replaces the state, the guesses
    after it are dropped.

    Args:
        solver: any single-step solver of fixed steps.
        window: how many steps to evaluate at once; as many states are kept in memory.
        tolerance: see above.
        sweeps: if given, every window is swept this many times, for any tolerance, and the next window starts at its
            end. The outcome is then linear in the state, the predictions and the noise.
    """

    solver: Solver = dataclasses.field(default=DDIM())
    window: Count = 20
    tolerance: NonNegative = 0.0
    sweeps: Count | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require("picard", self.solver, restartable=True)

    @property
    def nonlinear(self) -> str:
        return solvers.info_of(self).nonlinear if self.sweeps is None else self.solver.nonlinear

    @property
    def parallel(self) -> bool:
        return True

    @property
    def plans_grid(self) -> bool:
        return True

    @property
    def evaluations(self) -> int:
        """The most evaluations that a step can take: a sweep of the whole window. Fast convergence takes fewer."""
        return self.window * self.solver.evaluations

    def init(self, problem: Problem, x: Tensor, nodes: Sequence[Node]) -> Any:
        start = torch.zeros(len(x), dtype=torch.long)
        return _Window(tuple(nodes), self.solver.init(problem, x, nodes), 0, {0: x}, {}, start, start)

    def step(self, problem: Problem, x: Tensor, t: Node, s: Node, carry: Any, noise: Noise | None) -> Step:
        i = carry.index
        if len(x) and int(carry.reached.min()) <= i:
            extended = self._extend(problem, carry, noise)
            carry = self._sweep(problem, extended) if self.sweeps is None else self._sweep_often(problem, extended)
        if not len(x):
            return Step(x, dataclasses.replace(carry, index=i + 1, points={i + 1: x}))
        points = {j: point for j, point in carry.points.items() if j > i}
        draws = {j: drawn for j, drawn in carry.draws.items() if j > i}
        return Step(points[i + 1], dataclasses.replace(carry, index=i + 1, points=points, draws=draws))

    def to_data(self, problem: Problem, x: Tensor, t: Node, s: Node, carry: Any, noise: Noise | None) -> Step:
        return self.step(problem, x, t, s, carry, noise)

    def replaced(self, carry: Any, x: Tensor) -> Any:
        here = torch.full_like(carry.reached, carry.index)  # the guesses after x are dropped
        return dataclasses.replace(carry, points={carry.index: x}, reached=here, guessed=here)

    def _advance(self, window: _Window, j: int, problem: Any, x: Tensor) -> Tensor:
        """The solver's step from node j; ``problem`` is also its noise source."""
        t, s = window.nodes[j : j + 2]
        take = self.solver.to_data if s.clean else self.solver.step
        return take(problem, x, t, s, window.carry, problem).x

    def _ends(self, window: _Window) -> Tensor:
        """The last node of every sample's window (B,)."""
        return (window.reached + self.window).clamp_max(len(window.nodes) - 1)

    def _extend(self, problem: Problem, window: _Window, noise: Noise | None) -> _Window:
        """Adds guesses, constant in y, for the nodes that enter the windows; draws the noise of the steps to them."""
        nodes, ends = window.nodes, self._ends(window)
        points, draws = dict(window.points), dict(window.draws)
        for j in range(int(window.guessed.min()), int(ends.max())):
            guess = (nodes[j + 1].alpha / nodes[j].alpha) * points[j]
            new = (window.guessed <= j) & (j < ends)
            points[j + 1] = _where(new, guess, points[j + 1]) if j + 1 in points else guess
            if self.stochastic and j not in draws:
                assert noise is not None
                tape = _Tape(problem, noise)
                self._advance(window, j, tape, points[j])
                draws[j] = tuple(tape.draws)
        return dataclasses.replace(window, points=points, draws=draws, guessed=ends.maximum(window.guessed))

    def _sweep(self, problem: Problem, window: _Window) -> _Window:
        """One sweep: evaluates every sample's window once and updates its states and its final node."""
        nodes, points, ends = window.nodes, dict(window.points), self._ends(window)
        rows = {
            j: torch.nonzero((window.reached <= j) & (j < ends)).flatten()
            for j in range(int(window.reached.min()), int(ends.max()))
        }
        steps = self._steps(problem, window, {j: chosen for j, chosen in rows.items() if len(chosen)})
        reached, settled = window.reached.clone(), torch.ones_like(window.reached, dtype=torch.bool)
        for j, moved in steps.items():
            chosen, node, old = rows[j], nodes[j + 1], window.points[j + 1]
            at = chosen.to(old.device)
            # the recursion of the sum; where a state did not move, this is the solver's step to the last bit
            new = moved + (node.alpha / nodes[j].alpha) * (points[j][at] - window.points[j][at])
            shift = in_float64(new - old[at]).flatten(1).pow(2).mean(1).sqrt().cpu()
            tolerance = max(self.tolerance, 4 * torch.finfo(old.dtype).eps) * math.hypot(node.alpha, node.sigma)
            first = window.reached[chosen] == j
            final = first | (settled[chosen] & (shift <= tolerance))
            settled[chosen] = final
            reached[chosen] = torch.where(final, torch.full_like(chosen, j + 1), reached[chosen])
            points[j + 1] = old.index_copy(0, at, new)
        return dataclasses.replace(window, points=points, reached=reached)

    def _sweep_often(self, problem: Problem, window: _Window) -> _Window:
        """All sweeps of one window; all its states are final afterwards. The k-th sweep makes the k-th state exact."""
        nodes, end = window.nodes, int(self._ends(window).max())
        points = dict(window.points)
        for first in range(window.index, min(window.index + (self.sweeps or 0), end)):
            old = dict(points)
            steps = self._steps(
                problem, dataclasses.replace(window, points=old), dict.fromkeys(range(first, end), slice(None))
            )
            for j, moved in steps.items():
                points[j + 1] = moved
                if j > first:
                    points[j + 1] = moved + (nodes[j + 1].alpha / nodes[j].alpha) * (points[j] - old[j])
        return dataclasses.replace(window, points=points, reached=torch.full_like(window.reached, end))

    def _steps(self, problem: Problem, window: _Window, rows: Mapping[int, Rows]) -> dict[int, Tensor]:
        """The solver's step from each node for its samples; each round of predictions is one call of the model."""
        starts = {j: _chosen(window.points[j], chosen) for j, chosen in rows.items()}
        draws = {j: [_chosen(z, chosen) for z in window.draws.get(j, ())] for j, chosen in rows.items()}
        answers: dict[int, list[Prediction]] = {j: [] for j in rows}
        found: dict[int, Tensor] = {}
        while len(found) < len(rows):
            needed: dict[int, _NeedsPrediction] = {}
            for j in rows:
                if j not in found:
                    replay = _Replay(problem, answers[j], draws[j])
                    try:
                        found[j] = self._advance(window, j, replay, starts[j])
                    except _NeedsPrediction as need:
                        needed[j] = need
            if needed:
                made = _together(problem, [(rows[j], need.x, need.node) for j, need in needed.items()])
                for j, prediction in zip(needed, made, strict=True):
                    answers[j].append(prediction)
        return {j: found[j] for j in rows}


def _where(rows: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """The rows of ``new`` (B, *) where ``rows`` (B,) is true, and of ``old`` elsewhere."""
    return torch.where(rows.to(old.device).view(-1, *(1,) * (old.ndim - 1)), new, old)


def _chosen(x: Tensor, rows: Rows) -> Tensor:
    return x[rows if isinstance(rows, slice) else rows.to(x.device)]


def _together(problem: Problem, needed: Sequence[tuple[Rows, Tensor, Node]]) -> list[Prediction]:
    """The predictions at several states and nodes, in one call of the model; for symbolic states, in one call each."""
    if not all(isinstance(x, Tensor) for _, x, _ in needed):
        return [problem.predict(x, node) for _, x, node in needed]
    each = [len(x) for _, x, _ in needed]
    places = torch.arange(max(each))
    rows = torch.cat([places[chosen] if isinstance(chosen, slice) else chosen for chosen, _, _ in needed])
    states = torch.cat([x for _, x, _ in needed])
    nodes = Node.stack([node for (_, _, node), n in zip(needed, each, strict=True) for _ in range(n)], states.ndim)
    prediction = problem.select(rows).predict(states, nodes)
    x0, eps = torch.split(prediction.x0, each), torch.split(prediction.eps, each)
    nu = [None] * len(each) if prediction.nu is None else torch.split(prediction.nu, each)
    return [Prediction(*parts) for parts in zip(x0, eps, nu, strict=True)]
