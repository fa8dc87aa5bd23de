"""The samples of a tuning: references of a problem that fit one another, and the errors of programs on them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..budget import steps_of_nfe
from ..errors import InputError, positive_integer
from ..multistep.few import Few
from ..program.program import Program
from ..program.trace import trace
from ..time_grids.base import Grid, grids
from ..types.node import Node, Prediction, Rows
from ..types.problem import Problem, ProblemWrapper, as_problem
from ..types.solver import Solver, solvers
from .grids import Trajectory, tune_grid
from .table import Table
from .tuned_program import FEW, FLOOR, PROGRAM, Error

# the untuned solvers and grids with which a tuned program is compared: those that are best at few steps, and defaults
UNTUNED_SOLVERS = ("gradient_estimation", "ipndm", "deis", "dpmpp_2m", "uni_pc", "ddim")
UNTUNED_GRIDS = ("kl_optimal", "quadratic", "karras", "logsnr")


def digest(x: Tensor) -> str:
    """The first digits of the SHA-256 of a tensor's numbers."""
    numbers = x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha256(numbers.tobytes()).hexdigest()[:16]


class Counting(ProblemWrapper):
    """A problem that counts the evaluations of all its samples together, in ``count[0]``."""

    def __init__(self, problem: Problem, count: list[int]) -> None:
        super().__init__(problem)
        self.count = count

    @property
    def checked(self) -> bool:
        return self.problem.checked

    def predict(self, x: Tensor, node: Any) -> Prediction:
        self.count[0] += len(x)
        return self.problem.predict(x, node)

    def raw(self, x: Tensor, node: Node) -> Tensor:
        self.count[0] += len(x)
        return self.problem.raw(x, node)

    def select(self, rows: Rows) -> Problem:
        return Counting(self.problem.select(rows), self.count)


