"""CIFAR-10 and CIFAR-100 in the files of their authors: binary, or pickled by Python and read without unpickling."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from solvers import InputError
from solvers.files import read_bytes

from .columns import CLASS, is_file, picked
from .plain_pickle import read_plain
from .storage import Array, Part, Raw, Request

_PIXELS = 3 * 32 * 32
_LARGEST = 2**29  # bytes of a file; CIFAR-100's has a third of it
_KINDS: dict[
    str, tuple[str, str, tuple[str, ...]]
] = {  # the names of the files of both splits, and the columns before the pixels in binary files
    "CIFAR-10": (r"data_batch_\d+", "test_batch", (CLASS,)),
    "CIFAR-100": ("train", "test", ("coarse", "fine")),
}
_PICKLED = {"labels": CLASS, "fine_labels": "fine", "coarse_labels": "coarse"}


def kind_of(place: Path) -> tuple[str, str, list[Path], list[Path]] | None:
    """Which of the two a folder contains, the ending of its files, and those of the splits; None if it is neither."""
    names = sorted(file.name for file in place.iterdir() if file.is_file())
    for kind, (train, test, _) in _KINDS.items():
        for ending in (".bin", ""):
            if kind == "CIFAR-100" and not ending and "meta" not in names:
                continue  # files called train and test may be anything
            found = [[place / name for name in names if re.fullmatch(form + ending, name)] for form in (train, test)]
            if any(found):
                return kind, ending, found[0], found[1]
    return None


def cifar(request: Request) -> Raw:
    """Images (3, 32, 32) with the column ``label``; of CIFAR-100 also ``fine``, its labels, and ``coarse``."""
    place = Path(request.path)
    found = kind_of(place) if place.is_dir() else None
    if found is None:
        raise InputError(
            f"no CIFAR files in {request.path!r}; expected a folder with data_batch_1 (or data_batch_1.bin)"
        )
    kind, ending, train, test = found
    if not train or not test:
        missing = (_KINDS[kind][1] if train else _KINDS[kind][0]).replace(r"\d+", "1") + ending
        raise InputError(f"{request.path!r} contains a part of {kind}: {missing} is missing")
    read = _binary if ending else _pickled
    asked = [column for column in request.columns if not is_file(column)]
    return Raw(_part(kind, train, read, asked), _part(kind, test, read, asked), levels=255)


def _part(kind: str, files: Sequence[Path], read: Callable[[str, Path], dict[str, Array]], asked: list[str]) -> Part:
    """One split, joined from its files."""
    parts = [read(kind, file) for file in files]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    x = joined.pop("x")
    if "fine" in joined:
        joined[CLASS] = joined["fine"]
    return Part(x, picked(asked, joined, kind))


def _binary(kind: str, file: Path) -> dict[str, Array]:
    columns = _KINDS[kind][2]
    content, size = read_bytes(file, "data", _LARGEST), len(columns) + _PIXELS
    if not content or len(content) % size:
        raise InputError(f"{str(file)!r} has {len(content):,} bytes, which are no whole records of {size:,} ({kind})")
    records = np.frombuffer(content, np.uint8).reshape(-1, size)
    found = {column: records[:, place].astype(np.int64) for place, column in enumerate(columns)}
    return _checked(kind, file, {"x": records[:, len(columns) :].reshape(-1, 3, 32, 32), **found})


def _pickled(kind: str, file: Path) -> dict[str, Array]:
    try:
        value: Any = read_plain(read_bytes(file, "data", _LARGEST))
    except InputError as error:
        raise (
            error if "cannot read" in str(error) else InputError(f"cannot read the data {str(file)!r}: {error}")
        ) from None
    x = value.get("data") if isinstance(value, dict) else None
    if not isinstance(x, np.ndarray) or x.dtype != np.uint8 or x.ndim != 2 or x.shape[1] != _PIXELS:
        raise InputError(
            f"{str(file)!r} contains no images of {kind}: expected 'data' of unsigned bytes (N, {_PIXELS})"
        )
    found = {"x": x.reshape(-1, 3, 32, 32)}
    for name, column in _PICKLED.items():
        labels = value.get(name)
        if isinstance(labels, list) and all(type(label) is int and 0 <= label < 256 for label in labels):
            found[column] = np.array(labels, dtype=np.int64)
    return _checked(kind, file, found)


def _checked(kind: str, file: Path, found: dict[str, Array]) -> dict[str, Array]:
    """The columns of a file, all of which must be there and have a row for each image.

    Raises:
        InputError: one has not, or a label is out of range.
    """
    for column in _KINDS[kind][2]:
        classes = {CLASS: 10, "coarse": 20, "fine": 100}[column]
        if column not in found or len(found[column]) != len(found["x"]):
            raise InputError(f"{str(file)!r}: the labels {column!r} of {kind} are missing, or not one for each image")
        if len(found[column]) and (largest := int(found[column].max())) >= classes:
            raise InputError(f"{str(file)!r}: a label of {kind} is at most {classes - 1}, got {largest}")
    return found
