"""Checks that every solver of discrete states must pass, on small processes where the law of a solve is known exactly.

The error of a solve is the total variation, half the sum of |found - exact| over all states, between the law of its
end and the exact one. Kernels give the law of the end without a draw. Draws of a step are compared with its kernel by a
chi-square test; those of a solver without kernels are compared with the exact law.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..budget import evaluations
from ..discrete.base import DiscreteSolver, Law, Moves, Product, picked
from ..errors import InputError
from ..loop import solve
from ..noise.uniform import UniformNoise
from ..types.process import ProcessNode
from ..types.schedule import Schedule
from ..types.solver import Solver, Step, solvers
from .convergence import reaches, slope
from .kernels import all_states, end_law, index_of, kernel
from .processes import ExactDiscrete, SmallProcess
from .verdict import UNDECLARED, Check

STEPS = (12, 24, 48)
LEVEL = 1e-6  # of a chi-square test: the probability that draws of a right solver fail it
DRAWS = 4000
LAW = 1e-9  # by how much the probabilities of a law may miss a sum of one, or be below zero


def has_kernels(solver: Solver) -> bool:
    """Whether a step is made of laws, and passes nothing on to the next, so that its exact kernel is known."""
    return isinstance(solver, DiscreteSolver) and type(solver).step is DiscreteSolver.step and solver.restartable


def law_error(solver: Any, problem: ExactDiscrete, nodes: Sequence[ProcessNode]) -> float:
    """The total variation between the law of the end of a solve and the exact one, from the exact law of its start."""
    found = end_law(solver, problem, problem.marginal(nodes[0]), problem.path.size, nodes)
    return 0.5 * float((found - problem.marginal(nodes[-1])).abs().sum())


def measured_order(solver: Solver, process: SmallProcess) -> tuple[float, list[tuple[int, float]]]:
    """The order of the total variation of a solver with kernels, and the pairs (NFE, total variation) behind it.

    It is minus the slope of log error against log steps over solves on times spaced geometrically.
    """
    problem, pairs = ExactDiscrete(process), []
    for steps in STEPS:
        pairs.append((steps, law_error(solver, problem, _nodes(process, steps))))
    cost = solver.evaluations
    return slope(pairs), [(steps * cost, error) for steps, error in pairs]


def accepts(solver: Solver, process: Any) -> bool:
    """Whether a solver can solve on a process; one that needs a mask, or ordered values, refuses others."""
    try:
        solver.init(ExactDiscrete(process), all_states(process.values, process.size), _nodes(process, 2))
    except InputError:
        return False
    return True


def _problems(solver: Solver, processes: Sequence[Any]) -> list[ExactDiscrete]:
    return [ExactDiscrete(process) for process in processes if accepts(solver, process)]


def _nodes(process: SmallProcess, steps: int, to_data: bool = False) -> list[Any]:
    """Nodes from t_max to t_min, or in equal steps of time to the data."""
    if to_data:
        return process.nodes(np.linspace(process.t_max, 0.0, steps + 1).tolist())
    return process.nodes(np.geomspace(process.t_max, process.t_min, steps + 1).tolist())


def _start(process: SmallProcess, noise: UniformNoise) -> Tensor:
    uniform = noise.initial()
    return picked(process.prior.cumsum(0).expand(*uniform.shape, process.values), uniform)


def check_spec(solver: Solver, processes: Sequence[Schedule]) -> Iterator[Check]:
    """The solver's spec makes an equal solver with the same hash."""
    text = str(solver)
    same = solvers.make(text) == solver and hash(solvers.make(text)) == hash(solver)
    yield Check("spec round trip", same, text, "every field needs a type that a spec can hold, and no state")


def check_processes(solver: Solver, processes: Sequence[Any]) -> Iterator[Check]:
    """The solver accepts at least one of the processes."""
    names = ", ".join(str(problem.path) for problem in _problems(solver, processes))
    yield Check("processes", bool(names), f"accepts {names or 'none'}", "`check` raises InputError for every process")


def check_order(solver: Solver, processes: Sequence[Any]) -> Iterator[Check]:
    """The measured order of the total variation is at least the declared one, see ``reaches``; or there is no error."""
    if not (has_kernels(solver) and solver.consistent):
        return
    for problem in _problems(solver, processes):
        order, points = measured_order(solver, problem.path)
        errors = ", ".join(f"{nfe}: {error:.1e}" for nfe, error in points)
        detail = f"measured {order:.2f}, declared {solver.order:g} (NFE {errors})"
        yield Check(
            f"order on {problem.path}",
            reaches(solver, order) or not solver.order or max(error for _, error in points) < LAW,
            detail if solver.order else UNDECLARED.format(order),
            "it does not converge: x0 sees the token's own noisy value, loo does not; rates are per unit of the clock"
            if order < 0.5
            else "tokens must move by `moved(..., kernel='hold')`: other kernels have order one; rates set to 0",
            skipped=not solver.order,
        )


