"""Writes the README's table of solvers, docs/solvers.md and the figures of docs/start.md, docs/programs.md,
docs/ddpm_and_sde.md, docs/likelihood.md, docs/losses.md, docs/training.md, docs/guidance.md, docs/posteriors.md,
docs/interop.md, docs/reliability.md and docs/leaderboard.md, and the README's table of posteriors with the rows of
their cards, from the registry and the committed results: python -m benchmarks.readme

With --check it writes nothing and returns exit status 1 if a page is not up to date.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import solvers
from benchmarks.tables import (
    conditions,
    ddpm_and_sde,
    diffusers,
    few,
    guidance,
    leaderboard,
    likelihood,
    losses,
    posteriors,
    reliability,
    trained,
    transfer,
    tuned_programs,
    which_solver,
)
from scoresde.show import solver_cards
from solvers.files import write_atomically

ROOT = Path(__file__).parent.parent
PAGE = """\
# Solvers

Written by `benchmarks/readme.py` from the registry and from the measurements of
`benchmarks/accuracy/solver_orders.py`. One solver with its formula, options and an example: `scoresde solvers NAME`.

- **order** is declared. "2 of 4": a method of nominal order 4 that its start, weights or options limit to order 2; its
  card explains why.
- **measured** is the smallest and the largest order over VP, sub-VP, VE, EDM and rectified flow. It is the order of the
  error on a Gaussian mixture or, for methods that draw noise, of the covariance on Gaussian data; both in float64,
  against exact answers. Integrators of other libraries are measured on VP and VE only. Solves have 42 to 336 steps, or
  160 to 1280 for methods that draw noise; methods with a long pre-asymptotic range get up to eight times as many. A
  method whose leading error is small measures more than its order. `adams_adaptive`, whose steps and order grow, is run
  at falling tolerances. Of discrete states it is the order of the total variation, from exact kernels of 12 to 48 steps
  on a uniform, an absorbing and a birth-death process of two or three tokens that depend on each other weakly; a
  stronger dependence clamps rates of `theta_trapezoidal`, whose order is then 1. Exact solvers have none.
- **NFE/step** is the number of model evaluations of a step, **start** the start-up cost of a solve of 20 steps that
  ends at sigma > 0.
- **noise** is "eta" for methods that draw noise if that option is above 0. **native** is what the method interpolates.

The terms are explained in the [glossary](glossary.md).
"""
NAMED = 4  # the README names up to so many tied solvers
BUDGETS = (5, 10, 20, 50)
RANKINGS = (  # whether solvers draw noise, the measure that ranks them, and what the README calls them
    (False, "error", "deterministic"),
    (True, "sliced_wasserstein", "with noise"),
)


def folder_of(group: str) -> Path:
    """The folder of the committed result files of a group of scripts."""
    return ROOT / "benchmarks" / group / "results"


def read(group: str, name: str) -> dict[str, Any]:
    """A committed result file, read from JSON."""
    document: dict[str, Any] = json.loads((folder_of(group) / f"{name}.json").read_text(encoding="utf-8"))
    return document


def results(group: str, name: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The header and the rows of a committed result file."""
    document = read(group, name)
    return document["header"], document["rows"]


def code(text: str) -> str:
    """A spec in Markdown."""
    return f"`{text}`"


def whole() -> str:
    """The table of solvers: a heading and a table for each group."""
    lines = solver_cards.rows()
    parts = []
    for key, title in solver_cards.GROUPS.items():
        members = [
            (code(line.name), *line.cells[1:-1], solvers.info(line.name).reference)
            for line in lines
            if line.group == key
        ]
        if members:
            parts.append(f"## {title}\n\n{solver_cards.markdown(solver_cards.HEAD, members)}\n")
    return "\n".join(parts)


def options() -> str:
    """A table of the measured orders of solvers with options."""
    made = []
    for spec in solver_cards.orders():
        if "(" in spec:
            made.append((code(spec), solver_cards.order_text(solvers.make(spec)), solver_cards.measured_text(spec)))
    return solver_cards.markdown(("solver", "order", "measured"), made)


