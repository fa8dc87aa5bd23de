"""The tables of docs/programs.md on programs run on other models, made from transfer.json; readme.py writes them."""

from __future__ import annotations

from typing import Any

from scoresde.show.solver_cards import markdown

from .tuned_programs import NAMES


def _ratio(row: dict[str, Any], key: str) -> str:
    low, high = row[f"{key}_interval"]
    return f"{row[key]:.2f} ({low:.2f} to {high:.2f})"


def across(document: dict[str, Any]) -> str:
    """Programs of 5 and 8 evaluations on every model and path."""
    rows = {(row["source"], row["target"], row["path"], row["nfe"]): row for row in document["rows"]}
    lines = []
    for (source, target, path, nfe), row in sorted(rows.items(), key=lambda item: item[0][3]):
        if not target or path != "vp" or nfe == 7:
            continue
        others = [rows.get((source, target, other, nfe)) for other in ("ve", "flow")]
        errors = [f"{found['error']:.4f}" if found else "" for found in (row, *others)]
        over = "1" if source == target else _ratio(row, "over_tuned")
        lines.append((NAMES[source], NAMES[target], str(nfe), *errors, over, _ratio(row, "over_untuned")))
    head = ("tuned on (VP)", "run on", "NFE", "VP", "VE", "flow", "over the one tuned on it", "over the best untuned")
    return markdown(head, lines)


def between(document: dict[str, Any]) -> str:
    """Programs of 7 evaluations, interpolated."""
    lines = [
        (NAMES[row["target"]], f"{row['error']:.4f}", _ratio(row, "over_tuned"), _ratio(row, "over_untuned"))
        for row in document["rows"]
        if row["target"] and row["nfe"] == 7
    ]
    return markdown(("model", "error", "over the one tuned at 7", "over the best untuned"), lines)


def tables(document: dict[str, Any]) -> dict[str, str]:
    """The marked parts of the page."""
    return {"transfer": across(document), "between budgets": between(document)}
