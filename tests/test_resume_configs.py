"""Every config that comes with the library resumes to the same bits after Ctrl-C, SIGTERM and ``kill -9``.

The kills are twenty for each config, `pytest tests/test_resume_configs.py -k kill`; without the slow tests, four for
the representatives.
"""

import importlib.resources
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import forked
from test_cifar import batches, pickled
from test_configs import small_network
from test_train import assert_same_end, log, without_time

from scoresde.cli.parser import main
from scoresde.runs.config import read_config
from scoresde.training.loop import Training

CONFIGS = sorted(
    path.stem
    for path in Path(str(importlib.resources.files("scoresde.configs"))).glob("*.py")
    if path.stem not in ("__init__", "default")
)
REPRESENTATIVES = ("digits_vp", "digits_vdm")
STEPS, KILLS, FEW_KILLS = 12, 20, 4


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Tiny data sets: IDX files in a folder with ten classes, CIFAR-10's files, and colour images in a file."""
    folder, numbers = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for part, count in (("train", 24), ("t10k", 8)):
        pixels = numbers.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        header = b"\x00\x00\x08\x03" + b"".join(length.to_bytes(4, "big") for length in pixels.shape)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        labels = numbers.integers(0, 10, count, dtype=np.uint8).tobytes()
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(b"\x00\x00\x08\x01" + count.to_bytes(4, "big") + labels)
    np.save(folder / "colours.npy", numbers.integers(0, 256, (24, 3, 32, 32), dtype=np.uint8))
    cifar = batches(tmp_path_factory.mktemp("cifar"), pickled(2))
    return {"idx": folder, "file": folder / "colours.npy", "cifar": cifar}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def command_of(name, images, workdir):
    """The command that trains a small network by a config, in few updates."""
    config = read_config(name)
    if config.model.network.startswith("unet"):
        pytest.importorskip("diffusers")
    path = [f"--config.data.path={images[config.data.name]}"] if config.data.name in images else []
    return [
        "train", f"--config={name}", f"--config.model.network={small_network(config.model.network)}", *path,
        f"--config.training.steps={STEPS}", "--config.training.batch_size=5", "--config.training.checkpoint_every=4",
        "--config.training.evaluate_every=0", "--config.training.log_every=1", f"--workdir={workdir}",
    ]  # fmt: skip


def assert_same_run(one, other):
    """The same checkpoints, bit for bit, and the same log but for the seconds."""
    assert_same_end(one, other)
    assert without_time(log(one)) == without_time(log(other))


@pytest.mark.parametrize("name", [name if name in REPRESENTATIVES else slow(name) for name in CONFIGS])
def test_every_config_resumes_after_signals(tmp_path, monkeypatch, images, name):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert main(command_of(name, images, whole)) == 0
    command, update = command_of(name, images, stopped), Training.update
    for number, step in ((signal.SIGINT, 2), (signal.SIGTERM, 6)):

        def interrupted(self, number=number, step=step):
            if self.step == step:
                signal.raise_signal(number)
            return update(self)

        monkeypatch.setattr(Training, "update", interrupted)
        assert main(command) == 130
        assert (stopped / "checkpoints" / f"step_{step + 1:08d}").exists()
    monkeypatch.setattr(Training, "update", update)
    assert main(command) == 0
    assert_same_run(whole, stopped)


def killed(command, seconds):
    """Runs a command in a process of its own and kills it after so many seconds; whether it was still running."""
    child = forked(lambda: main(command))
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL)
    return status == signal.SIGKILL


@pytest.mark.parametrize(
    ("name", "kills"), [*((name, FEW_KILLS) for name in REPRESENTATIVES), *(slow(name, KILLS) for name in CONFIGS)]
)
def test_every_config_resumes_after_kills(tmp_path, images, name, kills):
    # one moment in each part of the run, in random order. A run that ends before it is compared, and the next one is
    # killed a little earlier
    whole = tmp_path / "whole"
    main(command_of(name, images, tmp_path / "first"))  # what is imported and built once
    began = time.monotonic()
    assert main(command_of(name, images, whole)) == 0
    seconds, numbers = time.monotonic() - began, random.Random(name)
    moments = [seconds * (part + numbers.random()) / kills for part in range(kills)]
    numbers.shuffle(moments)
    runs = 1
    while moments:
        stopped = tmp_path / f"stopped_{runs}"
        if killed(command_of(name, images, stopped), moments[-1]):
            moments.pop()
        else:
            assert_same_run(whole, stopped)
            runs, moments[-1] = runs + 1, 0.9 * moments[-1]
    stopped = tmp_path / f"stopped_{runs}"
    assert main(command_of(name, images, stopped)) == 0
    assert_same_run(whole, stopped)
