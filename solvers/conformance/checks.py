"""Checks that every solver must pass, measured on problems with known exact solutions.

Those of solvers of Gaussian states are here; those of discrete states are in ``discrete``.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..budget import evaluations
from ..loop import solve
from ..noise.seeded import SeededNoise
from ..program.trace import trace
from ..time_grids.base import grid
from ..types.node import Node
from ..types.schedule import Schedule
from ..types.solver import Solver, solvers
from . import discrete
from .convergence import measured_order, reaches
from .problems import PATHS, Mixture
from .processes import PROCESSES
from .rounding import LIMIT, outcome, roundings_lost
from .verdict import UNDECLARED, Check, attempted

TRACED = 1e-12  # relative to the largest state; measured: 2e-14
LOOSE = 0.05  # a tolerance for what shows in every step: few steps, of which some are rejected


def verdicts(solver: Solver, schedules: Sequence[Schedule] | None = None) -> Iterator[Check]:
    """Runs every check that applies to the solver, and yields each result as soon as it is known.

    Args:
        schedules: the paths or processes to check it on; by default all of its space of states.
    """
    checks, places = (discrete.CHECKS, PROCESSES) if solver.space == "discrete" else (CHECKS, PATHS)
    for verify in checks:
        yield from attempted(verify, solver, places if schedules is None else schedules)


def check(solver: Solver, schedules: Sequence[Schedule] | None = None) -> list[Check]:
    """The results of every check that applies to the solver, see ``verdicts``.

    >>> import solvers
    >>> [str(c) for c in check(solvers.make("ddim")) if not c.passed]
    []
    """
    return list(verdicts(solver, schedules))


def _start(problem: Mixture, node: Node, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return (math.hypot(node.alpha, node.sigma) * SeededNoise(range(shape[0]), shape[1:]).initial()).to(dtype)


def _with_tolerance(solver: Solver, tolerance: float) -> Solver:
    """An adaptive solver with another tolerance; other solvers as they are."""
    if not solver.adaptive:
        return solver
    return dataclasses.replace(solver, **{"rtol": tolerance, "atol": tolerance})  # type: ignore[type-var]


def check_spec(solver: Solver, schedules: Sequence[Schedule]) -> Iterator[Check]:
    """The solver's spec makes an equal solver with the same hash."""
    text = str(solver)
    same = solvers.make(text) == solver and hash(solvers.make(text)) == hash(solver)
    yield Check("spec round trip", same, text, "every field needs a type that a spec can hold, and no state")


def check_order(solver: Solver, schedules: Sequence[Schedule]) -> Iterator[Check]:
    """The measured order is at least the declared one, see ``reaches``."""
    for schedule in schedules:
        order, points = measured_order(solver, schedule)
        errors = ", ".join(f"{nfe}: {abs(error):.1e}" for nfe, error in points)
        detail = f"measured {order:.2f}, declared {solver.order:g} (NFE {errors})"
        yield Check(
            f"order on {schedule}",
            reaches(solver, order) or not solver.order,
            detail if solver.order else UNDECLARED.format(order),
            _advice(solver, order),
            skipped=not solver.order,
        )


def _advice(solver: Solver, order: float) -> str:
    """Where to look when the measured order is too low."""
    if order < 0.5:
        return "it does not converge: compare one step at one t and s with the formula by hand; check signs and alpha"
    if solver.stochastic:
        return "noise inside a step must be composed of noise(t, m) and noise(m, s); its variance must be the formula's"
    if solver.evaluations < solver.nominal_order:
        return (
            "the first steps of a multistep method (it can reach at most their order + 1); the weights on uneven steps"
        )
    return "the nodes of the stages; the weights, which must integrate lam^k exactly for k < order"


def check_constant(solver: Solver, schedules: Sequence[Schedule]) -> Iterator[Check]:
    """A model that always predicts the same x0 is solved exactly, because the weights of a step sum to one.

    For some methods this solution is not a straight line: Euler's in t, v over its angle, methods that do not use the
    model's own prediction. They need to solve it at their order only.
    """
    if solver.stochastic or solver.adaptive:
        return
    for schedule in schedules:
        problem, errors = Mixture(schedule, (0.7,), (1.0,), 0.0), []
        for steps in (7, 40, 160):
            nodes = grid("logsnr", schedule, steps)
            x, exact = (0.7 * n.alpha + n.sigma * torch.tensor([[-1.0], [2.0]]).double() for n in (nodes[0], nodes[-1]))
            errors.append(float((solve(solver, problem, x, nodes).x - exact).abs().max()))
            if errors[0] < 1e-12:
                break
        straight = errors[0] < 1e-12
        yield Check(
            f"constant prediction on {schedule}",
            straight or not solver.order or errors[1] / errors[2] > 4 ** (solver.order - 0.25),
            "error " + ", ".join(f"{error:.1e}" for error in errors),
            "the weights of a step, in x0 or eps, must sum to one",
            skipped=not (straight or solver.order),
        )


