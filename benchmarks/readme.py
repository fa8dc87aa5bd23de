"""Writes the README's table of solvers, docs/solvers.md and the figures of docs/programs.md, docs/ddpm_and_sde.md and
docs/likelihood.md from the registry and the committed results: python benchmarks/readme.py

With --check it only tells whether they are up to date (exit status 1 if not).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ddpm_and_sde_tables
import likelihood_tables

import solvers
from scoresde.result_files import write_atomically
from scoresde.show import solver_cards

ROOT = Path(__file__).parent.parent
PAGE = """\
# Solvers

Written by `benchmarks/readme.py` from the registry and from the measurements of `benchmarks/solver_orders.py`. One
solver with its formula, options and an example: `scoresde solvers NAME`.

- **order** is declared. "2 of 4": a method of order 4 that its start, weights or options hold at 2; its card says why.
- **measured** is the least and the largest over VP, sub-VP, VE, EDM and rectified flow: of the error on a Gaussian
  mixture, or, for methods that draw noise, of the covariance on Gaussian data; both in float64, against exact answers.
  Other libraries' integrators are measured on VP and VE alone. Over 42 to 336 steps, with noise 160 to 1280, a
  method whose leading error is small measures more than its order; one that comes late to it is measured over up to
  eight times as many. `adams_adaptive`, whose steps and order grow, is run at falling tolerances.
- **NFE/step** counts the model evaluations of a step, **start** those of a run beyond its steps, on 20 steps that end
  at sigma > 0.
- **noise** "eta": if that option is above 0. **native** is what the method interpolates.
"""


def read(name: str) -> dict[str, Any]:
    """A committed result file."""
    document: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / name).read_text(encoding="utf-8"))
    return document


def results(name: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The header and the rows of a committed result file."""
    document = read(name)
    return document["header"], document["rows"]


def code(text: str) -> str:
    """A spec in Markdown."""
    return f"`{text}`"


def whole() -> str:
    """The table of the page: a heading and a table a group."""
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
    """Measured orders of solvers with options."""
    made = []
    for spec in solver_cards.orders():
        if "(" in spec:
            made.append((code(spec), solver_cards.order_text(solvers.make(spec)), solver_cards.measured_text(spec)))
    return solver_cards.markdown(("solver", "order", "measured"), made)


def equalities() -> str:
    """A line for every method with more than one name."""
    return "\n".join(f"- {' = '.join(map(code, known))}" for known in solver_cards.equal_methods())


def ranks(column: list[dict[str, Any]], measure: str) -> set[str]:
    """Who is best in a column, and who is tied with it: whose 95 % interval reaches the best's."""
    rows = [row for row in column if row[measure] is not None]
    best = min(rows, key=lambda row: float(row[measure]), default=None)
    return {row["solver"] for row in rows if best and row[f"{measure}_low"] <= best[f"{measure}_high"]}


def distances(measure: str, stochastic: bool | None = None) -> str:
    """A number by solver, problem and budget: "error" or "sliced_wasserstein"."""
    header, rows = results("steps_vs_quality.json")
    rows = [row for row in rows if not row["skipped"] and stochastic in (None, row["stochastic"])]
    found = {(row["solver"], row["problem"], row["nfe_asked"]): row for row in rows if row[measure] is not None}
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
        f"{solver_cards.markdown(head, lines)}\n\nAdaptive solvers, with the most evaluations that a sample took:\n\n"
        f"{solver_cards.markdown(('solver', *problems), adaptive)}"
    )


def floors() -> str:
    """The distances of fresh draws."""
    header, _ = results("steps_vs_quality.json")
    return ", ".join(
        f"{name} {value:.3f} ({low:.3f} to {high:.3f})" for name, (value, low, high) in header["floor"].items()
    )


def leaders() -> str:
    """Under the README's picture: who leads where one does."""
    header, rows = results("steps_vs_quality.json")
    rows = [row for row in rows if row["nfe_asked"] and not row["skipped"]]

    def told(problem: str, budget: int, noise: bool, measure: str) -> str:
        column = [
            row for row in rows if (row["problem"], row["nfe_asked"], row["stochastic"]) == (problem, budget, noise)
        ]
        names = ranks(column, measure)
        return f"{budget}: " + (" or ".join(map(code, sorted(names))) if len(names) <= 2 else f"{len(names)} tied")

    lines = []
    for noise, measure, title in (
        (False, "error", "Nearest to the exact solution of the ODE"),
        (True, "sliced_wasserstein", "Of those that draw noise, nearest to the data"),
    ):
        for problem in header["floor"]:
            parts = [told(problem, budget, noise, measure) for budget in (5, 10, 20, 50)]
            lines.append(f"{title}, {problem}: {'; '.join(parts)}.")
    return "*By evaluations, adaptive solvers aside. " + "\n".join(lines) + "*"


