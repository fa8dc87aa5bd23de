"""Trains the classifier of MNIST's digits whose features the Frechet distances use, some minutes on two cores:

    python -m benchmarks.features.mnist_classifier --data=FOLDER

FOLDER contains MNIST's four IDX files, plain or with .gz. Writes the weights, in float16, and a record to
benchmarks/features/results/mnist_classifier.{safetensors,json}; the record has the share of the 10,000 held-out digits
that these weights read correctly.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from scoresde.io.array_files import read_images
from scoresde.io.result_files import environment, fingerprint, write_json
from solvers import InputError, generator
from solvers.files import write_atomically
from solvers.noise.seeded import global_seed

RESULTS = Path(__file__).parent / "results"
WEIGHTS = RESULTS / "mnist_classifier.safetensors"
SEED, EPOCHS, BATCH, RATE, DECAY, SHIFT = 0, 6, 128, 3e-3, 1e-2, 2
_LABELS = b"\0\0\x08\x01"  # IDX: unsigned bytes in one dimension


class Classifier(nn.Module):
    """A convolutional classifier of digits x (B, 1, 28, 28) in [-1, 1]; returns the logits (B, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(1, 32, 5, stride=2, padding=2, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
            *(nn.Conv2d(32, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(64, 64, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.Flatten()),
            *(nn.Linear(64 * 5 * 5, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU()),
        )
        self.head = nn.Linear(64, 10)

    def features(self, x: Tensor) -> Tensor:
        """The 64 activations before the last layer, (B, 64)."""
        found: Tensor = self.body(x)
        return found

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x))
        return logits


def load(path: Path = WEIGHTS) -> Classifier:
    """The trained classifier, in float32 and in evaluation mode."""
    network = Classifier()
    network.load_state_dict(load_file(path))
    return network.eval().requires_grad_(False)


def files_of(folder: Path) -> dict[str, Path]:
    """MNIST's four files, by their names without .gz.

    Raises:
        InputError: one is missing.
    """
    found = {}
    for name in (f"{half}-{kind}-ubyte" for half in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")):
        there = [path for path in (folder / name, folder / f"{name}.gz") if path.is_file()]
        if not there:
            raise InputError(f"no {name}, plain or with .gz, in {str(folder)!r}")
        found[name] = there[0]
    return found


def digests(files: dict[str, Path]) -> dict[str, str]:
    """The SHA-256 of each file, by the file's name."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files.values()}


def images_of(path: Path) -> Tensor:
    """The images (N, 1, H, W), float32 in [-1, 1], of an IDX file.

    Raises:
        InputError: it is not an IDX file of images.
    """
    return (2 * torch.from_numpy(read_images(path)).unsqueeze(1).float() - 255) / 255


def labels_of(path: Path) -> Tensor:
    """The labels (N,), int64, of an IDX file.

    Raises:
        InputError: it is not an IDX file of labels.
    """
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if content[:4] != _LABELS or len(content) - 8 != int.from_bytes(content[4:8], "big"):
        raise InputError(f"{str(path)!r} is not an IDX file of labels (unsigned bytes in one dimension)")
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=8).astype(np.int64))


def in_batches(function: Any, x: Tensor, size: int = 500) -> Tensor:
    """``function(x)`` for x (N, *), computed a few rows at a time and without gradients."""
    with torch.inference_mode():
        return torch.cat([function(rows) for rows in torch.split(x, size)])


def train(x: Tensor, labels: Tensor) -> Classifier:
    """A classifier of digits x (N, 1, 28, 28), trained with AdamW, a one-cycle learning rate and random shifts."""
    with global_seed(SEED):
        network = Classifier()
    steps = len(x) // BATCH
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=DECAY)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=EPOCHS * steps)
    for epoch in range(EPOCHS):
        draws = generator(SEED, epoch)
        order = torch.randperm(len(x), generator=draws)
        network.train()
        total = 0.0
        for rows in order[: steps * BATCH].view(steps, BATCH):
            top, left = torch.randint(2 * SHIFT + 1, (2,), generator=draws).tolist()
            moved = nn.functional.pad(x[rows], 4 * (SHIFT,), value=-1.0)[:, :, top : top + 28, left : left + 28]
            loss = nn.functional.cross_entropy(network(moved), labels[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            rates.step()
            total += float(loss.detach())
        print(f"epoch {epoch + 1} of {EPOCHS}: loss {total / steps:.4f}", flush=True)
    return network.eval().requires_grad_(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="the folder of MNIST's IDX files")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    files = files_of(arguments.data)
    began = time.perf_counter()
    network = train(images_of(files["train-images-idx3-ubyte"]), labels_of(files["train-labels-idx1-ubyte"]))
    seconds = time.perf_counter() - began
    state = {name: value.half() if value.is_floating_point() else value for name, value in network.state_dict().items()}
    write_atomically(WEIGHTS, save(state))
    kept = load()
    read = in_batches(kept, images_of(files["t10k-images-idx3-ubyte"])).argmax(1)
    right = read == labels_of(files["t10k-labels-idx1-ubyte"])
    settings = {"epochs": EPOCHS, "batch_size": BATCH, "learning_rate": RATE, "weight_decay": DECAY, "shift": SHIFT}
    document = {
        **environment(),
        "command": "python -m benchmarks.features.mnist_classifier --data=FOLDER",
        "seed": SEED,
        **settings,
        "seconds": round(seconds, 1),
        "weights": fingerprint(torch.cat([value.flatten().float() for value in kept.state_dict().values()])),
        "held_out": len(right),
        "accuracy": float(right.double().mean()),
        "data_sha256": digests(files),
    }
    write_json(RESULTS / "mnist_classifier.json", document)
    print(f"{int(right.sum())} of {len(right)} held-out digits are read correctly")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
