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
BUDGETS = (5, 8, 10, 16, 20, 32, 50)
PAGE = """\
# Solvers

Written by `benchmarks/readme.py` from the registry and from the measurements of `benchmarks/solver_orders.py`. One
solver with its formula, options and an example: `scoresde solvers NAME`.

- **order** is declared. "2 of 4": a method of order 4 that its start, weights or options hold at 2; its card says why.
- **measured** is the least and the largest over VP, sub-VP, VE, EDM and rectified flow: of the error on a Gaussian
  mixture, or, for methods that draw noise, of the covariance on Gaussian data; both in float64, against exact answers.
  Other libraries' integrators are measured on VP and VE alone. Over 40 to 320 steps, with noise 160 to 1280, a
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
    """The distance to the data by solver and budget, where that was measured."""
    header, rows = results("steps_vs_quality.json")
    found = {
        (row["solver"], row["nfe_asked"]): row["sliced_wasserstein"]
        for row in rows
        if row.get("sliced_wasserstein") is not None and not row.get("skipped")
    }
    budgets = [budget for budget in BUDGETS if any(asked == budget for _, asked in found)]
    lines = []
    for solver in dict.fromkeys(solver for solver, asked in found if asked in budgets):
        values = (found.get((solver, budget)) for budget in budgets)
        lines.append((code(solver), *("" if value is None else f"{value:.3f}" for value in values)))
    value, low, high = header["floor"]["sliced_wasserstein"]
    floor = f"Two sets of true draws are {value:.3f} apart (95 % interval {low:.3f} to {high:.3f})."
    return f"{cards.markdown(('solver', *(f'NFE {budget}' for budget in budgets)), lines)}\n\n{floor}"


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

Sliced Wasserstein distance between samples and data: eight Gaussians on a ring, exact scores
(`benchmarks/steps_vs_quality.py`).

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
