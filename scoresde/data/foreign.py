"""Data sets of other libraries: torch's, and Hugging Face's when ``datasets`` is installed."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from solvers import InputError
from solvers.libraries import library

from ..io.inputs import shown
from .columns import ALIASES, CLASS, is_file, pick
from .storage import Array, Numbers, Part, Raw, Request, Stored

_IMAGES = ("image", "img", "x", "data", "pixel_values")  # names that people give to the column of the samples
_LISTED = ("train", "test", "validation", "valid", "val")  # splits; the first after train is the held-out one
HUB = "hub:"


class Items(Stored):
    """The samples of a data set that returns them one by one, read when they are asked for.

    Args:
        items: the data set: ``items[i]`` for i from 0 to ``len(items) - 1``.
        key: where the sample is in an item; None if it is the item.
    """

    def __init__(self, items: Any, key: str | int | None) -> None:
        self.items, self.key = items, key
        self._lock = threading.Lock()  # a data set of somebody else may not be made for several threads
        first = self._sample(0)
        self.shape, self.dtype = (len(items), *first.shape), first.dtype

    def __getitem__(self, index: Array) -> Array:
        found = np.empty((len(index), *self.shape[1:]), self.dtype)
        for row, place in enumerate(index.tolist()):
            with self._lock:
                sample = self._sample(place)
            if sample.shape != self.shape[1:]:
                raise InputError(f"item {place} has the shape {sample.shape}, item 0 {self.shape[1:]}")
            if sample.dtype != self.dtype:
                raise InputError(f"item {place} has the type {sample.dtype}, item 0 {self.dtype}")
            found[row] = sample
        return found

    def _sample(self, place: int) -> Array:
        item = self.items[place]
        try:
            return array_of(item if self.key is None else item[self.key])
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise InputError(f"item {place} has no sample that is an array ({error!s:.100})") from None


def array_of(value: Any) -> Array:
    """A sample or a label as an array: of a tensor, an array, a picture of Pillow, or a number.

    Raises:
        TypeError: it is something else.
    """
    if isinstance(value, Tensor):
        return value.detach().cpu().numpy()
    picture = type(value).__module__.partition(".")[0] == "PIL"
    if picture and value.mode not in ("1", "L", "RGB", "RGBA", "I;16"):
        raise TypeError(f"a picture of the mode {value.mode} is not read; convert it")
    if picture or isinstance(value, (np.ndarray, np.generic, int, float, list)):
        found = np.asarray(value)
        if found.dtype.kind in "biuf":
            return found
    raise TypeError(f"expected a tensor, an array or a picture, got {shown(value)}")


def of_torch(dataset: Any, labels: Sequence[str] = ()) -> Raw:
    """A torch Dataset whose items are samples, pairs of a sample and a label, or mappings.

    Args:
        labels: the columns to read: "label" of pairs, the keys of mappings.

    Raises:
        InputError: it has no length or no index, as iterable ones, or its items are something else.
    """
    if isinstance(dataset, torch.utils.data.IterableDataset):
        raise InputError(
            "an iterable data set has no rows that could be shuffled, counted and resumed: pass list(dataset) if it "
            "fits in memory, or a data set with __getitem__ and __len__"
        )
    try:
        count = len(dataset)
        first = dataset[0] if count else None
    except TypeError:
        raise InputError(f"expected a data set with __getitem__ and __len__, got {shown(dataset)}") from None
    if not count:
        raise InputError("the data set is empty")
    if isinstance(first, Mapping):
        key: str | int | None = _samples_of(list(first), "the data set")
        keys: dict[str, str | int] = {column: pick(column, list(first), "the data set") for column in labels}
    else:
        length = len(first) if isinstance(first, (tuple, list)) else 0
        key = 0 if length else None
        keys = {column: _second(column, length) for column in labels}
    return Raw(Part(Items(dataset, key), {column: _column(dataset, place) for column, place in keys.items()}))


def _second(column: str, length: int) -> int:
    pick(column, [CLASS] if length > 1 else [], "the data set, whose items are tuples,")
    return 1


def _column(dataset: Any, key: str | int) -> Numbers:
    """A column of a data set, in memory."""
    found = []
    for place in range(len(dataset)):
        try:
            found.append(array_of(dataset[place][key]))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise InputError(f"item {place} has no {key!r} that is a number or an array ({error!s:.100})") from None
    if len({row.shape for row in found}) > 1:
        raise InputError(f"{key!r} has rows of different shapes")
    return np.stack(found)


def _samples_of(names: Sequence[str], source: str) -> str:
    """The name of the samples among columns."""
    for name in _IMAGES:
        if name in names:
            return name
    others = [name for name in names if name not in ALIASES]
    if len(others) == 1:
        return others[0]
    raise InputError(f"{source} needs a column called {', '.join(_IMAGES)}; it has {', '.join(names) or 'none'}")


def huggingface(request: Request) -> Raw:
    """A Hugging Face data set: a folder that ``save_to_disk`` wrote, or ``hub:NAME``, which is downloaded if needed."""
    try:
        datasets = library("datasets")
    except ImportError:
        raise InputError("Hugging Face data sets need the package datasets: pip install datasets") from None
    try:
        if request.path.startswith(HUB):
            found = datasets.load_dataset(request.path.removeprefix(HUB))
        else:
            found = datasets.load_from_disk(request.path)
    except Exception as error:  # of the library, the network or the files, of many kinds
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"cannot read the Hugging Face data set {request.path!r}: {reason}") from None
    return of_huggingface(found, [column for column in request.columns if not is_file(column)])


def of_huggingface(found: Any, labels: Sequence[str] = ()) -> Raw:
    """A Hugging Face data set, or a dictionary of its splits.

    Raises:
        InputError: no column contains the samples, or a column is missing.
    """
    if not isinstance(found, Mapping):
        return Raw(_huggingface_part(found, labels))
    splits = [name for name in _LISTED if name in found]
    if "train" not in splits:
        raise InputError(f"the data set has no split 'train'; it has {', '.join(map(str, found)) or 'none'}")
    left = [str(name) for name in found if name not in splits[:2]]
    parts = [_huggingface_part(found[name], labels) for name in splits[:2]]
    notes = (f"splits left out: {', '.join(left)}",) if left else ()
    return Raw(parts[0], parts[1] if len(parts) > 1 else None, notes=notes)


def _huggingface_part(dataset: Any, labels: Sequence[str]) -> Part:
    names = list(dataset.column_names)
    if not len(dataset):
        raise InputError("the data set is empty")
    keys = {column: pick(column, names, "the data set") for column in labels}
    columns = {column: _stacked(dataset[key], key) for column, key in keys.items()}
    return Part(
        Items(dataset, _samples_of([name for name in names if name not in keys.values()], "the data set")), columns
    )


def _stacked(values: Any, key: str) -> Array:
    try:
        return np.stack([array_of(value) for value in values])
    except (TypeError, ValueError) as error:
        raise InputError(f"the column {key!r} is not one of numbers ({error!s:.100})") from None


def saved_by_huggingface(place: Path) -> bool:
    """Whether ``save_to_disk`` wrote a folder."""
    return any((place / name).is_file() for name in ("dataset_dict.json", "state.json", "dataset_info.json"))
