"""Measures the cost of a training step over that of a hand-written loop: python benchmarks/training.py

Both loops train the same network on the same data with the same loss (eps on VP, times uniform in t), AdamW, gradient
clipping and averaged weights. The hand-written loops are plain torch, as in a notebook: ``plain`` with AdamW's default
and a loop over the weights for the average, ``fused`` with the fastest parts of torch that do the same, fused AdamW and
``_foreach_lerp_``. They check nothing, and a stopped run does not resume. Ours is ``scoresde``'s update with everything
that ``train`` does for a step but its log. One thread; the loops alternate in short blocks of steps. A figure is the
median over the blocks of the milliseconds per step; a ratio is the median over the blocks of the ratio of neighbours,
so that a load on the machine that changes slowly has no influence. Writes benchmarks/results/training.json.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import scoresde
from scoresde.data.rows import TensorRows
from scoresde.models.networks import networks
from scoresde.result_files import environment, write_json
from scoresde.training.loop import Training
from scoresde.training.losses import DSM
from scoresde.training.options import TrainingOptions

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
        x0 = data[torch.randint(len(data), (batch,))]
        t = 1e-3 + (1 - 1e-3) * torch.rand(batch)
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


def measure(steps: dict[str, Callable[[], None]], length: int, blocks: int) -> dict[str, list[float]]:
    """Milliseconds per step of each loop, in every block."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for block in range(blocks + 2):
        for name, step in steps.items():
            began = time.perf_counter()
            for _ in range(length):
                step()
            if block >= 2:  # the first two warm up
                times[name].append((time.perf_counter() - began) / length * 1e3)
    return times


def main() -> None:
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for spec, shape, batch, length, blocks in CASES:
        torch.manual_seed(0)
        network = networks.make(spec).build(shape)
        data = torch.randn(SIZE, *shape)
        times = measure(
            {
                "plain": by_hand(copy.deepcopy(network), data, batch, fused=False),
                "fused": by_hand(copy.deepcopy(network), data, batch, fused=True),
                "scoresde": ours(copy.deepcopy(network), data, batch),
            },
            length,
            blocks,
        )
        over = {
            name: statistics.median(a / b for a, b in zip(times["scoresde"], times[name], strict=True))
            for name in ("plain", "fused")
        }
        row = {
            "network": spec,
            "shape": list(shape),
            "batch": batch,
            "over_plain": round(over["plain"], 3),
            "over_fused": round(over["fused"], 3),
            "median_milliseconds": {name: round(statistics.median(v), 3) for name, v in times.items()},
            "least_milliseconds": {name: round(min(v), 3) for name, v in times.items()},
        }
        rows.append(row)
        print(f"{spec} {shape}: over plain {row['over_plain']}, over fused {row['over_fused']}; {row}", flush=True)
    header = {
        **environment(),
        "command": "python benchmarks/training.py",
        "sde": str(PATH),
        "loss": str(DSM()),
        "rows_of_data": SIZE,
        "seeds": [0],
    }
    RESULTS.mkdir(exist_ok=True)
    write_json(RESULTS / "training.json", {"header": header, "rows": rows})


if __name__ == "__main__":
    main()
