"""Tunes the numbers of the solver ``few`` on a family of models, and measures them on models it has not seen:

    python -m benchmarks.tuning.few tune --workdir=CACHE [--nfe=4-12]
    python -m benchmarks.tuning.few measure --workdir=CACHE --runs=RUNS [--mnist=FOLDER] [--cifar=FILE]

``tune`` writes few.json next to the grid's module, and few_tuning.json to benchmarks/tuning/results. The family is made
from formulas and seeds: 240 exact models and models with an error of eps (model_family.py), and 120 small networks
trained on such data (learned_family.py); 64 and 32 others decide when to stop.

``measure`` writes few.{json,csv} to benchmarks/tuning/results. It measures the root-mean-square distance per coordinate
to the exact solution of the ODE, on

* 40 models and 20 networks of the same kinds, from other seeds;
* exact scores of real data: scikit-learn's digits, and with --mnist and --cifar 1,000 pictures of MNIST's test set and
  of CIFAR-10, points and points smoothed by a Gaussian;
* every trained run in the folder --runs, with its own path, network and prediction.

Each is compared with ``dpmpp_2m`` on karras, with the default sampler, and with the best of every deterministic solver
on every grid, chosen in hindsight on the same seeds; of pictures with more than 256 numbers, of the solvers in RIVALS.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

import scoresde
import solvers
from benchmarks import only
from benchmarks.tuning import learned_family, model_family
from scoresde.data import load as load_data
from scoresde.io.result_files import environment, write_csv, write_json
from scoresde.models.evaluation import evaluation
from scoresde.runs.run import load_run
from solvers.files import write_atomically
from solvers.time_grids import few as tables
from solvers.tuning.family import Case, Family, tune_family

RESULTS = Path(__file__).parent / "results"
NFE = tuple(range(4, 13))
MEASURED = (5, 6, 8, 10)
MODELS = {"tuning": range(240), "validation": range(100_000, 100_064), "unseen": range(200_000, 200_040)}
NETWORKS = {"tuning": range(300_000, 300_120), "validation": range(400_000, 400_032), "unseen": range(500_000, 500_020)}
SAMPLES = {"tuning": 48, "validation": 64, "unseen": 128}
SOLVERS = ("ddim", "dpmpp_2m", "ipndm", "gradient_estimation", "deis", "uni_pc", "lms")
GRIDS = ("karras", "kl_optimal", "logsnr", "quadratic", "karras(rho=3)", "polyexponential(rho=2)")
STARTS = [(solver, grid) for solver in SOLVERS for grid in GRIDS]
AGAIN = {9: [("gradient_estimation", "kl_optimal")], 10: [("gradient_estimation", "kl_optimal")]}  # better minima
SEEDS, SEEDS_OF_PICTURES = 256, 64  # starts of a model that is measured: of up to SMALL numbers, and of more
SMALL = 256
RIVALS = ("ddim", "dpmpp_2m", "dpm_solver_2m", "dpm_solver_3m", "ipndm", "ipndm_v", "gradient_estimation", "deis",
          "uni_pc", "lms")  # fmt: skip


def cases(part: str, cache: Path) -> list[Case]:
    """The models and networks of a part; their exact solutions, and the networks, are kept in a folder."""
    seeds, samples = MODELS[part], SAMPLES[part]
    path = cache / f"models_{part}.pt"
    if not path.exists():
        made = [model_family.case(seed, samples) for seed in tqdm(seeds, desc=f"exact solutions, {part}")]
        cache.mkdir(parents=True, exist_ok=True)
        torch.save([case.truth.states[[0, -2, -1]] for case in made], path)
    found: list[tuple[Any, Tensor]] = [
        (model_family.problem(seed), states)
        for seed, states in zip(seeds, torch.load(path, weights_only=True), strict=True)
    ]
    found += [learned_family.kept(seed, samples, cache) for seed in tqdm(NETWORKS[part], desc=f"networks, {part}")]
    nodes = solvers.grid("logsnr(end=zero)", model_family.PATH, 2)  # a tuning needs the ends only
    return [Case(problem, solvers.Trajectory(model_family.PATH, nodes, states)) for problem, states in found]


def tune(given: argparse.Namespace) -> None:
    """Tunes a table for each number of evaluations, of some from two starts; keeps the best on the validation cases."""
    path = Path(tables.__file__).with_suffix(".json")
    tuning, validation = cases("tuning", given.workdir), cases("validation", given.workdir)
    for nfe in given.nfe or NFE:
        if not given.nfe and path.exists() and str(nfe) in json.loads(path.read_text())["tables"]:
            continue
        for starts in filter(None, (STARTS, AGAIN.get(nfe))):
            with tqdm(desc=f"{nfe} NFE", total=given.iterations) as bar:

                def show(at: Any, bar: Any = bar) -> None:
                    bar.update(at.iteration - bar.n)
                    bar.set_postfix_str(f"validation {at.best:.4g}")

                made = tune_family(starts, nfe, tuning, validation, iterations=given.iterations, progress=show)
            keep(nfe, made, path, given.out / "few_tuning.json")


def keep(nfe: int, made: Family, path: Path, log: Path) -> None:
    """Writes a table to the file of all tables, and how it was found to the log, if none there is better."""
    # read now: another process may have written other budgets
    found = json.loads(path.read_text())["tables"] if path.exists() else {}
    rows = {row["nfe"]: row for row in json.loads(log.read_text())["rows"]} if log.exists() else {}
    if nfe in rows and rows[nfe]["tuned"] <= made.best:
        return
    table = made.table
    found[str(nfe)] = {
        "seconds": made.seconds,
        "ratios": table.ratios.tolist(),
        "start": table.start.tolist(),
        "weights": [row[:n].tolist() for n, row in enumerate(table.weights)],
    }
    rows[nfe] = {
        "nfe": nfe, "solver": made.solver, "grid": made.grid, "start": made.start, "tuned": made.best,
        "iterations": made.iterations, "seconds": made.seconds,
    }  # fmt: skip
    counts = {part: f"{len(MODELS[part])} models, {len(NETWORKS[part])} networks" for part in ("tuning", "validation")}
    facts = {
        "command": "python -m benchmarks.tuning.few tune --workdir=CACHE",
        "family": {"kinds": model_family.KINDS, **counts},
        "deviations": [model_family.NARROWEST, model_family.WIDEST],
        "path": str(model_family.PATH),
    }
    ordered = {key: found[key] for key in sorted(found, key=int)}
    document = {"format": "scoresde-few", "version": 1, **facts, "tables": ordered}
    write_atomically(path, json.dumps(document, indent=1) + "\n")
    header = {**facts, **environment(dtype=torch.float64)}
    write_json(log, {"header": header, "rows": [rows[key] for key in sorted(rows)]})


def measured(
    model: str, kind: str, problem: Any, truth: solvers.Trajectory, sigma_data: float, nfe: int
) -> dict[str, Any]:
    """The row of a model and a budget: errors of ``few``, of two defaults, and of the best other setting."""
    spec = f"few(sigma_data={sigma_data!r})"
    own = truth.errors(spec, problem, truth.place(spec, nfe))
    squares = {"few": own}
    for name, (solver, grid) in {"dpmpp_2m": ("dpmpp_2m", "karras"), "default": ("ipndm", "logsnr")}.items():
        squares[name] = truth.errors(solver, problem, truth.place(grid, nfe))
    best = solvers.choose(problem, nfe, truth, rivals(math.prod(truth.states.shape[2:]))).best
    squares["best"] = truth.errors(best.solver, problem, truth.place(best.grid, best.steps))
    errors = {name: float(value.mean().sqrt()) for name, value in squares.items()}
    draws = _resampled(torch.stack([squares["few"], squares["best"]]))
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    ratio, low, high = torch.cat([torch.tensor([errors["few"]]) / errors["best"], (draws[0] / draws[1]).quantile(ends)])
    return {
        "model": model, "kind": kind, "path": str(truth.schedule), "nfe": nfe, "samples": truth.states.shape[1],
        "few": errors["few"], "dpmpp_2m": errors["dpmpp_2m"], "default": errors["default"], "best": errors["best"],
        "best_setting": f"{best.solver} on {best.grid}", **{
            name: float(value) if value.isfinite() else None  # separate points may be hit exactly
            for name, value in {"over_best": ratio, "over_best_low": low, "over_best_high": high}.items()
        },
        "median_few": float(own.sqrt().median()), "median_best": float(squares["best"].sqrt().median()),
    }  # fmt: skip


def rivals(numbers: int) -> list[str]:
    """The solvers among which the best is chosen for samples of so many numbers: all deterministic ones, or RIVALS."""
    if numbers > SMALL:
        return list(RIVALS)
    names = [name for name in solvers.names("gaussian") if name not in ("few", "final", "afs")]
    return [name for name in names if not (m := solvers.make(name)).stochastic and not m.adaptive and m.linear]


def _resampled(squares: Tensor) -> Tensor:
    draws = torch.randint(squares.shape[1], (400, squares.shape[1]), generator=solvers.generator(0, 7))
    return torch.stack([row[draws].mean(1).sqrt() for row in squares])


def exact_models(given: argparse.Namespace) -> dict[str, tuple[Any, float]]:
    """Exact scores of real data by name, on the VP path, with the deviation of the data."""
    from sklearn.datasets import load_digits

    data = {"digits": torch.as_tensor(load_digits().data / 8 - 1)}
    if given.mnist is not None:
        data["MNIST"] = load_data("idx", path=str(given.mnist)).test.first(1000).x.double().flatten(1)
    if given.cifar is not None:
        import numpy as np

        data["CIFAR-10"] = torch.as_tensor(np.load(given.cifar)["x"][:1000]).double().flatten(1) / 127.5 - 1
    found: dict[str, tuple[Any, float]] = {}
    for name, x in data.items():
        found[f"{name}, points"] = scoresde.targets.Empirical(x).denoiser(scoresde.VP()), float(x.std())
        smooth = scoresde.targets.GaussianMixture(x, 0.1**2)
        found[f"{name}, smoothed by 0.1"] = smooth.denoiser(scoresde.VP()), math.hypot(float(x.std()), 0.1)
    return found


def measure(given: argparse.Namespace) -> None:
    """Measures every model at every budget; rows that are there already are kept."""
    path = given.out / "few.json"
    rows = {(r["model"], r["nfe"]): r for r in json.loads(path.read_text())["rows"]} if path.exists() else {}

    def add(model: str, kind: str, sigma_data: float, make: Callable[[], Case]) -> None:
        left = [nfe for nfe in given.nfe or MEASURED if (model, nfe) not in rows]
        if not left:
            return
        problem, truth = make()
        for nfe in left:
            rows[model, nfe] = measured(model, kind, problem, truth, sigma_data, nfe)
        command = "python -m benchmarks.tuning.few measure --workdir=CACHE --runs=RUNS --mnist=FOLDER --cifar=FILE"
        header = {"command": command, **environment(dtype=torch.float64)}
        write_json(path, {"header": header, "rows": list(rows.values())})
        write_csv(path.with_suffix(".csv"), list(rows.values()))

    count = SAMPLES["unseen"]
    for seed in tqdm(MODELS["unseen"], desc="unseen models"):
        made = model_family.member(seed)
        add(f"{made.kind} {seed}", made.kind, 1.0, partial(model_family.case, seed, count))
    for seed in tqdm(NETWORKS["unseen"], desc="unseen networks"):
        model, _ = learned_family.kept(seed, count, given.workdir)
        add(f"network {seed}", f"network, {model.kind}", 1.0, partial(learned_family.solved, model, seed, count))
    for name, (denoiser, deviation) in tqdm(exact_models(given).items(), desc="exact scores of data"):
        add(name, "exact score of data", deviation, partial(_solved, denoiser, denoiser.shape))
    for folder in tqdm(sorted(p.parent for p in (given.runs or Path()).glob("*/config.json")), desc="trained"):
        run = load_run(folder)
        with evaluation(run.denoiser):
            about = f"{run.config.model.network} of {run.config.model.predicts}, {run.step} updates"
            add(f"{folder.name} ({about})", "trained", 0.5, partial(_solved, run.denoiser, run.card.shape))


def _solved(denoiser: Any, shape: Sequence[int]) -> Case:
    count = SEEDS if math.prod(shape) <= SMALL else SEEDS_OF_PICTURES
    return Case(*scoresde.trajectory(denoiser, shape, range(count)))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("tune", "measure"))
    parser.add_argument(
        "--workdir", type=Path, required=True, help="a folder for solutions and networks, which are kept"
    )
    parser.add_argument(
        "--nfe", type=int, nargs="*", help="these numbers of evaluations only; tune looks for better tables"
    )
    parser.add_argument("--iterations", type=int, default=600)
    parser.add_argument("--runs", type=Path, help="a folder of trained runs")
    parser.add_argument("--mnist", type=Path, help="the folder of MNIST's IDX files")
    parser.add_argument("--cifar", type=Path, help="an .npz file with pictures of CIFAR-10, x (N, 32, 32, 3), uint8")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    {"tune": tune, "measure": measure}[given.action](given)


if __name__ == "__main__":
    only.run(main)
