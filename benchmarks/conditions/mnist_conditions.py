"""Measures classes, guidance and inverse problems on the networks that ``benchmarks/training/mnist.py`` has trained:

    python -m benchmarks.conditions.mnist_conditions --data=FOLDER --workdir=RUNS [--samples=1000] [--draws=4]

FOLDER contains MNIST's four IDX files, RUNS the runs mnist_vp and mnist_class. A script that was stopped resumes when
it is started again. It measures

- how many samples of a class the classifier of ``features/mnist_classifier.py`` reads as that class, without and with
  guidance, and their Frechet distance from held-out digits;
- held-out digits that ``scoresde.restore`` draws from an observation: how well A x agrees with y, how far the mean is
  from the truth, and how far the draws spread;
- the classes of held-out digits by their likelihood under each class, and by its variational bound.

Writes mnist_conditions.json and mnist_restored.png to benchmarks/conditions/results.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

import scoresde
from benchmarks import only
from benchmarks.features import mnist_classifier
from benchmarks.training import trained
from scoresde.benchmark.token_metrics import wilson
from scoresde.io.array_files import read_arrays
from scoresde.io.result_files import environment, write_arrays, write_figure, write_json
from scoresde.operators.base import Operator, measure
from scoresde.operators.linear import Downsample, Inpaint
from scoresde.runs import build
from scoresde.runs.class_posterior import ClassPosterior
from scoresde.runs.run import load_run
from solvers import generator

RESULTS = Path(__file__).parent / "results"
CLASSES, SIGMA = 10, 0.05
SCALES: tuple[tuple[float, str | None], ...] = (
    (1, None),
    (1.5, "cfg(scale=1.5)"),
    (3, "cfg(scale=3)"),
    (3, "cfg(scale=3, interval=[0.2, 5])"),
)
TILT, TILT_STEPS = "tilt(scale=1.5, particles=8)", 25
METHODS = ("ddrm", "dps", "mmps")
PARTICLES = "tds(particles=16)"  # for the first problem alone: each draw costs 16 times as much
RESTORE_STEPS, PARTICLE_DRAWS = 50, 2
SHOWN = 2  # draws of each digit in the picture
EVALUATIONS = 24  # for each digit and class
BUDGET = ("--solver=uni_pc(order=4)", f"--nfe={EVALUATIONS}", trained.PROBES, "--config.likelihood.error=False")


class Digits(NamedTuple):
    """Images (N, 1, 28, 28) in [-1, 1], and their labels (N,)."""

    x: Tensor
    labels: Tensor


def problems() -> dict[str, Operator]:
    """The observations of a digit, by their names."""
    rows = torch.arange(28)[:, None].expand(28, 28)
    pixels = torch.rand(28, 28, generator=generator(0, 1)) < 0.25
    return {
        "upper half": Inpaint(rows < 14, sigma=SIGMA),
        "means of 4 x 4": Downsample(4, sigma=SIGMA),
        "a quarter of the pixels": Inpaint(pixels, sigma=SIGMA),
    }


def guided(given: argparse.Namespace, held: Tensor, commands: trained.Commands) -> list[dict[str, Any]]:
    """The classes that are read in samples of each class, for each rule of guidance."""
    workdir, network = given.workdir / "mnist_class", mnist_classifier.load()
    run, device = load_run(workdir), f"--config.device={given.device}"
    real = mnist_classifier.in_batches(network.features, held)
    asked = [(scale, rule, given.samples, f"--nfe={trained.NFE}") for scale, rule in SCALES]
    if given.tilted:
        asked.append((1.5, TILT, given.tilted, f"--steps={TILT_STEPS}"))
    rows = []
    for scale, rule, count, budget in asked:
        x, facts = trained.samples_of(workdir, run, CLASSES, count, device, commands, rule, budget)
        found = mnist_classifier.in_batches(network.features, x)
        read = network.head(found).argmax(1)
        classes = trained.classes_of(count, CLASSES)
        row: dict[str, Any] = {
            "scale": scale,
            "guidance": rule,
            "samples": facts,
            "read_as": trained.readings(read, classes),
        }
        row["as_requested"] = wilson(float((read == classes).double().mean()), count)
        rows.append({**row, "frechet": trained.distances(found, real)})
    return rows


def restored(given: argparse.Namespace, digits: Digits) -> tuple[list[dict[str, Any]], Figure]:
    """The draws of each method for each problem, in numbers and as a picture."""
    workdir, network = given.workdir / "mnist_vp", mnist_classifier.load()
    run = load_run(workdir)
    folder = workdir / f"restored_{run.step}"
    folder.mkdir(exist_ok=True)
    rows, panels = [], {}
    for number, (name, operator) in enumerate(problems().items()):
        y = measure(operator, digits.x, noise=0)
        panels[name] = [("truth", digits.x), ("A^+ y", operator.pinv(y, tuple(digits.x.shape[1:])))]
        for method in (*METHODS, *((PARTICLES,) if number == 0 and given.particle_draws else ())):
            draws = given.particle_draws if method == PARTICLES else given.draws
            stem = folder / f"{number}_{method.partition('(')[0]}_{draws}"
            if not stem.with_suffix(".json").exists():  # it is written last
                found = scoresde.restore(
                    run.denoiser, operator, y, method, samples=draws, steps=given.steps, device=given.device,
                    batch_size=64, progress=True,
                )  # fmt: skip
                found.save(stem.with_suffix(".npz"))
                names = ("posterior", "solver", "grid", "steps", "nfe", "forwards", "vjps", "seconds")
                facts = {name: getattr(found, name) for name in names} | {"failed": len(found.failures)}
                effective = None if found.effective is None else found.effective.tolist()
                write_json(stem.with_suffix(".json"), facts | {"effective": effective})
            x = torch.from_numpy(read_arrays(stem.with_suffix(".npz"))["x"])
            facts = json.loads(stem.with_suffix(".json").read_text(encoding="utf-8"))
            rows.append({"problem": name, **facts, "draws": draws, **scores(operator, y, x, digits, network)})
            panels[name] += [*((f"{method}, draw", x[:, k]) for k in range(SHOWN)), ("mean", x.mean(1))]
            panels[name].append(("deviation", x.std(1) * 2 - 1))
    return rows, drawn(panels)


def scores(
    operator: Operator, y: Tensor, x: Tensor, digits: Digits, network: mnist_classifier.Classifier
) -> dict[str, float]:
    """The figures of draws x (n, S, *) of p(x0 | y).

    ``residual`` is |y - A x|^2 / (m sigma^2), its mean and the largest; ``error`` and ``deviation`` are the
    root-mean-squares, over all pixels, of the mean less the truth and of the deviation. The truth is like one more
    draw, so that error / deviation is sqrt(1 + 1 / S) if the spread is right.
    """
    residual = torch.stack([(operator(rows) - y[i]).flatten(1).square().mean(1) for i, rows in enumerate(x)])
    read = mnist_classifier.in_batches(network, x.flatten(0, 1)).argmax(1).view(x.shape[:2])
    right = (read == digits.labels[:, None]).double()
    return {
        "residual": float(residual.mean()) / SIGMA**2,
        "residual_max": float(residual.max()) / SIGMA**2,
        "residual_of_truth": float((operator(digits.x) - y).square().mean()) / SIGMA**2,
        "error": float((x.mean(1) - digits.x).square().mean().sqrt()),
        "deviation": float(x.var(1).mean().sqrt()),
        "read_as_truth": float(right.mean()),
        "largest": float(x.abs().max()),
    }


def drawn(panels: dict[str, list[tuple[str, Tensor]]]) -> Figure:
    """A panel for each problem: a column for each digit, a line for each kind of picture (n, 1, 28, 28)."""
    most = max(len(lines) for lines in panels.values())
    figure = Figure(figsize=(12, 0.42 * most + 0.4), layout="constrained")
    for axes, (name, lines) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        pictures = [torch.cat(list(torch.nn.functional.pad(x[:, 0], (0, 1, 0, 1), value=1.0)), 1) for _, x in lines]
        axes.imshow(torch.cat(pictures).clamp(-1, 1).numpy(), cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
        axes.set_yticks([29 * i + 14 for i in range(len(lines))], [label for label, _ in lines], fontsize=7)
        axes.set_xticks([])
        axes.set_anchor("N")
        axes.tick_params(length=0)
        axes.set_title(name, fontsize=9)
        for side in axes.spines.values():
            side.set_visible(False)
    return figure


def held_out(given: argparse.Namespace, commands: trained.Commands) -> dict[str, Any]:
    """Bayes' classifier of held-out digits."""
    workdir = given.workdir / "mnist_class"
    out = workdir / f"classes_{load_run(workdir).step}"
    commands.run(
        "likelihood", f"--workdir={workdir}", f"--out={out}", "--class=all", "--split=test",
        f"--limit={given.scored}", *BUDGET, f"--config.device={given.device}",
    )  # fmt: skip
    facts = json.loads((out / "classes.json").read_text(encoding="utf-8"))
    arrays = read_arrays(out / "classes.npz")
    ordered = torch.from_numpy(arrays["log_likelihood"]).sort(1, descending=True).values
    kept = {name: value for name, value in facts.items() if isinstance(value, float | int)}
    return {
        **{name: value for name, value in kept.items() if name != "step"},
        "bound": bounded(workdir, out, given),
        "accuracy_interval": wilson(facts["accuracy"], facts["scored"]),
        "margin_median": float((ordered[:, 0] - ordered[:, 1]).median()),
        "wrong": [
            {"digit": i, "class": int(arrays["classes"][i]), "predicted": int(arrays["predicted"][i])}
            for i in (arrays["predicted"] != arrays["classes"]).nonzero()[0].tolist()
        ],
        "evaluations": EVALUATIONS,
        "budget": [part.removeprefix("--") for part in BUDGET],
    }


