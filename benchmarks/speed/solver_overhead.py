"""Measures the cost of a step without the network, for several implementations:
python -m benchmarks.speed.solver_overhead

Times 50 steps with a trivial network (one multiplication) in one thread: the traced program, ``scoresde.sample`` with
its plan and checks, from its second call on, with ``steps=`` and with ``nfe=``; the solver's own steps one by one; code
that computes its coefficients from tensors in the loop (the usual hand-written loop), and diffusers' scheduler of the
same method (from the extra ``images``). The floor is the network and two elementwise operations in place, the minimum
for a step. All implementations alternate in every repetition. A figure is the minimum over the repetitions, which other
work on the machine disturbs least; a ratio is that of two such figures; the file also contains medians. ``--device
cuda`` times on a GPU. Writes benchmarks/speed/results/solver_overhead.json.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from scipy import integrate
from torch import Tensor

import scoresde
import solvers
from scoresde.io.result_files import environment, write_json
from solvers import Output, Prediction

RESULTS = Path(__file__).parent / "results"
STEPS, REPETITIONS = 50, 40
SHAPES = ((16, 3, 32, 32), (64, 2))
METHODS = ("ddim", "euler", "dpmpp_2m", "ipndm", "lms", "uni_pc")
PATH = scoresde.VP()
Run = Callable[[], Any]


def network(x: Tensor, label: Any) -> Tensor:
    """The trivial network: every implementation reads its output as eps."""
    return 0.9 * x


class Trivial(solvers.Problem):
    """The network as a problem, without labels or checks."""

    path = PATH
    output = Output("eps")

    def raw(self, x: Tensor, node: Any) -> Tensor:
        return network(x, node.t)

    def predict(self, x: Tensor, node: Any) -> Prediction:
        return self.output.read(network(x, node.t), x, node)


def floor(x: Tensor) -> None:
    x = x.clone()
    for _ in range(STEPS):
        x.mul_(0.5).add_(network(x, 1.0), alpha=0.5)


def eager_euler(x: Tensor, sigmas: Tensor) -> Tensor:
    """Euler's method with coefficients in tensors; Karras et al. 2022, arXiv:2206.00364, algorithm 1."""
    ones = x.new_ones(len(x))
    for sigma, following in pairwise(sigmas):
        x = x + network(x, sigma * ones) * (following - sigma)
    return x


def eager_dpmpp_2m(x: Tensor, sigmas: Tensor) -> Tensor:
    """Lu et al. 2022, arXiv:2211.01095, algorithm 2."""
    ones, before, span_before = x.new_ones(len(x)), None, sigmas[0]
    for sigma, following in pairwise(sigmas):
        x0 = x - sigma * network(x, sigma * ones)
        span = following.log().neg() - sigma.log().neg()
        mixed = x0
        if before is not None:
            share = span / (2 * span_before)
            mixed = (1 + share) * x0 - share * before
        x = (following / sigma) * x - torch.expm1(-span) * mixed
        before, span_before = x0, span
    return x


def eager_lms(x: Tensor, sigmas: Tensor) -> Tensor:
    """Adams-Bashforth of order 4 in sigma, its weights by quadrature; Hairer, Norsett and Wanner 1993, III.5."""
    ones, values, slopes = x.new_ones(len(x)), sigmas.cpu().numpy(), list[Tensor]()
    for i, sigma in enumerate(sigmas[:-1]):
        slopes = [*slopes[-3:], network(x, sigma * ones)]
        count = len(slopes)

        def basis(tau: float, j: int, i: int = i, count: int = count) -> float:
            others = (k for k in range(count) if k != j)
            return float(math.prod((tau - values[i - k]) / (values[i - j] - values[i - k]) for k in others))

        weights = [integrate.quad(basis, values[i], values[i + 1], (j,), epsrel=1e-4)[0] for j in range(count)]
        x = x + sum(weight * slope for weight, slope in zip(weights, reversed(slopes), strict=True))
    return x


EAGER = {"ddim": eager_euler, "euler": eager_euler, "dpmpp_2m": eager_dpmpp_2m, "lms": eager_lms}