class Samples:
    """A problem and its references: for the tuning, for its validation, and held out.

    Attributes:
        problem: the problem; it counts evaluations in ``count``.
        parts: the references by name.
        nfe: the budget of a solve.

    Raises:
        InputError: a reference has another path, range or shape, or shares samples with another one.
    """

    def __init__(
        self, problem: Problem, nfe: int, reference: Trajectory, validation: Trajectory, held_out: Trajectory | None
    ) -> None:
        self.nfe = positive_integer("nfe", nfe)
        self.inner, self._count = as_problem(problem), [0]
        self.problem = Counting(self.inner, self._count)
        self.reference, self.validation, self.schedule = reference, validation, reference.schedule
        named = {"reference": reference, "validation": validation, "held_out": held_out}
        self.parts = {name: known for name, known in named.items() if known is not None}
        seen: dict[bytes, str] = {}
        for name, known in self.parts.items():
            self._check(name, known)
            for row in known.states[0].cpu():
                other = seen.setdefault(row.numpy().tobytes(), name)
                if other != name:
                    raise InputError(f"{name} shares samples with {other}: use different seeds")

    @property
    def count(self) -> int:
        """The evaluations so far, of all samples together."""
        return self._count[0]

    @property
    def ends(self) -> tuple[Node, Node]:
        """The first node and the last."""
        return self.reference.nodes[0], self.reference.nodes[-1]

    def _check(self, name: str, known: Trajectory) -> None:
        mine, own = ((k.nodes[0].ratio, k.nodes[-1].ratio) for k in (self.reference, known))
        if not all(math.isclose(a, b, rel_tol=1e-9) for a, b in zip(mine, own, strict=True)):
            shown = " and ".join(f"from {a:.6g} to {b:.6g}" for a, b in (own, mine))
            raise InputError(f"{name} and reference differ in sigma / alpha: {shown}")
        if known.states.shape[2:] != self.reference.states.shape[2:]:
            shapes = f"{tuple(known.states.shape[2:])}, those of the reference {tuple(self.reference.states.shape[2:])}"
            raise InputError(f"the samples of {name} have shape {shapes}")
        for node in (known.nodes[0], known.nodes[-2]):
            path: Node | None = None
            with suppress(InputError):  # a problem without a path
                path = self.inner.node(node.t)
            near = path is None or (
                math.isclose(path.alpha, node.alpha, rel_tol=1e-6)
                and math.isclose(path.sigma, node.sigma, rel_tol=1e-6)
            )
            if path is not None and not near:
                shown = f"alpha={node.alpha:.6g}, sigma={node.sigma:.6g}, the problem alpha={path.alpha:.6g}, "
                raise InputError(
                    f"{name} has a different path than the problem: at t={node.t:g} {shown}sigma={path.sigma:.6g}"
                )

    def digests(self) -> dict[str, str]:
        """What identifies the samples, by the name of the reference."""
        return {name: digest(known.states[[0, -1]]) for name, known in self.parts.items()}

    def place(self, method: Solver, grid: str | Grid | None) -> tuple[Node, ...]:
        """The nodes where a solver starts: those of a grid, or those tuned for it if it is None.

        Raises:
            InputError: the budget is too small for the solver, or the grid has another range than the reference.
        """
        if grid is None:
            return tune_grid(method, self.problem, self.nfe, self.reference).grid.nodes(self.schedule, None)
        rule = grids.make(grid)
        nodes = rule.nodes(self.schedule, None) if rule.fixed else self.reference.place(rule, self._steps(method, rule))
        (a, b), (first, last) = ((n[0].ratio, n[-1].ratio) for n in (nodes, self.reference.nodes))
        if not (math.isclose(a, first, rel_tol=1e-9) and math.isclose(b, last, rel_tol=1e-9)):
            raise InputError(
                f"{rule} has sigma / alpha from {a:.6g} to {b:.6g}, the reference {first:.6g} to {last:.6g}"
            )
        return nodes

    def _steps(self, method: Solver, rule: Grid) -> int:
        """The steps within the budget."""
        placed = replace(rule, end="zero" if self.reference.to_zero else "t_min")
        return steps_of_nfe(method, placed, self.schedule, self.nfe, *self.reference.range)

    def outcome(self, table: Table, known: Trajectory, rows: Tensor) -> Tensor:
        """The outcomes (n, *) of some samples of a reference; rows (n,) are their places."""
        whole = len(rows) == known.states.shape[1]
        rows = rows.to(known.states.device)
        start = known.states[0] if whole else known.states[0][rows]
        problem = self.problem if whole else self.problem.select(rows)
        return known.nodes[-1].alpha * table.run(problem, start / known.nodes[0].alpha, self.schedule)

    @torch.no_grad()
    def errors(self, program: Program, table: Table, others: Mapping[str, Program]) -> dict[str, dict[str, Error]]:
        """The errors of a tuned program, of other programs, and the floor: by reference, then by name."""
        found = {}
        for part, known in self.parts.items():
            programs = {PROGRAM: program, **others}
            squares = {name: known.squares(each.run(self.inner, known.states[0])) for name, each in programs.items()}
            squares[FLOOR] = floor(table, self.inner, known)
            found[part] = {name: Error.of(values, known.states[-1]) for name, values in squares.items()}
        return found

    def others(self, more: Solver) -> dict[str, Program]:
        """The programs within the budget with which a tuned one is compared, by name.

        They are those of the usual untuned solvers on the usual grids, those of one solver more, and that of ``few``.
        """
        made = {}
        for method in {str(m): m for m in (*map(solvers.make, UNTUNED_SOLVERS), more)}.values():
            with suppress(InputError):  # a solver that so few evaluations do not suit
                steps = self._steps(method, grids.make(UNTUNED_GRIDS[0]))
                for grid in UNTUNED_GRIDS:
                    with suppress(InputError):  # a grid that this path or so few steps do not suit
                        nodes = self.reference.place(grid, steps)
                        made[f"{method} on {grid}"] = trace(method, nodes, self.schedule)
        few = Few()
        nodes = self.reference.place(few.own_grid, self.nfe)
        if few.table(nodes) is not None:
            made[FEW] = trace(few, nodes, self.schedule)
        return made


@torch.no_grad()
def floor(table: Table, problem: Problem, known: Trajectory) -> Tensor:
    """The least mean square distances (B,) that any last row leaves, with the start and the table's predictions.

    They are those of the least squares fit, over these samples together, of the exact outcomes.
    """
    y, exact = known.states[0] / known.nodes[0].alpha, known.states[-1].double() / known.nodes[-1].alpha
    parts = [y, *table.predictions(problem, y, known.schedule)]
    columns = torch.stack([part.double().flatten() for part in parts], 1)
    scale = columns.norm(dim=0).clamp_min(1e-300)
    q, _ = torch.linalg.qr(columns / scale)
    target = exact.flatten()
    left = target - q @ (q.mT @ target)
    return known.squares(known.states[-1].double() + known.nodes[-1].alpha * left.view(exact.shape))
