"""Columns of a source as conditions: whole numbers are classes, other numbers vectors, images or tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from solvers import InputError
from solvers.errors import positive_integer, unknown

from ..io.array_files import read_array
from .conditions import Condition
from .levels import channels_place, floats_of
from .rows import Column
from .storage import Array, Numbers, Part, Raw

CLASS = "label"  # the name of the condition of a class
ALIASES = (CLASS, "labels", "y", "target", "targets", "class", "classes")  # names that people give to a class
MOST_CLASSES = 1_000_000  # a larger number is not that of a class


class Described(NamedTuple):
    """A condition with its columns, one for each split of the source, and the sentence that reports it."""

    condition: Condition
    columns: list[Column]
    note: str


def requested(labels: str) -> tuple[str, ...]:
    """The names in ``labels``, separated by commas; none for "auto" and "off".

    Raises:
        InputError: a name is empty, occurs twice, or two names mean the class.
    """
    if labels.strip() in ("auto", "off"):
        return ()
    names = tuple(name.strip() for name in labels.split(","))
    meant = [named(name) for name in names]
    if "" in names or len(set(meant)) < len(meant):
        raise InputError(f"labels must be auto, off, or different names separated by commas, got {labels!r}")
    return names


def named(column: str) -> str:
    """The name of the condition that a column becomes.

    >>> named("y"), named("angle"), named("more/angle.npy")
    ('label', 'angle', 'angle')
    """
    name = Path(column).stem if is_file(column) else column
    return CLASS if name in ALIASES else name


def is_file(column: str) -> bool:
    """Whether a column's name is that of a file."""
    return column.endswith(".npy")


def pick(column: str, names: Sequence[str], source: str, split: str = "") -> str:
    """The name in the source of a column: that name, or another common one of a class.

    Args:
        split: "train" or "test", if each split has its own column, such as ``train_label`` or ``y_train``.

    Raises:
        InputError: the source has no such column; the message names the nearest one.
    """
    spellings = (column, *(ALIASES if column in ALIASES else ()))
    if split:
        spellings = tuple(form for name in spellings for form in (f"{split}_{name}", f"{name}_{split}"))
    for name in spellings:
        if name in names:
            return str(name)
    raise unknown(f"column of {source}", spellings[0], names)


def picked(columns: Sequence[str], there: Mapping[str, Numbers], source: str) -> dict[str, Numbers]:
    """Of a source's columns those with these names; columns that are files are left out."""
    return {column: there[pick(column, list(there), source)] for column in columns if not is_file(column)}


def with_files(raw: Raw, columns: Sequence[str], source: str) -> Raw:
    """The source with the columns that are files of their own.

    Raises:
        InputError: a file cannot be read, or the source has its own splits, whose rows one file does not number.
    """
    files = [column for column in columns if is_file(column)]
    if not files:
        return raw
    if raw.test is not None:
        raise InputError(
            f"{source} has its own splits: labels in a file, {files[0]!r}, do not say to which they belong"
        )
    found = {file: read_array(file, "labels") for file in files}
    return Raw(Part(raw.train.x, {**raw.train.columns, **found}), None, raw.levels, raw.notes, raw.skip, raw.workers)


