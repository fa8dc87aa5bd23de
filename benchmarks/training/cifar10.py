"""Trains a small U-Net on 4,000 CIFAR-10 images and measures it, with one command that resumes where it was stopped:

    python -m benchmarks.training.cifar10 --data=FILE --features=resnet20-12fca82f.th --workdir=RUNS [--steps=6000]

FILE, such as cifar10_4000.npz, has the key x, uint8 (4000, 32, 32, 3); the last tenth is held out. 2,000 samples at 20
evaluations, their Frechet distance from both sets in the 64 features of a ResNet-20 (``features/resnet20.py``) with its
floor, and bits/dim of the held-out images. The ResNet was trained on CIFAR-10, these images included. Writes
cifar10.json and a picture to benchmarks/training/results.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks import only
from benchmarks.features import resnet20
from benchmarks.features.mnist_classifier import digests
from benchmarks.training import trained
from scoresde.io.array_files import read_arrays
from scoresde.io.result_files import writable, write_arrays
from solvers import InputError

VARIANTS = (trained.Variant("cifar10_small"),)


def split(source: Path, folder: Path) -> Path:
    """A file in ``folder`` with the first nine tenths of a file of images as ``train``, and the others as ``test``.

    Raises:
        InputError: the file cannot be read, or has no array x of at least ten images.
    """
    arrays = read_arrays(source, "file of images")
    if "x" not in arrays or len(arrays["x"]) < 10:
        raise InputError(
            f"{str(source)!r} needs an array x of at least 10 images; it has {', '.join(arrays) or 'none'}"
        )
    x = arrays["x"]
    first = len(x) - len(x) // 10
    target = writable(folder) / "cifar10.npz"
    write_arrays(target, train=x[:first], test=x[first:])
    return target


def main(arguments: Sequence[str] | None = None) -> None:
    parser = trained.parser_of(__doc__ or "", "the .npz file of images")
    parser.add_argument("--features", type=Path, required=True, help="the state dict resnet20-12fca82f.th")
    given = trained.read(parser, arguments)
    given.remade = f"--features=FEATURES {given.remade}"
    network = resnet20.load(given.features)
    path = split(given.data, given.workdir)
    files = {"images": given.data, "features": given.features}
    images = trained.Images("cifar10", path, digests(files), network.features, network.linear)
    trained.measure(given, images, VARIANTS)


if __name__ == "__main__":
    only.run(main)
