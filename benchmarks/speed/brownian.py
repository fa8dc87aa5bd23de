"""Times BrownianNoise against SeededNoise, side by side: python -m benchmarks.speed.brownian

Writes benchmarks/speed/results/brownian.json. One run makes a new source and draws the noise of a solve of 20 or 100
steps. Runs of the two sources alternate, and the figures are medians over the repetitions.
"""

from __future__ import annotations

import math
import statistics
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from scoresde.io.result_files import environment, write_json
from solvers import Node, SeededNoise
from solvers.noise.brownian import BrownianNoise

RESULTS = Path(__file__).parent / "results"
COUNT, REPETITIONS = 64, 9
SHAPES = ((2,), (8, 8), (3, 32, 32), (3, 64, 64))
STEPS = (20, 100)


def seconds(kind: type[SeededNoise], shape: tuple[int, ...], nodes: list[Node]) -> float:
    began = time.perf_counter()
    noise = kind(range(COUNT), shape)
    for t, s in pairwise(nodes):
        noise(t, s)
    return time.perf_counter() - began


def main() -> None:
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for shape in SHAPES:
        for steps in STEPS:
            # equal steps of lam from ratio 80 to 0.002
            nodes = [Node(0.0, 1.0, 80 * math.exp(-i / steps * math.log(80 / 0.002))) for i in range(steps + 1)]
            pairs = [
                (seconds(SeededNoise, shape, nodes), seconds(BrownianNoise, shape, nodes)) for _ in range(REPETITIONS)
            ]
            ratios = sorted(brownian / plain for plain, brownian in pairs)
            rows.append(
                {
                    "batch": COUNT,
                    "shape": list(shape),
                    "steps": steps,
                    "ratio": round(statistics.median(ratios), 2),
                    "least": round(ratios[0], 2),
                    "greatest": round(ratios[-1], 2),
                    "seeded_seconds": statistics.median(plain for plain, _ in pairs),
                    "brownian_seconds": statistics.median(brownian for _, brownian in pairs),
                }
            )
            print(
                f"{COUNT} x {shape}, {steps} steps: {rows[-1]['ratio']} ({rows[-1]['least']}..{rows[-1]['greatest']})"
            )
    header = {**environment(), "command": "python -m benchmarks.speed.brownian", "repetitions": REPETITIONS}
    RESULTS.mkdir(exist_ok=True)
    write_json(RESULTS / "brownian.json", {"header": header, "rows": rows})


if __name__ == "__main__":
    main()
