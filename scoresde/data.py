"""Data sets by name: tensors in memory, split into train and test by a seed.

Images of grey levels k = 0 .. K become x = 2 k / K - 1 in [-1, 1]. Neighbouring levels are ``bin_width`` = 2 / K apart;
bits per dimension need this number. No loader unpickles objects: it returns the data or raises an error.
"""

from __future__ import annotations

import gzip
import math
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from solvers import InputError, generator
from solvers.errors import unknown

_SPLIT = 20  # label of the generator's stream
_UBYTE_IMAGES = (0x08, 3)  # IDX: the code of unsigned bytes, and the dimensions count, height, width


@dataclass(frozen=True)
class DataCard:
    """The properties of the training data that other commands need: shape, range and bin width."""

    shape: tuple[int, ...]
    low: float
    high: float
    bin_width: float | None


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in two splits, train and test.

    Attributes:
        name: the name that was passed to ``load``.
        train, test: (N, *) and (M, *), float32.
        bin_width: distance between neighbouring discrete levels in data units; None for continuous data.
        low, high: the range to display, in data units.
    """

    name: str
    train: Tensor
    test: Tensor
    bin_width: float | None
    low: float
    high: float

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return tuple(self.train.shape[1:])


@dataclass(frozen=True)
class _Raw:
    """The arrays that a loader read: rows (N, *) and, if the source has its own split, test rows (M, *)."""

    rows: np.ndarray
    test: np.ndarray | None = None
    levels: int | None = None  # the largest grey level K; None for continuous data


def load(name: str, path: str = "", seed: int = 0, test_fraction: float = 1 / 6) -> Dataset:
    """Loads a data set by its name.

    Args:
        name: "digits", scikit-learn's 1797 images (1, 8, 8); "idx", images (1, H, W) in MNIST's file format, plain or
            gzipped; "file", an array (N, *) in a .npy file, or in a .npz file under the key "x", under its only key, or
            under "train" and "test".
        path: the file for "idx" and "file", or a folder for "idx".
        seed: the seed of the shuffled split. A source with its own split keeps that split and its order.
        test_fraction: the share of the rows that go to the test split, rounded; each split gets at least one row.

    Raises:
        InputError: the name is unknown; the file is missing, unreadable or damaged; the data are empty, not numbers,
            not finite, or fewer than two rows.
    """
    if name not in _LOADERS:
        raise unknown("data set", name, _LOADERS)
    if not 0 < test_fraction < 1:
        raise InputError(f"test_fraction must lie between 0 and 1, got {test_fraction!r}")
    raw = _LOADERS[name](path)
    source = f"{name} data {path!r}" if path else f"{name} data"
    train, test = _floats(raw.rows, raw.levels, source), None
    if raw.test is None:
        train, test = _split(train, seed, test_fraction, source)
    else:
        test = _floats(raw.test, raw.levels, source)
    if train.shape[1:] != test.shape[1:]:
        raise InputError(f"{source}: samples are {tuple(train.shape[1:])} in train but {tuple(test.shape[1:])} in test")
    if raw.levels is not None:
        return Dataset(name, train, test, 2 / raw.levels, -1.0, 1.0)
    return Dataset(name, train, test, None, float(train.min()), float(train.max()))


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


def _floats(rows: np.ndarray, levels: int | None, source: str) -> Tensor:
    if rows.dtype.kind not in "buif":
        raise InputError(f"{source}: expected real numbers, got an array of {rows.dtype}")
    if rows.ndim < 2:
        raise InputError(f"{source}: expected an array (N, *) of N samples, got shape {rows.shape}")
    if rows.size == 0:
        raise InputError(f"{source}: empty, its shape is {rows.shape}")
    with np.errstate(over="ignore"):  # the check below reports a number that is too large for float32
        x = torch.from_numpy(np.array(rows, dtype=np.float32))
    if not torch.isfinite(x).all():
        raise InputError(f"{source}: contains numbers that are not finite in float32")
    return x if levels is None else (2 * x - levels) / levels  # this order rounds only once


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
        from sklearn.datasets import load_digits
    except ImportError:
        raise InputError("the data set 'digits' needs scikit-learn: pip install \"scoresde[metrics]\"") from None
    return _Raw(load_digits().images[:, None], levels=16)


def _idx(path: str) -> _Raw:
    place = _existing("idx", path)
    if place.is_file():
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
    """Reads images (N, 1, H, W), uint8, from an IDX file.

    The format: two zero bytes, the type, the number of dimensions, the big-endian sizes, then the pixels.
    """
    try:
        content = file.read_bytes()
        if file.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot read {str(file)!r}: {error}") from None
    if len(content) < 16 or content[:2] != b"\0\0" or (content[2], content[3]) != _UBYTE_IMAGES:
        raise InputError(f"{str(file)!r} is not an IDX file of images (unsigned bytes in three dimensions)")
    sizes = struct.unpack(">3I", content[4:16])
    if len(content) - 16 != math.prod(sizes):
        raise InputError(f"{str(file)!r} is damaged: {len(content) - 16} bytes for {math.prod(sizes)} pixels {sizes}")
    return np.frombuffer(content, np.uint8, offset=16).reshape(sizes)[:, None]


def _file(path: str) -> _Raw:
    file = _existing("file", path)
    if file.suffix not in (".npy", ".npz"):
        raise InputError(f"cannot read {path!r}; expected a .npy or .npz file")
    try:
        loaded = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return _Raw(loaded)
        with loaded:
            keys = list(loaded)
            if {"train", "test"} <= set(keys):
                return _Raw(loaded["train"], loaded["test"])
            if "x" in keys or len(keys) == 1:
                return _Raw(loaded["x" if "x" in keys else keys[0]])
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        refused = "allow_pickle" in str(error)
        reason = "it contains pickled objects, which are refused" if refused else str(error).partition("\n")[0]
        raise InputError(f"cannot read {path!r}: {reason}") from None
    raise InputError(f"{path!r} needs one array, or the key 'x', or 'train' and 'test'; it has {', '.join(keys)}")


def _existing(name: str, path: str) -> Path:
    if not path:
        raise InputError(f"the data set {name!r} needs a path")
    place = Path(path)
    if not place.exists():
        raise InputError(f"the path {path!r} of the data set {name!r} does not exist")
    if name == "file" and not place.is_file():
        raise InputError(f"{path!r} is a folder; the data set 'file' needs a .npy or .npz file")
    return place


_LOADERS: dict[str, Callable[[str], _Raw]] = {"digits": _digits, "idx": _idx, "file": _file}
