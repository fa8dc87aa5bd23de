"""The tables of docs/likelihood.md, made from methods.json and trace_estimators.json; readme.py writes them."""

from __future__ import annotations

from typing import Any

from scoresde.show.solver_cards import markdown


def frontier(document: dict[str, Any]) -> str:
    """The cost of each method for the error of the recipe, as fractions of the recipe's cost."""
    head = ("", "method", "setting", "worst error", "right-hand sides", "forward passes", "seconds")
    lines = []
    for title, task in document["tasks"].items():
        base = task["same_error"]["recipe"]
        counts = (f"{base[name]:.3g}" for name in ("right_hand_sides", "forward_passes", "seconds"))
        lines.append((title, "score_sde's recipe", "1e-5", f"{base['worst']:.2g}", *counts))
        for method, row in task["same_error"].items():
            if method == "recipe":
                continue
            ratios = (f"{1 / row[f'{name}_ratio']:.2f}" for name in ("right_hand_sides", "forward_passes", "seconds"))
            setting = f"{row['setting']:g}".replace("e-0", "e-") + ("" if row["setting"] < 1 else " steps")
            lines.append(("", f"`{method}`", setting, f"{row['worst']:.2g}", *ratios))
    return markdown(head, lines)


def estimators(document: dict[str, Any]) -> str:
    """The error of log p in nats, by estimator and number of products."""
    errors = document["errors"]
    names = list(dict.fromkeys(key.split(", ")[0] for key in errors))
    products = list(dict.fromkeys(key.split(", ")[1] for key in errors))
    lines = [(name, *(f"{errors[f'{name}, {count}']['along']['nats']:.2f}" for count in products)) for name in names]
    return markdown(("estimator", *products), lines)


def tables(likelihood: dict[str, Any], trace: dict[str, Any]) -> dict[str, str]:
    """The marked parts of the page."""
    return {"frontier": frontier(likelihood), "estimators": estimators(trace)}
