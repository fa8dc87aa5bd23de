"""Every config that comes with the library resumes to the same bits after Ctrl-C, SIGTERM and ``kill -9``."""

import importlib.resources
import os
import random
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import forked
from test_train import assert_same_end

from scoresde.cli.parser import main
from scoresde.runs.config import read_config
from scoresde.training.loop import Training

CONFIGS = sorted(
    path.stem
    for path in Path(str(importlib.resources.files("scoresde.configs"))).glob("*.py")
    if path.stem not in ("__init__", "default")
)
REPRESENTATIVES = ("digits_vp", "digits_vdm")
STEPS = 12


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Two tiny data sets: IDX files in a folder, and colour images in a file."""
    folder, numbers = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for part, count in (("train", 24), ("t10k", 8)):
        pixels = numbers.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        header = b"\x00\x00\x08\x03" + b"".join(length.to_bytes(4, "big") for length in pixels.shape)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
    np.save(folder / "colours.npy", numbers.integers(0, 256, (24, 3, 32, 32), dtype=np.uint8))
    return {"idx": folder, "file": folder / "colours.npy"}


def arguments_of(name, images):
    """The arguments that train a small network by a config, in few updates."""
    config = read_config(name)
    small = {"mlp": "width=16, depth=1", "unet": "channels=[32, 32], layers=1"}
    kind, _, options = config.model.network.removesuffix(")").partition("(")
    kept = f"{options}, " if kind == "mlp" and options else ""
    path = [f"--config.data.path={images[config.data.name]}"] if config.data.name in images else []
    return [
        "train", f"--config={name}", f"--config.model.network={kind}({kept}{small[kind]})", *path,
        f"--config.training.steps={STEPS}", "--config.training.batch_size=5", "--config.training.checkpoint_every=4",
        "--config.training.evaluate_every=0",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in REPRESENTATIVES else pytest.mark.slow) for n in CONFIGS]
)
def test_every_config_resumes_to_the_same_bits(tmp_path, monkeypatch, images, name):
    if read_config(name).model.network.startswith("unet"):
        pytest.importorskip("diffusers")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    began = time.monotonic()
    assert main([*arguments_of(name, images), f"--workdir={tmp_path / 'whole'}"]) == 0
    seconds = time.monotonic() - began
    command = [*arguments_of(name, images), f"--workdir={tmp_path / 'stopped'}"]
    update = Training.update
    for number, step in ((signal.SIGINT, 2), (signal.SIGTERM, 6)):

        def stopped(self, number=number, step=step):
            if self.step == step:
                signal.raise_signal(number)
            return update(self)

        monkeypatch.setattr(Training, "update", stopped)
        assert main(command) == 130
        assert (tmp_path / "stopped" / "checkpoints" / f"step_{step + 1:08d}").exists()
    monkeypatch.setattr(Training, "update", update)

    def killed():
        threading.Timer(random.uniform(0, seconds), lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
        return main(command)

    _, status = os.waitpid(forked(killed), 0)  # at a moment that no one chose
    assert status in (0, signal.SIGKILL)
    assert main(command) == 0
    assert_same_end(tmp_path / "whole", tmp_path / "stopped")
    torch.set_num_threads(threads)
