"""Measures a step of the training against a hand-written loop: python -m benchmarks.speed.training [--device=cuda]

Both loops train the same network on the same data with the same loss (eps on VP, times uniform in t), AdamW, gradient
clipping and averaged weights. The hand-written loops are plain torch, as in a notebook: ``plain`` with AdamW's default
and a loop over the weights for the average, ``fused`` with the fastest parts of torch that do the same, fused AdamW and
``_foreach_lerp_``. They check nothing, and a stopped run does not resume. Ours is ``scoresde``'s update with everything
that ``train`` does for a step but its log. One thread; the loops alternate in short blocks of steps. A figure is the
median over the blocks of the milliseconds per step, of the CPU's time on a CPU; a ratio is the median over the blocks
of the ratio of neighbours, so that a load on the machine that changes slowly has no influence. ``reading`` is the time
of making one of our batches, which are in memory.

The peak of the memory is that of a process of its own with 20 steps: on a CPU (of Linux) what the process grows by
after its imports and the data, on a GPU what torch allocates. Writes benchmarks/speed/results/training.json, with a GPU
training_cuda.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import scoresde
from scoresde.data.rows import TensorRows
from scoresde.io.result_files import environment, write_json
from scoresde.models.networks import networks
from scoresde.training.loop import Training
from scoresde.training.losses import DSM
from scoresde.training.options import TrainingOptions
from scoresde.training.order import Ahead, Order
from scoresde.training.processes import Processes

RESULTS = Path(__file__).parent / "results"
PATH = scoresde.VP()
# network, shape of a sample, batch size, steps a block, blocks
CASES = (
    ("mlp(width=256, depth=3)", (1, 8, 8), 128, 5, 40),
    ("mlp(width=128, depth=2)", (2,), 256, 10, 40),
    ("unet(channels=[32, 64])", (1, 8, 8), 32, 1, 40),
    ("unet(channels=[32, 64])", (1, 16, 16), 32, 1, 20),
)
RATE, DECAY, CLIP, SIZE = 1e-3, 0.999, 1.0, 4096


def schedule(t: Tensor) -> tuple[Tensor, Tensor]:
    """VP's alpha and sigma at t (B,), as a notebook has them."""
    log_alpha = -0.25 * t**2 * (PATH.beta_max - PATH.beta_min) - 0.5 * t * PATH.beta_min
    return torch.exp(log_alpha), torch.sqrt(-torch.expm1(2 * log_alpha))


def by_hand(network: nn.Module, data: Tensor, batch: int, fused: bool) -> Callable[[], None]:
    """One step of the hand-written loop."""
    parameters: list[Tensor] = list(network.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0, fused=fused or None)
    averaged = copy.deepcopy(network)
    means: list[Tensor] = list(averaged.parameters())
    column = (-1,) + (1,) * (data.ndim - 1)

    def step() -> None:
        x0 = data[torch.randint(len(data), (batch,), device=data.device)]
        t = 1e-3 + (1 - 1e-3) * torch.rand(batch, device=data.device)
        alpha, sigma = (v.view(column) for v in schedule(t))
        eps = torch.randn_like(x0)
        optimizer.zero_grad()
        loss = (network(alpha * x0 + sigma * eps, t) - eps).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        with torch.no_grad():
            if fused:
                torch._foreach_lerp_(means, parameters, 1 - DECAY)
            else:
                for mean, parameter in zip(means, parameters, strict=True):
                    mean.mul_(DECAY).add_(parameter, alpha=1 - DECAY)
        loss.item()

    return step


def ours(network: nn.Module, data: Tensor, batch: int) -> Callable[[], None]:
    """One step of ``scoresde.training``."""
    options = TrainingOptions(batch_size=batch, learning_rate=RATE, warmup=0, clip=CLIP, averages=f"ema(decay={DECAY})")
    run = Training(scoresde.Denoiser(network, PATH), network, TensorRows(data), DSM(), options)
    return lambda: void(run.update())


def void(value: Any) -> None:
    """Drops a value."""


