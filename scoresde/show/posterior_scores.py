"""``measured``: the scores of a posterior method against exact posteriors, for its card.

The numbers are those of benchmarks/conditions/posteriors.py, of which ``benchmarks/readme.py`` writes scores.json.
"""

from __future__ import annotations

import json
from functools import lru_cache
from importlib.resources import files
from typing import Any

NAMES = {"tv": "TV", "chi2": "chi2", "class_tv": "of classes"}


@lru_cache(maxsize=1)
def scores() -> dict[str, Any]:
    """The measured rows: of guidance, and of each posterior method; empty if the package contains no measurements."""
    source = files("scoresde.show").joinpath("scores.json")
    found: dict[str, Any] = json.loads(source.read_text("utf-8")) if source.is_file() else {}
    return found


def measured(name: str) -> str:
    """Lines with the scores of a method by its registered name, one for each problem, spec and solver; "" if unknown.

    SW is the sliced distance to exact draws, with that of other exact draws in brackets; TV the total variation of the
    weights of modes, points or classes; chi2 is 1 for the right width of a mode.

    >>> measured("unheard_of")
    ''
    """
    return "\n".join(_line(row) for row in scores().get("posteriors", {}).get(name, ()))


def _line(row: dict[str, Any]) -> str:
    """What was measured in one row."""
    others = "".join(f", {text} {row[key]:g}" for key, text in NAMES.items() if key in row)
    return f"{row['problem']}, {row['method']}, {row['solver']}: SW {row['sw']:g} ({row['exact']:g}){others}"