def check_laws(solver: Solver, processes: Sequence[Any]) -> Iterator[Check]:
    """Every law of a step, from every state, is one: probabilities of at least 0 that sum to one."""
    if not has_kernels(solver):
        return
    for problem in _problems(solver, processes):
        nodes = [*_nodes(problem.path, 4), problem.path.clean]
        space = all_states(problem.path.values, problem.path.size)
        noise, gaps = UniformNoise(range(len(space)), space.shape[1:]), [0.0]
        carry = solver.init(problem, space, nodes)
        for t, s in itertools.pairwise(nodes):
            moves = solver.end if s.clean else solver.moves  # type: ignore[attr-defined]  # see has_kernels
            gaps += _gaps(moves(problem, space, t, s, carry), noise)
        yield Check(
            f"laws on {problem.path}",
            max(gaps) < LAW,
            f"probabilities miss 0 or a sum of one by {max(gaps):.1e}",
            "the probability that a token stays is one minus those of its moves, also in a long step",
        )


def _gaps(moves: Moves, noise: UniformNoise) -> Iterator[float]:
    """By how much each law of a step is none."""
    try:
        law = next(moves)
        while True:
            yield _gap(law)
            law = moves.send(law.draw(noise.draw))
    except StopIteration:
        return


def _gap(law: Law) -> float:
    if not bool(law.law.isfinite().all()):
        return math.inf
    if isinstance(law, Product):
        return max(float((law.law.sum(-1) - 1).abs().max()), -float(law.law.min()))
    return max(float((law.law.flatten(1).sum(1) - 1).max()), -float(law.law.min()))


def check_draws(solver: Solver, processes: Sequence[Any]) -> Iterator[Check]:
    """Draws follow the kernel of a step; those of a solver without kernels follow the exact law of a solve's end."""
    if not has_kernels(solver) and solver.order < math.inf:
        return
    for problem in _problems(solver, processes):
        p = min(_p_values(solver, problem))
        wanted = "the kernel of a step" if has_kernels(solver) else "the exact law"
        yield Check(
            f"draws on {problem.path}",
            p > LEVEL,
            f"{DRAWS} draws follow {wanted}: chi-square p = {p:.2g}, level {LEVEL:g}",
            "a uniform number is used twice, or `step` does not draw from the laws of `moves`"
            if has_kernels(solver)
            else "the times of the events, the bound of the rates, or the law at an event",
        )


def _p_values(solver: Any, problem: ExactDiscrete) -> Iterator[float]:
    process = problem.path
    space, noise = all_states(process.values, process.size), UniformNoise(range(DRAWS), (process.size,))
    if not has_kernels(solver):
        nodes = _nodes(process, 3)
        start = torch.multinomial(problem.marginal(nodes[0]), DRAWS, True, generator=torch.Generator().manual_seed(0))
        drawn = solve(solver, problem, space[start], nodes, noise).x
        yield p_value(drawn, problem.marginal(nodes[-1]), process.values)
        return
    nodes = _nodes(process, 4)
    carry = solver.init(problem, space, nodes)
    exact = kernel(lambda x: solver.moves(problem, x, nodes[1], nodes[2], carry), space, process.values)
    for row in (0, len(space) - 1):
        x = space[row].expand(DRAWS, -1).contiguous()
        drawn = solver.step(problem, x, nodes[1], nodes[2], solver.init(problem, x, nodes), noise).x
        yield p_value(drawn, exact[row], process.values)


def p_value(drawn: Tensor, law: Tensor, values: int) -> float:
    """The probability that draws (n, d) of a law (N,) over all states are as far from it, by Pearson's chi-square.

    States of which fewer than five draws are expected count as one.
    """
    seen = torch.bincount(index_of(drawn, values), minlength=len(law)).double()
    wanted = len(drawn) * law
    if bool((seen[law <= 0] > 0).any()):
        return 0.0
    rare = wanted < 5
    seen, wanted = (torch.cat([part[~rare], part[rare].sum()[None]]) for part in (seen, wanted))
    some = wanted > 0
    chi2 = ((seen[some] - wanted[some]) ** 2 / wanted[some]).sum()
    freedom = int(some.sum()) - 1
    return float(torch.special.gammaincc(torch.tensor(freedom / 2).double(), chi2 / 2)) if freedom else 1.0


