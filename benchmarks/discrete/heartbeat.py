"""The picture of docs/discrete.md, the heartbeat destroyed and rebuilt: python -m benchmarks.discrete.heartbeat

The heartbeat has 20 bits of which every fifth is 1. Rows of a panel are samples, columns are bits. Above, samples move
forwards along the process, each from its state at the time before; below, ``tweedie`` with the exact model goes back,
from other draws of the prior, in 64 steps. Writes heartbeat.png to benchmarks/discrete/results, in seconds.
"""

from __future__ import annotations

import argparse
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from torch import Tensor

import scoresde
import solvers
from scoresde.io.result_files import write_figure
from scoresde.models.discrete import DiscreteEmpirical
from scoresde.paths.discrete.base import make_process
from solvers.discrete.base import Product, picked

RESULTS = Path(__file__).parent / "results"
PROCESSES = ("binomial(schedule=cosine)", "absorbing(2)")
TIMES = (0.0, 0.25, 0.5, 0.75, 1.0)
STEPS, SHOWN = 64, 16
COLOURS = ListedColormap(["#f1f3f5", "#0072b2", "#e69f00"])  # 0, 1, masked


def destroyed(process: Any, x: Tensor) -> list[Tensor]:
    """The states (N, d) at the times, from data x (N, d)."""
    generator, states = solvers.generator(0), [x]
    draw = partial(torch.rand, x.shape, dtype=torch.float64, generator=generator)
    for s, t in pairwise(map(process, TIMES)):
        law = process.transition(s, t, states[-1]).rows(states[-1])
        states.append(Product(law, states[-1]).draw(draw))
    return states


def rebuilt(process: Any, data: DiscreteEmpirical) -> list[Tensor]:
    """The states (N, d) at the times, of a solve from the prior."""
    seen: dict[float, Tensor] = {}

    def keep(x: Tensor, node: Any) -> None:
        seen[round(node.t, 9)] = x.clone()

    start = picked(
        process.prior.cumsum(0).expand(SHOWN, *data.shape, -1),
        torch.rand(SHOWN, *data.shape, dtype=torch.float64, generator=solvers.generator(2)),
    )
    model: Any = data.denoiser(process)
    scoresde.sample(model, None, SHOWN, "tweedie", steps=STEPS, x_init=start, hooks=keep)
    return [start if time == process.t_max else seen[round(time, 9)] for time in TIMES]


def picture() -> Figure:
    """Both processes, forwards and back."""
    data = DiscreteEmpirical(torch.eye(5, dtype=torch.long).repeat(1, 4))
    x = data.sample(SHOWN, solvers.generator(1))
    figure = Figure(figsize=(9.5, 7.4), layout="constrained")
    axes = figure.subplots(2 * len(PROCESSES), len(TIMES))
    for i, spec in enumerate(PROCESSES):
        process = make_process(spec)
        forward, back = destroyed(process, x), rebuilt(process, data)
        for k, time in enumerate(TIMES):
            for line, states in ((2 * i, forward[k]), (2 * i + 1, back[k])):
                panel = axes[line, k]
                panel.imshow(states, cmap=COLOURS, vmin=0, vmax=2, aspect="auto", interpolation="nearest")
                panel.hlines([row + 0.5 for row in range(SHOWN - 1)], -0.5, x.shape[1] - 0.5, color="white", lw=2)
                panel.set(xticks=[], yticks=[])
                panel.set_title(f"t = {time:g}", fontsize=9)
        for line, word in ((2 * i, "destroyed"), (2 * i + 1, "rebuilt")):
            axes[line, 0].set_ylabel(f"{spec.partition('(')[0]}\n{word}", fontsize=9)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    write_figure(parser.parse_args().out / "heartbeat.png", picture())


if __name__ == "__main__":
    main()
