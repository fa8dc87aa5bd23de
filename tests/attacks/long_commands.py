"""The commands under attack, on a model of a few thousand weights, and the content of the files that they leave.

All run in a folder that contains a trained run, ``run``, and a result that each of them made before, with other
settings.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from attacks.processes import run
from scoresde.benchmark.rows import FILES
from scoresde.cli.start import main

MODEL = (
    "--config=digits_vp",
    "--config.model.network=mlp(width=16, depth=1)",
    "--config.training.batch_size=16",
    "--config.training.checkpoint_every=4",
    "--config.training.log_every=3",
    "--config.training.steps=24",
    "--config.training.averages=ema, power(std=0.05), power(std=0.1)",
    "--config.training.snapshot_every=3",
)
# entries of the files that no two runs have in common; "plain" is the fingerprint of a shard's member with its seconds
TIMES = frozenset({"seconds", "seconds_per_sample", "plain"})
# what a killed process may leave: a file or a folder that never got its name, and the lock, which is empty
LEFT_OVER = re.compile(r"(^|/)(\.[^/]*(tmp|new)[^/]*|\.lock|[^/]*\.lock)(/|$)")


def command_line(*arguments: str) -> int:
    """Runs the command line."""
    return main(list(arguments))


def tune(seed: int) -> int:
    """Tunes a grid for the run's model and writes it to ``tuned.json``."""
    import torch

    import scoresde
    import solvers
    from scoresde.models.problem import Diffusion

    denoiser = scoresde.load("run")
    x = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    problem = Diffusion(denoiser)
    reference = solvers.trajectory(problem, x, denoiser.sde, steps=12)
    solvers.tune_grid("euler", problem, 4, reference, starts=1, runs=4).save("tuned.json", seed=seed)
    return 0


@dataclass(frozen=True)
class Command:
    """A command under attack.

    Attributes:
        name: its name.
        function, arguments: the call.
        before: the arguments that made the result that is there before it; None if there is none.
        results: the files and folders that it writes.
        record: the file that says what the result is, without which nothing is one; None if every file is a result.
        resumes: whether work that was done is kept.
        kept: a pattern of files that one run may keep and another not.
        parts: a pattern of files that are replaced one by one, as they are done, and not with the result.
    """

    name: str
    function: Callable[..., int]
    arguments: tuple[Any, ...]
    before: tuple[Any, ...] | None
    results: tuple[str, ...]
    record: str | None = None
    resumes: bool = False
    kept: str = "$^"  # files that one run may keep and another not: checkpoints between, of which a stop writes its own
    parts: str = "$^"


def _benchmark(seeds: int) -> tuple[str, ...]:
    row = ("--workdir=run", "--out=bench", "--solvers=ddim, heun", "--nfe=2,4")
    return ("benchmark", *row, f"--seeds={seeds}", "--overwrite")


def _sample(seeds: int) -> tuple[str, ...]:
    return ("sample", "--workdir=run", "--out=samples", "--steps=3", f"--seeds={seeds}", "--overwrite")


COMMANDS = (
    Command(
        "train",
        command_line,
        ("train", "--workdir=new", *MODEL),
        None,
        ("new",),
        None,
        True,
        r"new/checkpoints/step_(?!00000024)",
    ),
    Command(
        "likelihood",
        command_line,
        ("likelihood", "--workdir=run", "--out=scores", "--limit=24", "--steps=4", "--config.likelihood.batch_size=3"),
        None,
        ("scores",),
        resumes=True,
    ),
    Command("sample", command_line, _sample(9), _sample(6), ("samples",), "samples/samples.json"),
    Command(
        "benchmark",
        command_line,
        _benchmark(9),
        _benchmark(6),
        tuple(f"bench/{name}" for name in FILES),
        "bench/results.json",
        parts="bench/rows/",
    ),
    Command("tune", tune, (1,), (0,), ("tuned.json",)),
)


def prepared(folder: Path) -> Path:
    """Makes the folder in which all commands run: a trained run, and the results of before."""
    folder.mkdir(parents=True)
    assert run(command_line, folder, "train", "--workdir=run", *MODEL).status == 0
    for command in COMMANDS:
        if command.before is not None:
            ended = run(command.function, folder, *command.before)
            assert ended.status == 0, ended.output
    return folder


def copy(base: Path, folder: Path) -> Path:
    """A copy of the prepared folder."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(base, folder)
    return folder


def content(folder: Path, results: tuple[str, ...] = (".",)) -> dict[str, Any]:
    """The content of all result files, bit for bit, without the times and without ``LEFT_OVER``."""
    paths = [
        p for name in results for p in ([folder / name] if (folder / name).is_file() else (folder / name).rglob("*"))
    ]
    names = {path.relative_to(folder).as_posix(): path for path in sorted(paths) if path.is_file()}
    return {name: _content(path) for name, path in names.items() if not LEFT_OVER.search(name)}


def _content(path: Path) -> Any:
    data = path.read_bytes()
    if path.suffix == ".json":
        return _timeless(json.loads(data))
    if path.suffix == ".jsonl":
        return [_line(line) for line in data.decode().splitlines()]
    if path.suffix == ".csv":
        lines = [line.split(",") for line in data.decode().splitlines()]
        kept = [k for k, title in enumerate(lines[0]) if title not in TIMES]
        return [[line[k] for k in kept] for line in lines]
    if path.suffix == ".npz":
        with np.load(io.BytesIO(data)) as arrays:
            return {name: _array(arrays[name]) for name in arrays}
    if path.name == "training.html":  # it draws the speed of the training; all else in it is in the files compared here
        return data.rstrip().endswith(b"</html>")
    if path.suffix == ".html":  # a time is followed by its unit, or stands in the last column of a table
        data = re.sub(rb'\d[\d.]* ?s\b|<td( data-[vt]="[\d.e+-]*")*>[\d.e+-]*</td>\s*</tr>', b"", data)
    return hashlib.sha256(data).hexdigest()


def _line(text: str) -> Any:
    """A line of a log; as it is if the process ended in the middle of it."""
    try:
        return _timeless(json.loads(text))
    except ValueError:
        return text


def _array(value: np.ndarray) -> Any:
    if value.dtype.kind == "U":  # JSON
        return _timeless(json.loads(str(value)))
    return value.dtype.str, value.shape, value.tobytes()


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(part) for key, part in value.items() if key not in TIMES}
    return [_timeless(part) for part in value] if isinstance(value, list) else value


def differences(there: dict[str, Any], here: dict[str, Any], but: str = "$^") -> str:
    """The names of the files that differ, for a message; empty if none does. Names that begin with ``but`` may."""
    names = [name for name in {**there, **here} if there.get(name) != here.get(name)]
    return ", ".join(name for name in names if not re.match(but, name))


def work(folder: Path) -> set[str]:
    """The work that is done and kept in a folder: updates up to the last checkpoint, and shards."""
    names = [path.name for path in folder.rglob("*") if path.parent.name in ("checkpoints", "shards")]
    steps = [int(match[1]) for name in names if (match := re.fullmatch(r"step_(\d+)", name))]
    return {f"update {k}" for k in range(max(steps, default=0))} | {n for n in names if re.fullmatch(r"\d+\.npz", n)}
