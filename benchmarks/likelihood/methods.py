"""Measures the error of a likelihood against its cost, for several methods: python -m benchmarks.likelihood.methods

On the VP path, held-out 8x8 digits spread over their bins are scored under two models: a mixture of 10 Gaussians that
scikit-learn fitted to the training digits, whose density is known, and the network of configs/digits_vp.py (trained in
--workdir or a temporary folder). The methods are

* score_sde's recipe (Song et al. 2021, arXiv:2011.13456, appendix D.2): scipy's RK45 in t on the flattened batch with
  the log-densities appended, so that all samples share an error norm and a step, and two passes through the network for
  each right-hand side: one for the drift, one for its divergence; its tolerance is 1e-5;
* torchdiffeq's dopri5 in t on the batch, drift and divergence from one pass;
* ``log_prob`` with solvers that choose the steps of each sample separately (rk45, tsit5, adams_adaptive), and with
  solvers on fixed grids.

All methods integrate from the same states at t_min to the same density at t_max with the same traces: all 64 products,
or one random probe, as in score_sde. An error is therefore that of the solver alone. On the mixture it is the distance
to the exact density; on the network it is the distance to a solve in float64 with tolerance 1e-8 (the methods run the
network in float32).

The results for every tolerance or number of steps are: the worst and the mean error in bits/dim; the mean and the
largest numbers of right-hand sides, forward passes and vector-Jacobian products per sample; the number of calls of the
model; and the seconds of one thread's processor time, the minimum over a few runs. ``same_error`` compares the recipe
at 1e-5 with each method at its cheapest setting whose worst error is at most that of the recipe. Writes methods.json
and methods.png to benchmarks/likelihood/results.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy
import sklearn
import torch
import torchdiffeq
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from scipy.integrate import solve_ivp
from torch import Tensor

import scoresde
import solvers
from scoresde.cli.training import Job, fit
from scoresde.io.result_files import environment, fingerprint, write_figure, write_json
from scoresde.likelihood.divergence import Divergence, divergences
from scoresde.models.model import ModelObserver
from scoresde.models.targets import GaussianMixture
from scoresde.paths.base import ModelLike
from scoresde.runs import build, config
from scoresde.runs.run import Run, load_run
from solvers import Node

RESULTS = Path(__file__).parent / "results"
CONFIG = "digits_vp"
COMPONENTS, FLOOR = 10, 1e-3  # of the mixture; what its covariances have added on the diagonal
RECIPE = "score_sde"
TIGHT = 1e-5
TOLERANCES = {
    RECIPE: (1e-3, 1e-4, TIGHT),
    "torchdiffeq": (1e-3, 1e-4, 1e-5),
    "rk45": (1e-3, 3e-4, 1e-4, 3e-5, 1e-5),
    "tsit5": (1e-3, 3e-4, 1e-4, 3e-5, 1e-5),
    "adams_adaptive": (1e-3, 5e-4, 3e-4, 1e-4, 4e-5, 2e-5, 1e-5),
    "adams_adaptive(order=4)": (1e-3, 3e-4, 1e-4, 5e-5, 3e-5),
}
STEPS = {"heun": (20, 40, 80), "dpmpp_2m": (20, 40, 80), "uni_pc(order=4)": (20, 30, 40, 80)}
TARGETS = {"right_hand_sides": 4, "forward_passes": 8, "seconds": 5}  # how many times less than the recipe
TIMED, LIMIT = 3, 2.0  # runs of a setting; no more are begun after so many seconds


class Counter(ModelObserver):
    """A denoiser that counts its calls, and the samples in them."""

    def __init__(self, denoiser: ModelLike) -> None:
        super().__init__(denoiser)
        self.calls = self.passes = 0

    def observe(self, x: Tensor, node: Node | Node[Tensor]) -> None:
        self.calls += 1
        self.passes += len(x)


@dataclass(frozen=True)
class Task:
    """What is to be scored, and how: data x (B, *), the log-density (B,) at t_max, and the true one in nats (B,)."""

    denoiser: ModelLike
    x: Tensor
    prior: Callable[[Tensor], Tensor]
    divergence: Divergence
    truth: Tensor

    @property
    def probes(self) -> Tensor | None:
        """(k, B, d), None for the exact trace."""
        drawn = self.divergence.draw(list(range(len(self.x))), self.x[0].numel())
        return None if drawn is None else drawn.transpose(0, 1)


class Found(NamedTuple):
    """Log-densities (B,) in nats, and right-hand sides per sample (B,)."""

    nats: Tensor
    right_hand_sides: Tensor


def slope(denoiser: ModelLike, x: Tensor, time: float, probes: Tensor | None) -> tuple[Tensor, Tensor]:
    """dx/dt (B, *) and its divergence (B,) from one pass, in the dtype of x."""
    node = denoiser.sde(min(max(time, denoiser.sde.t_min), denoiser.sde.t_max))
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        velocity = denoiser.predict(leaf, node).velocity(node)
        d = x[0].numel()
        vectors = torch.eye(d).unsqueeze(1).expand(d, len(x), d) if probes is None else probes
        vectors = vectors.to(x).reshape(len(vectors), *x.shape)
        (products,) = torch.autograd.grad(velocity, leaf, vectors, is_grads_batched=True)
    each = (products * vectors).flatten(2).sum(2)
    return velocity.detach(), each.sum(0) if probes is None else each.mean(0)


def ends(task: Task, x: Tensor, change: Tensor) -> Tensor:
    """log p (B,) in nats from the states (B, *) at t_max and the integrals of the divergence (B,)."""
    sde = task.denoiser.sde
    return task.prior(x) + change + task.x[0].numel() * math.log(sde(sde.t_min).alpha)


def recipe(task: Task, denoiser: ModelLike, tolerance: float) -> Found:
    """score_sde's."""
    sde, shape, dtype, probes = denoiser.sde, task.x.shape, task.x.dtype, task.probes

    def split(flat: np.ndarray[Any, Any]) -> tuple[Tensor, Tensor]:
        whole = torch.as_tensor(flat)
        return whole[: -len(task.x)].reshape(shape), whole[-len(task.x) :]

    def rhs(time: float, flat: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        x = split(flat)[0].to(dtype)
        node = sde(time)
        with torch.no_grad():
            drift = denoiser.predict(x, node).velocity(node)
        divergence = slope(denoiser, x, time, probes)[1]
        return torch.cat([drift.flatten().double(), divergence.double()]).numpy()

    start = torch.cat([(sde(sde.t_min).alpha * task.x).flatten().double(), torch.zeros(len(task.x)).double()])
    end = solve_ivp(rhs, (sde.t_min, sde.t_max), start.numpy(), method="RK45", rtol=tolerance, atol=tolerance)
    x, change = split(end.y[:, -1])
    return Found(ends(task, x, change), torch.full((len(task.x),), end.nfev))


def dopri5(task: Task, denoiser: Counter, tolerance: float) -> Found:
    """torchdiffeq's."""
    sde, dtype, probes = denoiser.sde, task.x.dtype, task.probes
    times = torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64)

    def rhs(time: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        velocity, divergence = slope(denoiser, state[0].to(dtype), float(time), probes)
        return velocity.double(), divergence.double()

    before = denoiser.calls
    start = (sde(sde.t_min).alpha * task.x.double(), torch.zeros(len(task.x), dtype=torch.float64))
    options = {"step_t": times[1:]}  # not beyond t_max, where the path ends
    x, change = torchdiffeq.odeint(rhs, start, times, method="dopri5", rtol=tolerance, atol=tolerance, options=options)
    return Found(ends(task, x[-1], change[-1]), torch.full((len(task.x),), denoiser.calls - before))


def own(task: Task, denoiser: ModelLike, solver: str | solvers.Solver, steps: int | None = None) -> Found:
    """This library's."""
    found = scoresde.log_prob(denoiser, task.x, solver, steps=steps, divergence=task.divergence, prior=task.prior)
    assert found.nfe_per_sample is not None
    return Found(found.nats, found.nfe_per_sample)


def attempt(task: Task, method: str, setting: float) -> dict[str, Any]:
    """One line of the table."""
    seconds: list[float] = []
    while not seconds or (len(seconds) < TIMED and sum(seconds) < LIMIT):
        counter = Counter(task.denoiser)
        began = time.process_time()
        if method == RECIPE:
            found = recipe(task, counter, setting)
        elif method == "torchdiffeq":
            found = dopri5(task, counter, setting)
        elif method in STEPS:
            found = own(task, counter, method, int(setting))
        else:
            pair: Any = solvers.make(method)
            found = own(task, counter, replace(pair, rtol=setting, atol=setting))
        seconds.append(time.process_time() - began)
    error, count, d = bits(found.nats - task.truth, task.x), len(task.x), task.x[0].numel()
    mean = float(found.right_hand_sides.double().mean())
    return {
        "method": method,
        "setting": setting,
        "worst": float(error.max()),
        "mean": float(error.mean()),
        "right_hand_sides": mean,
        "most_right_hand_sides": int(found.right_hand_sides.max()),
        "forward_passes": counter.passes / count,
        "products": mean * task.divergence.products(d),
        "calls": counter.calls,
        "seconds": min(seconds),
        "runs": len(seconds),
    }


def bits(nats: Tensor, x: Tensor) -> Tensor:
    """Distances (B,) in bits/dim."""
    return nats.abs() / (x[0].numel() * math.log(2))


def same_error(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The recipe at 1e-5 over each method at its cheapest setting with the same worst error."""
    base = next(row for row in rows if (row["method"], row["setting"]) == (RECIPE, TIGHT))
    out: dict[str, Any] = {}
    for method in (*TOLERANCES, *STEPS):
        fit = [row for row in rows if row["method"] == method and row["worst"] <= base["worst"]]
        if method == RECIPE or not fit:
            continue
        row = min(fit, key=lambda row: float(row["right_hand_sides"]))
        out[method] = {"setting": row["setting"], "worst": row["worst"]}
        out[method] |= {f"{name}_ratio": base[name] / row[name] for name in (*TARGETS, "calls")}
        out[method]["met"] = {name: base[name] / row[name] >= factor for name, factor in TARGETS.items()}
    return {"recipe": {name: base[name] for name in ("worst", *TARGETS)}, **out}


def picture(tasks: dict[str, dict[str, Any]]) -> Figure:
    """The worst error against right-hand sides and against seconds."""
    figure = Figure(figsize=(12, 7), layout="constrained")
    grid = figure.subplots(2, len(tasks), squeeze=False, sharey="col")
    for column, (title, task) in enumerate(tasks.items()):
        for axes, name in zip(grid[:, column], ("right_hand_sides", "seconds"), strict=True):
            for k, method in enumerate((*TOLERANCES, *STEPS)):
                rows = [row for row in task["rows"] if row["method"] == method]
                style = "s--" if method in (RECIPE, "torchdiffeq") else "o-" if method in TOLERANCES else "^:"
                values = [[row[key] for row in rows] for key in (name, "worst")]
                axes.loglog(*values, style, color=f"C{k}", label=method, ms=4.5, lw=1.4)
            base = task["same_error"]["recipe"]
            axes.plot(base[name], base["worst"], "o", ms=12, mfc="none", mec="black", label="the recipe's 1e-5")
            axes.plot(base[name] / TARGETS[name], base["worst"], "k*", ms=11, label="target")
            axes.grid(alpha=0.3, which="both")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set_xlabel("right-hand sides per sample (mean)" if name == "right_hand_sides" else "seconds, 1 thread")
        grid[0, column].set_title(title, fontsize=11)
        grid[0, 0].set_ylabel("worst error, bits/dim")
        grid[1, 0].set_ylabel("worst error, bits/dim")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=math.ceil(len(labels) / 2), fontsize=9)
    return figure


def mixture(train: Tensor) -> GaussianMixture:
    """scikit-learn's fit to data (N, *)."""
    from sklearn.mixture import GaussianMixture as Fit

    found = Fit(COMPONENTS, random_state=0, reg_covar=FLOOR).fit(train.flatten(1).double().numpy())
    means, covariances, weights = (torch.as_tensor(v) for v in (found.means_, found.covariances_, found.weights_))
    return GaussianMixture(means.reshape(-1, *train.shape[1:]), 0.5 * (covariances + covariances.mT), weights)


def on_mixture(train: Tensor, x: Tensor, sde: scoresde.SDE) -> Task:
    """The mixture, whose truth is its density at t_min."""
    target, start, end = mixture(train), sde(sde.t_min), sde(sde.t_max)
    truth = target.log_prob(start.alpha * x, start) + x[0].numel() * math.log(start.alpha)
    return Task(target.denoiser(sde), x, lambda state: target.log_prob(state, end), divergences.make("exact"), truth)


def on_network(run: Run, precise: Run, x: Tensor, trace: str) -> tuple[Task, float]:
    """The network, whose truth is a tight solve in float64; and how far two such solves lie apart, in bits/dim."""
    divergence = divergences.make(trace)
    values = []
    for solver in ("tsit5(rtol=1e-8, atol=1e-8)", "rk45(rtol=1e-7, atol=1e-7)"):
        values.append(scoresde.log_prob(precise.denoiser, x.double(), solver, divergence=divergence).nats)
    prior = run.denoiser.sde.prior().log_prob
    return Task(run.denoiser, x, prior, divergence, values[0]), float(bits(values[1] - values[0], x).max())


def trained(workdir: Path | None) -> tuple[Run, Run]:
    """The network that the config trains, here or in a folder that keeps it; and the same in float64."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = (workdir or Path(temporary)) / CONFIG
        fit(Job(config.read_config(CONFIG)), folder)
        run, precise = load_run(folder), load_run(folder)
    network: Any = precise.denoiser.network
    network.double()
    return run, precise


def held_out(run: Run, samples: int) -> Tensor:
    """The first test digits (B, *), spread over their bins, float64."""
    data, width = build.load_data(run.config, run.card), run.card.bin_width
    assert width is not None
    return scoresde.dequantise(data.test.first(samples).x.double(), width, range(samples))


def measure(task: Task) -> dict[str, Any]:
    """Every method at every setting."""
    rows = []
    print(
        f"{'method':24s} {'setting':>8s} {'worst':>9s} {'mean':>9s} {'RHS':>7s} {'most':>5s} {'passes':>7s} {'s':>7s}"
    )
    for method, settings in (TOLERANCES | STEPS).items():
        for setting in settings:
            row = attempt(task, method, setting)
            rows.append(row)
            print(
                f"{method:24s} {setting:8g} {row['worst']:9.2g} {row['mean']:9.2g} {row['right_hand_sides']:7.1f} "
                f"{row['most_right_hand_sides']:5d} {row['forward_passes']:7.1f} {row['seconds']:7.2f}",
                flush=True,
            )
    return {"same_error": same_error(rows), "rows": rows}


def main() -> None:
    """Trains, scores, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, help="folder of the network: trained there, or loaded from there")
    parser.add_argument("--samples", type=int, default=64, help="held-out digits")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    run, precise = trained(arguments.workdir)
    x, data, width = held_out(run, arguments.samples), build.load_data(run.config, run.card), run.card.bin_width
    assert width is not None
    train = scoresde.dequantise(data.train.tensor(), width, range(len(data.train)))
    sde = run.denoiser.sde
    exact, exact_gap = on_network(run, precise, x.float(), "exact")
    probe, probe_gap = on_network(run, precise, x.float(), "hutchinson(probes=1)")
    document: dict[str, Any] = {
        "command": "python -m benchmarks.likelihood.methods",
        "environment": environment(),
        "versions": {
            "scipy": scipy.__version__, "torchdiffeq": torchdiffeq.__version__, "scikit-learn": sklearn.__version__
        },
        "sde": str(sde),
        "ratio": [sde(sde.t_min).ratio, sde(sde.t_max).ratio],
        "config": run.config.to_dict(),
        "step": run.step,
        "mixture": {"components": COMPONENTS, "reg_covar": FLOOR, "random_state": 0, "train": fingerprint(train)},
        "test": f"{len(x)} held-out digits, {fingerprint(x)}",
        "seeds": [0, len(x)],
        "truth_error": {"network, exact trace": exact_gap, "network, one probe": probe_gap},
        "targets": TARGETS,
        "tasks": {},
    }  # fmt: skip
    tasks = {"mixture, exact trace": on_mixture(train, x, sde), "network, exact trace": exact}
    for title, task in {**tasks, "network, one probe": probe}.items():
        print(f"\n{title}")
        document["tasks"][title] = measure(task)
        for method, facts in document["tasks"][title]["same_error"].items():
            print(method, ", ".join(f"{k} {v:.3g}" for k, v in facts.items() if isinstance(v, (int, float))))
        write_json(arguments.out / "methods.json", document)
    write_figure(arguments.out / "methods.png", picture(document["tasks"]), dpi=100)


if __name__ == "__main__":
    main()
