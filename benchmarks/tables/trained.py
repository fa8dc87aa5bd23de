"""The table of docs/training.md, made from mnist.json and cifar10.json; readme.py writes it."""

from __future__ import annotations

import math
from typing import Any

from scoresde.show.solver_cards import markdown

# what the data are, and how many numbers an image has
_DATA = {"mnist": ("MNIST", 784), "cifar10": ("4,000 of CIFAR-10", 3072)}


def _distance(row: dict[str, Any]) -> str:
    """The distance from held-out images for the most samples, and its floor."""
    most = max((one for one in row["frechet"] if one["against"] == "held out"), key=lambda one: one["n"])
    value, floor = most["distance"], most["floor"]
    return f"{value['mean']:.3g} ± {value['stdev']:.2g} (floor {floor['mean']:.3g}, n = {most['n']:,})"


def _likelihood(row: dict[str, Any], dimensions: int) -> str:
    found = row["bits_per_dim"]
    solver = found["solver_error_nats"] / (dimensions * math.log(2))
    return f"{found['mean']:.3f} ± {found['stderr']:.3f}, solver {solver:.3f} ({found['samples']:,})"


def _requested(row: dict[str, Any]) -> str:
    read = [("", row.get("read_as", {})), *((f" with `{g['guidance']}`", g["read_as"]) for g in row.get("guided", ()))]
    parts = []
    for how, one in read:
        if share := one.get("as_requested"):
            parts.append(f"{100 * share['share']:.1f} % ± {100 * share['stderr']:.1f}{how}")
    return "; ".join(parts)


def models(documents: dict[str, dict[str, Any]]) -> str:
    """One line for each model that was trained, and what it was trained for."""
    lines, said = [], []
    for data, document in documents.items():
        name, dimensions = _DATA[data]
        for row in document["rows"]:
            setting = row["training"]
            lines.append(
                (
                    f"`{row['config']}`",
                    f"`{setting['network']}`",
                    f"{setting['steps']:,} x {setting['batch_size']}",
                    _distance(row),
                    _likelihood(row, dimensions),
                    _requested(row),
                )
            )
            said.append(
                f"`{row['config']}` ({name}, {row['device']}): `{row['command']}`; its samples are "
                f"[{row['picture']}](../benchmarks/training/results/{row['picture']})."
            )
    head = ("config", "network", "updates x batch", "Fréchet distance", "bits/dim", "as asked")
    return f"{markdown(head, lines)}\n\n" + "\n".join(f"- {line}" for line in said)


def tables(documents: dict[str, dict[str, Any]]) -> dict[str, str]:
    """The marked parts of the page."""
    return {"trained": models(documents)}