def bounded(workdir: Path, out: Path, given: argparse.Namespace) -> dict[str, Any]:
    """The same from the variational bound, whose noise and times are the same for all classes."""
    run, place = load_run(workdir), out / "bound.npz"
    rows = build.load_data(run.config, run.card).test.first(given.scored)
    (name,) = rows.conditions
    assert run.card.bin_width is not None  # of levels
    if not place.exists():
        x, seeds = scoresde.dequantise(rows.x, run.card.bin_width, range(len(rows.x))), range(len(rows.x))
        nats = [
            scoresde.continuous_bound(
                run.denoiser, x, draws=EVALUATIONS, seeds=seeds, condition={name: torch.full((len(x),), k)},
                batch_size=100, progress=True,
            ).nats
            for k in range(CLASSES)
        ]  # fmt: skip
        write_arrays(place, nats=torch.stack(nats, 1))
    found = ClassPosterior(torch.from_numpy(read_arrays(place)["nats"]).double(), rows.conditions[name]).facts()
    interval = wilson(found["accuracy"], found["scored"])
    found = {name: value for name, value in found.items() if not name.startswith("log_likelihood")}  # a bound of it
    return {**found, "accuracy_interval": interval, "evaluations": EVALUATIONS}


def one_of_each(digits: Digits, count: int) -> Digits:
    """The first digit of each of the classes 0 .. count - 1."""
    places = torch.tensor([int((digits.labels == k).nonzero()[0]) for k in range(count)])
    return Digits(digits.x[places], digits.labels[places])


def parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    made = argparse.ArgumentParser(description=__doc__, formatter_class=raw, allow_abbrev=False)
    made.add_argument("--data", type=Path, required=True, help="the folder of MNIST's IDX files")
    made.add_argument("--workdir", type=Path, required=True, help="the folder of the runs")
    made.add_argument("--samples", type=int, default=1000, help="how many to draw for each rule of guidance")
    made.add_argument("--tilted", type=int, default=100, help="how many to draw with tilt; 0 for none")
    made.add_argument("--digits", type=int, default=8, help="how many held-out digits to restore")
    made.add_argument("--draws", type=int, default=4, help="how many draws for each of them")
    made.add_argument("--particle-draws", type=int, default=PARTICLE_DRAWS, help="the same for tds; 0 for none")
    made.add_argument("--steps", type=int, default=RESTORE_STEPS, help="the steps of a draw")
    made.add_argument("--scored", type=int, default=100, help="how many held-out digits to score under each class")
    made.add_argument("--device", default="cpu", help="cpu, cuda, mps")
    made.add_argument("--out", type=Path, default=RESULTS, help="the folder of the result files")
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    given = parser().parse_args(arguments)
    torch.set_num_threads(1)
    files = mnist_classifier.files_of(given.data)
    held = Digits(
        mnist_classifier.images_of(files["t10k-images-idx3-ubyte"]),
        mnist_classifier.labels_of(files["t10k-labels-idx1-ubyte"]),
    )
    commands = trained.Commands({given.workdir: "RUNS", given.data: "DATA"})
    rows, figure = restored(given, one_of_each(held, given.digits))
    by_rule, by_class = guided(given, held.x, commands), held_out(given, commands)
    write_figure(given.out / "mnist_restored.png", figure, 110)
    defaults = parser().parse_args(["--data=x", "--workdir=x"])
    names = ("samples", "tilted", "digits", "draws", "particle_draws", "steps", "scored", "device")
    changed = [f"--{n.replace('_', '-')}={getattr(given, n)}" for n in names if getattr(given, n) != vars(defaults)[n]]
    document = {
        "header": {
            **environment(given.device),
            "command": " ".join(
                ["python -m benchmarks.conditions.mnist_conditions --data=DATA --workdir=RUNS", *changed]
            ),
            "sha256": mnist_classifier.digests({**files, "classifier": mnist_classifier.WEIGHTS}),
            "commands": commands.kept,
            "sigma": SIGMA,
        },
        "guided": by_rule,
        "restored": rows,
        "held_out": by_class,
    }
    write_json(given.out / "mnist_conditions.json", document)


if __name__ == "__main__":
    only.run(main)
