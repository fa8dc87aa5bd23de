"""Steps versus quality over the whole registry, where the score is exact: python benchmarks/steps_vs_quality.py

Two problems on the VP path: a 2-D mixture of Gaussians, and scikit-learn's 1797 digits of 8x8 pixels as point masses
(``targets.Empirical``). Every distance is the solver's: no network has been trained. For each row

* ``error``: the root-mean-square distance to the exact solution of the probability-flow ODE from the same starts, for
  deterministic solvers. They all approximate that one map, so this is what tells them apart;
* ``sliced_wasserstein``: the distance of its samples to the data, with an interval. Its floor is that of fresh draws.

Deterministic solvers are ranked by the first, those that draw noise by the second. Whose 95 % interval reaches that of
the best is tied with it.

Adaptive solvers take no budget; they run at a ladder of tolerances and stand in a budget's panel with the most
evaluations that fit. Names with the same numbers (see docs/solvers.md) are run once. Left out are other libraries'
integrators: they ask the model for one sample at a time; ``rk23``, ``rk45`` and ``tsit5`` are their methods, on
batches.

Writes steps_vs_quality.{csv,json,png} to benchmarks/results, in about a quarter of an hour on one core. --samples 8192
runs a bigger one.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

import scoresde
import solvers
from scoresde import cards
from scoresde.benchmark import benchmark, record
from scoresde.metrics import compare
from scoresde.results import environment, write_csv, write_figure, write_json

RESULTS = Path(__file__).parent / "results"
NFE = (5, 10, 20, 50)
TOLERANCES = {"ODE": (1e-1, 1e-2, 1e-3), "SDE": (1.0, 0.3)}  # a stochastic one of 1e-2 takes hundreds of steps
SHOWN = 7  # rows of a panel
METRICS = ("sliced_wasserstein",)
MEASURE = {False: "error", True: "sliced_wasserstein"}  # by which solvers are ranked: whether they draw noise


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
    """One name for each method, and the adaptive ones at every tolerance."""
    chosen: list[str] = []
    classes = {spec: known for known in cards.equal_methods() for spec in known}
    names = [name for name in solvers.names() if name != "final"]  # its default, on grids to sigma = 0, is dpmpp_2m
    for name in sorted(names, key=lambda n: (n not in ("ddim", "ddpm", "heun", "lms"), n)):
        info = solvers.info(name)
        if any(other in classes.get(name, ()) for other in chosen):
            continue
        if not solvers.make(name).adaptive:
            chosen.append(name)
        elif info.kind != "black box ODE":  # one sample at a time: the pairs of the same order stand for them
            chosen += [
                f"{name}(rtol={t:g}, atol={t:g})" for t in TOLERANCES["SDE" if solvers.make(name).stochastic else "ODE"]
            ]
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=2048, help="samples per row")
    parser.add_argument("--solvers", default="", help="run these alone, and replace their rows of the result files")
    arguments = parser.parse_args()
    samples, names = arguments.samples, [name.strip() for name in arguments.solvers.split(",") if name.strip()]
    known = contenders()
    # an adaptive solver's name stands for it at all its tolerances
    chosen = [spec for name in names for spec in ([s for s in known if s.partition("(")[0] == name] or [name])]
    torch.set_num_threads(1)
    sde = scoresde.VP()
    records: list[dict[str, Any]] = []
    floors: dict[str, list[float]] = {}
    for problem, target in (("mixture", mixture()), ("digits", digits())):
        reference = target.sample(max(samples, 1024), solvers.generator(1))
        rows = benchmark(
            target.denoiser(sde), reference, chosen or known, NFE, range(samples), shape=tuple(target.shape),
            truth_steps=1024 if problem == "mixture" else 128, metrics=METRICS, dtype=torch.float64,
        )  # fmt: skip
        records += [{"problem": problem, **record(row)} for row in rows]
        estimate = compare(target.sample(samples, solvers.generator(2)), reference, METRICS)["sliced_wasserstein"]
        floors[problem] = [estimate.value, estimate.low, estimate.high]
    header = {
        **environment(dtype=torch.float64),
        "command": f"python benchmarks/steps_vs_quality.py --samples {samples}",
        "data": {"mixture": "eight Gaussians on a ring, see mixture()", "digits": "scikit-learn's digits / 8 - 1"},
        "sde": str(sde),
        "seeds": f"0..{samples - 1}",
        "floor": floors,
    }
    if chosen:
        records = merged(records, header)
    RESULTS.mkdir(exist_ok=True)
    write_json(RESULTS / "steps_vs_quality.json", {"header": header, "rows": records})
    write_csv(RESULTS / "steps_vs_quality.csv", records)
    draw(records, floors)


def merged(records: list[dict[str, Any]], header: dict[str, Any]) -> list[dict[str, Any]]:
    """The committed rows with ``records`` in their places; they must be of one seed range and command."""
    before = json.loads((RESULTS / "steps_vs_quality.json").read_text(encoding="utf-8"))
    if before["header"]["command"] != header["command"]:
        raise SystemExit(f"the result files are of {before['header']['command']!r}: run all solvers anew")
    fresh = {(row["problem"], row["solver"], row["nfe_asked"]): row for row in records}
    return [fresh.pop((row["problem"], row["solver"], row["nfe_asked"]), row) for row in before["rows"]] + [
        *fresh.values()
    ]


def standing(records: list[dict[str, Any]], problem: str, budget: int, stochastic: bool) -> list[dict[str, Any]]:
    """The rows of a budget, best first: each solver once, with the most evaluations that fit. ``tied`` says whether a
    row's interval reaches the best's."""
    best: dict[str, dict[str, Any]] = {}
    measure = MEASURE[stochastic]
    for row in records:
        fits = row["problem"] == problem and not row["skipped"] and (row["nfe_asked"] or row["nfe"]) in (
            (budget,) if row["nfe_asked"] else range(budget // 2, budget + 1)
        )  # fmt: skip
        name = row["solver"] if row["nfe_asked"] else row["solver"].partition("(")[0]
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
    main()
