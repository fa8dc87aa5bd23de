"""The tables of docs/training.md on conditions and observations, from mnist_conditions.json; readme.py writes them."""

from __future__ import annotations

from typing import Any

from scoresde.show.solver_cards import markdown


def percent(share: float, interval: list[float]) -> str:
    """A share and its interval.

    >>> percent(0.93, [0.912, 0.9449])
    '93.0 % (91.2 to 94.5)'
    """
    return f"{100 * share:.1f} % ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"


def guided(rows: list[dict[str, Any]]) -> str:
    """How many samples are read as the class that was requested, by scale."""
    lines = []
    for row in rows:
        read, facts = row["read_as"], row["samples"]
        most = max(row["frechet"], key=lambda one: one["n"])
        lines.append(
            (
                f"{row['scale']:g}",
                f"`{row['guidance']}`" if row["guidance"] else "none",
                f"{facts['count']:,}",
                f"{facts['forwards']:g}",
                percent(read["as_requested"]["share"], row["as_requested"]),
                f"{min(range(10), key=lambda k: read['by_class'][k])}: {100 * min(read['by_class']):.1f} %",
                f"{most['distance']['mean']:.3g} ± {most['distance']['stdev']:.2g} "
                f"({most['floor']['mean']:.3g}, n = {most['n']:,})",
            )
        )
    head = ("s", "guidance", "samples", "forwards", "as asked (95 %)", "worst class", "Fréchet distance (floor)")
    return markdown(head, lines)


def restored(rows: list[dict[str, Any]]) -> str:
    """The residuals, errors and spreads of draws, by problem and method."""
    lines = []
    for row in rows:
        spread = row["deviation"] * (1 + 1 / row["draws"]) ** 0.5
        lines.append(
            (
                row["problem"],
                f"`{row['posterior']}`",
                f"{row['forwards']:,.0f} + {row['vjps']:,.0f}",
                f"{row['residual']:.2f} ({row['residual_max']:.2f})",
                f"{row['error']:.3f}",
                f"{spread:.3f}",
                f"{100 * row['read_as_truth']:.0f} %",
                "" if row["effective"] is None else f"{min(row['effective']):.1f}",
            )
        )
    head = (
        "seen", "method", "forwards + VJPs", "residual (worst)", "error", "expected", "read as the digit",
        "effective particles",
    )  # fmt: skip
    return markdown(head, lines)


def held_out(found: dict[str, Any]) -> str:
    """How often the most probable class of held-out digits is right, by the ODE and by the bound."""
    lines = []
    for how, one in (("ODE", found), ("variational bound", found["bound"])):

        def mean(name: str, one: dict[str, Any] = one) -> str:
            return f"{one[name]:.3f} ± {one[f'{name}_stderr']:.3f}"

        right = f"{percent(one['accuracy'], one['accuracy_interval'])} of {one['scored']}"
        means = (mean(name) for name in ("confidence", "probability", "cross_entropy"))
        lines.append((how, f"{one['evaluations']}", right, *means))
    head = (
        "log p of x given c",
        "evaluations",
        "right (95 %)",
        "confidence",
        "of the right class",
        "cross-entropy, nats",
    )
    return markdown(head, lines)


def tables(document: dict[str, Any]) -> dict[str, str]:
    """The marked parts of the page."""
    return {
        "guided digits": guided(document["guided"]),
        "restored digits": restored(document["restored"]),
        "classified digits": held_out(document["held_out"]),
    }