def check_mean(solver: Solver, schedules: Sequence[Schedule]) -> Iterator[Check]:
    """With zero noise, a stochastic solver reproduces the mean of Gaussian data, at its order or better."""
    if not solver.stochastic:
        return
    for schedule in schedules:
        errors = []
        for steps in (160, 320):
            nodes = grid("logsnr", schedule, steps)
            x = torch.full((1, 1), 0.7 * nodes[0].alpha, dtype=torch.float64)
            problem = Mixture(schedule, (0.7,), (1.0,), 0.04)
            found = solve(solver, problem, x, nodes, lambda t, s: torch.zeros(1, 1, dtype=torch.float64)).x
            errors.append(abs(float(found) - 0.7 * nodes[-1].alpha))
        exact = errors[1] < 1e-12
        yield Check(
            f"mean on {schedule}",
            exact or not solver.order or errors[0] / errors[1] > 2 ** (solver.order - 0.2),
            f"off by {errors[0]:.1e}, on a finer grid by {errors[1]:.1e}",
            "the drift, not the noise: on Gaussian data the mean depends on the drift alone",
            skipped=not (exact or solver.order),
        )


def check_evaluations(solver: Solver, schedules: Sequence[Schedule]) -> Iterator[Check]:
    """One more step costs the declared number of evaluations; a wrapper may now and then divide its own steps finer."""
    if solver.adaptive:
        return
    counts = [evaluations(solver, schedules[0], grid("logsnr", schedules[0], n)) for n in (20, 21, 22, 23)]
    cost = statistics.median(after - before for before, after in itertools.pairwise(counts))
    detail = f"{cost} a step, declared {solver.evaluations}"
    yield Check("evaluations", cost == solver.evaluations, detail, "@solvers.register(name, evaluations=...)")


def check_batch(solver: Solver, schedules: Sequence[Schedule]) -> Iterator[Check]:
    """A sample is the same, to the last bit, in a batch of 64 and in a later run alone."""
    solver = _with_tolerance(solver, LOOSE)
    for schedule in schedules:
        problem, nodes = Mixture(schedule), grid("logsnr", schedule, 1 if solver.adaptive else 10)

        def run(seeds: Sequence[int], problem: Mixture = problem, nodes: tuple[Node, ...] = nodes) -> Tensor:
            noise = SeededNoise(seeds, (3,))
            x = math.hypot(nodes[0].alpha, nodes[0].sigma) * noise.initial()
            before = x.clone()
            moved = solve(solver, problem, x, nodes, noise).x
            return moved if torch.equal(x, before) else moved + math.nan  # a step must not change its input

        batch = run(range(64))
        alone = torch.cat([run([seed]) for seed in (0, 17, 63)])
        yield Check(
            f"alone and in a batch on {schedule}",
            torch.equal(alone, batch[[0, 17, 63]]),
            f"largest difference {float((alone - batch[[0, 17, 63]]).abs().max()):.1e}",
            "a norm, a step size or a noise draw couples the samples, the solver keeps state between runs, or a step "
            "changes its input tensor",
        )


def check_capabilities(solver: Solver, schedules: Sequence[Schedule]) -> Iterator[Check]:
    """A step of a ``restartable`` solver does not depend on the steps before it. A step of a solver without
    ``plans_grid`` does not depend on the other nodes of the grid."""
    problem = Mixture(schedules[0])
    nodes = grid("logsnr", schedules[0], 6)
    x = _start(problem, nodes[2], (4, 3), torch.float64)

    def moved(before: Sequence[Node], after: Sequence[Node], taken: int) -> Tensor:
        """The step from nodes[2] to nodes[3] at x, after ``taken`` steps, with ``before`` and ``after`` in the grid."""
        whole = (*before, nodes[2], nodes[3], *after)
        carry, noise = solver.init(problem, x, whole), SeededNoise(range(4), (3,), torch.float64)
        for t, s in itertools.pairwise(whole[: taken + 1]):
            carry = solver.step(problem, _start(problem, t, (4, 3), torch.float64), t, s, carry, noise).carry
        fixed = SeededNoise(range(4), (3,), torch.float64)
        return solver.step(problem, x, nodes[2], nodes[3], carry, fixed).x

    if solver.restartable:
        same = torch.equal(moved(nodes[:2], nodes[4:], 0), moved(nodes[:2], nodes[4:], 2))
        yield Check(
            "restartable",
            same,
            f"a first step is {'' if same else 'not '}the same as the step after others",
            "if its carry changes from step to step, define a property `restartable` that returns False",
        )
    if not solver.plans_grid and not solver.adaptive:
        same = torch.equal(moved((), nodes[4:], 0), moved((), (nodes[5], nodes[6], schedules[0].clean), 0))
        yield Check(
            "steps of any grid",
            same,
            f"a step does {'not ' if same else ''}depend on the other nodes",
            "if init plans steps from the grid, define a property `plans_grid` that returns True",
        )


