"""Measures the peak memory of programs of 20 and of 1000 steps: python -m benchmarks.speed.program_memory

Each run is a separate process, with one thread and a trivial network (eps = 0.9 x) on 4 samples of 3x512x512 in
float32, 12.6 MB per state. It reports the largest resident size of the process, and how much the run added to it. The C
library is configured to return every large block when it is freed; by default it keeps a random number of them. Writes
benchmarks/speed/results/program_memory.json. Takes a few minutes; does not run on Windows.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import scoresde
import solvers
from scoresde.io.result_files import environment, write_json

RESULTS = Path(__file__).parent / "results"
SHAPE, STEPS = (4, 3, 512, 512), (20, 1000)
METHODS = ("ddim", "dpmpp_2m", "uni_pc", "lms", "heun", "dpmpp_2m_sde")
PATH = scoresde.VP()


def network(x: Tensor, label: Tensor) -> Tensor:
    return 0.9 * x


def megabytes() -> float:
    """The largest resident size of this process so far."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


@torch.no_grad()
def one(method: str, steps: int) -> dict[str, float]:
    """The memory of one run, in this process."""
    torch.set_num_threads(1)
    denoiser = scoresde.Denoiser(network, PATH, predicts="eps")
    problem = scoresde.models.problem.Diffusion(denoiser)
    nodes = solvers.grid("logsnr", PATH, steps)
    noise = solvers.SeededNoise(range(SHAPE[0]), SHAPE[1:])
    x = noise.initial()
    program = solvers.trace(method, nodes, PATH, "eps")
    program.run(problem, noise.initial()[:1, :1, :1, :1], solvers.SeededNoise([0], (1, 1, 1)))  # late imports
    gc.collect()
    before = megabytes()
    program.run(problem, x, noise)
    return {"before": before, "peak": megabytes()}


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(one(sys.argv[1], int(sys.argv[2]))))
        return
    state = 4 * torch.Size(SHAPE).numel() / 1e6
    rows: list[dict[str, Any]] = []
    for method in METHODS:
        runs = []
        for steps in STEPS:
            command = [sys.executable, "-m", "benchmarks.speed.program_memory", method, str(steps)]
            environ = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20)}
            told = subprocess.run(command, check=True, capture_output=True, text=True, env=environ).stdout
            runs.append({"steps": steps, **{k: round(v, 1) for k, v in json.loads(told).items()}})
        few, many = ((run["peak"] - run["before"]) / state for run in runs)
        ratio = round(runs[1]["peak"] / runs[0]["peak"], 4)
        added = round(many / few, 4)
        states = [round(few, 2), round(many, 2)]
        rows.append({"method": method, "peak_ratio": ratio, "added_ratio": added, "added_states": states, "runs": runs})
        print(f"{method}: 1000 steps / 20 steps: peak {ratio}, added {added}; added, in states: {states}", flush=True)
    header = {
        **environment(), "threads": "1", "command": "python -m benchmarks.speed.program_memory", "shape": list(SHAPE),
        "sde": str(PATH), "grid": "logsnr", "unit": "MB", "seeds": list(range(SHAPE[0])),
    }  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    write_json(RESULTS / "program_memory.json", {"header": header, "rows": rows})


if __name__ == "__main__":
    main()
