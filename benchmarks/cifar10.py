"""Trains a small U-Net on 4,000 CIFAR-10 images and measures it, with one command that resumes where it was stopped:

    python benchmarks/cifar10.py --data=cifar10_4000.npz --features=resnet20-12fca82f.th --workdir=RUNS [--steps=6000]

The file of images has the key x, uint8 (4000, 32, 32, 3); 3,600 are to train and 400 held out. 2,000 samples at 20
evaluations, their Frechet distance from both sets in the 64 features of a ResNet-20 (``features/resnet20.py``) with its
floor, and bits/dim of the held-out images. The ResNet was trained on CIFAR-10, these images included. Writes
cifar10.json and a picture to benchmarks/results.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import only
import trained
from features import resnet20
from features.mnist_classifier import digests

VARIANTS = (trained.Variant("cifar10_small"),)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = trained.parser_of(__doc__ or "", "the .npz file of images")
    parser.add_argument("--features", type=Path, required=True, help="the state dict resnet20-12fca82f.th")
    given = trained.read(parser, arguments)
    network = resnet20.load(given.features)
    files = {"images": given.data, "features": given.features}
    images = trained.Images("cifar10", given.data, digests(files), network.features, network.linear)
    trained.measure(given, images, VARIANTS)


if __name__ == "__main__":
    only.run(main)
