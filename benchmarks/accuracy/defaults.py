"""Chooses the sampler's default solver and grid: python -m benchmarks.accuracy.defaults --processes 2

Ten deterministic methods of one evaluation a step run on nine rules, at 5 to 50 evaluations, on eleven
problems: exact scores (a mixture in two dimensions, and one fitted to scikit-learn's 8x8 digits, on three paths) and
networks trained on these digits (on VP, cosine, VE, EDM and flow paths, with the predictions eps, v, velocity and
EDM's; a multilayer perceptron and a U-Net). The error of a row is the root-mean-square distance per coordinate to the
exact solution of the probability-flow ODE from the same starts; ``frechet`` is the distance of its samples to the data.

``times_best`` is the error over the smallest error of any pair at the same problem and budget. Pairs are ranked by the
geometric mean of ``times_best`` over all problems and budgets, and over the networks that predict eps and the other
problems alone; the file also has the largest.

Writes benchmarks/accuracy/results/defaults.json in about half an hour on two cores; the networks are trained in
--workdir, or in a temporary folder, and are kept there for the next run.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import geometric_mean
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

import scoresde
import solvers
from scoresde.benchmark.metrics import frechet
from scoresde.benchmark.truth import ode_solution
from scoresde.cli.training import Job, fit
from scoresde.io.result_files import environment, write_json
from scoresde.runs import config
from scoresde.runs.run import load_run
from scoresde.sampling.width import WrongWidth

RESULTS = Path(__file__).parent / "results"
NFE = (5, 8, 12, 20, 50)
SEEDS = range(128)
SOLVERS = (
    "ddim", "dpmpp_2m", "dpmpp_3m", "dpm_solver_2m", "uni_pc", "deis", "ipndm", "gradient_estimation", "res_2m",
    "adams(quantity=v)",
)  # fmt: skip
GRIDS = (
    "karras", "karras(rho=5)", "logsnr(end=zero)", "kl_optimal", "polyexponential(rho=1.5)", "uniform(end=zero)",
    "quadratic(end=zero)", "beta", "flow_shift(shift=1)",
)  # fmt: skip
DIGITS = "configs/digits_vp.py"
NETWORKS: dict[str, tuple[str, tuple[str, ...]]] = {
    "vp, edm": (DIGITS, ()),
    "vp, eps": (DIGITS, ("model.predicts=eps", "training.loss=dsm")),
    "vp, eps, unet": (
        DIGITS,
        ("model.predicts=eps", "training.loss=dsm", "model.network=unet(channels=[16,32])",
         "training.steps=500"),
    ),
    "cosine, v": (DIGITS, ("sde=cosine", "model.predicts=v", "training.loss=dsm(weighting=v)")),
    "ve, edm": ("configs/digits_ve.py", ()),
    "edm, edm": ("configs/digits_edm.py", ()),
    "flow, velocity": (
        DIGITS, ("sde=rectified_flow", "model.predicts=velocity", "training.loss=dsm(weighting=flow)")
    ),
}  # fmt: skip


def digits() -> Tensor:
    """The digits (1797, 1, 8, 8), scaled to [-1, 1]."""
    from sklearn.datasets import load_digits

    return torch.as_tensor(load_digits().data / 8 - 1, dtype=torch.float64).view(-1, 1, 8, 8)


def ring() -> scoresde.targets.GaussianMixture:
    """Eight components on a ring."""
    angles = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
    return scoresde.targets.GaussianMixture(torch.stack([angles.cos(), angles.sin()], 1), 0.01, torch.arange(1, 9))


def fitted() -> scoresde.targets.GaussianMixture:
    """A mixture of ten Gaussians, fitted to the digits."""
    from sklearn.mixture import GaussianMixture

    fit = GaussianMixture(10, reg_covar=1e-3, random_state=0).fit(digits().flatten(1).numpy())
    means, covariances, weights = (torch.as_tensor(v) for v in (fit.means_, fit.covariances_, fit.weights_))
    return scoresde.targets.GaussianMixture(
        means.view(-1, 1, 8, 8), 0.5 * (covariances + covariances.mT), weights
    )  # fmt: skip


EXACT: dict[str, tuple[str, Callable[[], scoresde.targets.GaussianMixture]]] = {
    "ring, exact, vp": ("vp", ring),
    "digits, exact, vp": ("vp", fitted),
    "digits, exact, edm": ("edm", fitted),
    "digits, exact, flow": ("rectified_flow", fitted),
}


class Problem(NamedTuple):
    """A model, the data that it describes, and the dtype of its solves."""

    denoiser: Any
    data: Tensor
    dtype: torch.dtype


def problem(name: str, workdir: Path) -> Problem:
    """One of the problems; networks are read from ``workdir``."""
    if name in EXACT:
        path, make = EXACT[name]
        target = make()
        return Problem(
            target.denoiser(scoresde.make_sde(path)), target.sample(4096, solvers.generator(1)), torch.float64
        )
    run = load_run(workdir / name.replace(", ", "_"))
    return Problem(run.denoiser, digits().float(), torch.float32)


def train(name: str, workdir: Path) -> None:
    """Trains a network in its folder, unless it is there."""
    torch.set_num_threads(1)
    path, changes = NETWORKS[name]
    fit(Job(config.read_config(path, [f"--config.{change}" for change in changes])), workdir / name.replace(", ", "_"))


def measure(task: tuple[str, Path]) -> list[dict[str, Any]]:
    """The rows of one problem."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", WrongWidth)  # errors show them
    name, workdir = task
    denoiser, data, dtype = problem(name, workdir)
    shape = tuple(data.shape[1:])
    truth = ode_solution(denoiser, shape, SEEDS, 256 if name in EXACT else 128, dtype=dtype)
    floor = frechet(truth.x.flatten(1).double(), data.flatten(1).double())
    rows: list[dict[str, Any]] = [
        {"problem": name, "solver": "exact", "error": truth.error, "frechet": floor, "nfe": None, "grid": None}
    ]
    for nfe in NFE:
        for solver in SOLVERS:
            for grid in GRIDS:
                try:
                    result = scoresde.sample(
                        denoiser, shape, SEEDS, solver, grid, nfe=nfe, dtype=dtype, on_failure="raise"
                    )
                except solvers.InputError as error:  # the grid does not have so few steps, or the samples explode
                    rows.append({"problem": name, "nfe": nfe, "solver": solver, "grid": grid, "skipped": str(error)})
                    continue
                exact = truth.x if result.nodes[-1].clean else truth.at_t_min
                rows.append({
                    "problem": name, "nfe": nfe, "solver": solver, "grid": grid, "steps": len(result.nodes) - 1,
                    "error": float((result.x - exact).double().square().mean().sqrt()),
                    "frechet": frechet(result.x.flatten(1).double(), data.flatten(1).double()),
                })  # fmt: skip
    return rows


