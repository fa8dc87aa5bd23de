"""The tables of docs/interop.md, from benchmarks/checks/results/diffusers_tests.json."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

OUTCOMES = ("passed", "failed", "skipped")


def tables(rows: list[dict[str, Any]]) -> dict[str, str]:
    """The counts by class and the reasons of the failures, under the names of their places in the page."""
    lines = ["| tests of | passed | failed | skipped |", "| --- | --- | --- | --- |"]
    causes: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for row in rows:
        lines.append("| " + " | ".join([f"`{row['tests']}`", *(str(row[outcome]) for outcome in OUTCOMES)]) + " |")
        for words, count in row["reasons"].items():
            causes[words].append((row["tests"], count))
    lines.append("| " + " | ".join(["all", *(str(sum(row[outcome] for row in rows)) for outcome in OUTCOMES)]) + " |")
    counted = {words: sum(count for _, count in files) for words, files in causes.items()}
    reasons = ["| why a test fails | tests |", "| --- | --- |"]
    for words in sorted(counted, key=lambda words: (-counted[words], words)):
        files = ", ".join(f"`{file}` {count}" for file, count in causes[words])
        reasons.append(f"| {words[0].upper()}{words[1:]}. | {counted[words]}: {files} |")
    return {"diffusers": "\n".join(lines), "differences": "\n".join(reasons)}
