"""Samples and scores a DDPM and an SMLD chain of the 8x8 digits in every way: python -m benchmarks.chains.digits_chains

Trains configs/digits_ddpm.py (1000 steps) and configs/digits_smld.py (232 noise scales); each network receives the
index of the step. Samples with the chain itself and with solvers at 10 and 20 evaluations; the distance to held-out
digits is the sliced Wasserstein distance, with a 95 % interval. Scores the held-out digits, spread over their bins, by
the ODE's value with the exact trace, the bound of the reverse chain, and the continuous bound, the limit of ever finer
chains. The chain's variances are beta, beta_tilde and the optimal one (Analytic-DPM, with the model's eps_power on the
training digits). All bits/dim are of the same digits and the same offsets, so that differences are paired.

Writes digits_chains.json and digits_chains.png to benchmarks/chains/results. The networks are trained in --workdir, or
in a temporary folder.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

import scoresde
from scoresde.benchmark.runner import benchmark
from scoresde.bounds.chain import chain_bound
from scoresde.bounds.continuous import continuous_bound
from scoresde.cli.training import Job, fit
from scoresde.io.result_files import environment, fingerprint, write_figure, write_json
from scoresde.likelihood.result import LogProb
from scoresde.runs import build, config
from scoresde.runs.run import Run, load_run
from scoresde.sampling.pictures import image_grid

RESULTS = Path(__file__).parent / "results"
CONFIGS = ("digits_ddpm", "digits_smld")
SOLVERS = ("ddim", "dpmpp_2m", "uni_pc")
NFE = (10, 20)
SEEDS = range(1024)
LEVELS = 200  # of eps_power
REPEATS = 4  # draws of the noise of a chain's bound
DRAWS = 1024  # of the continuous bound, per sample
SHOWN = 10


def bits(result: LogProb) -> Tensor:
    """Bits/dim (B,)."""
    return result.bits_per_dim.cpu().double()


def summary(values: Tensor) -> dict[str, float]:
    """Mean over the samples and its standard error."""
    return {"mean": float(values.mean()), "stderr": float(values.std() / math.sqrt(len(values)))}


def repeated(denoiser: Any, x: Tensor, kernel: str, width: float) -> tuple[Tensor, Tensor]:
    """The mean of a chain's bound over draws of its noise, in bits/dim (B,), and its terms (N + 1,)."""
    values, terms = [], []
    for k in range(REPEATS):
        bound = chain_bound(denoiser, x, kernel, bin_width=width, seeds=range(k * len(x), (k + 1) * len(x)))
        assert bound.terms is not None
        values.append(bits(bound))
        terms.append(bound.terms.mean(0) / (x[0].numel() * math.log(2)))
    return torch.stack(values).mean(0), torch.stack(terms).mean(0)


