"""Trains models of discrete states and measures them, with one command that resumes where it was stopped:

    python -m benchmarks.discrete.trained --text=FILE --mnist=FOLDER --workdir=RUNS [--model=NAME]

* ``heartbeat``: the bound in bits (the entropy is log2 5 = 2.322), and the share of valid samples by solver and
  evaluations, with Wilson's 95 % interval.
* ``text_absorbing``, ``text_multinomial``, ``text_sundae``: one network, one budget of updates, on a text.
  The bound in bits per character of held-out windows, and the entropy of single characters; the distances of samples
  and of training windows from held-out windows, in runs of characters. SUNDAE has no likelihood.
* ``mnist_binary``: black and white digits in the folder of MNIST's IDX files; the bound in bits/dim.

Errors are standard errors over the held-out samples. Writes trained.json, trained.txt (samples of the texts) and
trained.png (samples of the digits) to benchmarks/discrete/results. Networks are small, so that a CPU trains all of them
in half an hour.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import scoresde
import solvers
from benchmarks import only
from benchmarks.training.trained import Commands
from scoresde.benchmark.metrics import compare
from scoresde.benchmark.token_metrics import TOKEN_METRICS, invalid, wilson
from scoresde.data.dataset import Dataset
from scoresde.io.result_files import environment, write_json
from scoresde.runs import build
from scoresde.runs.run import Run, load_run
from scoresde.sampling.pictures import image_grid, listing
from solvers.files import write_atomically

RESULTS = Path(__file__).parent / "results"
_SHORT = ("--config.training.evaluate_every=0",)
_TEXT = (
    "--config.model.network=transformer(width=64,depth=2,heads=4)", "--config.data.length=32",
    "--config.training.steps=2000", "--config.training.batch_size=64", "--config.training.learning_rate=4e-3",
    "--config.training.checkpoint_every=500",
)  # fmt: skip
MODELS: dict[str, tuple[str, ...]] = {  # the changes of a config
    "heartbeat": (),
    "text_absorbing": _TEXT,
    "text_multinomial": _TEXT,
    "text_sundae": _TEXT,
    "mnist_binary": ("--config.training.checkpoint_every=500",),
}
SOLVERS = ("tweedie", "tau_hold", "theta_trapezoidal", "first_hitting")
NFE = (4, 8, 16, 32)
VALID, DRAWN, SCORED = 1000, 256, 256  # samples of a row of the heartbeat and of a text, held-out samples scored
SHOWN = 4  # texts in the listing
DECODER = "sundae"  # how SUNDAE's network is sampled


def bound_of(run: Run, x: Tensor, draws: int) -> dict[str, Any]:
    """The bound of held-out samples (N, *), in bits in all and per token, with its parts in nats."""
    found = scoresde.discrete_bound(run.denoiser, x, draws=draws, batch_size=64, progress=True)
    size = x[0].numel()
    bits = -found.nats.double() / math.log(2)
    error = float(bits.std()) / math.sqrt(len(bits))
    if invalid(x[:5], x[5:10]) == 0:  # all there is, so that only the draws are random
        error = float(found.stderr.square().mean().sqrt()) / math.log(2) / math.sqrt(len(bits))
    return {
        "kind": found.kind,
        "samples": len(x),
        "draws": draws,
        "bits": [float(bits.mean()), error],
        "bits_per_token": [float(bits.mean()) / size, error / size],
        "parts_in_nats": {name: float(part.mean()) for name, part in found.budget.items()},
    }


def heartbeat(run: Run, data: Dataset) -> tuple[dict[str, Any], Tensor]:
    """The bound of the five sequences, and the valid share of samples by solver and evaluations."""
    beats = torch.eye(5, dtype=torch.long).repeat(1, 4)
    rows = []
    for solver in SOLVERS:
        for nfe in NFE if solver != "first_hitting" else (None,):
            steps = None if nfe is None else nfe // solvers.make(solver).evaluations
            made = scoresde.sample(run.denoiser, None, VALID, solver, steps=steps)
            wrong = invalid(made.x, beats)
            low, high = wilson(wrong, VALID)
            rows.append({"solver": solver, "nfe": made.nfe, "valid": [1 - wrong, 1 - high, 1 - low]})
    return {"entropy_bits": math.log2(5), "bound": bound_of(run, beats.repeat(64, 1), 64), "valid": rows}, made.x


def text(run: Run, data: Dataset) -> tuple[dict[str, Any], Tensor]:
    """The bound of held-out windows if the model has one, and distances of samples from held-out windows."""
    held_out, train = data.test.tensor(), data.train.some(4096).x
    counts = torch.bincount(train.flatten(), minlength=run.card.states or 0).double() + 1
    entropy = float(-(counts / counts.sum()).log2()[held_out.flatten()].mean())
    sundae = run.config.training.loss.startswith("sundae")
    made = scoresde.sample(
        run.denoiser,
        None,
        DRAWN,
        run.config.sampling.solver or (DECODER if sundae else None),
        steps=run.config.sampling.steps,
    )
    names = [name for name in TOKEN_METRICS if name.endswith("grams")]
    distances = {
        name: {key: vars(value) for key, value in compare(x, held_out[:2048], names, repeats=20).items()}
        for name, x in (("samples", made.x), ("training windows", data.train.some(DRAWN).x))
    }
    places = torch.linspace(0, len(held_out) - 1, SCORED).long()
    return {
        "unigram_bits_per_character": entropy,
        "bound": None if sundae else bound_of(run, held_out[places], 32),
        "solver": made.solver,
        "nfe": made.nfe,
        "distances": distances,
    }, made.x


def mnist_binary(run: Run, data: Dataset) -> tuple[dict[str, Any], Tensor]:
    """The bound of held-out digits, and samples."""
    made = scoresde.sample(run.denoiser, None, 64, "tweedie", steps=run.config.sampling.steps, batch_size=16)
    facts = {"bound": bound_of(run, data.test.first(SCORED).x, 32), "solver": made.solver, "nfe": made.nfe}
    return facts, made.x


MEASURES: dict[str, Callable[[Run, Dataset], tuple[dict[str, Any], Tensor]]] = {
    "heartbeat": heartbeat,
    "text_absorbing": text,
    "text_multinomial": text,
    "text_sundae": text,
    "mnist_binary": mnist_binary,
}


def measured(name: str, path: Path | None, workdir: Path, steps: int | None) -> tuple[dict[str, Any], Tensor, Run]:
    """The row of a model, trained where it is not, and its samples."""
    folder = workdir / name
    commands = Commands({workdir: "RUNS", **({path: "DATA"} if path else {})})
    given = [f"--config.data.path={path}"] if path else []
    changes = [*MODELS[name], *_SHORT, *([] if steps is None else [f"--config.training.steps={steps}"])]
    commands.run("train", f"--config={name}", f"--workdir={folder}", *given, *changes)
    run = load_run(folder)
    facts, x = MEASURES[name](run, build.load_data(run.config, run.card))
    lines = [json.loads(line) for line in (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    planned = run.config.training.steps  # of a run that was stopped more than its updates
    training = {"updates": run.step, "of": planned, "seconds": lines[-1]["seconds"], "commands": commands.kept}
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path and path.is_file() else None
    row = {"model": name, "process": str(run.denoiser.sde), "training": training, "sha256_of_text": digest}
    return {**row, **facts, **environment()}, x, run


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, help="a text file; without it the texts are left out")
    parser.add_argument("--mnist", type=Path, help="the folder of MNIST's IDX files; without it they are left out")
    parser.add_argument("--workdir", type=Path, required=True, help="the folder of the runs")
    parser.add_argument("--model", choices=MODELS, help="the only model to train and measure")
    parser.add_argument("--steps", type=int, help="optimiser updates, for a larger budget of all models")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    path = given.out / "trained.json"
    rows = {row["model"]: row for row in json.loads(path.read_text())["rows"]} if path.exists() else {}
    for name in MODELS:
        source = given.text if name.startswith("text") else given.mnist if name.startswith("mnist") else None
        if given.model not in (None, name) or (source is None and name != "heartbeat"):
            continue
        rows[name], x, run = measured(name, source, given.workdir, given.steps)
        if run.card.symbols:
            rows[name]["texts"] = run.card.texts(x[:SHOWN])
        if name == "mnist_binary":
            picture = io.BytesIO()
            image_grid(x.float(), run.card.low, run.card.high, columns=16, tile=56).save(picture, "PNG", optimize=True)
            write_atomically(path.with_suffix(".png"), picture.getvalue())
        header = {"command": "python -m benchmarks.discrete.trained --text=FILE --mnist=FOLDER --workdir=RUNS"}
        write_json(path, {"header": header, "rows": [rows[name] for name in MODELS if name in rows]})
    shown = [f"##### {name}\n{listing(row['texts'], range(SHOWN))}" for name, row in rows.items() if "texts" in row]
    write_atomically(path.with_suffix(".txt"), "\n".join(shown))


if __name__ == "__main__":
    only.run(main)
