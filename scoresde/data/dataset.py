"""Data sets by name: tensors in memory, split into train and test by a seed.

Whole numbers are levels: k = 0 .. K becomes x = 2 k / K - 1 in [-1, 1]. K is 255 for images of more than 17 levels up
to 255, and the largest number that occurs for everything else. Neighbouring levels are ``bin_width`` = 2 / K apart;
bits per dimension need this number. Other numbers stay as they are. Images get their channels first. Printing a data
set shows what was read. No loader unpickles objects: it returns the data or raises an error.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from solvers import InputError, generator
from solvers.errors import unknown
from solvers.libraries import library

from ..array_files import read_array, read_arrays, read_images
from ..result_files import fingerprint
from .conditions import Condition

_SPLIT = 20  # label of the generator's stream
_PART = 128  # 8-bit images whose largest number is below are probably not of 8 bits
_FEW = 16  # at most so many levels are counted, not read as 8 bits
_MOST_LEVELS = 65535  # whole floats beyond 16 bits are measurements
_EXACT = 2**23  # twice a whole number up to this is exact in float32


@dataclass(frozen=True)
class DataCard:
    """The properties of the training data that other commands need, and what identifies the data.

    Attributes:
        shape, low, high, bin_width, mean, deviation: see ``Dataset``.
        levels: the first level of the source and their number less one, which became [-1, 1]; None if the numbers of
            the source were not scaled.
        samples: how many samples the splits train and test have.
        fingerprints: those of the splits train and test.
        conditions: what belongs to each sample.
    """

    shape: tuple[int, ...]
    low: float
    high: float
    bin_width: float | None
    mean: float
    deviation: float
    levels: tuple[int, int] | None
    samples: tuple[int, int]
    fingerprints: tuple[str, str]
    conditions: tuple[Condition, ...] = ()

    def differences(self, other: DataCard) -> list[str]:
        """What other data have that these do not have, in words; empty if they are the same data."""
        if self.fingerprints == other.fingerprints and self.bin_width == other.bin_width:
            return []
        found = []
        if other.shape != self.shape:
            found.append(f"samples of shape {other.shape} instead of {self.shape}")
        if other.samples != self.samples:
            counts = [" + ".join(map(str, card.samples)) for card in (other, self)]
            found.append(f"{counts[0]} samples instead of {counts[1]} to train and test")
        if other.bin_width != self.bin_width:
            found.append(f"a bin width of {other.bin_width} instead of {self.bin_width}")
        scales = [f"mean {card.mean:.6g} and deviation {card.deviation:.6g}" for card in (other, self)]
        if scales[0] != scales[1]:
            found.append(" instead of ".join(scales))
        if not found:
            names = ("training", "test")
            for name, count, mine, yours in zip(
                names, self.samples, self.fingerprints, other.fingerprints, strict=True
            ):
                found += [f"other numbers in the {count} {name} samples"] if mine != yours else []
        return found


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in two splits, train and test.

    Attributes:
        name: the name that was passed to ``load``.
        train, test: (N, *) and (M, *), float32.
        bin_width: distance between neighbouring discrete levels in data units; None for continuous data.
        low, high: the range to display, in data units.
        levels: the first level of the source and their number less one, which became [-1, 1]; None if the numbers of
            the source were not scaled.
        notes: what was changed in reading, in words.
    """

    name: str
    train: Tensor
    test: Tensor
    bin_width: float | None
    low: float
    high: float
    levels: tuple[int, int] | None = None
    notes: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return tuple(self.train.shape[1:])

    @property
    def mean(self) -> float:
        """The mean of all numbers of the training split, in data units."""
        return float(self.train.double().mean())

    @property
    def deviation(self) -> float:
        """The standard deviation of all numbers of the training split, around their common mean, in data units."""
        return float(self.train.double().std(correction=0))

    @property
    def card(self) -> DataCard:
        """The data card."""
        return DataCard(
            self.shape, self.low, self.high, self.bin_width, self.mean, self.deviation, self.levels,
            samples=(len(self.train), len(self.test)),
            fingerprints=(fingerprint(self.train), fingerprint(self.test)),
        )  # fmt: skip

    def __str__(self) -> str:
        x = self.train
        facts = [
            f"{self.name}: {len(x)} + {len(self.test)} samples {self.shape} to train and test",
            f"numbers from {float(x.min()):.4g} to {float(x.max()):.4g}, mean {self.mean:.4g}, "
            f"standard deviation {self.deviation:.4g}",
        ]
        if self.bin_width is not None:
            facts.append(f"levels, {self.bin_width:.4g} apart")
        return "; ".join([*facts, *self.notes])


