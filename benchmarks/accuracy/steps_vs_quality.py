"""Steps versus quality of the whole registry, with exact scores: python -m benchmarks.accuracy.steps_vs_quality

Two problems on the VP path: a 2-D mixture of Gaussians, and scikit-learn's 1797 digits of 8x8 pixels as point masses
(``targets.Empirical``). No network is trained, so every distance is due to the solver. Each row contains

* ``error``: for deterministic solvers, the root-mean-square distance to the exact solution of the probability-flow ODE
  from the same starts. All deterministic solvers approximate this solution;
* ``sliced_wasserstein``: the distance of its samples to the data, with an interval. Fresh draws have the distance that
  no solver can improve on.

Deterministic solvers are ranked by the first, those that draw noise by the second. A solver is tied with the best if
its 95 % interval reaches that of the best.

Adaptive solvers have no budget; they run at several tolerances. In the panel of a budget they appear with the most
evaluations that it allows. Names of the same method (see docs/solvers.md) are run once. Integrators of other libraries
are not included, because they evaluate the model for one sample at a time; ``rk23``, ``rk45`` and ``tsit5`` are the
same methods, on batches.

Writes steps_vs_quality.{csv,json,png} to benchmarks/accuracy/results, in about a quarter of an hour on one core.
--samples 8192 runs a larger one. --only NAME ... measures a few solvers, in about a minute each, and keeps the rows of
all others.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

import scoresde
import solvers
from benchmarks import only
from scoresde.benchmark.metrics import compare
from scoresde.benchmark.rows import record
from scoresde.benchmark.runner import benchmark
from scoresde.benchmark.truth import Truth, ode_solution
from scoresde.benchmark.tuned import Tuning
from scoresde.io.result_files import environment, write_csv, write_figure, write_json
from scoresde.show import solver_cards

RESULTS = Path(__file__).parent / "results"
NFE = (5, 10, 20, 50)
TOLERANCES = {"ODE": (1e-1, 1e-2, 1e-3), "SDE": (1.0, 0.3)}  # a stochastic one of 1e-2 takes hundreds of steps
SHOWN = 7  # rows of a panel
METRICS = ("sliced_wasserstein",)
COLUMNS = ("problem", "solver", "nfe_budget")  # which identify a row
TIMINGS = ("seconds", "seconds_per_sample")
# columns of a row that the committed file does not have
LEFT_OUT = ("depth", "free_first_step", "program", "drawn", *Tuning._fields)
MEASURE = {False: "error", True: "sliced_wasserstein"}  # the measure that ranks solvers, by whether they draw noise


def mixture() -> scoresde.targets.GaussianMixture:
    """Eight anisotropic components on a ring."""
    angles = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
    means = torch.stack([angles.cos(), angles.sin()], 1)
    along = torch.stack([-angles.sin(), angles.cos()], 1)
    covariances = 0.002 * torch.eye(2, dtype=torch.float64) + 0.02 * along.unsqueeze(2) * along.unsqueeze(1)
    return scoresde.targets.GaussianMixture(means, covariances, torch.arange(1, 9))


def digits() -> scoresde.targets.Empirical:
    """The digits, scaled to [-1, 1]."""
    from sklearn.datasets import load_digits

    return scoresde.targets.Empirical(torch.as_tensor(load_digits().data / 8 - 1, dtype=torch.float64))


def contenders() -> list[str]:
    """One name for each method; adaptive methods at every tolerance."""
    chosen: list[str] = []
    classes = {spec: known for known in solver_cards.equal_methods() for spec in known}
    names = [
        name for name in solvers.names("gaussian") if name != "final"
    ]  # on grids to sigma = 0 its default is dpmpp_2m
    for name in sorted(names, key=lambda n: (n not in ("ddim", "ddpm", "heun", "lms"), n)):
        info = solvers.info(name)
        if any(other in classes.get(name, ()) for other in chosen):
            continue
        if not solvers.make(name).adaptive:
            chosen.append(name)
        elif info.kind != "black box ODE":  # those are slow: our pairs represent them
            chosen += [
                f"{name}(rtol={t:g}, atol={t:g})" for t in TOLERANCES["SDE" if solvers.make(name).stochastic else "ODE"]
            ]
    return chosen


# a target, and the steps of the exact solution
PROBLEMS: dict[str, tuple[Callable[[], scoresde.targets.GaussianMixture | scoresde.targets.Empirical], int]] = {
    "mixture": (mixture, 1024),
    "digits": (digits, 128),
}


def truth(problem: str, seeds: Sequence[int]) -> Truth:
    """The exact solution from the starts of some seeds, on one thread."""
    torch.set_num_threads(1)
    make, steps = PROBLEMS[problem]
    target = make()
    return ode_solution(target.denoiser(scoresde.VP()), tuple(target.shape), seeds, steps)


def whole_truth(problem: str, samples: int) -> Truth:
    """The exact solution from the starts of all seeds, computed by two processes."""
    halves = [(problem, range(samples // 2)), (problem, range(samples // 2, samples))]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        one, two = pool.starmap(truth, halves)
    x, at_t_min = (torch.cat([getattr(part, name) for part in (one, two)]) for name in ("x", "at_t_min"))
    return Truth(x, at_t_min, max(one.error, two.error), one.nfe)


def measure(chosen: Sequence[str], samples: int) -> tuple[list[dict[str, Any]], dict[str, list[float]]]:
    """The rows of some solvers, and the distances of fresh draws, by problem."""
    records: list[dict[str, Any]] = []
    floors: dict[str, list[float]] = {}
    torch.set_num_threads(1)
    exact = not all(solvers.make(spec).stochastic for spec in chosen)
    for problem, (make, _) in PROBLEMS.items():
        target = make()
        reference = target.sample(max(samples, 1024), solvers.generator(1))
        rows = benchmark(
            target.denoiser(scoresde.VP()), reference, chosen, NFE, range(samples), shape=tuple(target.shape),
            truth=whole_truth(problem, samples) if exact else None, truth_steps=0, metrics=METRICS, dtype=torch.float64,
        )  # fmt: skip
        kept = [{name: value for name, value in record(row).items() if name not in LEFT_OUT} for row in rows]
        records += [{"problem": problem, **columns} for columns in kept]
        estimate = compare(target.sample(samples, solvers.generator(2)), reference, METRICS)["sliced_wasserstein"]
        floors[problem] = [estimate.value, estimate.low, estimate.high]
    return records, floors


def order() -> list[tuple[object, ...]]:
    """The values of ``COLUMNS`` in the order of a whole run."""
    return list(product(PROBLEMS, [str(solvers.make(spec)) for spec in contenders()], [*NFE, None]))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=2048, help="samples per row")
    only.add_only(parser)
    arguments = parser.parse_args(argv)
    samples, names = arguments.samples, only.names(arguments.only)
    # the name of an adaptive solver selects it at all tolerances
    chosen = [spec for spec in contenders() if not names or only.name_of(spec) in names]
    for name in set(names).difference(map(only.name_of, chosen)):
        same = {other for known in solver_cards.equal_methods() if name in known for other in known} & set(contenders())
        print(f"{name} has no rows: " + (f"it is the same method as {', '.join(same)}" if same else "see --help"))
    if not chosen:
        return
    records, floors = measure(chosen, samples)
    header = {
        **environment(dtype=torch.float64),
        "command": f"python -m benchmarks.accuracy.steps_vs_quality --samples {samples}",
        "data": {"mixture": "eight Gaussians on a ring, see mixture()", "digits": "scikit-learn's digits / 8 - 1"},
        "sde": str(scoresde.VP()),
        "seeds": f"0..{samples - 1}",
        "floor": floors,
    }
    document: dict[str, Any] = {"header": header, "rows": records}
    if names:
        document = only.merged(RESULTS / "steps_vs_quality.json", header, records, names, COLUMNS, order(), TIMINGS)
    RESULTS.mkdir(exist_ok=True)
    write_json(RESULTS / "steps_vs_quality.json", document)
    write_csv(RESULTS / "steps_vs_quality.csv", document["rows"])
    draw(document["rows"], document["header"]["floor"])


def standing(records: list[dict[str, Any]], problem: str, budget: int, stochastic: bool) -> list[dict[str, Any]]:
    """The rows of a budget, best first: each solver once, with the most evaluations that the budget allows.

    ``tied`` is true if the interval of a row reaches the interval of the best.
    """
    best: dict[str, dict[str, Any]] = {}
    measure = MEASURE[stochastic]
    for row in records:
        fits = row["problem"] == problem and not row["skipped"] and (row["nfe_budget"] or row["nfe"]) in (
            (budget,) if row["nfe_budget"] else range(budget // 2, budget + 1)
        )  # fmt: skip
        name = row["solver"] if row["nfe_budget"] else row["solver"].partition("(")[0]
        if fits and row["stochastic"] == stochastic and (name not in best or row["nfe"] > best[name]["nfe"]):
            best[name] = {**row, "label": name}
    rows = sorted(best.values(), key=lambda row: float(row[measure]))
    return [{**row, "tied": row[f"{measure}_low"] <= rows[0][f"{measure}_high"]} for row in rows]


def draw(records: list[dict[str, Any]], floors: dict[str, list[float]]) -> None:
    """One picture: the best solvers at every budget on either problem, with ddim and ddpm for comparison."""
    figure = Figure(figsize=(13, 10), layout="constrained")
    kinds = [(problem, stochastic) for problem in floors for stochastic in (False, True)]
    for line, (problem, stochastic) in zip(figure.subplots(len(kinds), len(NFE)), kinds, strict=True):
        for budget, axes in zip(NFE, line, strict=True):
            measure, colour = MEASURE[stochastic], "C1" if stochastic else "C0"
            rows = standing(records, problem, budget, stochastic)
            shown = rows[:SHOWN] + [row for row in rows[SHOWN:] if row["label"] in ("ddim", "ddpm")]
            for place, row in enumerate(shown):
                axes.plot([row[f"{measure}_low"], row[f"{measure}_high"]], [place] * 2, color=colour)
                axes.plot(row[measure], place, "o", color=colour, markersize=5)
            axes.set_yticks(range(len(shown)), [row["label"] for row in shown], fontsize=8)
            for label, row in zip(axes.get_yticklabels(), shown, strict=True):
                label.set_fontweight("bold" if row["tied"] else "normal")
            axes.invert_yaxis()
            if stochastic:
                axes.axvline(floors[problem][0], color="black", linewidth=0.8, linestyle=":")
                axes.set_xlim(left=0)
                axes.locator_params(axis="x", nbins=5)
            elif shown[-1][measure] > 10 * shown[0][measure]:
                axes.set_xscale("log")
            else:
                axes.set_xlim(left=0)
                axes.locator_params(axis="x", nbins=5)
            axes.grid(alpha=0.3, which="both", axis="x", linewidth=0.4)
            axes.tick_params(axis="x", labelsize=7, which="both")
            axes.set_title(f"{problem}, {budget} NFE", fontsize=10)
    figure.supxlabel(
        "best first. Blue, without noise: distance to the exact solution of the ODE. Orange, with noise: sliced "
        "Wasserstein distance to the data; dotted: fresh draws. Bold: the best, and who is tied with it",
        fontsize=9,
    )
    write_figure(RESULTS / "steps_vs_quality.png", figure)


if __name__ == "__main__":
    only.run(main)
