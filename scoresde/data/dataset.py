"""Data sets by name: read, scaled, and split into train and test by a seed.

Whole numbers become levels in [-1, 1], and images get their channels first, see ``levels``. Printing a data set shows
what was read. No loader unpickles objects: it returns the data or raises an error.

Small data sets are in memory. Of large ones, only the rows of a batch are: they are read once to be checked and
measured, and then when they are asked for.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from solvers import InputError, generator
from solvers.errors import unknown

from ..result_files import fingerprint
from .columns import Described, described, named, requested, with_files
from .conditions import Condition
from .levels import channels_place, floats_of, levels_of, scaling_of
from .rows import Column, Rows, StoredRows, TensorRows
from .sources import SOURCES
from .storage import Array, ImageOptions, Part, Raw, Request, Stored
from .survey import Survey, survey

IN_MEMORY = 2**28  # bytes of all samples as float32: a larger data set stays where it is; the same on every machine
_SPLIT = 20  # label of the generator's stream


@dataclass(frozen=True)
class DataCard:
    """The properties of the training data that other commands need, and what identifies the data.

    Attributes:
        shape: the shape of one sample.
        low, high: the range to display, in data units.
        bin_width: distance between neighbouring discrete levels in data units; None for continuous data.
        mean, deviation: of all numbers of the training split, in data units; the deviation around their common mean.
        levels: the first level of the source and their number less one, which became [-1, 1]; None if the numbers of
            the source were not scaled.
        samples: how many samples the splits train and test have.
        fingerprints: those of the splits train and test, conditions included.
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
        if (self.fingerprints, self.bin_width, self.conditions) == (
            other.fingerprints,
            other.bin_width,
            other.conditions,
        ):
            return []
        found = []
        if other.shape != self.shape:
            found.append(f"samples of shape {other.shape} instead of {self.shape}")
        if other.samples != self.samples:
            counts = [" + ".join(map(str, card.samples)) for card in (other, self)]
            found.append(f"{counts[0]} samples instead of {counts[1]} to train and test")
        if other.bin_width != self.bin_width:
            found.append(f"a bin width of {other.bin_width} instead of {self.bin_width}")
        if other.conditions != self.conditions:
            words = [", ".join(map(str, card.conditions)) or "none" for card in (other, self)]
            found.append(f"the conditions {words[0]} instead of {words[1]}")
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
        train, test: N and M samples, float32, with their conditions.
        card: its properties.
        ends: the least and the largest number of the training split, in data units.
        notes: what was changed in reading, in words.
    """

    name: str
    train: Rows
    test: Rows
    card: DataCard
    ends: tuple[float, float]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        card = self.card
        facts = [
            f"{self.name}: {len(self.train)} + {len(self.test)} samples {card.shape} to train and test",
            f"numbers from {self.ends[0]:.4g} to {self.ends[1]:.4g}, mean {card.mean:.4g}, "
            f"standard deviation {card.deviation:.4g}",
        ]
        if card.bin_width is not None:
            facts.append(f"levels, {card.bin_width:.4g} apart")
        return "; ".join([*facts, *self.notes])


def load(
    name: str,
    path: str = "",
    seed: int = 0,
    test_fraction: float = 1 / 6,
    bin_width: float | None = None,
    card: DataCard | None = None,
    labels: str = "auto",
    classes: int | None = None,
    images: ImageOptions | None = None,
) -> Dataset:
    """Loads a data set by its name.

    Args:
        name: one of ``sources.SOURCES``: "digits", "idx" or "file".
        path: the file or folder.
        seed: the seed of the shuffled split. A source with its own split keeps that split and its order.
        test_fraction: the share of the rows that go to the test split, rounded; each split gets at least one row.
        bin_width: the distance between the levels of a "file", whose numbers then stay as they are.
        card: the card of the data that a model was trained on; the numbers are scaled as they were then.
        labels: the columns that become conditions, separated by commas: names in the source, or .npy files with one row
            per sample; "off" for none; "auto" for the classes of a folder that contains only sub-folders.
        classes: how many classes there are; None for as many as occur.
        images: how files of images become arrays of one shape.

    Raises:
        InputError: the name is unknown; the file is missing, unreadable or damaged; the data are empty, not numbers,
            not finite, or fewer than two rows; a bin width is given for data whose levels are known; a column is
            missing, or has other rows than the samples, or numbers that are no condition.
    """
    if name not in SOURCES:
        raise unknown("data set", name, SOURCES)
    columns = requested(labels)
    request = Request(path, columns, labels.strip() == "auto", images or ImageOptions())
    source = f"{name} data {path!r}" if path else f"{name} data"
    raw = with_files(SOURCES[name](request), columns, source)
    return assembled(name, raw, source, seed, test_fraction, bin_width, card, classes)


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
        _check(part, source)
    if raw.test is not None and raw.test.x.shape[1:] != raw.train.x.shape[1:]:
        raise InputError(f"{source}: samples are {raw.train.x.shape[1:]} in train but {raw.test.x.shape[1:]} in test")
    if raw.levels is not None and bin_width is not None:
        raise InputError(f"{source} are levels {2 / raw.levels:g} apart in [-1, 1]; leave out bin_width")
    orders = _orders(raw, seed, test_fraction, source)
    found = _surveys(raw, orders, source)
    levels, notes = _levels(raw, found, bin_width, card, source)
    move = channels_place(raw.train.x.shape[1:], levels is not None)
    shape = raw.train.x.shape[1:]
    if move is not None:
        notes.append(move.note)
        shape = move.of(np.zeros((1, *shape), np.uint8)).shape[1:]
    known = {condition.name: condition for condition in (card.conditions if card else ())}
    conditions = [
        described(column, raw, shape, classes, known.get(named(column)), source) for column in raw.train.columns
    ]
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


def _check(part: Part, source: str) -> None:
    if part.x.dtype.kind not in "buif":
        raise InputError(f"{source}: expected real numbers, got an array of {part.x.dtype}")
    if len(part.x.shape) < 2:
        raise InputError(f"{source}: expected an array (N, *) of N samples, got shape {part.x.shape}")
    if not math.prod(part.x.shape):
        raise InputError(f"{source}: empty, its shape is {part.x.shape}")


def _orders(raw: Raw, seed: int, test_fraction: float, source: str) -> list[Tensor]:
    """For train and test, the places of their samples in the source."""
    if raw.test is not None:
        return [torch.arange(len(part.x)) for part in raw.parts]
    if (count := len(raw.train.x)) < 2:
        raise InputError(f"{source}: {count} row cannot be split into train and test; at least 2 are needed")
    order = torch.randperm(count, generator=generator(seed, _SPLIT))
    held = min(max(1, round(count * test_fraction)), count - 1)
    return [order[held:], order[:held]]


def _surveys(raw: Raw, orders: list[Tensor], source: str) -> list[Survey]:
    """The first pass over each part of a source; the orders lose the samples that were left out."""
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
        parts += [f"{each.condition.name} {_content(each, place, order)}" for each in conditions]
        text = " ".join(parts)
        prints.append(text if len(parts) == 1 else hashlib.sha256(text.encode()).hexdigest()[:16])
    return prints[0], prints[1]


def _content(condition: Described, place: int, order: Tensor) -> str:
    """The hash of a split's rows of a condition."""
    column = condition.columns[min(place, len(condition.columns) - 1)]
    found = hashlib.sha256()
    for start in range(0, len(order), 1024):
        found.update(fingerprint(column[order[start : start + 1024]]).encode())
    return found.hexdigest()[:16]
