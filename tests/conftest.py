"""What several test files need.

One thread per process: the tests run side by side, and bit-for-bit comparisons need a fixed number.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from commands import SMALL

import solvers
from scoresde.cli.parser import main

torch.set_num_threads(1)
collect_ignore = ["attacks"]  # it has no doctests, and a part of it changes the process that imports it


def pytest_collection_modifyitems(items):
    """What takes long comes first: a process that has nothing left to do then waits for a short test."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A run of forty steps on the digits and the VP path, trained once a process; tests must not change it."""
    workdir = tmp_path_factory.mktemp("runs") / "digits"
    assert main(["train", "--config=digits_vp", f"--workdir={workdir}", "--config.training.steps=40", *SMALL]) == 0
    return workdir


@pytest.fixture
def registry(monkeypatch):
    """The registry of solvers, put back afterwards."""
    known = solvers.solvers
    monkeypatch.setattr(known, "_infos", dict(known._infos))
    monkeypatch.setattr(known, "_aliases", dict(known._aliases))
    monkeypatch.setattr(known, "_entry_points", None)
    return known
