"""Measures models that are trained on images, for the scripts ``mnist.py`` and ``cifar10.py``.

Everything that makes a model, its samples and its likelihood is a command of ``scoresde``, and the result file has
these commands. A script that was stopped resumes when it is started again: training and likelihood by their own means,
and samples that are there are not drawn again.

Frechet distances have an upward bias that grows as the number of samples falls. So every distance is between equal
numbers n of samples and of real images, and has a floor: the distance between those real images and n other ones. The
real images are drawn at random several times; a figure is the mean over these draws, with its standard deviation.
"""

from __future__ import annotations

import argparse
import io
import json
import shlex
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.features.mnist_classifier import in_batches
from scoresde.benchmark.metrics import frechet
from scoresde.cli import main as scoresde_command
from scoresde.data import DataCard
from scoresde.io.array_files import read_arrays
from scoresde.io.result_files import environment, write_json
from scoresde.runs import build
from scoresde.runs.run import Run, load_run
from scoresde.sampling.pictures import image_grid
from solvers import InputError, generator
from solvers.errors import unknown
from solvers.files import write_atomically

RESULTS = Path(__file__).parent / "results"
NFE = 20
COUNTS = (100, 200, 500, 1000, 2000)  # of samples, for the distance and its floor
DRAWS = 10  # of the real images
SHOWN = 100
# one probe: the standard error over the images includes that of the probes
PROBES = "--config.likelihood.divergence=hutchinson(probes=1)"
LIKELIHOOD = ("--solver=adams_adaptive(rtol=0.0001, atol=0.0001)", PROBES)


@dataclass(frozen=True)
class Variant:
    """A model to train.

    Attributes:
        config: the name of its config.
        classes: draw equal numbers of samples of so many classes; None for a model without classes.
        guidance: also draw samples under these rules, to read their classes.
    """

    config: str
    classes: int | None = None
    guidance: tuple[str, ...] = ()


@dataclass(frozen=True)
class Images:
    """The data of a script and what looks at them.

    Attributes:
        name: the name of the result files.
        path: the value of ``config.data.path``.
        digests: the SHA-256 of each file of the data and of the features' network.
        features: maps images (B, *) to features (B, k).
        logits: maps features (B, k) to logits of classes, or None if no figure reads classes.
    """

    name: str
    path: Path
    digests: Mapping[str, str]
    features: Callable[[Tensor], Tensor]
    logits: Callable[[Tensor], Tensor] | None = None


def parser_of(description: str, data: str) -> argparse.ArgumentParser:
    """The parser of a script's arguments.

    Args:
        data: what ``--data`` names.
    """
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=raw, allow_abbrev=False)
    parser.add_argument("--data", type=Path, required=True, help=data)
    parser.add_argument("--workdir", type=Path, required=True, help="the folder of the runs")
    parser.add_argument("--model", default=None, help="the config of the only model to train and measure; default: all")
    parser.add_argument("--steps", type=int, default=None, help="optimiser updates; by default the config's")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, mps")
    parser.add_argument("--samples", type=int, default=2000, help="how many to draw from each model")
    parser.add_argument("--scored", type=int, default=1000, help="how many held-out images to score")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder of the result files")
    return parser


