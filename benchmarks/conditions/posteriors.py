"""Scores every posterior method against exact posteriors: python -m benchmarks.conditions.posteriors

Eight problems whose posteriors are known (``scoresde.benchmark.posterior_problems``), the exact score of the prior on
VP, float64, one thread. Each method draws under an SDE and an ODE solver, or with its own, at a stated number of steps.
A row has the means of its scores over the observations with their standard errors, and the evaluations of the network
and vector-Jacobian products for a draw. The row ``truth`` has exact draws: no method can show less than their noise.

Writes benchmarks/conditions/results/posteriors.json, after each row: a run that ends early continues where it was.
Takes half an hour. ``--only NAME ...`` measures some methods again, ``--problems NAME ...`` some problems; ``--fast
--out FILE`` makes few draws in few steps.
"""

from __future__ import annotations

import argparse
import json
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

import torch
from torch import Tensor

import scoresde
import solvers
from benchmarks import only
from scoresde.benchmark.posterior_problems import DIGITS, PosteriorProblem, digits_problem, mixture_problem
from scoresde.io.result_files import environment, write_json
from scoresde.models.counting import counted
from scoresde.models.model import Model, as_model
from scoresde.models.problem import Diffusion
from scoresde.models.targets import Empirical, GaussianMixture
from scoresde.posterior.base import Posterior, Task, posteriors
from scoresde.posterior.particles import TDS, Cloud
from solvers import InputError, Node, Prediction
from solvers.noise.seeded import SeededNoise

RESULTS = Path(__file__).parent / "results"
VP = scoresde.VP()
SDE, ODE = "dpmpp_2m_sde", "dpmpp_2m"
DIGITS_VARIANCE = 0.293  # of a pixel, a mean over the pixels
TRUTH, OTHER = 1, 2  # seeds of the exact draws to compare with, and of those that are compared


class Run(NamedTuple):
    """One row: a method, or ``truth``, ``exact`` (the posterior's denoiser), ``unconditional``.

    Attributes:
        method: a spec.
        solver, steps: the solver, and the steps of the grid with the one to the data.
        high, low: the ends of the grid in sigma / alpha, with equal steps of its logarithm; "time": steps of t.
        shared: the draws of an observation are the particles of one run, not one particle of each of many.
        runs: how often the row is measured, with other seeds: particles of one run have few ancestors, so that the
            scores of runs differ by a tenth to a quarter.
    """

    method: str
    solver: str = ""
    steps: int = 0
    high: float = 100.0
    low: float = 0.0106
    time: bool = False
    shared: bool = False
    runs: int = 1

    @property
    def identity(self) -> dict[str, Any]:
        """The columns that name the row."""
        names = ("method", "solver", "steps", "shared", "runs")
        return {name: getattr(self, name) for name in names}

    def nodes(self, share: float) -> tuple[Node, ...]:
        """The nodes, with a share of the steps."""
        count = max(round(self.steps * share), 8)
        if self.time:
            return (*(VP(t) for t in torch.linspace(1, 0.001, count, dtype=torch.float64).tolist()), VP.clean)
        ends = -math.log(self.high), -math.log(self.low)
        return (*VP.nodes_of_lam(torch.linspace(*ends, count, dtype=torch.float64).tolist()), VP.clean)


def both(method: str, sde: int, ode: int) -> list[Run]:
    """A denoiser's rows under an SDE and an ODE solver, with so many steps."""
    return [Run(method, SDE, sde), Run(method, ODE, ode)]


def references(sde: int, ode: int) -> list[Run]:
    """What methods are compared with."""
    return [Run("truth"), Run("exact", ODE, ode), Run("exact", SDE, sde), Run("unconditional", SDE, ode)]


