"""From a source to a data set: checked, measured, scaled and split.

Whole numbers become levels in [-1, 1], and images get their channels first, see ``levels``. Small data sets are in
memory. Of large ones, only the rows of a batch are: they are read once to be checked and measured, and then when they
are asked for.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from solvers import InputError, generator

from ..io.result_files import fingerprint
from .columns import Described, described, named
from .dataset import DataCard, Dataset
from .levels import channels_place, floats_of, levels_of, scaling_of
from .rows import Column, Rows, StoredRows, TensorRows
from .storage import Array, Part, Raw, Stored
from .survey import Survey, survey

IN_MEMORY = 2**28  # bytes of all samples as float32: a larger data set stays where it is; the same on every machine
_SPLIT = 20  # label of the generator's stream


def assembled(
    name: str,
    raw: Raw,
    source: str,
    seed: int = 0,
    test_fraction: float = 1 / 6,
    bin_width: float | None = None,
    card: DataCard | None = None,
    classes: int | None = None,
) -> Dataset:
    """The data set that a source becomes; see ``load``.

    Args:
        source: what it is, for messages.
    """
    if not 0 < test_fraction < 1:
        raise InputError(f"test_fraction must lie between 0 and 1, got {test_fraction!r}")
    for part in raw.parts:
        check_part(part, source)
    if raw.test is not None and raw.test.x.shape[1:] != raw.train.x.shape[1:]:
        raise InputError(f"{source}: samples are {raw.train.x.shape[1:]} in train but {raw.test.x.shape[1:]} in test")
    if raw.levels is not None and bin_width is not None:
        raise InputError(f"{source} are levels {2 / raw.levels:g} apart in [-1, 1]; leave out bin_width")
    orders = orders_of(raw, seed, test_fraction, source)
    found = surveys_of(raw, orders, source)
    levels, notes = _levels(raw, found, bin_width, card, source)
    move = channels_place(raw.train.x.shape[1:], levels is not None)
    shape = raw.train.x.shape[1:]
    if move is not None:
        notes.append(move.note)
        shape = move.of(np.zeros((1, *shape), np.uint8)).shape[1:]
    notes += left_out(found)
    conditions = conditions_of(raw, shape, classes, card, source)
    convert = partial(_converted, levels=levels, move=None if move is None else move.of)
    splits = _splits(raw, found, orders, convert, conditions, shape)
    mean, deviation, ends, low, high = _scales(found[0], levels)
    encoded = raw.train.x.made if isinstance(raw.train.x, Stored) else ""
    new = DataCard(
        shape, low, high, bin_width if levels is None else 2 / levels[1], mean, deviation, levels,
        samples=(len(splits[0]), len(splits[1])),
        fingerprints=_fingerprints(splits, found, orders, conditions, f"{shape} {levels}", encoded),
        conditions=tuple(each.condition for each in conditions),
    )  # fmt: skip
    return Dataset(name, *splits, new, ends, (*raw.notes, *notes, *(each.note for each in conditions)))


def left_out(found: Sequence[Survey]) -> list[str]:
    """A note on samples that were left out, if there are any."""
    damaged = [text for part in found for text in part.damaged.values()]
    more = ", ..." * (len(damaged) > 1)
    return [f"{len(damaged)} samples left out: {damaged[0].partition(';')[0]}{more}"] if damaged else []


def conditions_of(
    raw: Raw, shape: tuple[int, ...], classes: int | None, card: DataCard | None, source: str
) -> list[Described]:
    """The conditions that the columns of a source become; see ``described``.

    Raises:
        InputError: a number of classes is given, and no class is read.
    """
    known = {condition.name: condition for condition in (card.conditions if card else ())}
    found = [described(column, raw, shape, classes, known.get(named(column)), source) for column in raw.train.columns]
    if classes is not None and all(each.condition.kind != "class" for each in found):
        raise InputError(f"{source}: classes={classes}, but no class is read; labels names its column")
    return found


def check_part(part: Part, source: str) -> None:
    if part.x.dtype.kind not in "buif":
        raise InputError(f"{source}: expected real numbers, got an array of {part.x.dtype}")
    if len(part.x.shape) < 2:
        hint = "; x[:, None] has N samples of one number" if part.x.shape else ""
        raise InputError(f"{source}: expected an array (N, *) of N samples, got shape {part.x.shape}{hint}")
    if not math.prod(part.x.shape):
        raise InputError(f"{source}: empty, its shape is {part.x.shape}")


def orders_of(raw: Raw, seed: int, test_fraction: float, source: str) -> list[Tensor]:
    """For train and test, the places of their samples in the source."""
    if raw.test is not None:
        return [torch.arange(len(part.x)) for part in raw.parts]
    if (count := len(raw.train.x)) < 2:
        raise InputError(f"{source}: {count} row cannot be split into train and test; at least 2 are needed")
    order = torch.randperm(count, generator=generator(seed, _SPLIT))
    held = min(max(1, round(count * test_fraction)), count - 1)
    return [order[held:], order[:held]]


def surveys_of(raw: Raw, orders: list[Tensor], source: str, keep: bool | None = None) -> list[Survey]:
    """The first pass over each part of a source; the orders lose the samples that were left out.

    Args:
        keep: return the samples; by default if they are small.
    """
    if keep is None:
        keep = sum(math.prod(part.x.shape) for part in raw.parts) * 4 <= IN_MEMORY
    found = []
    for place, part in enumerate(raw.parts):
        training = np.zeros(len(part.x), bool)
        training[orders[0].numpy() if place == 0 else []] = True
        found.append(survey(part.x, training, source, keep, raw.skip, raw.workers))
    for place, order in enumerate(orders):
        damaged = found[min(place, len(found) - 1)].damaged
        if damaged:
            orders[place] = order[~torch.isin(order, torch.tensor(list(damaged)))]
            if not len(orders[place]):
                raise InputError(f"{source}: no sample of the {('train', 'test')[place]} split can be read")
    return found


def _levels(
    raw: Raw, found: list[Survey], bin_width: float | None, card: DataCard | None, source: str
) -> tuple[tuple[int, int] | None, list[str]]:
    """The levels of a source, see ``Dataset``, and how they were found in words."""
    if raw.levels is not None:
        return (0, raw.levels), []
    if bin_width is not None:
        return None, []
    shape = raw.train.x.shape[1:]
    low, high = min(part.low for part in found), max(part.high for part in found)
    if card is not None:
        levels = card.levels
    elif all(part.whole for part in found):
        levels = levels_of(shape, raw.train.x.dtype.kind == "f", low, high, source)
    else:
        levels = None
    return levels, [] if levels is None else [scaling_of(shape, levels, card is not None, low, high, source)]


def _converted(numbers: Array, levels: tuple[int, int] | None, move: object) -> Tensor:
    """Samples (B, *) of a source in data units, their channels first."""
    return floats_of(move(numbers) if callable(move) else numbers, levels)


def _scales(found: Survey, levels: tuple[int, int] | None) -> tuple[float, float, tuple[float, float], float, float]:
    """Mean, deviation, ends and the range to display of the training split in data units."""
    if levels is None:
        low, high = (float(end) for end in found.ends)
        return found.mean, found.deviation, (low, high), low, high
    first, last = levels
    mean, low, high = ((2 * (number - first) - last) / last for number in (found.mean, *found.ends))
    return mean, found.deviation * 2 / last, (low, high), -1.0, 1.0


def _splits(
    raw: Raw,
    found: list[Survey],
    orders: list[Tensor],
    convert: partial[Tensor],
    conditions: Sequence[Described],
    shape: tuple[int, ...],
) -> tuple[Rows, Rows]:
    """The rows of train and test."""
    splits: list[Rows] = []
    for place, order in enumerate(orders):
        part = min(place, len(found) - 1)
        columns = {each.condition.name: each.columns[part] for each in conditions}
        samples = found[part].samples
        if samples is None:
            splits.append(StoredRows(Column(raw.parts[part].x, convert), columns, order, shape))
        else:
            x = convert(samples[order.numpy()])
            splits.append(TensorRows(x, {name: column[order] for name, column in columns.items()}))
    return splits[0], splits[1]


def _fingerprints(
    splits: Sequence[Rows],
    found: list[Survey],
    orders: list[Tensor],
    conditions: Sequence[Described],
    scaling: str,
    made: str,
) -> tuple[str, str]:
    """The fingerprints of the splits.

    Of arrays in memory they are those of their tensors. Of other sources they are hashes of the content as it is
    stored, of what is made of it, and of the places of the split in it: the same files give the same everywhere.
    """
    prints = []
    for place, (rows, order) in enumerate(zip(splits, orders, strict=True)):
        digest = found[min(place, len(found) - 1)].digest.hex()
        if isinstance(rows, TensorRows) and not made:
            parts = [fingerprint(rows.x)]
        else:
            parts = [scaling, made, digest, fingerprint(order)]
        parts += [f"{each.condition.name} {contents(each, place, order)}" for each in conditions]
        text = " ".join(parts)
        prints.append(text if len(parts) == 1 else hashlib.sha256(text.encode()).hexdigest()[:16])
    return prints[0], prints[1]


def contents(condition: Described, place: int, order: Tensor) -> str:
    """The hash of a split's rows of a condition."""
    column = condition.columns[min(place, len(condition.columns) - 1)]
    found = hashlib.sha256()
    for start in range(0, len(order), 1024):
        found.update(fingerprint(column[order[start : start + 1024]]).encode())
    return found.hexdigest()[:16]
