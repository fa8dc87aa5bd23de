"""Times seeded and Brownian noise against torch.randn, side by side: python -m benchmarks.speed.noise

One run of seeded noise makes a source and draws the start and the noise of 50 steps; one of Brownian noise draws 20
steps. The other rows are alternatives that were considered: a torch generator per sample that draws in float64 (the
noise of earlier versions) or in float32, and numpy's Philox. Everything runs in one thread; times are the thread's CPU
time, on which other programs have the least influence, and minima over the repetitions, in which the candidates
alternate. Writes benchmarks/speed/results/noise.json.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scoresde.io.result_files import environment, write_json
from solvers import BrownianNoise, Node, SeededNoise, generator

RESULTS = Path(__file__).parent / "results"
SHAPES = ((16, 3, 32, 32), (64, 3, 32, 32), (64, 2), (64, 8, 8))
DRAWS, STEPS, REPETITIONS = 51, 20, 12
T, S = Node(1.0, 0.1, 0.9), Node(0.5, 0.8, 0.6)
# equal steps of lam from ratio 80 to 0.002
NODES = [Node(0.0, 1.0, 80 * math.exp(-i / STEPS * math.log(80 / 0.002))) for i in range(STEPS + 1)]


def randn(shape: tuple[int, ...]) -> None:
    for _ in range(DRAWS):
        torch.randn(shape)


def seeded(shape: tuple[int, ...]) -> None:
    noise = SeededNoise(range(shape[0]), shape[1:])
    noise.initial()
    for _ in range(DRAWS - 1):
        noise(T, S)


def brownian(shape: tuple[int, ...]) -> None:
    noise = BrownianNoise(range(shape[0]), shape[1:])
    for t, s in pairwise(NODES):
        noise(t, s)


def generators(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    for stream, draws in ((0, 1), (1, DRAWS - 1)):
        made = [generator(seed, stream) for seed in range(shape[0])]
        for _ in range(draws):
            torch.stack([torch.randn(shape[1:], generator=g, dtype=dtype).float() for g in made])


def philox(shape: tuple[int, ...]) -> None:
    made = [np.random.Generator(np.random.Philox(np.random.SeedSequence(seed))) for seed in range(shape[0])]
    for _ in range(DRAWS):
        z = np.empty(shape, dtype=np.float32)
        for row, g in zip(z, made, strict=True):
            g.standard_normal(dtype=np.float32, out=row)


CANDIDATES: dict[str, Callable[[tuple[int, ...]], None]] = {
    "randn": randn,
    "seeded": seeded,
    "brownian": brownian,
    "generators_float64": lambda shape: generators(shape, torch.float64),
    "generators_float32": lambda shape: generators(shape, torch.float32),
    "numpy_philox": philox,
}


def main() -> None:
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for shape in SHAPES:
        least = dict.fromkeys(CANDIDATES, math.inf)
        for _ in range(REPETITIONS):
            for name, run in CANDIDATES.items():
                began = time.thread_time()
                run(shape)
                least[name] = min(least[name], time.thread_time() - began)
        draw = least["randn"] / DRAWS
        counts = {name: STEPS if name == "brownian" else DRAWS for name in CANDIDATES}
        ratios = {name: round(seconds / counts[name] / draw, 2) for name, seconds in least.items()}
        rows.append({"shape": list(shape), "randn_microseconds": round(draw * 1e6, 2), "draws_of_randn": ratios})
        print("x".join(map(str, shape)), f"randn {draw * 1e6:.1f} us;", ratios, flush=True)
    header = {
        **environment(),
        "command": "python -m benchmarks.speed.noise",
        "repetitions": REPETITIONS,
        "draws": DRAWS,
        "brownian_steps": STEPS,
    }
    RESULTS.mkdir(exist_ok=True)
    write_json(RESULTS / "noise.json", {"header": header, "rows": rows})


if __name__ == "__main__":
    main()