def read(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The arguments of a script; those that start with --config. become ``overrides`` of the training."""
    given, rest = parser.parse_known_args(arguments)
    if wrong := [argument for argument in rest if not argument.startswith("--config.")]:
        parser.error(f"unrecognized arguments: {' '.join(wrong)}")
    given.remade = shlex.join(["--data=DATA", "--workdir=RUNS", *_rest_of(given), *rest])
    given.overrides = rest if given.steps is None else [*rest, f"--config.training.steps={given.steps}"]
    return given


def _rest_of(given: argparse.Namespace) -> list[str]:
    """The arguments that decide the figures, as they are given, without the defaults."""
    names = ("model", "steps", "device", "samples", "scored")
    defaults = {"device": "cpu", "samples": 2000, "scored": 1000}
    return [f"--{name}={value}" for name in names if (value := getattr(given, name)) != defaults.get(name)]


class Commands:
    """Runs commands of ``scoresde``, and keeps them as text in which ``names`` replace folders."""

    def __init__(self, names: Mapping[Path, str]) -> None:
        self.names, self.kept = names, list[str]()

    def run(self, *arguments: str) -> None:
        """Runs a command; a command that fails or is stopped ends the script with its exit status."""
        self.keep(*arguments)
        if status := scoresde_command(list(arguments)):
            sys.exit(status)

    def keep(self, *arguments: str) -> None:
        """Keeps a command whose results are there already."""
        text = shlex.join(["scoresde", *arguments])
        for folder, name in self.names.items():
            text = text.replace(str(folder), name)
        self.kept.append(text)


def measure(given: argparse.Namespace, images: Images, variants: Sequence[Variant]) -> None:
    """Trains and measures the variants; writes the result file and a picture of each after each one.

    The rows of other variants that the file has stay as they are.
    """
    names, out = [variant.config for variant in variants], given.out / f"{images.name}.json"
    if given.model is not None and given.model not in names:
        raise unknown("model", given.model, names)
    rows: dict[str, dict[str, Any]] = {}
    if out.exists():
        rows = {row["config"]: row for row in json.loads(out.read_text(encoding="utf-8"))["rows"]}
    for variant in variants:
        if given.model not in (None, variant.config):
            continue
        commands = Commands({given.workdir: "RUNS", images.path: "DATA"})
        row, x = measured(given, images, variant, commands)
        rows[variant.config] = {
            **row,
            **environment(given.device),
            "picture": f"{images.name}_{variant.config}.png",
            "command": f"python -m benchmarks.training.{images.name} {given.remade}",
            "commands": commands.kept,
        }
        picture = io.BytesIO()
        image_grid(x[:: max(1, len(x) // SHOWN)][:SHOWN], -1, 1, tile=64).save(picture, "PNG", optimize=True)
        write_atomically(given.out / rows[variant.config]["picture"], picture.getvalue())
        header = {
            "command": f"python -m benchmarks.training.{images.name} --data=DATA --workdir=RUNS",
            "sha256": dict(images.digests),
        }
        document = {"header": header, "rows": [rows[name] for name in names if name in rows]}
        write_json(out, document)


def measured(
    given: argparse.Namespace, images: Images, variant: Variant, commands: Commands
) -> tuple[dict[str, Any], Tensor]:
    """The figures of one variant, and its samples (N, *)."""
    workdir, device = given.workdir / variant.config, f"--config.device={given.device}"
    named = (f"--config={variant.config}", f"--workdir={workdir}", f"--config.data.path={images.path}", device)
    commands.run("train", *named, *given.overrides)
    run = load_run(workdir)
    data = build.load_data(run.config, run.card)
    x, drawn = samples_of(workdir, run, variant.classes, given.samples, device, commands)
    out = workdir / f"likelihood_{run.step}"
    scored = ("--split=test", f"--limit={given.scored}", *LIKELIHOOD, device)
    commands.run("likelihood", f"--workdir={workdir}", f"--out={out}", *scored)
    found = in_batches(images.features, x)
    real = {"held out": data.test.tensor(), "train": data.train.tensor()}
    row: dict[str, Any] = {
        "config": variant.config,
        "seed": run.config.seed,
        "training": training_of(workdir, run.config),
        "samples": drawn,
        "bits_per_dim": likelihood_of(out),
        "frechet": [
            {"against": name, **one}
            for name, y in real.items()
            for one in distances(found, in_batches(images.features, y))
        ],
    }
    if images.logits is not None:
        read = images.logits(found).argmax(1)
        asked = None if variant.classes is None else classes_of(len(x), variant.classes)
        row["read_as"] = readings(read, asked)
        for rule in variant.guidance:
            others, facts = samples_of(workdir, run, variant.classes, given.samples, device, commands, rule)
            seen = in_batches(images.features, others)
            near = distances(seen, in_batches(images.features, real["held out"]))
            shares = readings(images.logits(seen).argmax(1), asked)
            row.setdefault("guided", []).append(
                {"guidance": rule, "samples": facts, "read_as": shares, "frechet": near}
            )
    return row, x


def classes_of(count: int, classes: int) -> Tensor:
    """The classes (count,) of the samples: equal numbers of each, in order.

    Raises:
        InputError: the classes do not divide the number of samples.
    """
    if count % classes:
        raise InputError(f"--samples={count} is not a multiple of the {classes} classes")
    return torch.arange(classes).repeat_interleave(count // classes)


def samples_of(
    workdir: Path,
    run: Run,
    classes: int | None,
    count: int,
    device: str,
    commands: Commands,
    guidance: str | None = None,
    budget: str = f"--nfe={NFE}",
) -> tuple[Tensor, dict[str, Any]]:
    """The samples of the seeds 0 .. count - 1, in order, as images, and their facts; drawn where they are not there."""
    folder = workdir / (f"samples_{run.step}" if guidance is None else f"samples_{run.step}_{guidance}")
    guided = [] if guidance is None else [f"--guidance={guidance}"]
    asked: list[tuple[list[str], str]] = [([], f"0-{count - 1}")]
    if classes is not None:
        each = len(classes_of(count, classes)) // classes
        asked = [([f"--class={k}"], f"{k * each}-{(k + 1) * each - 1}") for k in range(classes)]
    parts, records = [], []
    for options, seeds in asked:
        out = folder / seeds
        arguments = (
            "sample",
            f"--workdir={workdir}",
            f"--out={out}",
            budget,
            f"--seeds={seeds}",
            *options,
            *guided,
            device,
        )
        if (out / "samples.json").exists():  # it is written last
            commands.keep(*arguments)
        else:
            commands.run(*arguments)
        records.append(json.loads((out / "samples.json").read_text(encoding="utf-8")))
        parts.append(torch.from_numpy(read_arrays(out / "samples.npz")["x"]))
    names = ("solver", "grid", "steps", "nfe", "forwards")  # the last since it is counted
    facts = {name: records[0][name] for name in names if name in records[0]}
    seconds = round(sum(record["seconds"] for record in records), 1)
    return as_images(torch.cat(parts), run.card), {
        "count": count,
        "seeds": f"0..{count - 1}",
        **facts,
        "seconds": seconds,
    }


def as_images(x: Tensor, card: DataCard) -> Tensor:
    """Samples (N, *) rounded to the levels that the images have."""
    assert card.bin_width is not None
    return card.low + card.bin_width * ((x.clamp(card.low, card.high) - card.low) / card.bin_width).round()


def distances(x: Tensor, real: Tensor) -> list[dict[str, Any]]:
    """Frechet distances of features x (N, k) from real features (M, k), with the floor, for several numbers of them."""
    most = min(len(x), len(real) // 2)
    rows = []
    for n in [*(n for n in COUNTS if n < most), most]:
        values, floors = [], []
        for k in range(DRAWS):
            draws = generator(0, n, k)
            order, mine = torch.randperm(len(real), generator=draws), torch.randperm(len(x), generator=draws)
            these, others = real[order[:n]], real[order[n : 2 * n]]
            values.append(frechet(x[mine[:n]], these))
            floors.append(frechet(others, these))
        rows.append({"n": n, "distance": _spread(values), "floor": _spread(floors)})
    return rows


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"mean": statistics.fmean(values), "stdev": statistics.stdev(values)}


def readings(read: Tensor, asked: Tensor | None) -> dict[str, Any]:
    """How many samples are read as each of ten classes, and the share that is read as the class that was requested.

    Args:
        read: the classes (N,) that the samples are read as.
        asked: the classes (N,) that were requested, or None.
    """
    found: dict[str, Any] = {"counts": read.bincount(minlength=10).tolist()}
    if asked is not None:
        right = (read == asked).double()
        share = float(right.mean())
        found["as_requested"] = {"share": share, "stderr": (share * (1 - share) / len(right)) ** 0.5}
        found["by_class"] = [float(right[asked == k].mean()) for k in range(int(asked.max()) + 1)]
    return found


def training_of(workdir: Path, config: Any) -> dict[str, Any]:
    """The settings of a training, and its seconds."""
    last = json.loads((workdir / "train.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    settings = {"sde": config.sde, **config.model.to_dict(), **config.training.to_dict()}
    return {**settings, "seconds": last["seconds"]}


def likelihood_of(folder: Path) -> dict[str, Any]:
    """Bits/dim of held-out images, its standard error over them, and the mean solver error, from a result folder."""
    document = json.loads((folder / "likelihood.json").read_text(encoding="utf-8"))
    facts = {name: document[name] for name in ("samples", "solver", "grid", "divergence", "nfe", "seconds")}
    value, error = document["means"]["bits_per_dim"], document["standard_errors"]["bits_per_dim"]
    return {"mean": value, "stderr": error, "solver_error_nats": document["uncertainty"]["solver"], **facts}
