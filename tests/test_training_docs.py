"""The page about training runs as it is printed, in the order of the page, with few updates and a small network."""

import shlex
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from scoresde.cli.parser import main
from scoresde.runs import choices
from scoresde.training import checkpoint

PAGE = Path(__file__).parent.parent / "docs" / "training.md"
FEW = [
    f"--config.training.{field}" for field in ("steps=3", "batch_size=8", "checkpoint_every=2", "evaluate_likelihood=2")
]
SMALL = {"photos": "unet(channels=[8, 16], groups=4)"}


def blocks(text):
    """The Python and the shell blocks of a page, in order."""
    found, language, lines = [], None, []
    for line in text.splitlines():
        if line.startswith("```"):
            if language in ("python", "bash"):
                found.append((language, "\n".join(lines)))
            language, lines = (line[3:] if language is None else None), []
        elif language is not None:
            lines.append(line)
    return found


def run(line):
    """Runs a command of the page; returns its exit status."""
    words = shlex.split(line, comments=True)
    few = [change for change in FEW if change.partition("=")[0] not in [word.partition("=")[0] for word in words]]
    resumed = "train" in words and not any(word.startswith(("--data", "--config=")) for word in words)
    name = next((word.partition("=")[2] for word in words if word.startswith("--data=")), "")
    network = SMALL.get(name, "mlp(width=16, depth=1)")
    words += [*few, f"--config.model.network={network}"] if "train" in words and not resumed else []
    words += ["--config.training.evaluate_every=50"] if resumed else []
    assert words[0] == "scoresde"
    return main(words[1:])


@pytest.mark.long
def test_the_page_runs_as_printed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(choices, "_device", lambda: "cpu")
    names, statuses = {}, []
    for language, body in blocks(PAGE.read_text(encoding="utf-8")):
        if language == "python":
            exec(compile(body.replace("steps=300", "steps=20"), "page", "exec"), names)
            continue
        for line in filter(None, map(str.strip, body.splitlines())):
            if line.startswith("torchrun"):
                continue  # below
            statuses.append(run(line))
            assert statuses[-1] == (75 if "exit status 75" in line else 0), line
    assert statuses.count(75) == 1
    assert len(statuses) == 14
    # the files that the page lists
    for name in ("training.html", "config.json", "config.py", "train.jsonl", "evaluations.jsonl", "grids"):
        assert (tmp_path / "runs" / "photos" / name).exists()
    assert np.load("samples/photos/samples.npz")["x"].shape == (8, 3, 16, 16)
    assert '"label": [' in (tmp_path / "samples" / "both" / "samples.json").read_text()
    assert (tmp_path / "likelihood" / "points" / "classes.json").exists()
    assert (tmp_path / "samples" / "rhyme" / "samples.txt").read_text().startswith("=== seed 0 ===\n")
    assert names["log_p"].shape == (3,)
    assert names["samples"].x.shape == (16, 2)
    assert names["likelihood"].nats.isfinite().all()


@pytest.mark.slow
def test_the_launcher_runs_as_printed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("signals.npy", np.random.default_rng(0).normal(size=(50, 1, 32)).astype(np.float32))
    (line,) = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("torchrun")]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--master-addr=127.0.0.1", f"--master-port={port}"]
    words = [*launcher, *shlex.split(line)[1:], *FEW, "--config.device=cpu"]
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert ", 2 processes" in done.stdout
    assert checkpoint.latest(tmp_path / "runs" / "two").name == "step_00000003"


def test_the_table_of_statuses_is_that_of_the_command():
    from scoresde.cli import parser, training

    table = PAGE.read_text(encoding="utf-8").partition("| exit status |")[2].partition("\n\n")[0]
    rows = [line.split("|")[1].strip() for line in table.splitlines() if line[:2] == "| "]
    named = [int(row) for row in rows if row.isdecimal()]
    assert named == [0, training.UNFINISHED, parser.STOPPED, parser.INVALID]


@pytest.mark.parametrize(
    "field", ["steps", "evaluate_every", "evaluate_likelihood", "keep_every", "averages", "compile"]
)
def test_fields_that_the_page_names_exist(field):
    from scoresde.configs import default

    assert field in PAGE.read_text(encoding="utf-8")
    assert field in default.get_config().training
