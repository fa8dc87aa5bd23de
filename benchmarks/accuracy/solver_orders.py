"""Measures the order of every solver: python -m benchmarks.accuracy.solver_orders [--jobs 2] [--only NAME ...]

Writes benchmarks/accuracy/results/solver_orders.json and, for the installed package, solvers/conformance/orders.json.
The problems are those of ``solvers.conformance.checks``: the error on an analytic mixture for deterministic solvers,
and the exact terminal variance on Gaussian data for solvers that draw noise, on all five paths. Integrators of other
libraries, which solve one sample at a time, are measured on VP and VE only. For discrete states it is the total
variation of exact kernels, on the small processes that a solver accepts; exact solvers have no order. Takes about five
minutes on one core, or a few seconds for one solver and its options with ``--only``.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import solvers
from benchmarks import only
from scoresde.io.result_files import environment, write_json
from solvers import Solver
from solvers.conformance import discrete
from solvers.conformance.convergence import measured_order, reaches
from solvers.conformance.problems import PATHS, VE, VP
from solvers.conformance.processes import PROCESSES
from solvers.files import write_atomically

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results"
ROUNDING = 1e-12  # errors below are those of sums in float64
# options that change the order, or the method, in a way that a table should show
VARIANTS = (
    "adams(order=4, start=runge_kutta)",
    "adams(order=5)",
    "adams(quantity=v)",
    "adams(quantity=v, coordinate=angle)",
    "adams(quantity=velocity)",
    "adams(quantity=velocity, coordinate=flow)",
    "afs(solver=heun)",
    "ddim(eta=1)",
    "ddpm(variance=beta)",
    "deis(start=corrector)",
    "deis(variant=logrho)",
    "deis(variant=rhoab)",
    "dpm_adaptive(order=2)",
    "dpm_solver_2(mode=grid)",
    "dpm_solver_3(mode=grid)",
    "dpmpp_2m(variant=heun)",
    "dpmpp_2s(mode=grid)",
    "dpmpp_2s(mode=grid, eta=1)",
    "dpmpp_3m(start=lower)",
    "dpmpp_3m(start=lower, variant=released)",
    "dpmpp_3m_sde(variant=flipped)",
    "dpmpp_3s(mode=grid)",
    "dpmpp_3s(mode=grid, variant=flipped, eta=1)",
    "dpmpp_sde(noise=independent)",
    "er_sde(order=1)",
    "er_sde(variant=published)",
    "euler_maruyama(eta=0)",
    "gotta_go_fast(extrapolate=False)",
    "gradient_estimation(gamma=1.5)",
    "heun(quantity=velocity)",
    "ipndm_v(start=runge_kutta)",
    "lms(start=runge_kutta)",
    "pc(corrector=annealed_langevin)",
    "pc(corrector=noise_renewal)",
    "pc(predictor=dpmpp_2m)",
    "rho_rk(tableau=kutta3)",
    "sa_solver(eta=0)",
    "sa_solver(pece=True)",
    "sa_solver(predictor_order=3, corrector_order=1)",
    "sa_solver(variant=few_steps)",
    "scipy(method=DOP853)",
    "seeds_2(quantity=eps)",
    "tau_hold(clock=rate)",
    "theta_trapezoidal(clock=rate)",
    "theta_trapezoidal(kernel=euler)",
    "theta_trapezoidal(kernel=reject)",
    "torchdiffeq(method=rk4)",
    "uni_pc(correct=False)",
    "uni_pc(order=2)",
    "uni_pc(order=4)",
    "uni_pc(order=4, start=runge_kutta)",
)


def measure(spec: str) -> dict[str, Any]:
    """One row of the result: the orders of a solver, and the (NFE, error) pairs behind them."""
    torch.set_num_threads(1)
    solver = solvers.make(spec)
    row: dict[str, Any] = {"solver": str(solver), "declared": solver.order}
    for place in places_of(solver):
        discrete_space = solver.space == "discrete"
        order, points = (discrete.measured_order if discrete_space else measured_order)(solver, place)
        if max(error for _, error in points) < ROUNDING:
            continue  # an order of rounding errors means nothing
        row[str(place)] = {"order": round(order, 3), "nfe": [n for n, _ in points], "error": [e for _, e in points]}
    return row


def places_of(solver: Solver) -> Sequence[Any]:
    """The paths or processes that a solver is measured on."""
    if solver.space == "discrete":
        return [process for process in PROCESSES if discrete.accepts(solver, process)]
    return (VP, VE) if solvers.solvers.info_of(solver).kind.startswith("black box") else PATHS


def found(row: dict[str, Any]) -> dict[str, float]:
    """The orders of a row by path or process."""
    return {str(place): row[str(place)]["order"] for place in (*PATHS, *PROCESSES) if str(place) in row}


def least(row: dict[str, Any]) -> float:
    """The smallest order over the paths."""
    return min(found(row).values())


def compact(rows: Sequence[dict[str, Any]], header: dict[str, str]) -> str:
    """The file of the package: a line for each solver, with its order on each path."""
    lines = []
    for row in sorted(rows, key=lambda row: row["solver"]):
        lines.append(f"{json.dumps(row['solver'])}: {json.dumps(found(row))}")
    joined = ",\n  ".join(lines)
    return f'{{\n "header": {json.dumps(header)},\n "orders": {{\n  {joined}\n }}\n}}\n'


def has_order(solver: Solver) -> bool:
    """Whether an order is measured: not of exact solvers, and of discrete states not of those that promise none."""
    return solver.order < math.inf and (solver.space == "gaussian" or solver.order > 0)


def specs() -> list[str]:
    """The specs to measure: every registered solver that has an order, and the variants."""
    made = [solvers.make(spec) for spec in [*solvers.names(), *VARIANTS]]
    return list(dict.fromkeys(str(solver) for solver in made if has_order(solver)))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measures the order of every registered solver.")
    parser.add_argument("--jobs", type=int, default=1, help="solvers measured at once")
    only.add_only(parser)
    arguments = parser.parse_args(argv)
    names, known = only.names(arguments.only), specs()
    chosen = [spec for spec in known if not names or only.name_of(spec) in names]
    with multiprocessing.get_context("spawn").Pool(min(arguments.jobs, len(chosen))) as pool:
        rows = list(tqdm(pool.imap(measure, chosen), total=len(chosen), desc="orders", unit="solver"))
    header = {
        **environment(dtype=torch.float64),
        "threads": "1",
        "command": "python -m benchmarks.accuracy.solver_orders",
    }
    path = RESULTS / "solver_orders.json"
    document: dict[str, Any] = {"header": header, "rows": rows}
    if names:
        document = only.merged(path, header, rows, names, ("solver",), [(spec,) for spec in known])
    path.parent.mkdir(exist_ok=True)
    write_json(path, document)
    write_atomically(ROOT / "solvers" / "conformance" / "orders.json", compact(document["rows"], document["header"]))
    # options that reproduce a defect declare no order
    low = [row["solver"] for row in rows if row["declared"] and not reaches(solvers.make(row["solver"]), least(row))]
    print(f"{len(rows)} solvers measured; below the declared order: {', '.join(low) or 'none'}")


if __name__ == "__main__":
    only.run(main)