def equalities() -> str:
    """A list of the methods with more than one name."""
    return "\n".join(f"- {' = '.join(map(code, known))}" for known in solver_cards.equal_methods())


def ranks(column: list[dict[str, Any]], measure: str) -> list[str]:
    """The best solver of a column and those tied with it, best first: their 95 % interval reaches that of the best."""
    rows = sorted((row for row in column if row[measure] is not None), key=lambda row: float(row[measure]))
    return [row["solver"] for row in rows if row[f"{measure}_low"] <= rows[0][f"{measure}_high"]]


def distances(measure: str, stochastic: bool | None = None) -> str:
    """A table of a measure, "error" or "sliced_wasserstein", by solver, problem and budget."""
    header, rows = results("accuracy", "steps_vs_quality")
    rows = [row for row in rows if not row["skipped"] and stochastic in (None, row["stochastic"])]
    found = {(row["solver"], row["problem"], row["nfe_budget"]): row for row in rows if row[measure] is not None}
    problems, budgets = list(header["floor"]), sorted({asked for _, _, asked in found if asked})
    columns = [(problem, budget) for problem in problems for budget in budgets]
    best = {
        (problem, budget, noise): ranks(
            [row for (_, p, n), row in found.items() if (p, n) == (problem, budget) and row["stochastic"] == noise],
            measure,
        )
        for problem, budget in columns
        for noise in (False, True)
    }
    lines = []
    for solver in dict.fromkeys(solver for solver, _, asked in found if asked):
        cells = []
        for column in columns:
            row = found.get((solver, *column))
            text = "" if row is None else f"{row[measure]:.3g}"
            cells.append(f"**{text}**" if row and solver in best[(*column, row["stochastic"])] else text)
        lines.append((code(solver), *cells))
    adaptive = [
        (code(solver), *(f"{row[measure]:.3g} ({row['nfe']})" for row in map(found.get, keys) if row))
        for solver in dict.fromkeys(solver for solver, _, asked in found if not asked)
        for keys in [[(solver, problem, None) for problem in problems]]
    ]
    head = ("solver", *(f"{problem}, {budget}" for problem, budget in columns))
    return (
        f"{solver_cards.markdown(head, lines)}\n\nAdaptive solvers, with the largest NFE of a sample:\n\n"
        f"{solver_cards.markdown(('solver', *problems), adaptive)}"
    )


def floors() -> str:
    """The distances between fresh draws and the data, with their intervals."""
    header, _ = results("accuracy", "steps_vs_quality")
    return ", ".join(
        f"{name} {value:.3f} ({low:.3f} to {high:.3f})" for name, (value, low, high) in header["floor"].items()
    )


def leaders() -> str:
    """The README's table of the best solvers: a row for each budget, a column for each problem and kind of solver."""
    header, rows = results("accuracy", "steps_vs_quality")
    rows = [row for row in rows if row["nfe_budget"] and not row["skipped"]]

    def cell(budget: int, problem: str, noise: bool, measure: str) -> str:
        wanted = (problem, budget, noise)
        column = [row for row in rows if (row["problem"], row["nfe_budget"], row["stochastic"]) == wanted]
        return named(ranks(column, measure))

    columns = [(problem, noise, measure, title) for noise, measure, title in RANKINGS for problem in header["floor"]]
    lines = [
        (f"{budget} NFE", *(cell(budget, problem, noise, measure) for problem, noise, measure, _ in columns))
        for budget in BUDGETS
    ]
    return solver_cards.markdown(("", *(f"{title}, {problem}" for problem, _, _, title in columns)), lines)


def named(best: list[str]) -> str:
    """The best solvers of a column: the up to four by name, or three and the number of the others.

    >>> named(["heun"]), named(["deis", "plms"])
    ('`heun`', '`deis`, `plms` (tied)')
    >>> named(["a", "b", "c", "d", "e", "f"])
    '`a`, `b`, `c` and 3 more (tied)'
    """
    first = best if len(best) <= NAMED else best[: NAMED - 1]
    others = f" and {len(best) - len(first)} more" * (len(best) > len(first))
    return ", ".join(map(code, first)) + others + " (tied)" * (len(best) > 1)