def mixture_runs(steps: int, particles: int, published: Sequence[tuple[str, int]]) -> list[Run]:
    """The methods on a mixture.

    Args:
        steps: of the SDE solvers.
        particles: as many as draws.
        published: methods with steps of the published loop, equal in t.
    """
    guesses = ("mmps", "mmps(iterations=1)", "pigdm", "tmpd", "jfps", "diffpir(lam=1.0)", "diffpir", "ddnm")
    denoisers = (*guesses, "naive_dps", "dps(scale=0.1)", "dps", "dps(scale=1.0)")
    return [
        *references(100, 50),
        Run(f"tds(particles={particles})", "ddpm", steps, shared=True, runs=4),
        Run(f"tds(particles={particles}, resample=1.0)", "ddpm", steps, shared=True),
        Run(f"tds(particles={particles}, twist=point)", "ddpm", steps, shared=True),
        Run("tds(particles=16)", "ddpm", 100),
        *(run for method in denoisers for run in both(method, steps, 100)),
        *(Run(method, "ddpm", count, time=True) for method, count in published),
        Run("ddrm", "ddim", 100),
        Run("ddrm(renoise=fixed)", "ddim", 100),
        Run("ddrm(eta=1.0, renoise=fixed)", "ddim", 100),
        Run("repaint(jump=1)", "ddpm", 100),
        Run("replace", "ddpm", 100),
        Run("replace", ODE, 100),
        Run("ilvr(factor=2)", "ddpm", 100),
        Run("sdedit(level=0.3)", SDE, 100),
        Run("sdedit(level=3.0)", SDE, 100),
        Run("daps", "ddim", 100, 10.0, 0.02),
        Run("split_gibbs", "ddpm", 100),
    ]


def digits_runs(kind: str) -> list[Run]:
    """The methods on digits, which take the operator."""
    nonlinear, v = kind in ("phase", "tanh", "quantise"), f"variance={DIGITS_VARIANCE}"
    particles = {"inpaint": (50, 200, 800), "block_means": (50,)}.get(kind, (50, 400))
    runs = [
        *references(60, 40),
        *(Run(f"tds(particles={k}, {v})", "ddpm", 60, shared=True, runs=4 if k != 400 else 1) for k in particles),
        *([] if nonlinear else [Run(f"tds(particles=16, {v})", "ddpm", 60)]),
    ]
    if kind == "quantise":
        return runs
    runs += [run for method in ("naive_dps", "dps(scale=1.0)") for run in both(method, 60, 40)]
    runs += [
        Run("dps", SDE, 60),
        Run("daps(outer=60)", "ddim", 60, 10.0, 0.05),
        Run("split_gibbs(sweeps=40, rho_min=0.15, inner=12)", "ddpm", 60),
    ]
    if nonlinear:
        return [*runs, *both("mmps(iterations=1, linearise=True)", 60, 40)]
    methods = ("mmps(iterations=1)", "mmps", f"pigdm({v})", "tmpd", f"jfps({v})", "diffpir", "ddnm")
    return [
        *runs,
        *([Run("mmps(iterations=32)", SDE, 60)] if kind == "inpaint" else []),  # as many as y has numbers
        *(run for method in methods for run in both(method, 60, 40)),
        # 0.3 and 1 for each of 150 steps, as published
        *(Run(f"dps(scale={scale})", "ddpm", 150, time=True) for scale in (0.045, 0.15)),
        Run("ddrm", "ddim", 60),
        Run("ddrm(renoise=fixed)", "ddim", 60),
        Run("repaint(jump=1)", "ddpm", 40),
        Run("replace", "ddpm", 40),
        Run("replace", ODE, 40),
        *([Run("ilvr", "ddpm", 40)] if kind == "inpaint" else []),  # of block means it is replacement
        Run("sdedit", SDE, 60),
    ]


PROBLEMS: dict[str, tuple[Any, list[Run], int]] = {
    "P(4, 0.1)": (
        lambda: mixture_problem(4, 0.1),
        mixture_runs(200, 250, [("dps", 1000), ("dps(scale=1.0)", 1000)]),
        250,
    ),
    "P(1, 0.1)": (
        lambda: mixture_problem(1, 0.1),
        mixture_runs(200, 250, [("dps(scale=0.1)", 1000), ("dps(scale=1.0)", 1000)]),
        250,
    ),
    "P(4, 0.01)": (lambda: mixture_problem(4, 0.01), mixture_runs(190, 125, [("dps(scale=0.12)", 400)]), 125),
    **{f"digits, {kind}": (lambda kind=kind: digits_problem(kind), digits_runs(kind), 50) for kind in DIGITS},
}


