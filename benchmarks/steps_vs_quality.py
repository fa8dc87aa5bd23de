"""Steps versus quality where everything is known: python benchmarks/steps_vs_quality.py

The data are a 2-D Gaussian mixture, the score is exact, the path is VP. Three distances are kept apart:

* to the exact solution of the probability-flow ODE from the same start (deterministic solvers);
* to the exact solution of the SDE: the relative error of the terminal variance, on Gaussian data instead of the
  mixture, since there it is computed exactly by propagating orthogonal noise, without Monte Carlo (stochastic solvers);
* to the data: sliced Wasserstein distance to fresh draws, whose floor is the distance between two sets of draws.

Writes steps_vs_quality.{csv,json,png} to benchmarks/results. --samples 16384 runs a bigger one.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

import scoresde
import solvers
from scoresde.benchmark import benchmark, record
from scoresde.metrics import compare
from scoresde.results import environment, write_csv, write_figure, write_json
from solvers.analytic import GaussianData
from solvers.conformance import terminal_variance

RESULTS = Path(__file__).parent / "results"
NFE = (4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
# adaptive solvers are spread over the same range by their tolerances
TOLERANCES = (1e-1, 1e-2, 1e-3)


def target() -> scoresde.targets.GaussianMixture:
    """Eight anisotropic components on a ring."""
    angles = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
    means = torch.stack([angles.cos(), angles.sin()], 1)
    along = torch.stack([-angles.sin(), angles.cos()], 1)
    covariances = 0.002 * torch.eye(2, dtype=torch.float64) + 0.02 * along.unsqueeze(2) * along.unsqueeze(1)
    return scoresde.targets.GaussianMixture(means, covariances, torch.arange(1, 9))


def variance_error(solver: solvers.Solver, sde: scoresde.SDE, steps: int) -> float:
    """Relative error of the variance, on N(0, 0.25), of a stochastic solver on the same grid without its last step."""
    nodes = solvers.grid("karras(end=t_min)", sde, steps)
    problem = GaussianData(sde, 0.25)
    return abs(terminal_variance(solver, problem, nodes) / problem.variance(nodes[-1]) - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1024, help="samples per row")
    samples = parser.parse_args().samples
    torch.set_num_threads(1)
    mixture, sde = target(), scoresde.VP()
    reference = mixture.sample(samples, solvers.generator(1))
    names = []
    for name in solvers.names():
        tolerances = TOLERANCES if solvers.make(name).adaptive else ()
        names += [f"{name}(rtol={t}, atol={t})" for t in tolerances] or [name]
    rows = benchmark(
        mixture.denoiser(sde), reference, names, NFE, range(samples), shape=(2,), truth_steps=2048,
        metrics=("sliced_wasserstein", "mmd"), dtype=torch.float64,
    )  # fmt: skip
    records: list[dict[str, Any]] = []
    for row in rows:
        solver = solvers.make(row.solver)
        entry = record(row)
        entry["variance_error"] = (
            variance_error(solver, sde, row.steps - 1) if row.stochastic and row.steps and row.steps > 1 else None
        )
        records.append(entry)
    floor = compare(mixture.sample(samples, solvers.generator(2)), reference, ("sliced_wasserstein", "mmd"))
    header = {
        **environment(dtype=torch.float64),
        "command": f"python benchmarks/steps_vs_quality.py --samples {samples}",
        "data": "eight Gaussians on a ring, see target(); variance_error: N(0, 0.25), without the last step",
        "sde": str(sde),
        "seeds": f"0..{samples - 1}",
        "floor": {name: [e.value, e.low, e.high] for name, e in floor.items()},
    }
    RESULTS.mkdir(exist_ok=True)
    write_json(RESULTS / "steps_vs_quality.json", {"header": header, "rows": records})
    write_csv(RESULTS / "steps_vs_quality.csv", records)
    draw(records, floor["sliced_wasserstein"].value)


def draw(records: list[dict[str, Any]], floor: float) -> None:
    """One picture: the three distances against NFE."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    panels = {
        "error": "RMS distance to the exact ODE solution",
        "variance_error": "relative error of the variance, Gaussian data (SDE)",
        "sliced_wasserstein": "sliced Wasserstein distance to the data",
    }
    families = list(dict.fromkeys(entry["solver"].partition("(")[0] for entry in records))
    colours = {name: f"C{i}" for i, name in enumerate(families)}
    axes = dict(zip(panels, figure.subplots(1, 3), strict=True))
    for column, title in panels.items():
        for name in families:
            points = [
                (entry["nfe"], entry[column])
                for entry in records
                if entry["solver"].partition("(")[0] == name and entry.get(column)
            ]
            if points:
                x, y = zip(*sorted(points), strict=True)
                axes[column].plot(x, y, "o-", markersize=3, linewidth=1.2, color=colours[name], label=name)
        axes[column].set(xscale="log", yscale="log", xlabel="model evaluations (NFE)", title=title)
        axes[column].grid(alpha=0.3, which="both", linewidth=0.4)
    axes["sliced_wasserstein"].axhline(floor, color="black", linewidth=0.8, linestyle=":", label="two sets of draws")
    for one in axes.values():
        one.title.set_fontsize(10)
        one.legend(fontsize=7)
    write_figure(RESULTS / "steps_vs_quality.png", figure)


if __name__ == "__main__":
    main()
