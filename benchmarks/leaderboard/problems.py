"""The problems of the leaderboard: laws that have an exact score, and networks that are trained for it."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import scoresde
import solvers
from benchmarks.accuracy import steps_vs_quality


class Exact(NamedTuple):
    """A problem with an exact score: its words, its samples in a row, and the steps of its exact solution."""

    words: str
    samples: int
    truth_steps: int


EXACT = {
    "mixture": Exact("12 Gaussians in 8 dimensions, centres N(0, 0.6^2), deviations 0.03 to 0.25", 512, 512),
    "digits": Exact("scikit-learn's 1797 digits / 8 - 1, as point masses", 256, 192),
    "mnist": Exact("the first 500 test images of MNIST / 127.5 - 1, as point masses", 128, 192),
    "cifar10": Exact("500 images of CIFAR-10 / 127.5 - 1, as point masses", 64, 128),
}


class Network(NamedTuple):
    """A network that is trained for its boards.

    Attributes:
        data: the first word of its configs, and of the folders of its runs.
        overrides: of its configs.
        samples: in a row.
    """

    data: str
    overrides: tuple[str, ...]
    samples: int


SMALL = (  # of benchmarks/training/mnist.py's runs: a U-Net that a laptop trains
    "--config.model.network=unet(channels=[16,32,64])",
    "--config.training.batch_size=32",
    "--config.training.learning_rate=2e-3",
    "--config.training.schedule=cosine",
    "--config.training.averages=ema(decay=0.998)",
)
NETWORKS = {
    "trained": Network("digits", ("--config.training.steps=4500",), 512),  # the steps of `scoresde demo`
    "trained_mnist": Network("mnist", ("--config.training.steps=3000", *SMALL), 128),
}


def mixture() -> scoresde.targets.GaussianMixture:
    """12 Gaussians of different widths."""
    means = 0.6 * torch.randn(12, 8, generator=solvers.generator(3), dtype=torch.float64)
    spread = torch.linspace(0.03, 0.25, 12, dtype=torch.float64)
    return scoresde.targets.GaussianMixture(means, spread**2)


def target_of(problem: str, mnist: Path | None = None, cifar: Path | None = None) -> Any:
    """The law of a problem with an exact score; pictures are in a folder of MNIST's files or an .npz file."""
    if problem == "mixture":
        return mixture()
    if problem == "digits":
        return scoresde.targets.Empirical(steps_vs_quality.digits().data)
    if problem == "mnist":
        assert mnist is not None
        content = gzip.decompress((mnist / "t10k-images-idx3-ubyte.gz").read_bytes())
        pixels = torch.from_numpy(np.frombuffer(content, np.uint8, offset=16).reshape(-1, 1, 28, 28)[:500].copy())
    else:
        assert cifar is not None
        with np.load(cifar, allow_pickle=False) as arrays:
            first = next(arrays[name] for name in arrays.files if arrays[name].ndim == 4)[:500]
        pixels = torch.from_numpy(first.copy() if first.shape[1] == 3 else first.transpose(0, 3, 1, 2).copy())
    return scoresde.targets.Empirical(pixels.double() / 127.5 - 1)