@dataclass(frozen=True)
class _Raw:
    """The arrays that a loader read: rows (N, *) and, if the source has its own split, test rows (M, *)."""

    rows: np.ndarray
    test: np.ndarray | None = None
    levels: int | None = None  # the largest level K; None to look at the numbers


def load(
    name: str,
    path: str = "",
    seed: int = 0,
    test_fraction: float = 1 / 6,
    bin_width: float | None = None,
    card: DataCard | None = None,
) -> Dataset:
    """Loads a data set by its name.

    Args:
        name: "digits", scikit-learn's 1797 images (1, 8, 8); "idx", images (1, H, W) in MNIST's file format, plain or
            gzipped; "file", an array (N, *) in a .npy file, or in a .npz file under the key "x", under its only key, or
            under "train" and "test".
        path: the file for "idx" and "file", or a folder for "idx".
        seed: the seed of the shuffled split. A source with its own split keeps that split and its order.
        test_fraction: the share of the rows that go to the test split, rounded; each split gets at least one row.
        bin_width: the distance between the levels of a "file", whose numbers then stay as they are.
        card: the card of the data that a model was trained on; the numbers are scaled as they were then.

    Raises:
        InputError: the name is unknown; the file is missing, unreadable or damaged; the data are empty, not numbers,
            not finite, or fewer than two rows; a bin width is given for data whose levels are known.
    """
    if name not in _LOADERS:
        raise unknown("data set", name, _LOADERS)
    if not 0 < test_fraction < 1:
        raise InputError(f"test_fraction must lie between 0 and 1, got {test_fraction!r}")
    raw = _LOADERS[name](path)
    source = f"{name} data {path!r}" if path else f"{name} data"
    arrays = [raw.rows] if raw.test is None else [raw.rows, raw.test]
    for array in arrays:
        _check(array, source)
    if len({array.shape[1:] for array in arrays}) > 1:
        raise InputError(f"{source}: samples are {raw.rows.shape[1:]} in train but {arrays[1].shape[1:]} in test")
    if raw.levels is not None and bin_width is not None:
        raise InputError(f"{source} are levels {2 / raw.levels:g} apart in [-1, 1]; leave out bin_width")
    levels, notes = None if raw.levels is None else (0, raw.levels), []
    if raw.levels is None and bin_width is None:
        levels = _levels(arrays, source) if card is None else card.levels
    if levels is not None and raw.levels is None:
        notes.append(_scaling(arrays, levels, card is not None, source))
    if move := channels_place(arrays[0].shape[1:], levels is not None):
        notes.append(move.note)
    splits = [_floats(array if move is None else move.of(array), levels, source) for array in arrays]
    train, test = splits if raw.test is not None else _split(splits[0], seed, test_fraction, source)
    low, high = (-1.0, 1.0) if levels is not None else (float(train.min()), float(train.max()))
    width = bin_width if levels is None else 2 / levels[1]
    return Dataset(name, train, test, width, low, high, levels, tuple(notes))


def spread(x: Tensor, bin_width: float, noise: Tensor) -> Tensor:
    """Spreads levels x (B, *) uniformly over their bins: returns x + bin_width (u - 1/2).

    This is uniform dequantisation, Theis et al. 2016 (arXiv:1511.01844), section 3.1: the expected log-density of the
    result is a lower bound of the log-probability of the level, up to the log of the bin's volume.

    The result has the wider dtype of x and u, and at least float32: in 16 bits few numbers lie within a bin.

    Args:
        bin_width: the distance between levels, in data units.
        noise: u (B, *) in [0, 1).

    Raises:
        InputError: the noise does not have the shape of x, or the bin width is not positive.
    """
    if not (bin_width > 0 and math.isfinite(bin_width)):
        raise InputError(f"bin_width must be positive, got {bin_width!r}")
    if noise.shape != x.shape:
        raise InputError(f"dequantisation noise has shape {tuple(noise.shape)}, but x has shape {tuple(x.shape)}")
    wide = torch.promote_types(torch.promote_types(x.dtype, noise.dtype), torch.float32)
    return x.to(wide) + bin_width * (noise.to(wide) - 0.5)


