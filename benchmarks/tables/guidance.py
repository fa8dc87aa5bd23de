"""The tables of docs/guidance.md, made from guidance.json; readme.py writes them."""

from __future__ import annotations

from typing import Any

from scoresde.show.solver_cards import markdown


def sampled(document: dict[str, Any]) -> str:
    """Mean and deviation of the tilted law and of what solves sample, by scale."""
    rows = document["rows"]
    intervals = [tuple(each["interval"]) for each in rows[0]["intervals"]]
    head = ("s", "p_u^(1-s) p_c^s", "ODE", "SDE", *(f"ODE, r in ({low:g}, {high:g})" for low, high in intervals))

    def cell(found: dict[str, float]) -> str:
        return f"{found['mean']:.3f}, {found['deviation']:.3f}"

    lines = [
        (f"{row['scale']:g}", *(cell(row[name]) for name in ("tilted", "ode", "sde")), *map(cell, row["intervals"]))
        for row in rows
    ]
    return markdown(head, lines)


def cards(document: dict[str, Any]) -> list[dict[str, Any]]:
    """What the cards show of ``sampled``."""
    return [
        {"scale": row["scale"]}
        | {law: [round(row[law][key], 3) for key in ("mean", "deviation")] for law in ("tilted", "ode", "sde")}
        for row in document["rows"]
    ]


def orders(document: dict[str, Any]) -> str:
    """The order of solvers across an interval, divided at its edges and not."""
    lines = [(f"`{row['solver']}`", f"{row['divided']:.2f}", f"{row['whole']:.2f}") for row in document["orders"]]
    return markdown(("solver", "divided at the edges", "not divided"), lines)


def tables(document: dict[str, Any]) -> dict[str, str]:
    """The marked parts of the page."""
    return {"guided laws": sampled(document), "guided orders": orders(document)}
