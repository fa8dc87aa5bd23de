"""Compares programs tuned to a model with tuned grids and untuned solvers, on held-out seeds:
python -m benchmarks.tuning.tuned_programs --workdir=FOLDER --mnist=FOLDER

Four models on the VP path: the exact score of a mixture of 12 Gaussians in 8 dimensions; those of scikit-learn's digits
and of 500 images of MNIST, as point masses; and the network that ``scoresde demo`` trains on the digits. At 5, 6, 8 and
10 evaluations ``solvers.tune_grid`` places the nodes of each solver in STARTS (for the exact score of the digits, the
grids are those of tuned_grids.json); ``solvers.tune_program`` starts from the one with the least error on validation
seeds. The error is the root-mean-square distance per coordinate to the solution of the probability-flow ODE from the
same start (RK4 on log(alpha / sigma), then E[x0 | x] at t_min), on held-out seeds. The best untuned solver and grid is
chosen in hindsight, on the same held-out seeds. The floor is the error that no last row of a program can remove, given
its predictions. Intervals (95 %) resample the held-out seeds in pairs. ``few``, which was tuned to other models, is
measured on the same seeds and is not among the untuned solvers.

Ablations: only some groups of numbers are free, or the solver's coefficients do not follow the nodes.

Writes tuned_programs.json to benchmarks/tuning/results after every row, and continues where a run ended. The network is
trained in --workdir, or was; MNIST is left out without --mnist, a folder with t10k-images-idx3-ubyte.gz.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

import scoresde
import solvers
from benchmarks import only
from benchmarks.tuning.tuned_grids import TRAINING_STEPS, Flat
from scoresde.cli.training import Job, fit
from scoresde.io.result_files import environment, fingerprint, write_json
from scoresde.models.problem import Diffusion
from scoresde.runs import config
from scoresde.runs.run import Run, load_run
from solvers import InputError, Program
from solvers.tuning.tuned_program import Error

RESULTS = Path(__file__).parent / "results" / "tuned_programs.json"
STARTS = ("ipndm", "gradient_estimation")
NFE = (5, 6, 8, 10)
VARIANTS: dict[str, dict[str, Any]] = {
    "all": {},
    "log loss": {"loss": "log"},
    "theory off": {"theory": False},
    "nodes": {"free": "nodes"},
    "nodes, labels (LD3)": {"free": "ld3"},
    "nodes, coefficients": {"free": ("nodes", "predictions", "states")},
}
RESAMPLES = 1000


@dataclass(frozen=True)
class Target:
    """A model, with its numbers of samples and iterations.

    Attributes:
        samples: for tuning, for validation, and held out.
        batch: samples of an iteration.
        grid: how many of the samples ``tune_grid`` uses.
        steps: of the reference.
        ablated: the evaluations at which the ablations run.
        committed: the name of the model in tuned_grids.json, whose grids are the starts.
    """

    name: str
    samples: tuple[int, int, int]
    batch: int
    iterations: int
    grid: int
    steps: int = 96
    ablated: tuple[int, ...] = ()
    committed: str = ""


TARGETS = (
    Target("mixture", (4096, 1024, 4096), 512, 400, 512, ablated=(5, 8)),
    Target("trained", (2048, 512, 2048), 256, 400, 256, ablated=(5,)),
    Target("digits", (1024, 256, 1024), 96, 300, 256, 48, ablated=(5,), committed="exact"),
    Target("mnist", (512, 128, 512), 48, 200, 96, 48),
)


@cache
def digits() -> Tensor:
    from sklearn.datasets import load_digits

    return torch.as_tensor(load_digits().data / 8 - 1, dtype=torch.float64)


@cache
def model(name: str, workdir: Path, mnist: Path | None, sde: scoresde.SDE | None = None) -> tuple[Any, str]:
    """A denoiser of states (B, d), and its description."""
    sde = scoresde.VP() if sde is None else sde  # of an exact score
    if name == "mixture":
        means = 0.6 * torch.randn(12, 8, generator=solvers.generator(3), dtype=torch.float64)
        spread = torch.linspace(0.03, 0.25, 12, dtype=torch.float64)
        found = scoresde.targets.GaussianMixture(means, spread**2).denoiser(sde)
        return found, "12 Gaussians in 8 dimensions, centres N(0, 0.6^2), deviations 0.03 to 0.25"
    if name == "digits":
        return scoresde.targets.Empirical(digits()).denoiser(sde), "the 1797 images of scikit-learn's digits / 8 - 1"
    if name == "mnist":
        assert mnist is not None
        content = gzip.decompress((mnist / "t10k-images-idx3-ubyte.gz").read_bytes())
        pixels = torch.from_numpy(np.frombuffer(content, np.uint8, offset=16).reshape(-1, 784)[:500].copy())
        data = pixels.double() / 127.5 - 1
        return scoresde.targets.Empirical(data).denoiser(sde), "the first 500 test images of MNIST / 127.5 - 1"
    cfg = config.read_config("configs/digits_vp.py", [f"--config.training.steps={TRAINING_STEPS}"])
    fit(Job(cfg), workdir)
    run = load_run(workdir)
    return Flat(run.denoiser), words_of(run)


def words_of(run: Run) -> str:
    """What a trained network is, with the fingerprint of its weights."""
    weights = torch.cat([p.detach().flatten() for p in run.denoiser.network.parameters()])
    return f"digits_vp, {run.step} steps, seed {run.config.seed}, weights {fingerprint(weights)}"


def seeds_of(target: Target, part: int) -> range:
    """The seeds for tuning (0), for validation (1), or held out (2)."""
    return range(1_000_000 * part, 1_000_000 * part + target.samples[part])


@cache
def references(target: Target, workdir: Path, mnist: Path | None) -> tuple[Diffusion, list[solvers.Trajectory]]:
    """The problem and its references for tuning, for validation, and held out."""
    problem = Diffusion(model(target.name, workdir, mnist)[0])
    size = {"mixture": 8, "mnist": 784}.get(target.name, 64)
    found = []
    for part in range(3):
        z = solvers.SeededNoise(seeds_of(target, part), (size,), torch.float64).initial()
        x = problem.path.prior().std * z
        found.append(solvers.trajectory(problem, x, problem.path, "logsnr(end=zero)", target.steps))
    return problem, found


def start_of(target: Target, nfe: int, problem: Diffusion, known: list[solvers.Trajectory]) -> dict[str, Any]:
    """The row of the best tuned grid: the one with the least error on the validation seeds."""
    rows: list[dict[str, Any]] = []
    grids = json.loads((RESULTS.parent / "tuned_grids.json").read_text(encoding="utf-8"))
    if target.committed:
        same = [row for row in grids["rows"] if (row["problem"], row["nfe"]) == (target.committed, nfe)]
        rows = [{key: row[key] for key in ("solver", "ratios", "seconds")} for row in same]
    else:
        part = solvers.Trajectory(known[0].schedule, known[0].nodes, known[0].states[:, : target.grid])
        for solver in STARTS:
            began = time.perf_counter()
            tuned = solvers.tune_grid(solver, problem, nfe, part)
            seconds = time.perf_counter() - began
            rows.append({"solver": tuned.solver, "ratios": tuned.ratios, "seconds": seconds})

    def error(row: dict[str, Any]) -> float:
        nodes = solvers.grid(f"explicit(ratios={list(row['ratios'])})", problem.path)
        return float(known[1].errors(row["solver"], problem, nodes).mean())

    best = rows[min(range(len(rows)), key=lambda k: error(rows[k]))]
    return {**best, "seconds": sum(row["seconds"] for row in rows)}


def interval(one: Tensor, other: Tensor) -> list[float]:
    """The interval of the ratio of two root-mean-square errors, from squares (B,) of the same seeds."""
    draws = torch.randint(len(one), (RESAMPLES, len(one)), generator=solvers.generator(0, 3))
    ratios = torch.stack([(one[rows].mean() / other[rows].mean()).sqrt() for rows in draws])
    return ratios.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()


def measure(
    target: Target, nfe: int, variant: str, start: dict[str, Any], problem: Diffusion, known: list[solvers.Trajectory]
) -> dict[str, Any]:
    """The row of one tuning."""
    tuned = solvers.tune_program(
        start["solver"], problem, nfe, known[0], validation=known[1], held_out=known[2],
        grid=f"explicit(ratios={list(start['ratios'])})", batch=target.batch, iterations=target.iterations,
        **VARIANTS[variant],
    )  # fmt: skip
    held_out, errors = known[2], tuned.held_out
    best = tuned.best_untuned
    name, grid = best.split(" on ")
    nodes = solvers.grid(f"explicit(ratios={list(tuned.start)})", problem.path)
    squares = {
        "tuned": held_out.squares(tuned.program.run(problem, held_out.states[0])),
        "grid": held_out.errors(tuned.solver, problem, nodes),
        "untuned": held_out.errors(name, problem, held_out.place(grid, len(nodes) - 1)),
    }
    shown = {"tuned": "tuned program", "grid": "start", "untuned": best, "floor": "floor"}
    return {
        "solver": tuned.solver, "best_untuned": best,
        **{key: errors[label].rms for key, label in shown.items()},
        **{f"{key}_median": errors[label].median for key, label in shown.items()},
        **{f"{key}_wrong": errors[label].wrong for key, label in shown.items()},
        "on_tuning": tuned.tuning["tuned program"].rms, "on_validation": tuned.validation["tuned program"].rms,
        "over_untuned": errors["tuned program"].rms / errors[best].rms,
        "over_untuned_interval": interval(squares["tuned"], squares["untuned"]),
        "over_grid": errors["tuned program"].rms / errors["start"].rms,
        "over_grid_interval": interval(squares["tuned"], squares["grid"]),
        "iterations": tuned.iterations, **tuned.costs._asdict(), "program": json.loads(tuned.program.to_json()),
    }  # fmt: skip


def next_to_few(program: Program, nfe: int, problem: Diffusion, held_out: solvers.Trajectory) -> dict[str, Any]:
    """The error of ``few``, which was tuned to other models, and that of a tuned program over it."""
    few = held_out.errors("few", problem, held_out.place("few", nfe))
    tuned = held_out.squares(program.run(problem, held_out.states[0]))
    found = Error.of(few, held_out.states[-1])
    return {
        **{f"few{end}": value for end, value in zip(("", "_median", "_wrong"), found, strict=True)},
        "over_few": float((tuned.mean() / few.mean()).sqrt()), "over_few_interval": interval(tuned, few),
    }  # fmt: skip


def cases(mnist: bool) -> list[tuple[Target, int, str]]:
    """The rows: every tuning, after the tuned grid that it starts from; what takes long comes last."""
    chosen = [target for target in TARGETS if mnist or target.name != "mnist"]
    main = [(target, nfe, variant) for target in chosen for nfe in NFE for variant in ("grid", "all")]
    other = [name for name in VARIANTS if name != "all"]
    return main + [(target, nfe, variant) for target in chosen for nfe in target.ablated for variant in other]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="where the network is trained, or was")
    parser.add_argument("--mnist", type=Path, help="the folder of MNIST's files")
    parser.add_argument("--only", nargs="+", metavar="TARGET", help="these models alone")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    document: dict[str, Any] = {"header": {}, "rows": []}
    if RESULTS.exists():
        document = json.loads(RESULTS.read_text(encoding="utf-8"))
    rows = {(row["target"], row["nfe"], row["variant"]): row for row in document["rows"]}
    models = document["header"].get("models", {})
    wanted = [case for case in cases(arguments.mnist is not None) if case[0].name in (arguments.only or [case[0].name])]
    for target, nfe, variant in tqdm(wanted):
        key = (target.name, nfe, variant)
        if key in rows and (variant == "grid" or "few" in rows[key]):
            continue
        problem, known = references(target, arguments.workdir, arguments.mnist)
        words = model(target.name, arguments.workdir, arguments.mnist)[1]
        if models.setdefault(target.name, words) != words:
            raise InputError(f"the rows of {target.name} are of {models[target.name]}; this is {words}")
        if key in rows:
            found = rows[key]
        elif variant == "grid":
            found = start_of(target, nfe, problem, known)
        else:
            found = measure(target, nfe, variant, rows[target.name, nfe, "grid"], problem, known)
        if variant != "grid":
            found |= next_to_few(Program.from_json(json.dumps(found["program"])), nfe, problem, known[2])
        rows[key] = {"target": target.name, "nfe": nfe, "variant": variant, **found}
        header = {
            **environment(dtype=torch.float64),
            "command": "python -m benchmarks.tuning.tuned_programs --workdir=FOLDER --mnist=FOLDER",
            "sde": str(problem.path), "models": models,
        }  # fmt: skip
        write_json(RESULTS, {"header": header, "rows": list(rows.values())})


if __name__ == "__main__":
    only.run(main)
