"""Measures the order of every registered solver: python benchmarks/solver_orders.py

Writes benchmarks/results/solver_orders.json. The problems are those of ``solvers.conformance``: deterministic solvers
on an analytic mixture, stochastic ones by the exact terminal variance on Gaussian data, on a VP and a VE path.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import solvers
from scoresde.results import environment, write_json
from solvers.analytic import PATHS
from solvers.conformance import measured_order

RESULTS = Path(__file__).parent / "results"
VARIANTS = ("ddim(eta=1)", "ddpm(variance=beta)", "dpmpp_2m(variant=heun)")


def main() -> None:
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for name in [*solvers.names(), *VARIANTS]:
        solver = solvers.make(name)
        row: dict[str, Any] = {"solver": str(solver), "declared": solver.order}
        for path in PATHS:
            order, points = measured_order(solver, path)
            row[str(path)] = {"order": round(order, 3), "nfe": [n for n, _ in points], "error": [e for _, e in points]}
        rows.append(row)
        print(f"{name:24s} declared {solver.order:g}  " + "  ".join(f"{p}: {row[str(p)]['order']:.2f}" for p in PATHS))
    header = {**environment(dtype=torch.float64), "command": "python benchmarks/solver_orders.py"}
    RESULTS.mkdir(exist_ok=True)
    write_json(RESULTS / "solver_orders.json", {"header": header, "rows": rows})


if __name__ == "__main__":
    main()
