"""Arrays in files, of which only the rows that are asked for are in memory."""

from __future__ import annotations

import io
import itertools
import math
import os
import threading
import weakref
from pathlib import Path

import numpy as np

from solvers import InputError
from solvers.files import open_regular

from ..io.array_files import ArrayPlace
from .storage import Array, Stored

_PIECE = 2**24  # bytes that are read at once


class FileArray(Stored):
    """An array (N, *) in a file; bfloat16 numbers become float32.

    The rows are read and not memory-mapped: a file that becomes shorter is then an error, where touching its mapping
    ends the process, and what was read does not count as memory of the process.

    Raises:
        InputError: the file cannot be opened, or its numbers are in Fortran's order.
    """

    def __init__(self, path: str | Path, place: ArrayPlace) -> None:
        if place.fortran and len(place.shape) > 1:
            raise InputError(
                f"{str(path)!r} is in Fortran's order, in which the numbers of a sample are apart: save "
                "numpy.ascontiguousarray(x)"
            )
        self.path, self.place, self.shape = str(path), place, place.shape
        self.dtype = np.dtype(np.float32) if place.dtype.kind == "V" else place.dtype.newbyteorder("=")
        with open_regular(path, "data") as (file, _):
            self._file = io.FileIO(os.dup(file.fileno()), closefd=True)
        weakref.finalize(self, self._file.close)
        self._lock = threading.Lock()

    def __getitem__(self, index: Array) -> Array:
        stored = np.empty((len(index), *self.shape[1:]), self.place.dtype)
        size = math.prod(self.shape[1:]) * self.place.dtype.itemsize
        content = memoryview(stored.reshape(-1).view(np.uint8))  # type: ignore[arg-type]  # NumPy's annotations
        breaks = [0, *(np.flatnonzero(np.diff(index) != 1) + 1).tolist(), len(index)]
        for first, last in itertools.pairwise(breaks):
            if first < last:
                self._read(content[first * size : last * size], self.place.start + int(index[first]) * size)
        if self.place.dtype.kind == "V":  # bfloat16: the upper half of a float32
            return (stored.view("<u2").astype(np.uint32) << 16).view(np.float32)
        return stored.astype(self.dtype, copy=False)

    def _read(self, content: memoryview, start: int) -> None:
        done = 0
        with self._lock:
            self._file.seek(start)
            while done < len(content):
                count = self._file.readinto(content[done : done + _PIECE])
                if not count:
                    raise InputError(f"{self.path!r} has become shorter while it was read")
                done += count


def whole(numbers: FileArray) -> Array:
    """All numbers of an array in a file, in memory."""
    return numbers[np.arange(len(numbers))]