def overhead() -> str:
    """The cost of a step without the network: the table of docs/programs.md."""
    header, rows = results("speed", "solver_overhead")
    _, memory = results("speed", "program_memory")
    names = ("floor", "program", "sample", "steps", "eager", "diffusers", "trace")
    lines = []
    for row in rows:
        least = row["least_microseconds"]
        times = (f"{least[name]:.1f}" if name in least else "" for name in names)
        ratios = (
            f"{row['program_over_floor']:.2f}",
            f"{least['sample'] / least['floor']:.2f}",
            f"{row['diffusers_over_program']:.1f}",
        )
        lines.append((code(row["method"]), " x ".join(map(str, row["shape"])), *times, *ratios))
    head = ("solver", "state", *names, "program / floor", "sample / floor", "diffusers / program")
    peak = max(row["peak_ratio"] for row in memory)
    added = max(abs(many - few) for few, many in (row["added_states"] for row in memory))
    return (
        f"Microseconds per step, {header['steps']} steps with a trivial network on one thread of a "
        f"{header['platform']} machine (`benchmarks/speed/solver_overhead.py`). `floor` is the network and two "
        "operations in place; `sample` is a repeated call of `scoresde.sample`; `steps` are the solver's own steps one "
        "by one; `eager` is a loop that computes "
        "coefficients from tensors; `diffusers` is the scheduler of diffusers for the same method; `trace` is the time "
        f"to make the program.\n\n{solver_cards.markdown(head, lines)}\n\n"
        "Peak memory of 1000 steps divided by that of 20 (`benchmarks/speed/program_memory.py`): at most "
        f"{peak:.3f} for the whole process; the memory that the run itself adds differs by at most {added:.2f} states."
    )


def tuned() -> str:
    """A table of the errors of tuned grids and of the best built-in grids, on held-out seeds."""
    _, rows = results("tuning", "tuned_grids")
    ends = {"t_min": "to t_min", "zero": "to sigma = 0"}
    columns = list(dict.fromkeys((row["problem"], row["end"]) for row in rows))
    found = {(row["solver"], row["nfe"], row["problem"], row["end"]): row for row in rows}
    head = ("solver", "NFE", *(f"{name}, {ends[end]}" for name, end in columns))
    lines = []
    for solver, nfe in dict.fromkeys((row["solver"], row["nfe"]) for row in rows):
        cells = []
        for row in (found[(solver, nfe, *column)] for column in columns):
            gain, low, high = (100 * row[key] for key in ("improvement", "improvement_low", "improvement_high"))
            cells.append(
                f"{row['tuned']:.4f}, {row['best_built_in_error']:.4f} {code(row['best_built_in'])}: "
                f"{gain:.0f} % ({low:.0f} to {high:.0f})"
            )
        lines.append((code(solver), str(nfe), *cells))
    return solver_cards.markdown(head, lines)


def page() -> str:
    """The text of docs/solvers.md."""
    return f"""{PAGE}
{whole()}
## Options that change the method

{options()}

## Different names of the same method

Their coefficients are equal up to rounding, on every path; a test proves each equality.

{equalities()}

## Distance to the data

A mixture of eight Gaussians and scikit-learn's digits, with exact scores, the VP path, the Karras grid, and 5, 10, 20
and 50 evaluations (`benchmarks/accuracy/steps_vs_quality.py`; its result file also contains the intervals). Different
names of the same method are listed once. Bold: the best of a column and those tied with it, whose 95 % interval reaches
that of the best; solvers with and without noise are compared separately. The integrators of other libraries are not
included, because they evaluate the model for one sample at a time; `rk23`, `rk45` and `tsit5` are the same methods, on
batches.

Deterministic solvers all approximate the solution of the same ODE. This table shows their distance to the exact
solution from the same starts: root-mean-square per dimension.

{distances("error", False)}

This table shows the sliced Wasserstein distance between samples and data. Fresh draws from the data have the distances
(with 95 % intervals) {floors()}. A
row at these distances is as close to the data as this number of samples can show.

{distances("sliced_wasserstein")}

## Tuned grids

The gain of `solvers.tune_grid` over the best of 30 built-in grids (`benchmarks/tuning/tuned_grids.py`). Each cell shows
the error of the tuned grid, the error of the best built-in grid, and the improvement with a 95 % interval over the
seeds. The error is the root-mean-square distance per coordinate to the exact solution of the ODE, on held-out seeds;
the best built-in grid is chosen on these same seeds. "exact" is the exact score of scikit-learn's digits, "trained" the
network of `scoresde demo`. Grids that stop at t_min and grids that continue to sigma = 0 are tuned and compared
separately. The [guide](guide.md) explains how to tune a grid.

{tuned()}
"""


