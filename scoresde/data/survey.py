"""The first pass over a source: its range, mean and deviation, a hash of its content, and the samples if they fit."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from solvers import InputError

from ..io.progress import bar
from .prefetch import read_ahead
from .storage import Array, DamagedSample, Numbers

CHUNK = 2**20  # numbers that are read at once


@dataclass
class Survey:
    """What a pass over samples (N, *) found.

    Attributes:
        low, high: the least and the largest number; integers if the numbers are.
        whole: whether all are whole numbers.
        digest: the SHA-256 of the content, in the order of the source.
        count, mean, squares: of the numbers that train: how many, their mean, and the sum of their squared distances
            from it.
        ends: the least and the largest number that trains.
        samples: (N, *), if they were to be kept.
        damaged: the places of samples that were left out, and why.
    """

    low: float = math.inf
    high: float = -math.inf
    whole: bool = True
    digest: bytes = b""
    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    ends: tuple[float, float] = (math.inf, -math.inf)
    samples: Array | None = None
    damaged: dict[int, str] = field(default_factory=dict)

    @property
    def deviation(self) -> float:
        """The standard deviation of the numbers that train."""
        return math.sqrt(self.squares / self.count)

    def add(self, numbers: Array, index: Array, training: Array, source: str) -> None:
        """Counts samples (B, *) in, which are at the places (B,) of the source; those of the mask (B,) train.

        Raises:
            InputError: a number is not finite in float32.
        """
        if numbers.dtype.kind == "f":
            self.whole = self.whole and bool((numbers == np.rint(numbers)).all())
            with np.errstate(over="ignore", invalid="ignore"):
                numbers = numbers.astype(np.float32)
            if not (finite := np.isfinite(numbers)).all():
                row = index[np.argmin(finite.reshape(len(index), -1).all(1))]
                raise InputError(f"{source}: contains numbers that are not finite in float32, first in row {row}")
        kind = float if numbers.dtype.kind == "f" else int  # integers stay exact
        self.low = min(self.low, kind(numbers.min()))
        self.high = max(self.high, kind(numbers.max()))
        x = numbers if training.all() else numbers[training]
        if not x.size:
            return
        self.ends = min(self.ends[0], kind(x.min())), max(self.ends[1], kind(x.max()))
        # Chan, Golub and LeVeque 1983, equation 1.5: sums of parts are joined without loss
        mean, count = float(x.mean(dtype=np.float64)), self.count + x.size
        squares, shift = float(((x.astype(np.float64) - mean) ** 2).sum()), mean - self.mean
        self.squares += squares + shift**2 * self.count * x.size / count
        self.mean += shift * x.size / count
        self.count = count


def survey(numbers: Numbers, training: Array, source: str, keep: bool, skip: bool = False, workers: int = 0) -> Survey:
    """Reads all samples (N, *) once, in the order of the source, in pieces.

    Args:
        training: the mask (N,) of the samples that train.
        source: what they are, for messages.
        keep: return them; those that were left out are zeros.
        skip: leave out samples that cannot be read.
        workers: how many threads read.

    Raises:
        InputError: a number is not finite in float32, or a sample cannot be read.
    """
    found, hashed = Survey(), hashlib.sha256()
    if keep:
        found.samples = numbers if isinstance(numbers, np.ndarray) else np.zeros(numbers.shape, numbers.dtype)
    places = list(_pieces(numbers.shape))

    def read(piece: range) -> tuple[Array, Array, bytes | memoryview, dict[int, str]]:
        index = np.arange(piece.start, piece.stop)
        if isinstance(numbers, np.ndarray):
            samples = numbers[piece.start : piece.stop]
            return index, samples, np.ascontiguousarray(samples).reshape(-1).view(np.uint8).data, {}
        try:
            samples, damaged = numbers[index], dict[int, str]()
        except DamagedSample:
            if not skip:
                raise
            index, samples, damaged = _undamaged(numbers, index)
        return index, samples, numbers.content(index, samples), damaged

    with bar(total=numbers.shape[0], desc=f"reading {source}", unit="sample", delay=1.0) as shown:
        for piece, (index, samples, content, damaged) in zip(places, read_ahead(read, places, workers), strict=True):
            hashed.update(content)
            found.damaged |= damaged
            if len(index):
                found.add(samples, index, training[index], source)
            if found.samples is not None and found.samples is not numbers:
                found.samples[index] = samples
            shown.update(len(piece))
    found.digest = hashed.digest()
    return found


def _pieces(shape: tuple[int, ...]) -> Iterator[range]:
    """The samples of an array (N, *) in pieces of at most ``CHUNK`` numbers, or of one sample."""
    step = max(1, CHUNK // max(1, math.prod(shape[1:])))
    return (range(start, min(start + step, shape[0])) for start in range(0, shape[0], step))


def _undamaged(numbers: Numbers, index: Array) -> tuple[Array, Array, dict[int, str]]:
    """Of the samples of an index those that can be read: their places and they; and why the others cannot."""
    kept, samples, damaged = [], [], {}
    for place in index.tolist():
        try:
            samples.append(numbers[np.array([place])])
            kept.append(place)
        except DamagedSample as error:
            damaged[place] = str(error)
    read = np.concatenate(samples) if samples else np.zeros((0, *numbers.shape[1:]), numbers.dtype)
    return np.array(kept, dtype=np.int64), read, damaged
