"""Trains on MNIST and measures the models, with one command that resumes where it was stopped:

    python -m benchmarks.training.mnist --data=FOLDER --workdir=RUNS [--steps=6000] [--device=cuda] [--config. ...]

FOLDER contains MNIST's four IDX files. For each model: 2,000 samples at 20 evaluations, their Frechet distance from
real digits in the features of the committed classifier (``features/mnist_classifier.py``) with its floor, the classes
that it reads in them, and bits/dim of the first 1,000 held-out digits. Writes mnist.json and a picture of each model's
samples to benchmarks/training/results.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks import only
from benchmarks.features import mnist_classifier
from benchmarks.training import trained

VARIANTS = (
    trained.Variant("mnist_vp"),
    trained.Variant("mnist_class", classes=10, guidance=("cfg(scale=1.5)",)),
)


def main(arguments: Sequence[str] | None = None) -> None:
    given = trained.read(trained.parser_of(__doc__ or "", "the folder of MNIST's IDX files"), arguments)
    files = {**mnist_classifier.files_of(given.data), "classifier": mnist_classifier.WEIGHTS}
    network = mnist_classifier.load()
    images = trained.Images("mnist", given.data, mnist_classifier.digests(files), network.features, network.head)
    trained.measure(given, images, VARIANTS)


if __name__ == "__main__":
    only.run(main)