class Points:
    """The exact denoiser of a data set, by products of matrices: that of ``Empirical`` up to rounding, in less time."""

    def __init__(self, law: Empirical) -> None:
        self.sde, self.shape = VP, tuple(law.data.shape[1:])
        self.data, self.log_weights = law.data.flatten(1), law.log_weights
        self.squares = 0.5 * self.data.square().sum(1)
        node = VP(0.1)
        x = node.alpha * law.data[:9] + node.sigma * law.data[9:18]
        assert torch.allclose(self.predict(x, node).x0, law.predict(x, node).x0, rtol=0, atol=1e-11)

    def predict(self, x: Tensor, node: Node) -> Prediction:
        flat, a, s = x.flatten(1), node.alpha, node.sigma
        near = self.log_weights + (a * flat @ self.data.T - a**2 * self.squares) / s**2
        x0 = (torch.softmax(near, 1) @ self.data).view_as(x)
        return Prediction(x0, (x - a * x0) / s)


def model_of(law: GaussianMixture | Empirical) -> Model:
    """The exact denoiser of a law."""
    return as_model(Points(law) if isinstance(law, Empirical) else law.denoiser(VP))


class Drawn(NamedTuple):
    """Draws (n, S, *) for n observations, NFE of one, and estimates (n,) of log p(y) in nats, where there are some."""

    x: Tensor
    nfe: float
    log_evidence: Tensor | None = None


def task(problem: PosteriorProblem, run: Run, draws: int, share: float, first: int = 0) -> Task:
    """The task of a row: seeds are numbered by observation, then by draw, from the ``first``."""
    y = problem.y.repeat_interleave(draws, 0)
    model, shape = model_of(problem.prior), tuple(problem.x.shape[1:])
    seeds = range(first, first + len(y))
    return Task(model, problem.operator, y, shape, solvers.make(run.solver), run.nodes(share), seeds)


def evenly(cloud: Cloud, draws: int) -> Tensor:
    """So many particles (n, S, *) of each run, at equal distances along their weights."""
    places = (torch.arange(draws, dtype=torch.float64) + 0.5) / draws
    return cloud.chosen(places.expand(len(cloud.x), draws).contiguous())


def solved(models: list[Model], job: Task, draws: int) -> Drawn:
    """Draws with one model for each observation."""
    noise, parts = job.noise(), []
    start = job.start(noise)
    for i, model in enumerate(models):
        rows = slice(i * draws, (i + 1) * draws)
        own = SeededNoise(job.seeds[rows], job.shape, job.y.dtype, job.y.device)
        own.initial()
        parts.append(solvers.solve(job.solver, Diffusion(model), start[rows], job.nodes, own, strict=False))
    return Drawn(torch.stack([part.x for part in parts]), float(parts[0].nfe.max()))


def draw(problem: PosteriorProblem, run: Run, draws: int, share: float, first: int = 0) -> Drawn:
    """The draws of a row, with the seeds from ``first``."""
    if run.method == "truth":
        return Drawn(problem.draws(draws, solvers.generator(OTHER)), 0)
    job = task(problem, run, 1 if run.shared else draws, share, first)
    if run.method in ("exact", "unconditional"):
        laws = problem.posteriors if run.method == "exact" else [problem.prior] * len(problem.y)
        return solved([model_of(law) for law in laws], job, draws)
    method: Posterior = posteriors.make(run.method)
    if run.shared:
        assert isinstance(method, TDS)
        cloud = method.cloud(job)
        return Drawn(evenly(cloud, draws), method.particles * cloud.steps / draws, cloud.log_evidence)
    found = method.draw(job)
    evidence = found.log_evidence
    if evidence is not None:
        evidence = torch.logsumexp(evidence.view(-1, draws), 1) - math.log(draws)
    return Drawn(found.x.view(-1, draws, *job.shape), float(found.nfe.max()), evidence)


