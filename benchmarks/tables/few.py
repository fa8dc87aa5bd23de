"""The tables of docs/programs.md on the solver ``few``, made from few.json; readme.py writes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from scoresde.show.solver_cards import markdown

OTHERS = ("exact score of data", "trained")


def _mean(values: Sequence[float]) -> float:
    """The geometric mean, of numbers of which none is 0."""
    return math.exp(sum(map(math.log, values)) / len(values))


def unseen(document: dict[str, Any]) -> str:
    """Ratios of errors on unseen members of the family, by kind and number of evaluations."""
    rows = [row for row in document["rows"] if row["kind"] not in OTHERS]
    head = (
        "of the family",
        "NFE",
        "problems",
        "over the best in hindsight",
        "not worse",
        "over `dpmpp_2m` on karras",
        "over `ipndm` on `logsnr(end=zero)`",
    )
    groups: dict[str, Callable[[str], bool]] = {
        "models": lambda kind: "network" not in kind,
        "networks that predict eps": lambda kind: kind == "network, eps",
        "other networks": lambda kind: kind in ("network, edm", "network, velocity"),
    }
    lines = []
    for name, belongs in groups.items():
        for nfe in sorted({row["nfe"] for row in rows}):
            own = [row for row in rows if row["nfe"] == nfe and belongs(row["kind"]) and row["over_best"]]
            ratios = [row["over_best"] for row in own]
            better = sum(ratio <= 1 for ratio in ratios) / len(ratios)
            lines.append((
                name, str(nfe), str(len(own)), f"{_mean(ratios):.2f}", f"{better:.0%}",
                f"{_mean([row['few'] / row['dpmpp_2m'] for row in own]):.2f}",
                f"{_mean([row['few'] / row['default'] for row in own]):.2f}",
            ))  # fmt: skip
    return markdown(head, lines)


def _ratio(row: dict[str, Any]) -> str:
    """A ratio with its interval; nothing where the best solver makes no error in some draws of the samples."""
    ratio, low, high = (row[name] for name in ("over_best", "over_best_low", "over_best_high"))
    return "" if ratio is None else f"{ratio:.2f}" + ("" if None in (low, high) else f" ({low:.2f} to {high:.2f})")


def others(document: dict[str, Any]) -> str:
    """Errors on exact scores of real data and on trained networks."""
    head = (
        "model",
        "NFE",
        "few",
        "best in hindsight",
        "which",
        "few over best",
        "`dpmpp_2m` on karras",
        "`ipndm` on `logsnr(end=zero)`",
    )
    lines = [
        (
            row["model"], str(row["nfe"]), f"{row['few']:.4f}", f"{row['best']:.4f}", row["best_setting"], _ratio(row),
            f"{row['dpmpp_2m']:.4f}", f"{row['default']:.4f}",
        )
        for row in sorted(document["rows"], key=lambda row: (row["kind"], row["model"], row["nfe"]))
        if row["kind"] in OTHERS
    ]  # fmt: skip
    return markdown(head, lines)


def tables(document: dict[str, Any]) -> dict[str, str]:
    """The marked parts of the page."""
    return {"few, unseen": unseen(document), "few, data and networks": others(document)}