def described(
    column: str, raw: Raw, shape: tuple[int, ...], classes: int | None, known: Condition | None, source: str
) -> Described:
    """The condition that a column of a source becomes.

    Whole numbers (N,) are classes; other numbers (N,) and arrays (N, n) are vectors; (N, H, W) and (N, C, H, W) of the
    height and width of the samples are images, those of unsigned bytes scaled to [-1, 1]; (N, L, n) are tokens.

    Args:
        shape: that of a sample, channels first.
        classes: how many classes there are; None for as many as occur.
        known: the condition that a model was trained with.

    Raises:
        InputError: the numbers are of no such kind, not one row per sample, not finite, out of range, or of another
            kind than the known condition.
    """
    arrays = [part.columns[column] for part in raw.parts]
    where = f"{source}: {column}"
    for part, array in zip(raw.parts, arrays, strict=True):
        if array.dtype.kind not in "buif":
            raise InputError(f"{where}: expected numbers, got an array of {array.dtype}")
        if not array.shape or array.shape[0] != part.x.shape[0]:
            rows = array.shape[0] if array.shape else "no"
            raise InputError(f"{where} has {rows} rows for {part.x.shape[0]} samples; give one row per sample")
        if isinstance(array, np.ndarray) and array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InputError(f"{where}: contains numbers that are not finite")
    if len({array.shape[1:] for array in arrays}) > 1:
        raise InputError(f"{where} has rows {arrays[0].shape[1:]} in train but {arrays[1].shape[1:]} in test")
    name = named(column)
    if arrays[0].shape[1:] in ((), (1,)) and (name == CLASS or arrays[0].dtype.kind != "f"):
        found = _classes(name, [np.asarray(array).reshape(-1) for array in arrays], classes, known, where)
    else:
        found = _floats(name, arrays, shape, where)
    if known is not None and found.condition != known:
        raise InputError(
            f"{where} is a condition {_words(found.condition)}; the model was trained with {_words(known)}"
        )
    return found


def _words(condition: Condition) -> str:
    form = f"{condition.classes} classes" if condition.kind == "class" else f"{condition.kind}s {condition.shape}"
    return f"{condition.name} of {form}"


def _classes(name: str, arrays: list[Array], classes: int | None, known: Condition | None, where: str) -> Described:
    if classes is not None:
        positive_integer("classes", classes)
    whole = []
    for array in arrays:
        if (array != np.rint(array)).any():
            odd = array[array != np.rint(array)][0]
            advice = "; for a vector of one number, give the column another name" if name == CLASS else ""
            raise InputError(f"{where}: a class is a whole number, got {odd:g}{advice}")
        low, high = int(array.min()), int(array.max())
        count = classes or (known.classes if known is not None and known.kind == "class" else 0)
        if low < 0 or high >= (count or MOST_CLASSES):
            wrong = low if low < 0 else high
            place = int(np.argmax(array == wrong))
            largest = f"0 to {count - 1}" if count else f"0 to at most {MOST_CLASSES - 1:,}"
            raise InputError(f"{where}: classes are {largest}, but row {place} has {wrong}")
        whole.append(array.astype(np.int64))
    count = count or max(int(array.max()) for array in whole) + 1
    sizes = np.bincount(np.concatenate(whole), minlength=count)
    used = sizes[sizes > 0]
    empty = f", {count - len(used)} of them without samples" if len(used) < count else ""
    note = f"{name}: {count} classes of {used.min():,} to {used.max():,} samples{empty}"
    return Described(Condition(name, "class", (), count), [Column(array, torch.from_numpy) for array in whole], note)


def _floats(name: str, arrays: list[Numbers], shape: tuple[int, ...], where: str) -> Described:
    row = arrays[0].shape[1:] or (1,)
    levels = (0, 255) if arrays[0].dtype == np.uint8 else None
    move = channels_place(row, levels=True)
    image = row if move is None else tuple(move.of(np.zeros((1, *row), np.uint8)).shape[1:])
    if len(image) == 3 and len(shape) == 3 and image[1:] == shape[1:]:
        note = f"{name}: images {image}" + (", bytes scaled to [-1, 1]" if levels else "")
        columns = [Column(array, lambda x: floats_of(x if move is None else move.of(x), levels)) for array in arrays]
        return Described(Condition(name, "image", image), columns, note)
    if len(row) > 2:
        raise InputError(
            f"{where} has rows {row}: expected a class (), a vector (n,), tokens (L, n), or an image of the height and "
            f"width of the samples, which are {shape}"
        )
    kind = "tokens" if len(row) == 2 else "vector"
    columns = [Column(array, lambda x: floats_of(x.reshape(-1, *row), None)) for array in arrays]
    note = f"{name}: {'tokens' if kind == 'tokens' else 'vectors'} {row}"
    return Described(Condition(name, "tokens" if kind == "tokens" else "vector", row), columns, note)
