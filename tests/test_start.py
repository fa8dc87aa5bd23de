"""The page to start from and the README run as they are printed, in the order of the page."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

import scoresde
from scoresde.cli.parser import main

ROOT = Path(__file__).parent.parent


def blocks(text):
    """The Python and the shell blocks of a page, in order; commands are also blocks of four spaces."""
    return re.findall(r"^```(python|bash)\n(.*?)^```", text, re.M | re.S)


def run(text, changes=()):
    """Runs the blocks of a page in the current folder; returns the names that its Python defines."""
    names = {}
    for language, body in blocks(text):
        if language == "python":
            exec(compile(body, "page", "exec"), names)
            continue
        for line in filter(None, map(str.strip, body.splitlines())):
            words = shlex.split(line, comments=True)
            assert words[0] == "scoresde"
            assert main([*words[1:], *(changes if words[1] == "train" else ())]) == 0, line
    return names


# evaluations and networks of the usual width take time; tests/test_training_docs.py has evaluations
CHANGES = ["--config.training.evaluate_every=0", "--config.model.network=mlp(width=64, depth=2)"]


@pytest.mark.long
@pytest.mark.parametrize("changes", [CHANGES, pytest.param([], marks=pytest.mark.slow)], ids=["small", "as printed"])
def test_the_page_to_start_from_runs_as_printed(changes, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = run((ROOT / "docs" / "start.md").read_text(encoding="utf-8"), changes)
    printed = capsys.readouterr().out
    assert "nothing to change" in printed  # what check says of the network that the page trains
    # the spiral is an arm of width 0.03; samples of the trained model lie near it: a tenth of the spiral's radius
    samples, points = np.load("samples/samples.npz")["x"], names["points"]
    nearest = np.sqrt(((samples[:, None] - points[None]) ** 2).sum(2)).min(1)
    assert np.median(nearest) < 0.2
    assert (tmp_path / "pictures" / "grid.png").stat().st_size > 500
    # the defaults of the table are the defaults
    record = json.loads((tmp_path / "few" / "samples.json").read_text())
    assert (record["solver"], record["grid"], record["nfe"]) == ("few", "few", 5)
    assert (names["samples"].solver, names["samples"].grid) == ("ipndm", "logsnr(end=zero)")
    assert torch.equal(names["few"].x, scoresde.sample(names["denoiser"], (2,), seeds=16, nfe=5).x)
    assert "bits/dim" not in printed.partition("spiral")[2].partition("waves")[0]  # continuous data: nats


@pytest.mark.slow
def test_the_readme_runs_as_printed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run((ROOT / "README.md").read_text(encoding="utf-8"))
    assert names["lp"].nats.isfinite().all()
    assert (tmp_path / "bench").is_dir()