def compact(row: dict[str, Any]) -> dict[str, Any]:
    """The row with numbers of four digits."""
    return {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in row.items()}


def ranking(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every pair with its ``times_best`` over all problems and budgets: the geometric mean, by budget, the largest."""
    solves = [row for row in rows if row["solver"] != "exact" and not row.get("skipped")]
    best: dict[tuple[str, int], float] = {}
    for row in solves:
        key = row["problem"], row["nfe"]
        best[key] = min(best.get(key, math.inf), row["error"])
    pairs: dict[tuple[str, str], dict[tuple[str, int], float]] = {}
    for row in solves:
        key = row["problem"], row["nfe"]
        pairs.setdefault((row["solver"], row["grid"]), {})[key] = row["error"] / best[key]
    ranked = [
        {
            "solver": solver,
            "grid": grid,
            "times_best": round(geometric_mean(found.values()), 3),
            "largest": round(max(found.values()), 2),
            "by_nfe": {n: round(geometric_mean(v for (_, m), v in found.items() if m == n), 2) for n in NFE},
        }
        for (solver, grid), found in pairs.items()
        if len(found) == len(best)  # it has every row
    ]
    return sorted(ranked, key=lambda pair: pair["times_best"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--workdir", type=Path, default=None)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workdir = arguments.workdir or Path(folder)
        with multiprocessing.get_context("spawn").Pool(arguments.processes) as pool:
            pool.starmap(train, [(name, workdir) for name in NETWORKS], chunksize=1)
            tasks = [(name, workdir) for name in (*EXACT, *NETWORKS)]
            rows = [row for part in tqdm(pool.imap(measure, tasks), total=len(tasks)) for row in part]
    eps = [row for row in rows if "eps" in row["problem"]]
    ranked = {"all": ranking(rows), "eps": ranking(eps), "others": ranking([row for row in rows if row not in eps])}
    header = {
        **environment(dtype=torch.float64),
        "command": f"python -m benchmarks.accuracy.defaults --processes {arguments.processes}",
        "problems": {
            **{name: f"exact score, {path}" for name, (path, _) in EXACT.items()},
            **{name: " ".join((path, *changes)) for name, (path, changes) in NETWORKS.items()},
        },
        "seeds": f"0..{len(SEEDS) - 1}",
    }
    write_json(RESULTS / "defaults.json", {"header": header, "ranking": ranked, "rows": [compact(row) for row in rows]})
    for kind, pairs in ranked.items():
        print(kind)
        for pair in pairs[:10]:
            print(f"{pair['times_best']:7.3f} {pair['largest']:8.2f}", pair["solver"], pair["grid"])


if __name__ == "__main__":
    main()
