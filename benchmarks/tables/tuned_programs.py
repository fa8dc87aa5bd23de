"""The tables of docs/programs.md on tuned programs, made from tuned_programs.json; readme.py writes them."""

from __future__ import annotations

from typing import Any

from scoresde.show.solver_cards import markdown

NAMES = {
    "mixture": "12 Gaussians in 8-d, exact",
    "trained": "digits, trained network",
    "digits": "digits, exact score",
    "mnist": "500 images of MNIST, exact",
}


def _error(row: dict[str, Any], key: str) -> str:
    return f"{row[key]:.4f} ({row[f'{key}_median']:.4f})"


def main_table(document: dict[str, Any]) -> str:
    """The errors of tuned programs and of what they are compared with."""
    head = (
        *("model", "NFE", "best untuned", "`few`", "tuned grid", "tuned program", "floor"),
        *("of untuned", "of `few`", "of tuned grid", "s"),
    )
    lines = []
    for row in sorted(document["rows"], key=lambda row: (list(NAMES).index(row["target"]), row["nfe"])):
        if row["variant"] != "all":
            continue
        ratios = (
            f"{row[key]:.2f} ({row[f'{key}_interval'][0]:.2f} to {row[f'{key}_interval'][1]:.2f})"
            for key in ("over_untuned", "over_few", "over_grid")
        )
        errors = (_error(row, key) for key in ("untuned", "few", "grid", "tuned", "floor"))
        lines.append((NAMES[row["target"]], str(row["nfe"]), *errors, *ratios, f"{row['seconds']:.0f}"))
    return markdown(head, lines)


def ablations(document: dict[str, Any]) -> str:
    """The errors of tunings with fewer free numbers, without theory, and with another loss."""
    rows = [row for row in document["rows"] if row["variant"] != "grid"]
    cases = {(row["target"], row["nfe"]) for row in rows if row["variant"] != "all"}
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    found = {(row["target"], row["nfe"], row["variant"]): _error(row, "tuned") for row in rows}
    lines = [
        (NAMES[target], str(nfe), *(found.get((target, nfe, variant), "") for variant in variants))
        for target, nfe in sorted(cases, key=lambda case: (list(NAMES).index(case[0]), case[1]))
    ]
    return markdown(("model", "NFE", *variants), lines)


def tables(document: dict[str, Any]) -> dict[str, str]:
    """The marked parts of the page."""
    return {"tuned programs": main_table(document), "ablations": ablations(document)}