def check_evaluations(solver: Solver, processes: Sequence[Any]) -> Iterator[Check]:
    """A step costs the declared number of evaluations; later ones may cost less, if they reuse a prediction."""
    if solver.adaptive:
        return
    for problem in _problems(solver, processes)[:1]:
        nodes = _nodes(problem.path, 20)
        first, whole = (evaluations(solver, problem.path, part) for part in (nodes[:2], nodes))
        yield Check(
            "evaluations",
            first == solver.evaluations and whole <= 20 * first,
            f"{first} in the first step, {whole} in 20 steps, declared {solver.evaluations} a step",
            "@solvers.register(name, evaluations=...)",
        )


def check_batch(solver: Solver, processes: Sequence[Any]) -> Iterator[Check]:
    """A sample is the same in a batch of 64, in reverse order, and in a later run alone; its state is not changed."""
    for problem in _problems(solver, processes):
        process = problem.path
        nodes = _nodes(process, 1 if solver.adaptive else 6, to_data=True)

        def run(seeds: Sequence[int], problem: ExactDiscrete = problem, nodes: Any = nodes) -> Tensor:
            noise = UniformNoise(seeds, (problem.path.size,))
            x = _start(problem.path, noise)
            before = x.clone()
            moved = solve(solver, problem, x, nodes, noise).x
            return moved if torch.equal(x, before) else moved * 0 - 1  # a step must not change its input

        batch = run(range(64))
        alone = torch.cat([run([seed]) for seed in (0, 17, 63)])
        same = torch.equal(alone, batch[[0, 17, 63]]) and torch.equal(run(range(63, -1, -1)).flip(0), batch)
        yield Check(
            f"alone and in a batch on {process}",
            same and bool((batch >= 0).all()),
            "the same tokens" if same else "other tokens",
            "a draw for some of the samples must be noise.select(rows); the solver keeps state between runs, or a step "
            "changes its input tensor",
        )


def check_capabilities(solver: Solver, processes: Sequence[Any]) -> Iterator[Check]:
    """A step of a ``restartable`` solver does not depend on the steps before it."""
    for problem in _problems(solver, processes)[:1] if solver.restartable else []:
        nodes, size = _nodes(problem.path, 6), problem.path.size
        x = _start(problem.path, UniformNoise(range(32), (size,)))

        def moved(taken: int, problem: Any = problem, nodes: Any = nodes, x: Tensor = x) -> Tensor:
            """The step from nodes[2] at x, after ``taken`` steps from other states."""
            step = Step(x, solver.init(problem, x, nodes))
            noise = UniformNoise(range(32, 64), x.shape[1:])
            for t, s in itertools.pairwise(nodes[: taken + 1]):
                step = solver.step(problem, step.x, t, s, step.carry, noise)
            return solver.step(problem, x, nodes[2], nodes[3], step.carry, UniformNoise(range(32), x.shape[1:])).x

        same = torch.equal(moved(0), moved(2))
        yield Check(
            "restartable",
            same,
            f"a first step is {'' if same else 'not '}the same as the step after others",
            "if its carry changes from step to step, define a property `restartable` that returns False",
        )


def check_few_steps(solver: Solver, processes: Sequence[Any]) -> Iterator[Check]:
    """Few steps to the data end with values that data have, int64, with a finite error estimate."""
    for problem in _problems(solver, processes):
        process, wrong = problem.path, []
        for steps in (1, 3) if solver.adaptive else (1, 2, 3, 20):
            noise = UniformNoise(range(64), (process.size,))
            found = solve(solver, problem, _start(process, noise), _nodes(process, steps, to_data=True), noise)
            clean = found.x.dtype == torch.int64 and int(found.x.min()) >= 0 and int(found.x.max()) < process.states
            if not clean or (found.error is not None and not bool(found.error.isfinite().all())):
                wrong.append(f"{found.x.dtype} from {found.x.min()} to {found.x.max()} in {steps}")
        yield Check(
            f"few steps to the data on {process}",
            not wrong,
            "; ".join(wrong) or f"values 0 to {process.states - 1}",
            "`end` draws the last tokens from x0, a law without the mask; clocks may be infinite at the data",
        )


CHECKS = (
    check_spec,
    check_processes,
    check_order,
    check_laws,
    check_draws,
    check_evaluations,
    check_batch,
    check_capabilities,
    check_few_steps,
)
