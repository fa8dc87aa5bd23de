"""Times an import and three commands against ``import torch``: python -m benchmarks.speed.startup

Writes benchmarks/speed/results/startup.json. Every figure is a whole process, from its start to its end, with byte code
in the cache as after an installation. Processes of all kinds alternate; each is compared with the ``import torch`` of
the same round, and the figures are medians over the rounds. On a shared machine the CPU seconds are steadier than the
seconds.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from scoresde.io.result_files import environment, write_json

RESULTS = Path(__file__).parent / "results"
ROUNDS = 9
CLI = [sys.executable, "-m", "scoresde.cli"]
FLOOR = "python -c 'import torch'"
PROCESSES = {
    FLOOR: [sys.executable, "-c", "import torch"],
    "python -c 'import torch, scoresde'": [sys.executable, "-c", "import torch, scoresde"],
    "python -c 'import torch, scoresde; scoresde.sample'": [
        sys.executable,
        "-c",
        "import torch, scoresde; scoresde.sample",
    ],
    "scoresde --help": [*CLI, "--help"],
    "scoresde --version": [*CLI, "--version"],
    "scoresde solvers": [*CLI, "solvers"],
}


class Cost(NamedTuple):
    """The cost of a process: seconds from its start to its end, and seconds of CPU in all its threads."""

    seconds: float
    cpu_seconds: float


def cost(command: list[str]) -> Cost:
    """Runs a process, on one thread and with byte code in the cache."""
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**environ, "OMP_NUM_THREADS": "1"})
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise SystemExit(f"{' '.join(command)} failed")
    return Cost(time.perf_counter() - began, usage.ru_utime + usage.ru_stime)


def main() -> None:
    for command in PROCESSES.values():
        cost(command)  # writes the byte code
    costs = [{name: cost(command) for name, command in PROCESSES.items()} for _ in range(ROUNDS)]
    rows = []
    for name in PROCESSES:
        ratios = sorted(each[name].cpu_seconds / each[FLOOR].cpu_seconds for each in costs)
        rows.append(
            {
                "process": name,
                "ratio": round(statistics.median(ratios), 3),
                "least": round(ratios[0], 3),
                "greatest": round(ratios[-1], 3),
                "seconds": round(statistics.median(each[name].seconds for each in costs), 3),
                "least_seconds": round(min(each[name].seconds for each in costs), 3),
                "cpu_seconds": round(statistics.median(each[name].cpu_seconds for each in costs), 3),
            }
        )
        row = rows[-1]
        print(f"{name:55s} {row['ratio']:6} times import torch, {row['seconds']} s, {row['cpu_seconds']} s of CPU")
    header = {
        **environment(),
        "command": "python -m benchmarks.speed.startup",
        "rounds": ROUNDS,
        "ratio_of": "cpu_seconds",
    }
    RESULTS.mkdir(exist_ok=True)
    write_json(RESULTS / "startup.json", {"header": header, "rows": rows})


if __name__ == "__main__":
    main()
