"""A data set in two splits, and its card. Printing a data set shows what was read."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from solvers import InputError

from .conditions import Condition
from .rows import Rows


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
        states: the number of values of a token, 0 to states - 1; None of data that are numbers.
        symbols: of a text, what the tokens stand for; else empty.
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
    states: int | None = None
    symbols: str = ""

    def texts(self, x: Tensor) -> list[str]:
        """The texts of tokens (B, *): their symbols, or their numbers if they have none."""
        symbols = self.symbols or [str(value) for value in range(self.states or 0)]
        gap = "" if len(symbols) <= 10 or self.symbols else " "
        return [gap.join(symbols[token] for token in row) for row in x.flatten(1).tolist()]

    def differences(self, other: DataCard) -> list[str]:
        """What other data have that these do not have, in words; empty if they are the same data."""
        names = ("fingerprints", "bin_width", "conditions", "states", "symbols")
        if all(getattr(self, name) == getattr(other, name) for name in names):
            return []
        found = []
        if other.states != self.states:
            counts = ["numbers" if card.states is None else f"tokens of {card.states} values" for card in (other, self)]
            found.append(" instead of ".join(counts))
        elif other.symbols != self.symbols:
            found.append("other symbols")
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
            for name, count, mine, yours in zip(
                ("training", "test"), self.samples, self.fingerprints, other.fingerprints, strict=True
            ):
                found += [f"other numbers in the {count} {name} samples"] if mine != yours else []
        return found


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in two splits, train and test.

    Attributes:
        name: the name that was passed to ``load``.
        train, test: N and M samples, float32, or int64 of tokens, with their conditions.
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
        head = f"{self.name}: {len(self.train)} + {len(self.test)} samples {card.shape} to train and test"
        if card.states is not None:
            return "; ".join([head, f"tokens of {card.states} values", *self.notes])
        facts = [
            head,
            f"numbers from {self.ends[0]:.4g} to {self.ends[1]:.4g}, mean {card.mean:.4g}, "
            f"standard deviation {card.deviation:.4g}",
        ]
        if card.bin_width is not None:
            facts.append(f"levels, {card.bin_width:.4g} apart")
        return "; ".join([*facts, *self.notes])


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