def overhead() -> str:
    """What a step costs besides the network: the table of docs/programs.md."""
    header, rows = results("solver_overhead.json")
    _, memory = results("program_memory.json")
    names = ("floor", "program", "steps", "eager", "diffusers", "trace")
    lines = []
    for row in rows:
        least = row["least_microseconds"]
        told = (f"{least[name]:.1f}" if name in least else "" for name in names)
        ratios = f"{row['program_over_floor']:.2f}", f"{row['diffusers_over_program']:.1f}"
        lines.append((code(row["method"]), " x ".join(map(str, row["shape"])), *told, *ratios))
    head = ("solver", "state", *names, "program / floor", "diffusers / program")
    peak = max(row["peak_ratio"] for row in memory)
    added = max(abs(row["added_ratio"] - 1) for row in memory)
    return (
        f"Microseconds a step, {header['steps']} steps with a trivial network on one thread of a {header['platform']} "
        f"machine (`{header['command'].removeprefix('python ')}`). The floor is the network and two operations in "
        "place; `steps` are the solver's own steps one by one, `eager` a loop that computes coefficients from tensors, "
        f"`diffusers` its scheduler of the method; `trace` makes the "
        f"program.\n\n{solver_cards.markdown(head, lines)}\n\n"
        f"Peak memory of 1000 steps over that of 20 (`benchmarks/program_memory.py`): at most {peak:.3f} of the whole "
        f"process; what the run itself added differs by at most {100 * added:.1f} %."
    )


def tuned() -> str:
    """The error of tuned grids beside the best of the built-in ones, on held-out seeds."""
    _, rows = results("tuned_grids.json")
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
    """docs/solvers.md."""
    return f"""{PAGE}
{whole()}
## Options that change the method

{options()}

## Names of one method

Equal coefficients, to rounding, on every path; each equality is a test.

{equalities()}

## Distance to the data

A mixture of eight Gaussians and scikit-learn's digits, exact scores, the VP path, the Karras grid, 5, 10, 20 and 50
evaluations (`benchmarks/steps_vs_quality.py`, which also has the intervals). Names of one method are listed once. In
bold: the best of a column, and whose 95 % interval reaches the best's, apart for solvers with and without noise. Left
out are the integrators of other libraries, which ask the model for one sample at a time: `rk23`, `rk45` and `tsit5` are
their methods, on batches.

Deterministic solvers approximate one map, so their distance to its exact solution tells them apart: root-mean-square
per dimension, from the same starts.

{distances("error", False)}

Sliced Wasserstein distance between samples and data. Of fresh draws (and the 95 % interval): {floors()}. A row that is
as near as those is as near as this many samples can show.

{distances("sliced_wasserstein")}

## Tuned grids

What `solvers.tune_grid` gains over the best of 30 built-in grids (`benchmarks/tuned_grids.py`). Error: root-mean-square
distance per coordinate to the exact solution of the ODE, on seeds that the tuning did not see, for the tuned grid and
for the built-in one that is best on those very seeds; then the improvement, with a 95 % interval over the seeds.
"exact" is the exact score of scikit-learn's digits, "trained" the network of `scoresde demo`; grids that stop at t_min
and grids that go on to sigma = 0 are tuned and compared apart. The [guide](guide.md) tells how to tune one.

{tuned()}
"""


def table() -> str:
    """The README's table: a line a family."""
    return solver_cards.families(solver_cards.rows())


def updated(text: str, parts: Mapping[str, str]) -> str:
    """A page with its marked parts written anew."""
    for name, body in parts.items():
        start, end = f"<!-- {name}: written by benchmarks/readme.py -->", f"<!-- end of {name} -->"
        before, found, rest = text.partition(start)
        if not found:
            raise SystemExit(f"no place for {name!r}")
        _, _, after = rest.partition(end)
        text = f"{before}{start}\n{body}\n{end}{after}"
    return text


def main(check: bool = False) -> int:
    """Writes the pages, or tells by 1 that one of them is not up to date."""
    readme, programs, chains, likelihood = (
        ROOT / name for name in ("README.md", "docs/programs.md", "docs/ddpm_and_sde.md", "docs/likelihood.md")
    )
    fresh = {
        readme: updated(readme.read_text(encoding="utf-8"), {"solvers": table(), "best": leaders()}),
        programs: updated(programs.read_text(encoding="utf-8"), {"overhead": overhead()}),
        chains: updated(
            chains.read_text(encoding="utf-8"),
            ddpm_and_sde_tables.tables(results("ddpm_and_sde.json")[1])
            | ddpm_and_sde_tables.digits(read("digits_chains.json"))
            | ddpm_and_sde_tables.learned(read("learned_schedule.json")),
        ),
        likelihood: updated(
            likelihood.read_text(encoding="utf-8"),
            likelihood_tables.tables(read("likelihood.json"), read("trace_estimators.json")),
        ),
        ROOT / "docs" / "solvers.md": page(),
    }
    if check:
        return int(any(not path.exists() or path.read_text("utf-8") != wanted for path, wanted in fresh.items()))
    for path, wanted in fresh.items():
        write_atomically(path, wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv))
