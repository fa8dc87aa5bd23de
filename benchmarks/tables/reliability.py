"""The tables of docs/reliability.md, from benchmarks/checks/results/reliability.json."""

from __future__ import annotations

from typing import Any

TITLES = {
    "kills": "`kill -9` at a random moment",
    "signals": "SIGTERM and Ctrl-C at a random moment",
    "disks": "full disk",
    "together": "two, four and seven processes in one folder",
    "inputs": "hostile input",
}


def tables(document: dict[str, Any]) -> dict[str, str]:
    """The table of all attacks, and the sums with the time, under the names of their places in the page."""
    rows = document["rows"]
    lines = ["| fault | of | tried | survived | seconds |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        ends = ", ".join(f"{name} {count}" for name, count in row["ends"].items()) if row["part"] == "inputs" else ""
        name = row["name"] + (f" ({ends})" if ends else "")
        cells = (TITLES[row["part"]], name, row["tried"], row["survived"], f"{row['seconds']:.0f}")
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return {"faults": "\n".join(lines), "sums": _sums(document["header"], rows)}


def _sums(header: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    tried, survived = (sum(row[key] for row in rows) for key in ("tried", "survived"))
    seconds = sum(row["seconds"] for row in rows)
    parts = "; ".join(
        f"{TITLES[part]}: {sum(row['survived'] for row in rows if row['part'] == part):,} of "
        f"{sum(row['tried'] for row in rows if row['part'] == part):,}"
        for part in TITLES
        if any(row["part"] == part for row in rows)
    )
    part = "" if header["fraction"] == 1 else f" ({header['fraction']:.0%} of the full counts)"
    machine = f"{header['cores']} cores of a {header['platform']} machine, torch {header['torch']}"
    return f"{survived:,} of {tried:,} attacks survived{part}, in {seconds / 60:.0f} minutes on {machine} ({parts})."