def peer(method: str, x: Tensor) -> Run:
    """diffusers' scheduler of the method, in the loop of its pipelines."""
    import diffusers

    options: dict[str, tuple[str, dict[str, Any]]] = {
        "ddim": ("DDIMScheduler", {"clip_sample": False}),
        "euler": ("EulerDiscreteScheduler", {}),
        "dpmpp_2m": ("DPMSolverMultistepScheduler", {}),
        "ipndm": ("IPNDMScheduler", {}),
        "lms": ("LMSDiscreteScheduler", {}),
        "uni_pc": ("UniPCMultistepScheduler", {"solver_order": 3}),
    }
    name, settings = options[method]
    scheduler = getattr(diffusers, name)(**settings)

    def run() -> None:
        scheduler.set_timesteps(STEPS, device=x.device)
        state = x.clone()
        for t in scheduler.timesteps:
            scaled = scheduler.scale_model_input(state, t)
            state = scheduler.step(network(scaled, t), t, state).prev_sample

    return run


def competitors(method: str, x: Tensor) -> dict[str, Run]:
    """The implementations to time for a method, by name."""
    nodes = solvers.grid("logsnr", PATH, STEPS)
    solver, problem = solvers.make(method), Trivial()
    program = solvers.trace(solver, nodes, PATH, Trivial.output)
    denoiser = scoresde.Denoiser(network, PATH, predicts="eps", time_label="sigma")
    shape, seeds = tuple(x.shape[1:]), range(len(x))

    def sample(steps: int | None = None, nfe: int | None = None) -> None:
        scoresde.sample(denoiser, shape, seeds, method, "logsnr", steps, nfe=nfe, x_init=x, device=x.device)

    runs: dict[str, Run] = {
        "floor": lambda: floor(x),
        "program": lambda: program.run(problem, x),
        "sample": lambda: sample(steps=STEPS),
        "sample_nfe": lambda: sample(nfe=STEPS),
        "steps": lambda: solvers.solve(solver, problem, x, nodes),
        "diffusers": peer(method, x),
        "trace": lambda: solvers.trace(solver, nodes, PATH, Trivial.output),
    }
    if method in EAGER:
        sigmas = torch.tensor([node.sigma for node in nodes], device=x.device)
        runs["eager"] = lambda: EAGER[method](x, sigmas)
    return runs


def measure(runs: dict[str, Run], device: torch.device) -> dict[str, list[float]]:
    """Microseconds per step of each implementation, in every repetition."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repetition in range(REPETITIONS + 2):
        for name, run in runs.items():
            if device.type == "cuda":
                torch.cuda.synchronize()
            began = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if repetition >= 2:  # the first two warm up
                times[name].append((time.perf_counter() - began) / STEPS * 1e6)
    return times


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    device = torch.device(parser.parse_args().device)
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for shape in SHAPES:
        x = torch.randn(shape, generator=solvers.generator(0)).to(device)
        for method in METHODS:
            times = measure(competitors(method, x), device)
            least = {name: min(values) for name, values in times.items()}
            row: dict[str, Any] = {
                "shape": list(shape),
                "method": method,
                "program_over_floor": round(least["program"] / least["floor"], 2),
                "sample_over_floor": round(least["sample"] / least["floor"], 2),
                "nfe_over_steps": round(least["sample_nfe"] / least["sample"], 2),
                "diffusers_over_program": round(least["diffusers"] / least["program"], 2),
                "least_microseconds": {name: round(value, 2) for name, value in least.items()},
                "median_microseconds": {name: round(statistics.median(v), 2) for name, v in times.items()},
            }
            rows.append(row)
            figures = ", ".join(f"{name} {value}" for name, value in row["least_microseconds"].items())
            print(
                f"{'x'.join(map(str, shape))} {method}: {row['program_over_floor']} floors, sample "
                f"{row['sample_over_floor']}, diffusers' {row['diffusers_over_program']} times the program's; "
                f"{figures}",
                flush=True,
            )
    import diffusers

    flag = "" if device.type == "cpu" else f" --device {device.type}"
    header = {
        **environment(device),
        "diffusers": diffusers.__version__,
        "command": f"python -m benchmarks.speed.solver_overhead{flag}",
        "steps": STEPS,
        "repetitions": REPETITIONS,
        "grid": "logsnr",
        "sde": str(PATH),
        "network": "0.9 x, as eps",
        "seeds": [0],
    }
    RESULTS.mkdir(exist_ok=True)
    suffix = "" if device.type == "cpu" else f"_{device.type}"
    write_json(RESULTS / f"solver_overhead{suffix}.json", {"header": header, "rows": rows})


if __name__ == "__main__":
    main()
