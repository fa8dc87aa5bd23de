"""Attacks the library with kills, full disks, many processes and hostile files: python -m benchmarks.checks.reliability

Writes benchmarks/checks/results/reliability.json, a row after each kind of attack. ``--resume`` keeps the rows that are
there and makes the missing ones; ``--only kills inputs`` makes those parts; ``--fraction 0.1`` a tenth of each count.
The attacks are in tests/attacks; the tests run the same ones.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from scoresde.io.result_files import environment, write_json

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results" / "reliability.json"


def main() -> int:
    """Makes the attacks; returns 1 if one succeeded."""
    sys.path.append(str(ROOT / "tests"))
    from attacks import everything  # here, because each process that is attacked imports this script

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=everything.PARTS, default=everything.PARTS, metavar="PART")
    parser.add_argument("--fraction", type=float, default=1.0, help="how much of each count; default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="keep the rows that are there")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    asked = {"seed": given.seed, "fraction": given.fraction}
    rows = _rows(given.out, asked, () if given.resume else given.only)
    header = {
        **environment(),
        "threads": "1",  # of each process that is attacked
        "cores": os.cpu_count(),
        "command": "python -m benchmarks.checks.reliability",
        **asked,
    }
    with tempfile.TemporaryDirectory(prefix="attacks") as folder:
        scratch = everything.Scratch(Path(folder))
        for attack in everything.attacks(scratch, given.fraction, given.seed):
            key = (attack.part, attack.name)
            if attack.part not in given.only or key in rows:
                continue
            began = time.perf_counter()
            try:
                row = attack.start().row()
            except PermissionError as reason:
                print(f"{attack.part}, {attack.name}: skipped, {reason}")
                continue
            rows[key] = {"part": attack.part, "name": attack.name, "asked": attack.count, **row}
            order = [(each.part, each.name) for each in everything.attacks(scratch)]
            write_json(given.out, {"header": header, "rows": [rows[key] for key in order if key in rows]})
            took = time.perf_counter() - began
            print(f"{attack.part}, {attack.name}: {row['survived']} of {row['tried']}, {took:.0f} s", flush=True)
    return int(any(row["failures"] for row in rows.values()))


def _rows(path: Path, asked: dict[str, Any], without: tuple[str, ...] | list[str]) -> dict[tuple[str, str], Any]:
    """The rows of a result file that was made with the same counts, but for some parts."""
    if not path.exists():
        return {}
    document = json.loads(path.read_text(encoding="utf-8"))
    if any(document["header"].get(key) != value for key, value in asked.items()):
        return {}
    return {(row["part"], row["name"]): row for row in document["rows"] if row["part"] not in without}


if __name__ == "__main__":
    sys.exit(main())