def measured(problem: PosteriorProblem, run: Run, draws: int, share: float) -> dict[str, Any]:
    """A row."""
    n = len(problem.y)
    with torch.no_grad(), counted() as count, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "tmpd counts negative variances|.*makes samples too wide")
        found = [draw(problem, run, draws, share, i * n * draws) for i in range(run.runs)]
    truth = problem.draws(draws, solvers.generator(TRUTH))
    # of each observation, means over the runs
    parts = zip(*(problem.each(one.x, truth) for one in found), strict=True)
    each = [{name: fmean(one[name] for one in own) for name in own[0]} for own in parts]
    samples = n * draws * run.runs
    row = {
        "problem": problem.name,
        **run.identity,
        "grid": "" if not run.steps else "t" if run.time else f"r={run.high:g}..{run.low:g}",
        "nfe": found[0].nfe,
        "forwards": count.forwards / samples,
        "vjps": count.vjps / samples,
        "draws": draws,
        "scores": {name: fmean(one[name] for one in each) for name in each[0]},
        "errors": {name: stdev(one[name] for one in each) / math.sqrt(n) for name in each[0]},
    }
    estimates = [one.log_evidence for one in found if one.log_evidence is not None]
    if estimates:
        exact = torch.tensor([problem.prior.log_evidence(problem.operator, y) for y in problem.y])
        row["evidence_rms"] = float((torch.stack(estimates) - exact).square().mean().sqrt())
    return row


def same(row: dict[str, Any], problem: str, run: Run) -> bool:
    """Whether a row is that of a run."""
    return {"problem": problem, **run.identity}.items() <= row.items()


def kept(path: Path, header: dict[str, Any], names: list[str], problems: list[str]) -> list[dict[str, Any]]:
    """The rows of the result file that are not measured again.

    Raises:
        InputError: the file has rows of another command, or of other versions.
    """
    if not path.exists():
        return []
    document = json.loads(path.read_text(encoding="utf-8"))
    for key in ("command", *only.PINNED):
        if document["header"][key] != header[key]:
            raise InputError(f"{path.name} has {key} {document['header'][key]!r}, this run {header[key]!r}: remove it")
    return [
        row for row in document["rows"] if only.name_of(row["method"]) not in names or row["problem"] not in problems
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="measure these methods again")
    parser.add_argument("--problems", nargs="+", default=list(PROBLEMS), choices=PROBLEMS, metavar="NAME")
    parser.add_argument("--fast", action="store_true", help="10 draws in a tenth of the steps; needs --out")
    parser.add_argument("--out", type=Path, default=None)
    given = parser.parse_args()
    if given.fast and given.out is None:
        parser.error("--fast needs --out FILE: the committed file has whole runs")
    known = {"truth", "exact", "unconditional", *posteriors.names()}
    if unknown := [name for name in given.only if name not in known]:
        parser.error(f"--only: unknown {', '.join(unknown)}; one of {', '.join(sorted(known))}")
    torch.set_num_threads(1)
    path = given.out or RESULTS / "posteriors.json"
    header = {
        **environment(dtype=torch.float64),
        "command": "python -m benchmarks.conditions.posteriors" + " --fast" * given.fast,
        "path": str(VP),
        "seeds": "0, 1, ... by observation, then by draw",
    }
    rows = kept(path, header, given.only, given.problems)
    order = [(name, run) for name, (_, runs, _) in PROBLEMS.items() for run in runs]
    rows = [row for row in rows if any(same(row, *each) for each in order)]
    for name in given.problems:
        make, runs, draws = PROBLEMS[name]
        problem = make()
        for run in runs:
            if any(same(row, name, run) for row in rows) or (given.only and only.name_of(run.method) not in given.only):
                continue
            row = measured(problem, run, 10 if given.fast else draws, 0.1 if given.fast else 1.0)
            rows.append(row)
            rows.sort(key=lambda row: next(i for i, each in enumerate(order) if same(row, *each)))
            write_json(path, {"header": header, "rows": rows})
            print(name, run.method, run.solver, {k: round(v, 3) for k, v in row["scores"].items()}, flush=True)


if __name__ == "__main__":
    only.run(main)
