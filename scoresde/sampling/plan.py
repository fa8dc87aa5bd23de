"""Plans: a solver and the nodes that it runs on, made once from specs and used many times.

>>> import scoresde, torch
>>> denoiser = scoresde.targets.Gaussian(torch.zeros(2), 0.25).denoiser(scoresde.VP())
>>> made = plan(denoiser, "heun", "karras", nfe=20)
>>> print(made)
heun on karras, 10 steps
>>> ends = [scoresde.sample(denoiser, (2,), range(4), plan=made).x for _ in range(2)]
>>> torch.equal(*ends)
True
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import solvers
from solvers import Grid, InputError, Node, Program, Solver
from solvers.time_grids.few import few_tables
from solvers.types.model_output import Output
from solvers.types.process import Process
from solvers.types.schedule import as_schedule

from ..models.model import as_model
from ..paths.base import SDE, ModelLike
from .budget import steps_of
from .cached_by_value import cached_by_value
from .width import PLAN, PLANS, program_of, warn_of_width

SAMPLER = ("ipndm", "logsnr(end=zero)")  # the default solver and grid, as a pair (benchmarks/accuracy/defaults.py)
FEW_STEPS = "few"  # the default solver at the budgets of its tables, on its own grid (benchmarks/tuning/few.py)
NAMED = "karras"  # the grid of a solver that is named without one
DISCRETE = ("tweedie", "uniform")  # the default solver of discrete states, and its grid
OWN = "its own"  # the grid's name for a solver whose coefficients were made for fixed nodes
STEPS = 20  # of a sampler, by default


def sampler_for(budget: int | None) -> tuple[str, str]:
    """The default solver of a whole path and its grid, at a number of steps or evaluations.

    >>> sampler_for(6), sampler_for(20)
    (('few', 'few'), ('ipndm', 'logsnr(end=zero)'))
    """
    return (FEW_STEPS, FEW_STEPS) if budget in tuple(few_tables()) else SAMPLER


def grid_of(space: str) -> str:
    """The grid of a solver that is named without one, for a model of this space of states."""
    return DISCRETE[1] if space == "discrete" else NAMED


class PlanRequest(NamedTuple):
    """What a caller asks of a plan, each None if it is left open; ``plan`` describes the fields."""

    solver: str | Solver | None = None
    grid: str | Grid | None = None
    steps: int | None = None
    nfe: int | None = None
    t_min: float | None = None
    t_max: float | None = None
    forwards: int | None = None

    def in_space(self, space: str) -> PlanRequest:
        """The request with the name of its solver in a space of states, where the spaces share it.

        Raises:
            InputError: the solver is unknown, or solves for other states.
        """
        if not isinstance(self.solver, str):
            return self
        own = solvers.solvers.in_space(self.solver, space)
        check_space(solvers.make(solvers.resolve(own, space)[0]), space)
        return self._replace(solver=own)

    def or_default(self, default: tuple[str, str | None] | None = None) -> PlanRequest:
        """The request with the default solver and grid where it names none.

        Without a ``default``, that is the default sampler, whose grid belongs to its solver: ``few`` for budgets of its
        tables on a whole path, and else ``SAMPLER``.

        Raises:
            InputError: see ``check_steps``.
        """
        self.check_steps()
        if default is None:
            if self.solver is not None:
                return self
            whole = (self.grid, self.t_min, self.t_max) == (None,) * 3
            solver, grid = sampler_for(self.nfe or self.steps) if whole else SAMPLER
            return self._replace(solver=solver, grid=self.grid or grid)
        return self._replace(solver=self.solver or default[0], grid=self.grid or default[1])

    def check_steps(self) -> None:
        """Rejects a number of steps for a solver that chooses its own; on a grid that is named they are intervals.

        Raises:
            InputError: the solver is adaptive, ``steps`` is given, and no grid is.
        """
        if self.steps is None or self.grid is not None or self.solver is None or isinstance(self.solver, Plan):
            return
        method, named = solvers.resolve(self.solver) if isinstance(self.solver, str) else (self.solver, None)
        if named is None and (made := solvers.make(method)).adaptive:
            advice = "use its tolerances, or " if "rtol" in solvers.solvers.info_of(made).options else ""
            raise InputError(
                f"{made} chooses its own steps, so steps={self.steps} cannot be set; {advice}name a grid, in whose "
                "intervals it then chooses them"
            )


@dataclass(frozen=True)
class Plan:
    """A solver and the nodes that it runs on; ``plan`` makes one.

    Attributes:
        solver: the method.
        rule: the grid that placed the nodes; None for a solver with fixed nodes.
        nodes: the nodes from t_max to t_min or to sigma = 0.
        sde: the path that the nodes are on.
        t_min, t_max: the requested part of the path's range; None means the end of the range.
    """

    solver: Solver
    rule: Grid | None
    nodes: tuple[Node, ...] = field(repr=False)
    sde: SDE
    t_min: float | None = None
    t_max: float | None = None

    @classmethod
    def make(cls, denoiser: ModelLike, request: PlanRequest, end_at_t_min: bool = False) -> Plan:
        """Makes a plan as requested; see ``plan``.

        Args:
            request: it must name a solver.
            end_at_t_min: end at t_min even if the grid would continue to sigma = 0. With ``nfe``, that budget is then
                spent on the steps to t_min.
        """
        denoiser = as_model(denoiser, None)
        solver, grid, steps, nfe, t_min, t_max, forwards = request
        if isinstance(solver, Plan):
            raise InputError("the solver is a plan: pass it by name, plan=...")
        if solver is None:
            raise InputError("a plan needs a solver")
        named = None
        if isinstance(solver, str):
            solver, named = solvers.resolve(solver, denoiser.space)
        method = solvers.make(solver)
        check_space(method, denoiser.space)
        if method.nodes is not None:
            if end_at_t_min:
                raise _has_its_own(method)
            if request[1:] != (None,) * 6:
                raise InputError(
                    f"{method} has fixed nodes, from noise to data: leave out grid, steps, nfe, t_min and t_max"
                )
            return cls(method, None, method.nodes, denoiser.sde).on(denoiser.sde)
        rule = solvers.grids.make(grid or named or method.own_grid or grid_of(denoiser.space))
        if end_at_t_min:
            rule = replace(rule, end="t_min")
        if nfe is not None or forwards is not None:
            if steps is not None:
                raise InputError(f"pass steps or {'forwards' if nfe is None else 'nfe'}, not both")
            steps = steps_of(denoiser, method, rule, nfe, forwards, t_min, t_max)
        elif steps is None and method.adaptive and not rule.fixed:
            if grid is None and named is None:
                rule = solvers.grids.make("uniform")
            steps = 2 if rule.end == "zero" else 1
        elif steps is None and not rule.fixed:
            if end_at_t_min:
                raise InputError(f"{method} needs a step count: pass steps or nfe")
            steps = STEPS
        nodes = _place(rule, denoiser.sde, steps, t_min, t_max)
        nodes = nodes[:-1] if end_at_t_min and nodes[-1].sigma == 0 else nodes
        return cls(method, rule, nodes, denoiser.sde, t_min, t_max)

    @property
    def grid(self) -> str:
        """The canonical spec of the grid."""
        return OWN if self.rule is None else str(self.rule)

    @property
    def steps(self) -> int:
        """The number of steps, a step to sigma = 0 included."""
        return len(self.nodes) - 1

    def to_t_min(self) -> Plan:
        """The plan that ends at t_min instead of sigma = 0, as encoding and likelihoods need it.

        It has the same grid and number of steps. A grid that sets its own steps, and an adaptive solver, lose the
        step to sigma = 0.

        Raises:
            InputError: the solver has fixed nodes.
        """
        if self.rule is None:
            raise _has_its_own(self.solver)
        if self.nodes[-1].sigma > 0:
            return self
        rule = replace(self.rule, end="t_min")
        steps = max(1, self.steps - 1) if self.solver.adaptive else self.steps
        nodes = _place(rule, self.sde, None if rule.fixed else steps, self.t_min, self.t_max)
        return replace(self, rule=rule, nodes=nodes[:-1] if nodes[-1].sigma == 0 else nodes)

    def in_steps(self, steps: int) -> Plan:
        """The plan with the same solver and grid and a different number of steps.

        Raises:
            InputError: the grid sets its own steps, or ``steps`` is not a positive integer.
        """
        if self.rule is None or self.rule.fixed:
            raise InputError(f"the grid {self.grid} sets its own steps")
        return replace(self, nodes=_place(self.rule, self.sde, steps, self.t_min, self.t_max))

    def reversed(self) -> Plan:
        """The plan with the same nodes in reverse order."""
        return replace(self, nodes=self.nodes[::-1])

    def on(self, sde: SDE) -> Plan:
        """The plan itself, after a check that its nodes are on ``sde``.

        Raises:
            InputError: the alpha or sigma of a node differs from that of ``sde`` at the same t.
        """
        if self.solver.space == "discrete":
            return self._on_process(sde)
        if isinstance(sde, Process):
            raise InputError(f"{self.solver} solves for gaussian states, but {sde} has discrete states")
        placed = self.rule is not None and sde is self.sde
        if placed and type(sde).__eq__ is not object.__eq__:  # a path that learns may have changed
            return self
        noisy = [node.t for node in self.nodes if node.sigma > 0]
        try:
            owns = dict(zip(noisy, as_schedule(sde).nodes(noisy), strict=True))
        except InputError as error:  # outside of its range
            raise InputError(f"{self.solver} was made for a different path: {error}") from None
        for node in self.nodes:
            own = owns[node.t] if node.sigma > 0 else sde.clean
            if not all(math.isclose(a, b, rel_tol=1e-6) for a, b in ((node.alpha, own.alpha), (node.sigma, own.sigma))):
                raise InputError(
                    f"{self.solver} was made for a different path: at t={node.t:g} it has alpha={node.alpha:g} and "
                    f"sigma={node.sigma:g}, {sde} has {own.alpha:g} and {own.sigma:g}"
                )
        return self

    def _on_process(self, process: Any) -> Plan:
        for node in self.nodes:
            if process(node.t) != node:
                raise InputError(
                    f"{self.solver} was made for another process than {process}: their clocks differ at t={node.t:g}"
                )
        return self

    def program(self, output: str | Output = "x0") -> Program | None:
        """The solver's program for a network with this output; equal plans return the same object, from a cache.

        None if the solver has no program, or if it evaluates the model at several steps at once.
        """
        if self.solver.parallel or self.solver.space == "discrete":
            return None
        return program_of(self.solver, self.nodes, self.sde, Output(output) if isinstance(output, str) else output)

    def warn_of_width(self, output: Output) -> None:
        """Warns if samples, or the noise that data are encoded to, would be far too wide or too narrow; once for equal
        plans."""
        if self.solver.space == "gaussian":
            warn_of_width(self.solver, self.nodes, self.sde, output, PLAN)

    def __str__(self) -> str:
        return f"{self.solver} on {self.grid}, {self.steps} steps"


def check_space(solver: Solver, space: str) -> None:
    """Rejects a solver of other states than those of a model.

    Raises:
        InputError: it lists the solvers of the model's space.
    """
    if solver.space != space:
        raise InputError(
            f"{solver} solves for {solver.space} states, but the model has {space} states; use one of "
            f"{', '.join(solvers.names(space=space))}"
        )


def _has_its_own(solver: Solver) -> InputError:
    return InputError(f"{solver} has fixed nodes, from noise to data: use a different solver for encode and log_prob")


@cached_by_value(PLANS)
def _place(rule: Grid, sde: SDE, steps: int | None, t_min: float | None, t_max: float | None) -> tuple[Node, ...]:
    return rule.nodes(sde, steps, t_min, t_max)


def plan(
    denoiser: ModelLike,
    solver: str | Solver | None = None,
    grid: str | Grid | None = None,
    steps: int | None = None,
    *,
    nfe: int | None = None,
    forwards: int | None = None,
    t_min: float | None = None,
    t_max: float | None = None,
) -> Plan:
    """Makes a plan: a solver and its nodes on a denoiser's path.

    ``sample``, ``encode``, ``log_prob`` and ``sample_with_log_prob`` accept it. The last three stop at t_min, see
    ``Plan.to_t_min``.

    Args:
        solver: a name or spec, see ``solvers.names()``, or a solver. The default is ``few`` for 4
            to 12 evaluations of a whole path, and else ``ipndm`` on ``logsnr(end=zero)``.
        grid: a name or spec, see ``solvers.grids.names()``, or a grid. For a named solver, the default is the grid in
            its label ("DPM++ 2M Karras"), else ``karras``.
        steps: the number of steps; by default 20. For an adaptive solver, the number of intervals of a grid that is
            named.
        nfe: instead of steps, a number of model evaluations; the plan takes the most steps that need no more than it.
            Pass neither for a grid that is a list of nodes. An adaptive solver needs neither: it then crosses the
            whole range in one interval, and stops at t_min unless a named grid ends at sigma = 0.
        forwards: instead of nfe, a number of evaluations of the network, of which guidance and self-conditioning need
            several for one evaluation of the model.
        t_min, t_max: a part of the SDE's range.

    Raises:
        InputError: a name or an option is unknown; several of steps, nfe and forwards are given, or one for an adaptive
            solver; nfe is too small; the range leaves that of the SDE.
    """
    request = PlanRequest(solver, grid, steps, nfe, t_min, t_max, forwards)
    return Plan.make(denoiser, request.in_space(as_model(denoiser, None).space).or_default(default_of(denoiser)))


def default_of(denoiser: ModelLike) -> tuple[str, str] | None:
    """The default solver and grid of a model of discrete states; None for any other model."""
    return DISCRETE if as_model(denoiser, None).space == "discrete" else None


def choose_plan(
    given: Plan | None,
    denoiser: ModelLike,
    request: PlanRequest,
    *,
    default: tuple[str, str | None] | None,
    end_at_t_min: bool = False,
) -> Plan:
    """The plan that a caller gave, or one made as requested.

    Args:
        default: the default solver and grid; None for those of ``plan``.

    Raises:
        InputError: both a plan and a request are given; the plan is for a different path; see ``plan``.
    """
    if given is None:
        asked = request.in_space(as_model(denoiser, None).space)
        return Plan.make(denoiser, asked.or_default(default_of(denoiser) or default), end_at_t_min)
    if both := [name for name, value in request._asdict().items() if value is not None]:
        raise InputError(f"a plan contains its solver, grid, steps and range: leave out {', '.join(both)}, or the plan")
    if not isinstance(given, Plan):
        raise InputError(f"plan must be what scoresde.plan returns, got {type(given).__name__}")
    found = given.to_t_min() if end_at_t_min else given
    return found.on(denoiser.sde)
