"""Compares the search by successive halving with a full search of every deterministic solver on every grid:
python -m benchmarks.tuning.choose --workdir=RUN

Three models on the VP path: a mixture of 12 Gaussians in 8 dimensions, the exact score of scikit-learn's digits, and
the network that ``scoresde demo`` trains on them, from the run in --workdir (trained there if there is none). Both
searches see the same 256 seeds. Their outcomes are compared on 1,024 other seeds: the root-mean-square distance per
coordinate to the exact solution of the probability-flow ODE, and the 95 % interval of the ratio of the two errors over
resampled seeds. Costs are model evaluations without those of the exact solution, which both need.

Writes choose.{json,csv} to benchmarks/tuning/results.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

import scoresde
import solvers
from benchmarks import only
from scoresde.cli.training import Job, fit
from scoresde.io.result_files import environment, write_csv, write_json
from scoresde.models.evaluation import evaluation
from scoresde.runs import config
from scoresde.runs.run import load_run
from solvers.tuning.choice import resampled

RESULTS = Path(__file__).parent / "results"
NFE = (6, 10, 20)
SEEDS, HELD_OUT = range(256), range(1_000_000, 1_001_024)


def models(workdir: Path) -> dict[str, Any]:
    """The models by name, each a function of states (B, *)."""
    from sklearn.datasets import load_digits

    draw = torch.Generator().manual_seed(5)
    means = 0.6 * torch.randn(12, 8, generator=draw, dtype=torch.float64)
    deviations = 0.05 + 0.15 * torch.rand(12, generator=draw, dtype=torch.float64)
    mixture = scoresde.targets.GaussianMixture(means, deviations.square())
    digits = torch.as_tensor(load_digits().data / 8 - 1, dtype=torch.float64)
    fit(Job(config.read_config("configs/digits_vp.py", ["--config.training.steps=4500"])), workdir)
    return {
        "mixture": mixture.denoiser(scoresde.VP()),
        "digits, exact": scoresde.targets.Empirical(digits).denoiser(scoresde.VP()),
        "digits, trained": load_run(workdir).denoiser,
    }


def measure(
    name: str, problem: Any, truth: solvers.Trajectory, others: tuple[Any, solvers.Trajectory], nfe: int
) -> Any:
    """The row of a model and a budget."""
    began = time.perf_counter()
    choice = solvers.choose(problem, nfe, truth)
    seconds = time.perf_counter() - began
    every = solvers.choose(problem, nfe, truth, first=len(SEEDS))
    best, cost = every.best, every.evaluations
    unseen, held_out = others
    squares = torch.stack(
        [held_out.errors(s.solver, unseen, held_out.place(s.grid, s.steps)) for s in (choice.best, best)]
    )
    ratios = resampled(squares).sqrt()
    low, high = (ratios[0] / ratios[1]).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    mine, least = squares.mean(1).sqrt().tolist()
    return {
        "model": name, "nfe": nfe, "chosen": f"{choice.best.solver} on {choice.best.grid}", "tied": len(choice.tied),
        "full": f"{best.solver} on {best.grid}", "error": mine, "full_error": least, "ratio": mine / least,
        "ratio_low": low, "ratio_high": high, "evaluations": choice.evaluations, "full_evaluations": cost,
        "share": choice.evaluations / cost, "seconds": seconds,
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="the folder of the run of the digits")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = []
    for name, denoiser in models(given.workdir).items():
        shape = (8,) if name == "mixture" else (64,) if name == "digits, exact" else None
        with evaluation(denoiser):
            problem, truth = scoresde.trajectory(denoiser, shape, SEEDS)
            others = scoresde.trajectory(denoiser, shape, HELD_OUT)
            rows += [measure(name, problem, truth, others, nfe) for nfe in tqdm(NFE, desc=name)]
    facts = {"seeds": [SEEDS.start, SEEDS.stop], "held_out": [HELD_OUT.start, HELD_OUT.stop]}
    header = {"command": "python -m benchmarks.tuning.choose --workdir=RUN", **facts, **environment()}
    write_json(given.out / "choose.json", {"header": header, "rows": rows})
    write_csv(given.out / "choose.csv", rows)


if __name__ == "__main__":
    only.run(main)
