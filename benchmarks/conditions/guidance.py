"""What guided solves sample, and the order that they keep, on exact scores: python -m benchmarks.conditions.guidance

Data are 1/2 N(-1, 1/4) + 1/2 N(1, 1/4), and the condition is the right half, on VP. The tilted law p(x) p(c|x)^s comes
from quadrature; the ODE from 2001 quantiles of the start, in 200 steps of heun; the SDE from 40,000 seeds in 100 steps
of dpmpp_2m_sde. Orders are those of the root mean square error of 16 starts. Takes about a minute.
Writes benchmarks/conditions/results/guidance.json.
"""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import scoresde
import solvers
from scoresde.io.result_files import environment, write_json
from scoresde.models.problem import Diffusion
from solvers import Node, Prediction

RESULTS = Path(__file__).parent / "results"
VP = scoresde.VP()
SCALES, INTERVALS = (1, 2, 3, 7.5), ((0.3, 3.0), (0.1, 1.0))
QUANTILES, SEEDS = 2001, 40_000
BOTH = scoresde.targets.GaussianMixture(torch.tensor([[-1.0], [1.0]]), 0.25)
RIGHT = scoresde.targets.GaussianMixture(torch.tensor([[1.0]]), 0.25)


class Halves:
    """The exact denoiser of the right half for y = 1, and of both halves for y = 0."""

    sde, shape = VP, (1,)

    def predict(self, x: Tensor, node: Node | Node[Tensor], **conditions: Tensor) -> Prediction:
        return (RIGHT if bool(conditions["y"][0] == 1) else BOTH).predict(x, node)


def guided(scale: float, interval: tuple[float, float] | None = None) -> Any:
    inside = "" if interval is None else f", interval={list(interval)}"
    return scoresde.guide(Halves(), f"cfg(scale={scale}{inside})", null={"y": 0})


def facts(x: Tensor, weights: Tensor | None = None) -> dict[str, float]:
    """The mean, the deviation and the share below 0 of numbers (n,) with weights."""
    w = torch.full_like(x, 1 / len(x)) if weights is None else weights / weights.sum()
    mean = float((w * x).sum())
    return {
        "mean": mean,
        "deviation": math.sqrt(float((w * (x - mean) ** 2).sum())),
        "below_zero": float(w[x < 0].sum()),
    }


def tilted(scale: float) -> dict[str, float]:
    x = torch.linspace(-8, 8, 160_001, dtype=torch.float64).unsqueeze(1)
    return facts(x[:, 0], ((1 - scale) * BOTH.log_prob(x) + scale * RIGHT.log_prob(x)).exp())


def of_ode(model: Any) -> dict[str, float]:
    u = (torch.arange(QUANTILES, dtype=torch.float64) + 0.5) / QUANTILES
    start = torch.special.ndtri(u).unsqueeze(1) * math.hypot(VP(VP.t_max).alpha, VP(VP.t_max).sigma)
    found = scoresde.sample(
        model, solver="heun", grid="logsnr(end=zero)", steps=200, x_init=start, dtype=torch.float64,
        condition={"y": torch.ones(QUANTILES)},
    )  # fmt: skip
    return {**facts(found.x[:, 0]), "nfe": found.nfe, "forwards": found.forwards}


def of_sde(model: Any) -> dict[str, float]:
    found = scoresde.sample(
        model, seeds=SEEDS, solver="dpmpp_2m_sde", grid="logsnr(end=zero)", steps=100, dtype=torch.float64,
        condition={"y": torch.ones(SEEDS)},
    )  # fmt: skip
    return facts(found.x[:, 0])


def order(solver: str, divided: bool) -> float:
    """The worst order between 32, 64, 128 and 256 steps at scale 3 in the interval (0.3, 3)."""
    problem: Any = Diffusion(guided(3, INTERVALS[0]), {"y": torch.ones(16)})
    whole: Any = solvers.Problem()
    whole.path, whole.predict = VP, problem.predict

    def end(method: str, steps: int, of: Any) -> Tensor:
        nodes = solvers.grid("logsnr", VP, steps, t_min=0.05, t_max=0.8)
        size = math.hypot(nodes[0].alpha, nodes[0].sigma)
        start = torch.linspace(-2, 2, 16, dtype=torch.float64)[:, None] * size
        return solvers.solve(solvers.make(method), of, start, nodes).x

    exact = end("rk4", 512, problem)
    errors = [
        float((end(solver, n, problem if divided else whole) - exact).square().mean().sqrt())
        for n in (32, 64, 128, 256)
    ]
    return min(math.log2(a / b) for a, b in pairwise(errors))


def main() -> None:
    """Measures everything and writes the result file."""
    torch.set_num_threads(1)
    rows = []
    for scale in SCALES:
        row: dict[str, Any] = {
            "scale": scale,
            "tilted": tilted(scale),
            "ode": of_ode(guided(scale)),
            "sde": of_sde(guided(scale)),
        }
        row["intervals"] = [{"interval": list(i), **of_ode(guided(scale, i))} for i in INTERVALS]
        rows.append(row)
        print(row, flush=True)
    orders = [
        {"solver": solver, "divided": order(solver, True), "whole": order(solver, False)}
        for solver in ("heun", "dpmpp_2m")
    ]
    print(orders)
    header = {
        **environment(),
        "command": "python -m benchmarks.conditions.guidance",
        "seeds": SEEDS,
        "quantiles": QUANTILES,
    }
    RESULTS.mkdir(exist_ok=True)
    write_json(RESULTS / "guidance.json", {"header": header, "rows": rows, "orders": orders})


if __name__ == "__main__":
    main()
