"""Writes the README's table of solvers and docs/solvers.md from the registry and the committed results:
python benchmarks/readme.py

With --check it only tells whether the two are up to date (exit status 1 if not).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import solvers
from scoresde import cards
from scoresde.results import write_atomically

ROOT = Path(__file__).parent.parent
START, END = "<!-- solvers: written by benchmarks/readme.py -->", "<!-- end of solvers -->"
PAGE = """\
# Solvers

Written by `benchmarks/readme.py` from the registry and from the measurements of `benchmarks/solver_orders.py`. One
solver with its formula, options and an example: `scoresde solvers NAME`.

- **order** is declared. "2 of 4": a method of order 4 that its start, weights or options hold at 2; its card says why.
- **measured** is the least and the largest over VP, sub-VP, VE, EDM and rectified flow: of the error on a Gaussian
  mixture, or, for methods that draw noise, of the covariance on Gaussian data; both in float64, against exact answers.
  Other libraries' integrators are measured on VP and VE alone. Over 42 to 336 steps, with noise 160 to 1280, a
  method whose leading error is small measures more than its order, and one that comes late to it a little less.
- **NFE/step** counts the model evaluations of a step, **start** those of a run beyond its steps, on 20 steps that end
  at sigma > 0.
- **noise** "eta": if that option is above 0. **native** is what the method interpolates.
"""


def results(name: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The header and the rows of a committed result file."""
    document = json.loads((ROOT / "benchmarks" / "results" / name).read_text(encoding="utf-8"))
    return document["header"], document["rows"]


def code(text: str) -> str:
    """A spec in Markdown."""
    return f"`{text}`"


def whole() -> str:
    """The table of the page: a heading and a table a group."""
    lines = cards.rows()
    parts = []
    for key, title in cards.GROUPS.items():
        members = [
            (code(line.name), *line.cells[1:-1], solvers.info(line.name).reference)
            for line in lines
            if line.group == key
        ]
        if members:
            parts.append(f"## {title}\n\n{cards.markdown(cards.HEAD, members)}\n")
    return "\n".join(parts)


def options() -> str:
    """Measured orders of solvers with options."""
    made = []
    for spec in cards.orders():
        if "(" in spec:
            made.append((code(spec), cards.order_text(solvers.make(spec)), cards.measured_text(spec)))
    return cards.markdown(("solver", "order", "measured"), made)


def equalities() -> str:
    """A line for every method with more than one name."""
    return "\n".join(f"- {' = '.join(map(code, known))}" for known in cards.equal_methods())


def distances() -> str:
    """The distance to the data by solver, problem and budget."""
    header, rows = results("steps_vs_quality.json")
    found = {(row["solver"], row["problem"], row["nfe_asked"]): row for row in rows if not row["skipped"]}
    problems, budgets = list(header["floor"]), sorted({asked for _, _, asked in found if asked})
    columns = [(problem, budget) for problem in problems for budget in budgets]
    lines = []
    for solver in dict.fromkeys(solver for solver, _, asked in found if asked):
        at = (found.get((solver, *column)) for column in columns)
        lines.append((code(solver), *("" if row is None else f"{row['sliced_wasserstein']:.3g}" for row in at)))
    adaptive = [
        (code(solver), *(f"{row['sliced_wasserstein']:.3g} ({row['nfe']})" for row in map(found.get, keys) if row))
        for solver in dict.fromkeys(solver for solver, _, asked in found if not asked)
        for keys in [[(solver, problem, None) for problem in problems]]
    ]
    floors = ", ".join(
        f"{name} {value:.3f} ({low:.3f} to {high:.3f})" for name, (value, low, high) in header["floor"].items()
    )
    head = ("solver", *(f"{problem}, {budget}" for problem, budget in columns))
    return (
        f"{cards.markdown(head, lines)}\n\nAdaptive solvers, with the most evaluations that a sample took:\n\n"
        f"{cards.markdown(('solver', *problems), adaptive)}\n\nOf fresh draws (and the 95 % interval): {floors}."
    )


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

Sliced Wasserstein distance between samples and data at 5, 10, 20 and 50 evaluations: a mixture of eight Gaussians and
scikit-learn's digits, exact scores, the VP path, the Karras grid (`benchmarks/steps_vs_quality.py`, which also has the
intervals and the distances to the exact solution). Names of one method are listed once.

{distances()}
"""


def table() -> str:
    """The README's table: a line a family."""
    return cards.families(cards.rows())


def updated(text: str) -> str:
    """The README with the table written anew."""
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n{table()}\n{END}{after}"


def main() -> int:
    readme, docs = ROOT / "README.md", ROOT / "docs" / "solvers.md"
    text = readme.read_text(encoding="utf-8")
    fresh = {readme: updated(text), docs: page()}
    if "--check" in sys.argv:
        return int(any(not path.exists() or path.read_text("utf-8") != wanted for path, wanted in fresh.items()))
    for path, wanted in fresh.items():
        write_atomically(path, wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
