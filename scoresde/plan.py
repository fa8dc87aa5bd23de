"""Plans: a solver and the nodes that it runs on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import solvers
from solvers import Grid, InputError, Node, Program, Solver
from solvers.trace import NoProgram

from .sde import SDE, Denoises


@dataclass(frozen=True)
class Plan:
    """A solver and the nodes it runs on: what every entry point makes of its options."""

    solver: Solver
    grid: str
    nodes: tuple[Node, ...]

    @classmethod
    def make(
        cls,
        denoiser: Denoises,
        solver: str | Solver,
        grid: str | Grid | None = None,
        steps: int | None = None,
        nfe: int | None = None,
        t_min: float | None = None,
        t_max: float | None = None,
        stop: bool = False,
    ) -> Plan:
        """Resolves names and budgets.

        Args:
            grid: by default the one that the solver's label names ("DPM++ 2M Karras"), else ``karras``.
            steps, nfe: one of the two; ``nfe`` takes the most steps that it affords. Neither for an adaptive solver,
                which then crosses the whole range in one interval, unless the grid is a list of nodes; it stops at
                t_min unless the grid says otherwise.
            stop: end at t_min even if the grid would go on to sigma = 0.

        Raises:
            InputError: an unknown name or option, both or neither of steps and nfe, or a budget that is too small.
        """
        named = None
        if isinstance(solver, str):
            solver, named = solvers.resolve(solver)
        method = solvers.make(solver)
        if method.nodes is not None:
            if stop or (grid, steps, nfe, t_min, t_max) != (None,) * 5:
                what = (
                    "encode and log_prob take other solvers" if stop else "leave out grid, steps, nfe, t_min and t_max"
                )
                raise InputError(f"{method} has a grid of its own, from noise to data: {what}")
            check_on_path(method, method.nodes, denoiser.sde)
            return cls(method, "its own", method.nodes)
        rule = solvers.grids.make(grid or named or "karras")
        if stop:
            rule = dataclasses.replace(rule, end="t_min")
        if steps is not None and nfe is not None:
            raise InputError("give steps or nfe, not both")
        if nfe is not None:
            steps = solvers.steps_of_nfe(method, rule, denoiser.sde, nfe, t_min, t_max)
        elif steps is None and method.adaptive and not rule.fixed:
            if grid is None and named is None:
                rule = solvers.grids.make("uniform")
            steps = 2 if rule.end == "zero" else 1
        elif steps is None and not rule.fixed:
            raise InputError(f"{method} takes as many steps as it is told: give steps or nfe")
        nodes = rule.nodes(denoiser.sde, steps, t_min, t_max)
        return cls(method, str(rule), nodes[:-1] if stop and nodes[-1].sigma == 0 else nodes)

    def program(self, denoiser: Denoises) -> Program | None:
        """The solver's program in terms of what the denoiser's network puts out; None where it has none, or where it
        asks the model for several steps at once."""
        if self.solver.parallel:
            return None
        try:
            return solvers.trace(self.solver, self.nodes, denoiser.sde, getattr(denoiser, "output", None) or "x0")
        except NoProgram:
            return None


def check_on_path(solver: Solver, nodes: Sequence[Node], sde: SDE) -> None:
    """Refuses nodes that were made for another path.

    Raises:
        InputError: a node's alpha or sigma is not the SDE's at its t.
    """
    for node in nodes:
        own = sde(node.t) if node.sigma > 0 else sde.clean
        if not all(math.isclose(a, b, rel_tol=1e-6) for a, b in ((node.alpha, own.alpha), (node.sigma, own.sigma))):
            raise InputError(
                f"{solver} was made for another path: at t={node.t:g} it has alpha={node.alpha:g} and "
                f"sigma={node.sigma:g}, {sde} has {own.alpha:g} and {own.sigma:g}"
            )
