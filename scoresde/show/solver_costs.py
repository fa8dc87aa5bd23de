"""The costs of solvers in words: evaluations of a step, of a whole solve, and of its start."""

from __future__ import annotations

import solvers
from solvers import SeededNoise, Solver
from solvers.conformance.discrete import accepts
from solvers.conformance.problems import VP, Mixture
from solvers.conformance.processes import ABSORBING, BIRTH_DEATH, UNIFORM, ExactDiscrete
from solvers.discrete.base import picked
from solvers.noise.uniform import UniformNoise

INCONSISTENT = "not a consistent sampler: its samples do not follow the model's law at any number of steps"
STEPS = 20


def cost(solver: Solver) -> str:
    """The evaluations of one step, of 20 steps and of the start-up, in words."""
    if solver.space == "discrete":
        return _discrete_cost(solver)
    if solver.adaptive:
        nodes, noise = solvers.grid("uniform", VP, 1), SeededNoise(range(4), (2,))
        x = nodes[0].sigma * noise.initial()
        nfe = int(solvers.solve(solver, Mixture(VP), x, nodes, noise).nfe.max())
        return (
            f"{solver.evaluations} per inner step; the tolerances decide how many steps: {nfe} NFE on a mixture of "
            "Gaussians"
        )
    ends = [solvers.evaluations(solver, VP, solvers.grid(spec, VP, STEPS)) for spec in ("logsnr", "karras")]
    start = solvers.startup(solver, VP)
    extra = f"; {start} of them are start-up cost" if start > 0 else ""
    span = f"{STEPS} steps take {ends[0]} to sigma > 0 and {ends[1]} to sigma = 0"
    return f"{solver.evaluations} per step; {span}{extra}"


def _discrete_cost(solver: Solver) -> str:
    """The evaluations of a solver of discrete states, in words; counted on three tokens of a small process."""
    process = next(process for process in (ABSORBING, UNIFORM, BIRTH_DEATH) if accepts(solver, process))
    problem, noise = ExactDiscrete(process), UniformNoise(range(256), (process.size,))
    x = picked(process.prior.cumsum(0).expand(256, process.size, process.values), noise.initial())
    steps = 1 if solver.adaptive else STEPS
    nodes = process.nodes([process.t_max * (1 - i / steps) for i in range(steps + 1)])
    nfe = solvers.solve(solver, problem, x, nodes, noise).nfe.double()
    what = f"{process.size} tokens of {process.values} values ({process})"
    if solver.adaptive:
        return f"{solver.evaluations} per event, at random times: {nfe.mean():.1f} on average for {what}"
    first = f"{solver.evaluations} per step, 1 in the last one, to the data"
    return f"{first}; {STEPS} steps take {nfe.max():.0f}{' at most' * bool(nfe.min() < nfe.max())}, for {what}"
