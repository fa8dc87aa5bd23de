"""The table of docs/losses.md, made from loss_choices.json; readme.py writes it."""

from __future__ import annotations

import math
from typing import Any

from scoresde.show.solver_cards import markdown

_THIRDS = ("low", "middle", "high")


def excess(row: dict[str, Any], best: dict[str, Any]) -> str:
    """The third of the range of log-SNR in which a row's squared error exceeds that of the best row most."""
    return max(_THIRDS, key=lambda name: row[f"eps_{name}_error"] ** 2 - best[f"eps_{name}_error"] ** 2)


def choices(document: dict[str, Any]) -> str:
    """The error of each output and weighting as a multiple of the best; beyond the limit, where the excess is."""
    header, rows = document["header"], document["rows"]
    near = header["near"]
    best = min(rows, key=lambda row: row["eps_error"])
    outputs = list(dict.fromkeys(row["output"] for row in rows))
    weightings = list(dict.fromkeys(row["weighting"] for row in rows))
    cells = {(row["weighting"], row["output"]): row for row in rows}

    def cell(row: dict[str, Any]) -> str:
        ratio = row["eps_ratio"]
        return f"**{ratio:.2f}**" if ratio <= near else f"{ratio:.2f} {excess(row, best)}"

    lines = [(f"`{name}`", *(cell(cells[name, output]) for output in outputs)) for name in weightings]
    within = [row for row in rows if row["eps_ratio"] <= near]
    spreads = [max(row["eps_errors"]) / min(row["eps_errors"]) for row in within]
    said = (
        f"The best is `{best['output']}` with `{best['weighting']}`, of error {best['eps_error']:.3f}. "
        f"{len(within)} of {len(rows)} pairs are within {near} times (bold); among their {len(header['seeds'])} seeds, "
        f"the largest error is at most {max(spreads):.2f} times the least."
    )
    clean = min(rows, key=lambda row: row["x0_error"])
    far = min(row["x0_ratio"] for row in rows if row["output"] in ("eps", "score"))
    said += (
        f" By the error of x0, which counts the high noise, the best is `{clean['output']}` with "
        f"`{clean['weighting']}`, and no `eps` or `score` is within {math.floor(far)} times of it."
    )
    return f"{markdown(('weighting', *(f'`{output}`' for output in outputs)), lines)}\n\n{said}"


def tables(document: dict[str, Any]) -> dict[str, str]:
    """The marked parts of the page."""
    return {"loss choices": choices(document)}