def table() -> str:
    """The README's table of solvers: a row for each family."""
    return solver_cards.families(solver_cards.rows())


def updated(text: str, parts: Mapping[str, str]) -> str:
    """A page whose marked parts are replaced."""
    for name, body in parts.items():
        start, end = f"<!-- {name}: written by benchmarks/readme.py -->", f"<!-- end of {name} -->"
        before, found, rest = text.partition(start)
        if not found:
            raise SystemExit(f"the page contains no marker {start!r}")
        _, _, after = rest.partition(end)
        text = f"{before}{start}\n{body}\n{end}{after}"
    return text


def marked() -> dict[str, dict[str, str]]:
    """The marked parts of each page."""
    return {
        "README.md": {
            "solvers": table(),
            "best": leaders(),
            "posteriors": posteriors.short(read("conditions", "posteriors")),
        },
        "docs/programs.md": {"overhead": overhead()}
        | tuned_programs.tables(read("tuning", "tuned_programs"))
        | transfer.tables(read("tuning", "transfer"))
        | few.tables(read("tuning", "few")),
        "docs/ddpm_and_sde.md": ddpm_and_sde.tables(results("chains", "ddpm_and_sde")[1])
        | ddpm_and_sde.digits(read("chains", "digits_chains"))
        | ddpm_and_sde.learned(read("chains", "learned_schedule")),
        "docs/likelihood.md": likelihood.tables(read("likelihood", "methods"), read("likelihood", "trace_estimators")),
        "docs/interop.md": diffusers.tables(results("checks", "diffusers_tests")[1]),
        "docs/start.md": {
            "which solver": which_solver.table(
                read("accuracy", "defaults"), read("accuracy", "steps_vs_quality"), read("tuning", "few")
            )
        },
        "docs/leaderboard.md": leaderboard.tables(
            read("leaderboard", "boards"), folder_of("leaderboard") / "boards.csv"
        ),
        "docs/reliability.md": reliability.tables(read("checks", "reliability")),
        "docs/guidance.md": guidance.tables(read("conditions", "guidance")),
        "docs/posteriors.md": posteriors.tables(read("conditions", "posteriors")),
        "docs/losses.md": losses.tables(read("training", "loss_choices")),
        "docs/training.md": trained.tables({name: read("training", name) for name in ("mnist", "cifar10")})
        | conditions.tables(read("conditions", "mnist_conditions")),
    }


def main(check: bool = False) -> int:
    """Writes the pages and returns 0; with ``check`` writes nothing and returns 1 if a page is not up to date."""
    fresh = {
        path: updated(path.read_text(encoding="utf-8"), parts)
        for path, parts in ((ROOT / name, parts) for name, parts in marked().items())
    }
    fresh[ROOT / "docs" / "solvers.md"] = page()
    shown = {
        "guidance": guidance.cards(read("conditions", "guidance")),
        "posteriors": posteriors.cards(read("conditions", "posteriors")),
    }
    fresh[ROOT / "scoresde" / "show" / "scores.json"] = json.dumps(shown, indent=1) + "\n"
    if check:
        return int(any(not path.exists() or path.read_text("utf-8") != wanted for path, wanted in fresh.items()))
    for path, wanted in fresh.items():
        write_atomically(path, wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv))