class Channels(NamedTuple):
    """How the channels of an array of images come first, and the sentence that reports it."""

    of: Callable[[np.ndarray], np.ndarray]
    note: str


def channels_place(shape: tuple[int, ...], levels: bool) -> Channels | None:
    """What brings the channels of samples of ``shape`` first; None if nothing needs to be done.

    Samples (H, W, C) with C of 1, 3 or 4 and H, W of at least 8 are images with their channels last. Samples (H, W) of
    levels, H and W at least 8, are images without an axis for their one channel.
    """
    if len(shape) == 3 and shape[2] in (1, 3, 4) and min(shape[:2]) >= 8:
        return Channels(lambda x: np.moveaxis(x, -1, 1), f"channels moved first, samples were {tuple(shape)}")
    if len(shape) == 2 and levels and min(shape) >= 8:
        return Channels(lambda x: x[:, None], f"one channel added, samples were {tuple(shape)}")
    return None


def _check(rows: np.ndarray, source: str) -> None:
    if rows.dtype.kind not in "buif":
        raise InputError(f"{source}: expected real numbers, got an array of {rows.dtype}")
    if rows.ndim < 2:
        raise InputError(f"{source}: expected an array (N, *) of N samples, got shape {rows.shape}")
    if rows.size == 0:
        raise InputError(f"{source}: empty, its shape is {rows.shape}")


def _levels(arrays: list[np.ndarray], source: str) -> tuple[int, int] | None:
    """The first level and their number less one, if all numbers are whole; None for continuous data.

    Images with levels from 17 to 255 have 8 bits, whether or not the lightest one occurs; other data have the levels
    that occur. Floats are levels if they are whole and exceed the range [-1, 1], as in an image that was converted and
    not scaled.

    Raises:
        InputError: integers that float32 does not distinguish.
    """
    floats = arrays[0].dtype.kind == "f"
    if floats and not all(np.isfinite(array).all() and (array == np.rint(array)).all() for array in arrays):
        return None
    low, high = min(int(array.min()) for array in arrays), max(int(array.max()) for array in arrays)
    if floats and (high <= 1 or high - low > _MOST_LEVELS):
        return None
    low = min(low, 0)
    if high - low > _EXACT:
        raise InputError(f"{source}: integers from {low} to {high} are not exact in float32; scale them to floats")
    if low == 0 and _FEW < high <= 255 and _images(arrays[0].shape[1:]):
        return 0, 255
    return low, max(1, high - low)


def _images(shape: tuple[int, ...]) -> bool:
    """Whether samples of levels of ``shape`` are images: with 1, 3 or 4 channels first or last, or (H, W)."""
    if len(shape) == 3:
        return shape[0] in (1, 3, 4) or shape[2] in (1, 3, 4)
    return len(shape) == 2 and min(shape) >= 8


def _scaling(arrays: list[np.ndarray], levels: tuple[int, int], known: bool, source: str) -> str:
    """Which scaling was made of whole numbers, and why; warns of images that use a small part of 8 bits.

    Args:
        known: the levels are those of the training data.
    """
    shape, (first, count) = tuple(arrays[0].shape[1:]), levels
    text = f"whole numbers from {first} to {first + count}, scaled to [-1, 1]"
    if known:
        return f"{text} as the training data were"
    if not (first == 0 and count == 255 and _images(shape)):
        return f"{text}: the levels that occur"
    low, high = min(int(array.min()) for array in arrays), max(int(array.max()) for array in arrays)
    if high < _PART:
        warnings.warn(
            f"{source}: samples {shape} are read as images of 8 bits, but of 0 to 255 only {low} to {high} occur, "
            f"which become [{2 * low / 255 - 1:.2g}, {2 * high / 255 - 1:.2g}]; if {high} is the largest level, save "
            f"floats 2 x / {high} - 1 and pass bin_width={2 / high:.6g} (on the command line --config.data.bin_width)",
            stacklevel=3,
        )
    return f"{text}: samples {shape} are images, read as 8 bits; {low} to {high} occur"


