"""Writes the README's table of solvers from the registry and the committed results: python benchmarks/readme.py

With --check it only tells whether the README is up to date (exit status 1 if not).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import solvers
from scoresde.results import write_atomically

ROOT = Path(__file__).parent.parent
START, END = "<!-- solvers: written by benchmarks/readme.py -->", "<!-- end of solvers -->"
BUDGETS = (8, 16, 32)


def results(name: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The header and the rows of a committed result file."""
    document = json.loads((ROOT / "benchmarks" / "results" / name).read_text(encoding="utf-8"))
    return document["header"], document["rows"]


def table() -> str:
    """The table: facts from the registry, numbers from the result files."""
    orders = {row["solver"]: row for row in results("solver_orders.json")[1]}
    header, rows = results("steps_vs_quality.json")
    distances = {(row["solver"], row["nfe_asked"]): row for row in rows}
    lines = [
        "| solver | kind | order | measured (VP, VE) | NFE/step | "
        + " | ".join(f"W at NFE {budget}" for budget in BUDGETS)
        + " | reference |",
        "|---|---|---|---|---|" + "---|" * len(BUDGETS) + "---|",
    ]
    for name in solvers.names():
        info, measured = solvers.info(name), orders[name]
        cells = [f"`{name}`", info.kind, f"{info.order:g}"]
        cells.append(", ".join(f"{measured[path]['order']:.2f}" for path in ("vp", "ve")))
        cells.append("own steps" if info.adaptive else str(info.evaluations))
        for budget in BUDGETS:
            row = distances.get((name, budget))
            cells.append(f"{row['sliced_wasserstein']:.3f}" if row and not row["skipped"] else "")
        lines.append(f"| {' | '.join([*cells, info.reference])} |")
    value, low, high = header["floor"]["sliced_wasserstein"]
    lines += ["", f"Two sets of true draws are {value:.3f} apart (95 % interval {low:.3f} to {high:.3f})."]
    return "\n".join(lines)


def updated(text: str) -> str:
    """The README with the table written anew."""
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n{table()}\n{END}{after}"


def main() -> int:
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    fresh = updated(text)
    if "--check" in sys.argv:
        return int(fresh != text)
    write_atomically(readme, fresh)
    return 0


if __name__ == "__main__":
    sys.exit(main())
