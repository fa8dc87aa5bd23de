"""Compares grids tuned for a solver with every built-in grid, on held-out seeds:
python -m benchmarks.tuning.tuned_grids --processes 2

Two models on the VP path: the exact score of scikit-learn's digits, and the network that ``scoresde demo`` trains on
them. ``solvers.tune_grid`` places the nodes of ddim, dpmpp_2m and ipndm for 5, 6, 8 and 10 evaluations, on grids that
continue to sigma = 0. The error is the root-mean-square distance per coordinate between the result of a solve and the
exact solution of the probability-flow ODE from the same start: RK4 in 96 steps of log(alpha / sigma), and for sigma = 0
one more step, E[x0 | x] at t_min. It is measured on held-out seeds, for the tuned grid and for every built-in grid that
allows so few steps. Grids are compared only with grids that have the same end.

The interval of the improvement resamples the held-out seeds in pairs, and chooses the best built-in grid again in every
resample. This favours the built-in grids: they are chosen on the same seeds, the tuned grid on different ones.

Writes tuned_grids.{json,csv} to benchmarks/tuning/results. The network is trained in --workdir, or in a temporary
folder.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

import scoresde
import solvers
from scoresde.cli.training import Job, fit
from scoresde.io.result_files import environment, fingerprint, write_csv, write_json
from scoresde.models.problem import Diffusion
from scoresde.runs import config
from scoresde.runs.run import load_run

RESULTS = Path(__file__).parent / "results"
SOLVERS = ("ddim", "dpmpp_2m", "ipndm")
NFE = (5, 6, 8, 10)
ENDS = ("zero",)
TUNING, HELD_OUT = range(256), range(1_000_000, 1_002_048)
REFERENCE: dict[str, Any] = {"solver": "rk4", "grid": "logsnr", "steps": 96}
TRAINING_STEPS = 4500  # those of `scoresde demo`
RESAMPLES = 1000
# One spec of each rule, with options where other values are in use; leading and ddim_quad begin below t_max, where
# they get the same noise. explicit, resampled and file are custom lists; ve equals logsnr, vp equals uniform.
BUILT_IN = (
    "uniform", "quadratic", "quadratic(power=3)", "logsnr", "karras", "karras(rho=3)", "karras(rho=5)",
    "polyexponential(rho=0.7)", "polyexponential(rho=1.5)", "polyexponential(rho=2)", "beta", "beta(on=time)",
    "kl_optimal", "kl_optimal(sigma_data=0.75)", "kl_optimal(sigma_data=0.5)", "vp", "iddpm", "linear_quadratic",
    "flow_shift(shift=1)", "flow_shift", "flow_shift(shift=0.5)", "ays", "ays(model=sdxl)", "ays(model=svd)", "gits",
    "leading", "trailing", "linspace", "sgm_uniform", "ddim_quad",
)  # fmt: skip

Case = tuple[str, str, str, int]  # problem, end, solver, nfe
made: dict[str, tuple[Diffusion, dict[str, tuple[solvers.Trajectory, solvers.Trajectory]]]] = {}


def references(problem: Diffusion, seeds: range) -> tuple[dict[str, solvers.Trajectory], float]:
    """The ODE's solution by end, and the distance at t_min to a solve in half as many steps.

    The distance exceeds the error of the solution if twice the steps at least halve that error.
    """
    sde = problem.denoiser.sde
    top = sde(sde.t_max)
    z = solvers.SeededNoise(seeds, (64,), torch.float64).initial()
    x = (top.alpha**2 + top.sigma**2) ** 0.5 * z
    fine, coarse = (
        solvers.trajectory(problem, x, sde, "logsnr", REFERENCE["steps"] // k, "rk4") for k in (1, 2)
    )  # fmt: skip
    error = float((fine.states[-1] - coarse.states[-1]).square().mean().sqrt())
    with torch.no_grad():
        clean = problem.predict(fine.states[-1], fine.nodes[-1]).x0
    states = torch.cat([fine.states, sde.clean.alpha * clean.unsqueeze(0)])
    return {"t_min": fine, "zero": solvers.Trajectory(sde, (*fine.nodes, sde.clean), states)}, error


def prepare(workdir: Path) -> dict[str, Any]:
    """Makes both problems and their references; returns their description for the header."""
    from sklearn.datasets import load_digits

    digits = torch.as_tensor(load_digits().data / 8 - 1, dtype=torch.float64)
    cfg = config.read_config("configs/digits_vp.py", [f"--config.training.steps={TRAINING_STEPS}"])
    fit(Job(cfg), workdir)
    run = load_run(workdir)
    weights = torch.cat([p.detach().flatten() for p in run.denoiser.network.parameters()])
    exact = scoresde.targets.Empirical(digits).denoiser(scoresde.VP())
    errors = {}
    for name, denoiser in (("exact", exact), ("trained", Flat(run.denoiser))):
        problem = Diffusion(denoiser)
        tuning, held_out = (references(problem, seeds) for seeds in (TUNING, HELD_OUT))
        made[name] = problem, {end: (tuning[0][end], held_out[0][end]) for end in ENDS}
        errors[name] = max(tuning[1], held_out[1])
    return {
        "sde": str(exact.sde),
        "models": {
            "exact": "the exact score of scikit-learn's digits / 8 - 1",
            "trained": f"digits_vp, {run.step} steps, seed {run.config.seed}, weights {fingerprint(weights)}",
        },
        "reference": {**REFERENCE, "error": errors},
    }


@dataclasses.dataclass(frozen=True)
class Flat:
    """A denoiser of images (B, 1, 8, 8) at states (B, 64), so that both models see the same starts."""

    denoiser: scoresde.Denoiser

    @property
    def sde(self) -> scoresde.SDE:
        return self.denoiser.sde

    def predict(self, x: Tensor, node: Any, **conditions: Tensor) -> solvers.Prediction:
        found = self.denoiser.predict(x.view(-1, 1, 8, 8), node, **conditions)
        return dataclasses.replace(found, x0=found.x0.view(x.shape), eps=found.eps.view(x.shape))


def measure(case: Case) -> dict[str, Any]:
    """The row of one solver at one budget."""
    torch.set_num_threads(1)
    name, end, solver, nfe = case
    problem, known = made[name]
    tuning, held_out = known[end]
    began = time.perf_counter()
    tuned = solvers.tune_grid(solver, problem, nfe, tuning)
    seconds = time.perf_counter() - began
    squares = {"tuned": held_out.errors(solver, problem, solvers.grid(tuned.grid, tuning.schedule))}
    for spec in BUILT_IN:
        try:
            nodes = held_out.place(spec, tuned.steps)
        except solvers.InputError:  # it does not have so few steps
            continue
        squares[spec] = held_out.errors(solver, problem, nodes)
    table = torch.stack(list(squares.values()))  # (grids, seeds)
    rms = dict(zip(squares, table.mean(1).sqrt().tolist(), strict=True))
    best = min((spec for spec in rms if spec != "tuned"), key=lambda spec: rms[spec])
    draws = torch.randint(table.shape[1], (RESAMPLES, table.shape[1]), generator=solvers.generator(0, 3))
    means = torch.stack([table[:, rows].mean(1).sqrt() for rows in draws])  # (resamples, grids)
    gains = 1 - means[:, 0] / means[:, 1:].min(1).values
    low, high = gains.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return {
        "problem": name, "end": end, "solver": solver, "nfe": nfe, "steps": tuned.steps, "tuned": rms["tuned"],
        "best_built_in": best, "best_built_in_error": rms[best], "improvement": 1 - rms["tuned"] / rms[best],
        "improvement_low": low, "improvement_high": high, "tuned_on_its_own_seeds": tuned.errors["tuned"],
        "dynamic_programming_on_its_own_seeds": tuned.errors["dynamic programming"], "seconds": seconds,
        "ratios": list(tuned.ratios), "built_in": {spec: rms[spec] for spec in rms if spec != "tuned"},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, help="where the network is trained, or was")
    parser.add_argument("--processes", type=int, default=1, help="cases tuned side by side; no number depends on it")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        facts = prepare(arguments.workdir or Path(folder) / "run")
    cases: list[Case] = [(p, end, s, n) for p in made for end in ENDS for s in SOLVERS for n in NFE]
    with multiprocessing.get_context("fork").Pool(arguments.processes) as pool:
        rows = list(tqdm(pool.imap(measure, cases, chunksize=1), total=len(cases)))
    header = {
        **environment(dtype=torch.float64),
        "command": "python -m benchmarks.tuning.tuned_grids --processes 2",
        **facts,
        "seeds": {"tuning": f"0..{TUNING[-1]}", "held_out": f"{HELD_OUT[0]}..{HELD_OUT[-1]}"},
    }
    RESULTS.mkdir(exist_ok=True)
    write_json(RESULTS / "tuned_grids.json", {"header": header, "rows": rows})
    write_csv(
        RESULTS / "tuned_grids.csv",
        [
            {**{key: row[key] for key in ("problem", "end", "solver", "nfe")}, "grid": spec, "error": error}
            for row in rows
            for spec, error in {"tuned": row["tuned"], **row["built_in"]}.items()
        ],
    )
    won = sum(row["improvement"] > 0 for row in rows)
    sure = sum(row["improvement_low"] > 0 for row in rows)
    print(f"tuned is best in {won} of {len(rows)} cases, with an interval above 0 in {sure}")


if __name__ == "__main__":
    main()