def score(run: Run, train: Tensor, test: Tensor) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Bits/dim of the test digits in every way, their differences, and the mean terms of each bound in bits/dim."""
    width = run.card.bin_width
    assert width is not None
    x, denoiser = scoresde.dequantise(test, width, range(len(test))), run.denoiser
    power = scoresde.eps_power(denoiser, scoresde.dequantise(train, width, range(len(train))), LEVELS)
    kernels = {
        "beta": "ddpm(variance=beta)",
        "beta_tilde": "ddpm",
        "optimal": f"ddpm(variance=optimal, eps_power={[list(pair) for pair in power]})",
    }
    ode = scoresde.log_prob(denoiser, x, "heun", steps=160, divergence="exact", bin_width=width, batch_size=256)
    coarse = scoresde.log_prob(denoiser, x, "heun", steps=80, divergence="exact", bin_width=width, batch_size=256)
    bounds = {name: repeated(denoiser, x, kernel, width) for name, kernel in kernels.items()}
    limit = continuous_bound(denoiser, x, draws=DRAWS, decoder="gaussian", bin_width=width)
    values = {"ode": bits(ode), **{name: bound[0] for name, bound in bounds.items()}, "continuous": bits(limit)}
    terms = {name: bound[1] for name, bound in bounds.items()}
    facts = {
        "bits_per_dim": {name: summary(value) for name, value in values.items()},
        "ode_nfe": ode.nfe,
        "ode_error": float((bits(coarse) - bits(ode)).abs().mean()),
        "parts": {
            "beta - optimal": summary(values["beta"] - values["optimal"]),
            "beta_tilde - beta": summary(values["beta_tilde"] - values["beta"]),
            "optimal - continuous": summary(values["optimal"] - values["continuous"]),
            "continuous - ode": summary(values["continuous"] - values["ode"]),
            "beta - ode": summary(values["beta"] - values["ode"]),
        },
        "first_terms": {name: term[:5].tolist() for name, term in terms.items()},
        "prior_term": {name: float(term[-1]) for name, term in terms.items()},
    }
    return facts, terms


def draw(run: Run, test: Tensor) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """The distance of every way of sampling to the test digits, and a few samples of each."""
    count = run.denoiser.train_timesteps
    own = "ddpm(variance=beta)" if "ddpm" in run.config.sde else "smld"
    rows = benchmark(run.denoiser, test, [own], [count], SEEDS, shape=run.card.shape, grid="leading", keep=SHOWN)
    rows += benchmark(run.denoiser, test, SOLVERS, NFE, SEEDS, shape=run.card.shape, truth_steps=64, keep=SHOWN)
    records, shown = [], {}
    for row in rows:
        distance = row.metrics["sliced_wasserstein"]
        records.append({"solver": row.solver, "grid": row.grid, "nfe": row.nfe, "sliced_wasserstein": vars(distance)})
        assert row.samples is not None
        shown[f"{row.solver}, {row.nfe}"] = row.samples
    return records, shown


def picture(found: dict[str, Any]) -> Figure:
    """Samples of each way, and the terms of the bounds."""
    figure = Figure(figsize=(10, 7.6), layout="constrained")
    axes = figure.subplots(2, 2, width_ratios=[1.25, 1])
    for (name, (shown, terms)), (left, right) in zip(found.items(), axes, strict=True):
        strips = [np.asarray(image_grid(x[:SHOWN], -1, 1, columns=SHOWN, tile=40)) for x in shown.values()]
        gap = np.full((6, *strips[0].shape[1:]), 255, dtype=strips[0].dtype)
        strips = [np.concatenate([strip, gap]) for strip in strips]
        height = strips[0].shape[0]
        left.imshow(np.concatenate(strips), cmap="gray", interpolation="nearest")
        left.set_yticks([height * (k + 0.5) for k in range(len(strips))], list(shown), fontsize=8)
        left.set_xticks([])
        left.set_title(f"{name}: solver and evaluations", fontsize=10)
        for (kernel, term), style in zip(terms.items(), ("-", "--", ":"), strict=True):
            right.loglog(range(1, len(term) - 1), term[1:-1].clamp_min(1e-6), style, label=kernel, lw=1.4)
        right.set(xlabel="index i", ylabel="bits/dim of step i")
        right.legend(fontsize=8)
        right.set_title("terms of the bound", fontsize=10)
    return figure


def main() -> None:
    """Trains, samples, scores, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, help="folder of the networks: trained there, or loaded from there")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    document: dict[str, Any] = {
        "command": "python -m benchmarks.chains.digits_chains",
        "environment": environment(),
        "seeds": [SEEDS.start, SEEDS.stop],
        "draws": {"chain": REPEATS, "continuous": DRAWS},
    }
    pictures = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name in CONFIGS:
            workdir = (arguments.workdir or Path(temporary)) / name
            fit(Job(config.read_config(name)), workdir)
            run = load_run(workdir)
            data = build.load_data(run.config, run.card)
            torch.manual_seed(0)
            facts, terms = score(run, data.train.tensor(), data.test.tensor())
            records, shown = draw(run, data.test.tensor())
            pictures[name] = (shown, terms)
            document[name] = {
                "sde": run.config.sde,
                "config": run.config.to_dict(),
                "step": run.step,
                "test": f"{len(data.test)} held-out digits, {fingerprint(data.test.tensor())}",
                **facts,
                "samples": records,
            }
            write_json(arguments.out / "digits_chains.json", document)
            print(name, facts["bits_per_dim"], facts["parts"], sep="\n")
    write_figure(arguments.out / "digits_chains.png", picture(pictures), dpi=100)


if __name__ == "__main__":
    main()