def _floats(rows: np.ndarray, levels: tuple[int, int] | None, source: str) -> Tensor:
    with np.errstate(over="ignore"):  # the check below reports a number that is too large for float32
        x = torch.from_numpy(np.array(rows, dtype=np.float32))
    if not torch.isfinite(x).all():
        raise InputError(f"{source}: contains numbers that are not finite in float32")
    if levels is None:
        return x
    first, last = levels
    return (2 * (x - first) - last) / last  # this order rounds only once


def _split(x: Tensor, seed: int, test_fraction: float, source: str) -> tuple[Tensor, Tensor]:
    count = len(x)
    if count < 2:
        raise InputError(f"{source}: {count} row cannot be split into train and test; at least 2 are needed")
    order = torch.randperm(count, generator=generator(seed, _SPLIT))
    held = min(max(1, round(count * test_fraction)), count - 1)
    return x[order[held:]], x[order[:held]]


def _digits(path: str) -> _Raw:
    if path:
        raise InputError(f"the data set 'digits' comes with scikit-learn and takes no path, got {path!r}")
    try:
        load_digits = library("sklearn.datasets").load_digits
    except ImportError:
        raise InputError("the data set 'digits' needs scikit-learn: pip install \"scoresde[metrics]\"") from None
    return _Raw(load_digits().images[:, None], levels=16)


def _idx(path: str) -> _Raw:
    place = _existing("idx", path)
    if not place.is_dir():
        return _Raw(_read_idx(place), levels=255)
    # one entry per image file; if the folder contains it both plain and gzipped, the plain one
    found: dict[str, Path] = {}
    for file in sorted(place.glob("*images*idx3-ubyte*")):
        if file.name.endswith(("ubyte", ".gz")):
            found.setdefault(file.name.removesuffix(".gz"), file)
    if not found:
        raise InputError(f"no IDX images in {path!r}; expected files like train-images-idx3-ubyte, plain or with .gz")
    if len(found) == 1:
        return _Raw(_read_idx(*found.values()), levels=255)
    train = [file for name, file in found.items() if "train" in name]
    test = [file for name, file in found.items() if "t10k" in name]
    if len(train) != 1 or len(test) != 1:
        raise InputError(f"{path!r} contains several sets of images; name one file: {', '.join(sorted(found))}")
    return _Raw(_read_idx(train[0]), _read_idx(test[0]), levels=255)


def _read_idx(file: Path) -> np.ndarray:
    """Images (N, 1, H, W), uint8, from an IDX file."""
    return read_images(file, "data")[:, None]


def _file(path: str) -> _Raw:
    file = _existing("file", path)
    if file.suffix == ".npy":
        return _Raw(read_array(file, "data"))
    if file.suffix != ".npz":
        raise InputError(f"cannot read {path!r}; expected a .npy or .npz file")
    found = read_arrays(file, "data", pick=_needed)
    rows, *test = found.values()
    return _Raw(rows, test[0] if test else None)


def _needed(names: list[str]) -> tuple[str, ...]:
    """Of the names of an archive's arrays, those that contain the data."""
    if {"train", "test"} <= set(names):
        return "train", "test"
    if "x" in names or len(names) == 1:
        return ("x" if "x" in names else names[0],)
    raise InputError(f"it needs one array, or the key 'x', or 'train' and 'test'; it has {', '.join(names) or 'none'}")


def _existing(name: str, path: str) -> Path:
    if not path:
        raise InputError(f"the data set {name!r} needs a path")
    place = Path(path)
    if not os.path.exists(place):  # also False for a name that is too long
        raise InputError(f"the path {path!r} of the data set {name!r} does not exist")
    if name == "file" and place.is_dir():
        raise InputError(f"{path!r} is a folder; the data set 'file' needs a .npy or .npz file")
    return place


_LOADERS: dict[str, Callable[[str], _Raw]] = {"digits": _digits, "idx": _idx, "file": _file}