def measure(steps: dict[str, Callable[[], None]], length: int, blocks: int, device: str) -> dict[str, list[float]]:
    """Milliseconds per step of each loop, in every block."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    clock = time.process_time if device == "cpu" else time.perf_counter
    for block in range(blocks + 2):
        for name, step in steps.items():
            began = clock()
            for _ in range(length):
                step()
            if block >= 2:  # the first two warm up
                times[name].append((clock() - began) / length * 1e3)
    return times


def made(case: tuple[Any, ...], device: str) -> tuple[nn.Module, Tensor]:
    """The network and the data of a case."""
    torch.manual_seed(0)
    return networks.make(case[0]).build(case[1]).to(device), torch.randn(SIZE, *case[1]).to(device)


def peak(number: int, name: str, device: str) -> float:
    """The peak of the memory of a loop, in MiB, measured in this process."""
    case = CASES[number]
    network, data = made(case, device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before = kibibytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the imports had a higher peak
    step = ours(network, data, case[2]) if name == "scoresde" else by_hand(network, data, case[2], name == "fused")
    for _ in range(20):
        step()
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return (kibibytes("VmHWM") - before) / 2**10


def kibibytes(name: str) -> int:
    """A number of this process that Linux reports."""
    return next(int(line.split()[1]) for line in Path("/proc/self/status").open() if line.startswith(f"{name}:"))


def peak_elsewhere(number: int, name: str, device: str) -> float:
    """``peak`` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.speed.training", f"--device={device}", f"--peak={number},{name}"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return round(float(json.loads(done.stdout.splitlines()[-1])), 1)


def reading(data: Tensor, batch: int) -> float:
    """Milliseconds of making a batch."""
    ahead = Ahead(TensorRows(data), Order(SIZE, batch, 0), Processes(), 0)
    times = []
    for _ in range(50):
        began = time.perf_counter()
        ahead.take()
        times.append((time.perf_counter() - began) * 1e3)
    return statistics.median(times)


def row_of(number: int, device: str) -> dict[str, Any]:
    """The figures of a case."""
    spec, shape, batch, length, blocks = CASES[number]
    network, data = made(CASES[number], device)
    loops = {
        "plain": by_hand(copy.deepcopy(network), data, batch, fused=False),
        "fused": by_hand(copy.deepcopy(network), data, batch, fused=True),
        "scoresde": ours(copy.deepcopy(network), data, batch),
    }
    times = measure(loops, length, blocks, device)
    over = {
        name: statistics.median(a / b for a, b in zip(times["scoresde"], times[name], strict=True))
        for name in ("plain", "fused")
    }
    return {
        "network": spec,
        "shape": list(shape),
        "batch": batch,
        "over_plain": round(over["plain"], 3),
        "over_fused": round(over["fused"], 3),
        "median_milliseconds": {name: round(statistics.median(v), 3) for name, v in times.items()},
        "least_milliseconds": {name: round(min(v), 3) for name, v in times.items()},
        "reading_milliseconds": round(reading(data, batch), 3),
        "peak_mebibytes": {name: peak_elsewhere(number, name, device) for name in loops},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--peak", help="measure the memory of one loop of one case, and print it")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.peak:
        number, name = arguments.peak.split(",")
        print(json.dumps(peak(int(number), name, arguments.device)))
        return
    rows = []
    for number in range(len(CASES)):
        rows.append(row_of(number, arguments.device))
        print(rows[-1], flush=True)
    suffix = "" if arguments.device == "cpu" else f"_{arguments.device}"
    header = {
        **environment(arguments.device),
        "command": "python -m benchmarks.speed.training" + (f" --device={arguments.device}" if suffix else ""),
        "sde": str(PATH),
        "loss": str(DSM()),
        "rows_of_data": SIZE,
        "seeds": [0],
    }
    RESULTS.mkdir(exist_ok=True)
    write_json(RESULTS / f"training{suffix}.json", {"header": header, "rows": rows})


if __name__ == "__main__":
    main()
