"""Compares learned noise schedules on the 8x8 digits by their variational bound:
python -m benchmarks.chains.learned_schedule

Trains one network per schedule through the continuous-time bound, with the same seed, data order and number of steps:
a fixed line of gamma, a line between learned ends, and a learned monotone function between learned ends. A fourth
schedule, the control, is a fixed line between the final ends of the monotone function; it separates the effect of the
ends from the effect of the shape between them. The digits keep their 17 levels, 1/8 apart. There are two choices of the
ends before training. One is that of Kingma et al. 2021 (arXiv:2107.00630) for 256 levels: -13.3 and 5. The other is the
same for 17 levels, which are 16 times as far apart, so that sigma / alpha at t = 0 is the same fraction of their
distance: -13.3 + 2 log 16 = -7.75 and 5.

Scores the held-out digits with the averaged weights: the bound in bits/dim, its parts, paired differences to the fixed
line, and the variance of the loss of one sample at one time, uniform in t.

Writes learned_schedule.json and learned_schedule.png to benchmarks/chains/results.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

import scoresde
from scoresde import data
from scoresde.bounds.continuous import continuous_bound
from scoresde.bounds.decoders import Levels
from scoresde.io.result_files import environment, fingerprint, write_figure, write_json
from scoresde.likelihood.result import LogProb
from scoresde.models.learned_path import with_network, with_schedule
from scoresde.models.networks import networks
from scoresde.paths.base import make_sde
from scoresde.paths.learned_vp import LearnedVP
from scoresde.paths.time_samplers import Uniform
from scoresde.training.bound_losses import ContinuousBound
from scoresde.training.loop import train
from scoresde.training.options import TrainingOptions
from solvers.noise.draws import Draws

RESULTS = Path(__file__).parent / "results"
ENDS = {"256 levels": (-13.3, 5.0), "17 levels": (-7.75, 5.0)}
FIXED = "learned_vp(schedule=linear, learn=False, gamma_min={}, gamma_max={})"
SCHEDULES = {
    "fixed": FIXED,
    "linear": "learned_vp(schedule=linear, gamma_min={}, gamma_max={})",
    "monotone": "learned_vp(schedule=monotone, gamma_min={}, gamma_max={})",
    "control": FIXED,
}
NETWORK, PREDICTS, SIGMA_DATA = "mlp(width=256, depth=3)", "edm", 0.75
OPTIONS = {
    "steps": 3000, "batch_size": 128, "learning_rate": 2e-3, "warmup": 100, "clip": 1.0, "averages": "ema(decay=0.998)",
    "log_every": 10, "checkpoint_every": 3000,
}  # fmt: skip
SEED, DRAWS, REPEATS = 0, 128, 100


def fit(spec: str, rows: Tensor, decoder: Levels, workdir: Path) -> tuple[scoresde.Denoiser, list[float]]:
    """The averaged model of a schedule, and the loss of every tenth update."""
    torch.manual_seed(SEED)
    sde = make_sde(spec)
    network = with_schedule(networks.make(NETWORK).build(tuple(rows.shape[1:])), sde)
    denoiser = scoresde.Denoiser(network, sde, PREDICTS, "c_noise", SIGMA_DATA)
    options = TrainingOptions(**OPTIONS, seed=SEED, workdir=workdir)  # type: ignore[arg-type]
    result = train(denoiser, network, rows, ContinuousBound(decoder), options, progress=False)
    log = (workdir / "train.jsonl").read_text(encoding="utf-8").splitlines()
    return with_network(denoiser, result.ema), [json.loads(line)["loss"] for line in log]


def one_sample_variance(denoiser: scoresde.Denoiser, x: Tensor, decoder: Levels) -> dict[str, float]:
    """The variance, in (bits/dim)^2, of the loss of one sample at one uniform time, and its standard error."""
    loss = ContinuousBound(decoder, Uniform())
    with torch.no_grad():
        values = torch.stack([loss(denoiser, x, Draws.of(SEED, k, len(x))).double() for k in range(REPEATS)])
    variances = values.var(1)  # of each repetition over the samples
    return {"mean": float(variances.mean()), "stderr": float(variances.std() / math.sqrt(REPEATS))}


def summary(values: Tensor) -> dict[str, float]:
    """Mean over the samples and its standard error."""
    return {"mean": float(values.mean()), "stderr": float(values.std() / math.sqrt(len(values)))}


def parts(bound: LogProb) -> dict[str, float]:
    """The bound's parts in bits/dim."""
    scale = -bound.dimensions * math.log(2)
    return {name: float(bound.budget[name].mean()) / scale for name in ("prior", "diffusion", "decoder")}