def check_round_trip(solver: Solver, schedules: Sequence[Schedule]) -> Iterator[Check]:
    """Encoding and then decoding returns to the start, with a smaller error on a finer grid."""
    if solver.stochastic:
        return
    for schedule in schedules:
        problem, gaps = Mixture(schedule), []
        for steps in (80, 160):
            nodes = grid("uniform" if solver.adaptive else "logsnr", schedule, 1 if solver.adaptive else steps)
            solver = _with_tolerance(solver, 1e-4 if steps == 80 else 1e-6)
            x = nodes[-1].alpha * torch.linspace(-1.8, 1.8, 9, dtype=torch.float64).view(9, 1)
            code = solve(solver, problem, x, nodes[::-1]).x
            gaps.append(float((solve(solver, problem, code, nodes).x - x).abs().max()))
        wanted = 2 ** (solver.order - 0.5) if not solver.adaptive else 10
        exact, known = gaps[1] < 1e-10, bool(solver.order) or solver.adaptive
        yield Check(
            f"encode and decode on {schedule}",
            exact or not known or gaps[0] / gaps[1] > wanted,
            f"differs by {gaps[0]:.1e}, on a finer grid by {gaps[1]:.1e}",
            "the step must be valid for s > t as well as for s < t",
            skipped=not (exact or known),
        )


def check_dtype(solver: Solver, schedules: Sequence[Schedule]) -> Iterator[Check]:
    """A float32 state stays float32 and agrees with float64 up to rounding."""
    for schedule in schedules:
        problem, nodes = Mixture(schedule), grid("logsnr", schedule, 1 if solver.adaptive else 20)
        found = []
        for dtype in (torch.float32, torch.float64):
            noise = SeededNoise(range(8), (3,), dtype)
            x = (math.hypot(nodes[0].alpha, nodes[0].sigma) * noise.initial()).to(torch.float32).to(dtype)
            found.append(solve(solver, problem, x, nodes, noise).x)
        gap = float((found[0].double() - found[1]).abs().max())
        limit = 1e-4 if solver.linear else 5e-3  # norms and tolerances amplify rounding
        yield Check(
            f"float32 on {schedule}",
            found[0].dtype == torch.float32 and gap < limit,
            f"{found[0].dtype}, differs from float64 by {gap:.1e}",
            "keep coefficients in Python floats; avoid differences of large numbers",
        )


def check_traced(solver: Solver, schedules: Sequence[Schedule]) -> Iterator[Check]:
    """The program of a linear solver gives the same numbers as its steps, with as many evaluations."""
    if not solver.linear:
        return
    for schedule in schedules:
        gaps, counted = [], True
        for spec, steps in itertools.product(("logsnr", "karras"), (1, 3, 20)):
            problem, nodes = Mixture(schedule), grid(spec, schedule, steps)
            x = _start(problem, nodes[0], (4, 3), torch.float64)
            eager = solve(solver, problem, x, nodes, SeededNoise(range(4), (3,), torch.float64))
            program = trace(solver, nodes, schedule)
            with torch.no_grad():
                traced = program.run(problem, x, SeededNoise(range(4), (3,), torch.float64))
            gaps.append(float((traced - eager.x).abs().max() / eager.x.abs().max()))
            counted = counted and eager.nfe.tolist() == [program.nfe] * 4
        yield Check(
            f"traced on {schedule}",
            max(gaps) < TRACED and counted,
            f"differs from its steps by {max(gaps):.1e}" + ("" if counted else ", with a different NFE"),
            "a step may add states, predictions and noise, and scale them by Python floats; if it does more, declare "
            'it: @solvers.register(name, nonlinear="why")',
        )


def check_few_steps(solver: Solver, schedules: Sequence[Schedule]) -> Iterator[Check]:
    """Few steps give finite samples, on grids that end at sigma > 0 and at sigma = 0; 20 steps end near the data.

    Linear solvers give the same samples in float32 as in float64, up to rounding.
    """
    for schedule in schedules:
        for spec, end in (("logsnr", "sigma > 0"), ("karras", "sigma = 0")):
            farthest, losses = {}, [0.0]
            for steps in (1, 2, 3, 20):
                nodes = grid(spec, schedule, steps)
                narrow = outcome(solver, Mixture(schedule), nodes, torch.float32)
                farthest[steps] = float((narrow / nodes[-1].alpha).abs().max())
                if solver.linear:
                    losses.append(roundings_lost(solver, schedule, nodes))
            yield Check(
                f"few steps to {end} on {schedule}",
                all(map(math.isfinite, farthest.values())) and farthest[20] < 10 and max(losses) < LIMIT,
                "largest |x| "
                + ", ".join(f"{far:.2f} in {steps}" for steps, far in farthest.items())
                + (f"; float32 costs {max(losses):.1f} roundings" if solver.linear else ""),
                "lam is infinite at sigma = 0: define to_data; the first step has no history; avoid differences of "
                "large numbers",
            )


CHECKS = (
    check_spec,
    check_order,
    check_constant,
    check_mean,
    check_evaluations,
    check_batch,
    check_capabilities,
    check_round_trip,
    check_dtype,
    check_traced,
    check_few_steps,
)
