"""The conditions of samples that a run draws: classes by their numbers, and rows of a file."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from solvers import InputError
from solvers.errors import unknown

from ..data.columns import named as name_of_column
from ..data.conditions import Condition
from ..data.rows import Rows
from ..io.array_files import read_arrays
from ..io.result_files import fingerprint

NONE = "none"  # samples without a class
_NAMED = re.compile(r"\w+=(?!.*\.npz$)")  # values by name, no file


class Chosen(NamedTuple):
    """The conditions of samples.

    Attributes:
        rows: each condition (B, *) by its name.
        facts: the same for a JSON file: the class of each sample, or the fingerprint of the rows.
        note: a sentence about classes that were not asked for; or "".
    """

    rows: dict[str, Tensor]
    facts: dict[str, object]
    note: str = ""


def choose(
    known: Sequence[Condition], count: int, classes: Sequence[int | None] | None = None, given: str | None = None
) -> Chosen:
    """The conditions of ``count`` samples, in the order of their seeds.

    A class that is not asked for is each of the classes, equally often.

    Args:
        known: the conditions of the run.
        classes: the classes to draw, each equally often, as far as the count allows; None in it is "no class".
        given: values by name, such as "digit=7 angle=0.5,1", or "none" for none; or a .npz file with one row per
            sample, or one row for all, under the name of each condition.

    Raises:
        InputError: the run has no such conditions, a class is out of range, or the file lacks a condition or has
            another number of rows.
    """
    found, there, named = dict[str, Tensor](), [c for c in known if c.kind == "class"], [c.name for c in known]
    if given is not None:
        found = _of_text(given, known, count) if _NAMED.match(given) else _of_file(Path(given), known, count)
    if classes is not None:
        if len(there) != 1:
            has = ", ".join(named) or "none"
            raise InputError(f"--class needs a run with one condition of classes; the conditions of this run: {has}")
        if there[0].name in found:
            raise InputError(f"--class and {given} both give {there[0].name}: leave out one")
        found[there[0].name] = _spread(there[0], classes, count)
    note = ""
    for condition in known:
        if condition.name in found:
            continue
        if condition.kind != "class":
            raise InputError(
                f"this run draws samples given {condition.name}, rows of shape {condition.shape} of the kind "
                f"{condition.kind}: pass --condition=FILE.npz with its rows, or --condition {condition.name}=NUMBERS"
            )
        found[condition.name] = _spread(condition, range(condition.classes), count)
        note = f", of all {condition.classes} classes (--class=3 chooses one)"
    for condition in known:
        condition.check(found[condition.name])
    return Chosen(found, {c.name: _fact(c, found[c.name]) for c in known}, note)


def _spread(condition: Condition, classes: Sequence[int | None], count: int) -> Tensor:
    """Each of the classes equally often, one after the other: (count,)."""
    for number in classes:
        if number is not None and not 0 <= number < condition.classes:
            last = condition.classes - 1
            raise InputError(f"the classes of {condition.name} are 0 to {last}, or {NONE} for no class; got {number}")
    numbers = torch.tensor([condition.classes if number is None else number for number in classes])
    return numbers[torch.arange(count) * len(numbers) // count]


def _name(given: str, known: Container[str]) -> str:
    """The name of a condition of the run: of a class also by another of its names, such as y or class."""
    return given if given in known or name_of_column(given) not in known else name_of_column(given)


def _of_text(text: str, known: Sequence[Condition], count: int) -> dict[str, Tensor]:
    """The rows of "digit=7 angle=0.5,1": the same for all samples, but several classes are drawn equally often."""
    found, by_name = dict[str, Tensor](), {condition.name: condition for condition in known}
    for part in text.split():
        name, _, value = part.partition("=")
        name = _name(name, by_name)
        if name not in by_name:
            raise unknown("condition of this run", name, by_name)
        condition = by_name[name]
        words = value.split(",")
        if condition.kind == "class":
            classes = [None if word == NONE else int(word) if word.isdecimal() else -1 for word in words]
            found[name] = _spread(condition, classes, count)
            continue
        try:
            row = condition.empty(1) if words == [NONE] else torch.tensor([float(word) for word in words])
            found[name] = row.reshape(1, *condition.shape).expand(count, *condition.shape).clone()
        except (ValueError, RuntimeError):
            raise InputError(f"the condition {name} has numbers of shape {condition.shape}, got {value!r}") from None
    return found


def _of_file(path: Path, known: Sequence[Condition], count: int) -> dict[str, Tensor]:
    arrays, found, names = read_arrays(path, "file of conditions"), dict[str, Tensor](), [c.name for c in known]
    for key, array in arrays.items():
        name = _name(key, names)
        if name not in names:
            raise unknown("condition of this run", name, names)
        if array.dtype.kind not in "iuf":
            raise InputError(f"{path}: {name} must have numbers, got an array of {array.dtype}")
        rows = torch.from_numpy(array.astype("int64" if array.dtype.kind in "iu" else "float32"))
        shape = known[names.index(name)].shape
        rows = rows.unsqueeze(0) if tuple(rows.shape) == shape else rows
        if len(rows) not in (1, count):
            raise InputError(
                f"{path}: {name} has {len(rows)} rows for {count} samples; give one row, or one per sample"
            )
        found[name] = rows.expand(count, *rows.shape[1:]).clone()
    return found


def _fact(condition: Condition, rows: Tensor) -> object:
    return rows.tolist() if condition.kind == "class" else {"shape": list(rows.shape), "rows": fingerprint(rows)}


def of_test(rows: Rows, count: int) -> Mapping[str, Tensor]:
    """The conditions of the first ``count`` rows; more samples than rows start from the first row again."""
    return rows.batch(torch.arange(count) % len(rows)).conditions


def pictures_by_class(
    known: Sequence[Condition], rows: Mapping[str, Tensor], most: int
) -> tuple[list[int], int] | None:
    """The samples of a grid with one row per class, at most ``most`` of them, and the length of a row.

    None if there is no single condition of classes, or a row would be empty.
    """
    there = [condition for condition in known if condition.kind == "class"]
    if len(there) != 1:
        return None
    classes = rows[there[0].name]
    numbers, counts = torch.unique(classes, return_counts=True)
    length = min(int(counts.min()), max(1, most // len(numbers)), 10 if len(numbers) > 1 else most)
    if len(numbers) * length > most or len(numbers) == 1:
        return None
    return [i for n in numbers for i in torch.nonzero(classes == n).flatten()[:length].tolist()], length