def picture(document: dict[str, Any], curves: dict[str, Any]) -> Figure:
    """Per choice of the ends: gamma over t; the loss in training; the variance of one sample's loss."""
    figure = Figure(figsize=(10.5, 6.4), layout="constrained")
    colours = {"fixed": "#555555", "linear": "#4477aa", "monotone": "#cc6677", "control": "#bbbbbb"}
    axes = figure.subplots(len(ENDS), 3, width_ratios=[1.2, 1.2, 0.9])
    for (ends, (gammas, losses)), (left, middle, right) in zip(curves.items(), axes, strict=True):
        found = document[ends]
        for name, colour in colours.items():
            style, order = ("--", 1) if name == "control" else ("-", 2)
            t = torch.linspace(0, 1, len(gammas[name]))
            left.plot(t, gammas[name], style, color=colour, label=name, zorder=order)
            left.plot([0, 1], [gammas[name][0], gammas[name][-1]], "o", color=colour, ms=5, zorder=order)
            window = torch.tensor(losses[name]).unfold(0, 20, 5).mean(1)  # of 20 logged updates
            middle.semilogy(
                10 * (10 + 5 * torch.arange(len(window))), window, style, color=colour, lw=1.2, zorder=order
            )
        left.set(xlabel="t", ylabel="gamma(t)", ylim=(-14.5, 9.5), title=f"first ends: for {ends}")
        middle.set(xlabel="update", ylabel="bits/dim", ylim=(2, 9), title="bound in training, 200 updates each")
        middle.set_yticks([2, 3, 4, 5, 6, 7, 8], ["2", "3", "4", "5", "6", "7", "8"])
        middle.minorticks_off()
        middle.grid(axis="y", lw=0.4, color="#dddddd")
        values = [found[name]["one_sample_variance"]["mean"] for name in colours]
        bars = right.bar(list(colours), values, color=list(colours.values()))
        right.bar_label(bars, [f"{value:.2f}" for value in values], fontsize=8)
        right.set(ylabel="(bits/dim)^2", ylim=(0, 1.12 * max(values)), title="variance of one loss")
        right.tick_params(axis="x", labelsize=8)
        left.legend(fontsize=8)
    return figure


def main() -> None:
    """Trains, scores, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    digits = data.load("digits")
    train, test = digits.train.tensor(), digits.test.tensor()
    assert digits.card.bin_width is not None
    decoder = Levels(digits.card.bin_width, digits.card.low, digits.card.high)
    document: dict[str, Any] = {
        "command": "python -m benchmarks.chains.learned_schedule",
        "environment": environment(),
        "data": f"{len(digits.train)} digits, held out {len(digits.test)}, {fingerprint(test)}",
        "decoder": str(decoder),
        "loss": str(ContinuousBound(decoder)),
        "network": NETWORK,
        "predicts": PREDICTS,
        "sigma_data": SIGMA_DATA,
        "training": OPTIONS,
        "seed": SEED,
        "draws": DRAWS,
        "repeats": REPEATS,
    }
    curves: dict[str, Any] = {}
    for ends, pair in ENDS.items():
        found: dict[str, Any] = {}
        gammas: dict[str, list[float]] = {}
        losses: dict[str, list[float]] = {}
        bits: dict[str, Tensor] = {}
        for name, template in SCHEDULES.items():
            spec = template.format(*(found["monotone"]["ends"] if name == "control" else pair))
            with tempfile.TemporaryDirectory() as folder:
                denoiser, losses[name] = fit(spec, train, decoder, Path(folder))
            sde = denoiser.sde
            assert isinstance(sde, LearnedVP)
            bound = continuous_bound(denoiser, test, draws=DRAWS, decoder=decoder)
            bits[name] = bound.bits_per_dim
            gammas[name] = sde.gamma(torch.linspace(0, 1, 101, dtype=torch.float64)).tolist()
            found[name] = {
                "spec": spec,
                "ends": [gammas[name][0], gammas[name][-1]],
                "bits_per_dim": summary(bits[name]),
                "parts": parts(bound),
                "one_sample_variance": one_sample_variance(denoiser, test, decoder),
                "minus_fixed": summary(bits[name] - bits["fixed"]),
                "gamma": gammas[name][::10],
                "loss": losses[name],
            }
            print(ends, json.dumps({k: v for k, v in found[name].items() if k not in ("gamma", "loss")}), flush=True)
        for other in ("linear", "control"):
            found["monotone"][f"minus_{other}"] = summary(bits["monotone"] - bits[other])
        document[ends], curves[ends] = found, (gammas, losses)
    write_json(arguments.out / "learned_schedule.json", document)
    write_figure(arguments.out / "learned_schedule.png", picture(document, curves), dpi=100)


if __name__ == "__main__":
    main()
