"""Whole numbers as levels in [-1, 1], and images with their channels first.

Levels k = 0 .. K become x = 2 k / K - 1. K is 255 for images of more than 17 levels up to 255, 65535 for images of more
than 8 bits from files, and the largest number that occurs for everything else. Neighbouring levels are ``bin_width`` =
2 / K apart; bits per dimension need this number. Other numbers stay as they are.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from solvers import InputError

from .storage import Array

_PART = 128  # 8-bit images whose largest number is below are probably not of 8 bits
_FEW = 16  # at most so many levels are counted, not read as 8 bits
_MOST_LEVELS = 65535  # whole floats beyond 16 bits are measurements
_EXACT = 2**23  # twice a whole number up to this is exact in float32


class Channels(NamedTuple):
    """How the channels of an array of images come first, and the sentence that reports it."""

    of: Callable[[Array], Array]
    note: str


def channels_place(shape: tuple[int, ...], levels: bool) -> Channels | None:
    """What brings the channels of samples of ``shape`` first; None if nothing needs to be done.

    Samples (H, W, C) with C of 1, 3 or 4 and H, W of at least 8 are images with their channels last. Samples (H, W) of
    levels, H and W at least 8, are images without an axis for their one channel.
    """
    if len(shape) == 3 and shape[2] in (1, 3, 4) and min(shape[:2]) >= 8:
        return Channels(lambda x: np.moveaxis(x, -1, 1), f"channels moved first, samples were {tuple(shape)}")
    if len(shape) == 2 and levels and min(shape) >= 8:
        return Channels(lambda x: x[:, None], f"one channel added, samples were {tuple(shape)}")
    return None


def levels_of(shape: tuple[int, ...], floats: bool, low: float, high: float, source: str) -> tuple[int, int] | None:
    """The first level and their number less one, of samples of ``shape`` that are whole numbers; None for measurements.

    Images with levels from 17 to 255 have 8 bits, whether or not the lightest one occurs; other data have the levels
    that occur. Floats are levels if they exceed the range [-1, 1], as in an image that was converted and not scaled.

    Args:
        floats: whether the source stores them as floats.
        low, high: the least and the largest number.

    Raises:
        InputError: integers that float32 does not distinguish.
    """
    low, high = int(low), int(high)
    if floats and (high <= 1 or high - low > _MOST_LEVELS):
        return None
    low = min(low, 0)
    if high - low > _EXACT:
        raise InputError(f"{source}: integers from {low} to {high} are not exact in float32; scale them to floats")
    if low == 0 and _FEW < high <= 255 and _images(shape):
        return 0, 255
    return low, max(1, high - low)


def _images(shape: tuple[int, ...]) -> bool:
    """Whether samples of levels of ``shape`` are images: with 1, 3 or 4 channels first or last, or (H, W)."""
    if len(shape) == 3:
        return shape[0] in (1, 3, 4) or shape[2] in (1, 3, 4)
    return len(shape) == 2 and min(shape) >= 8


def scaling_of(
    shape: tuple[int, ...], levels: tuple[int, int], known: bool, low: float, high: float, source: str
) -> str:
    """Which scaling was made of whole numbers, and why; warns of images that use a small part of 8 bits.

    Args:
        known: the levels are those of the training data.
        low, high: the least and the largest number.
    """
    first, count = levels
    text = f"whole numbers from {first} to {first + count}, scaled to [-1, 1]"
    if known:
        return f"{text} as the training data were"
    if not (first == 0 and count == 255 and _images(shape)):
        return f"{text}: the levels that occur"
    low, high = int(low), int(high)
    if high < _PART:
        warnings.warn(
            f"{source}: samples {shape} are read as images of 8 bits, but of 0 to 255 only {low} to {high} occur, "
            f"which become [{2 * low / 255 - 1:.2g}, {2 * high / 255 - 1:.2g}]; if {high} is the largest level, save "
            f"floats 2 x / {high} - 1 and pass bin_width={2 / high:.6g} (on the command line --config.data.bin_width)",
            stacklevel=3,
        )
    return f"{text}: samples {shape} are images, read as 8 bits; {low} to {high} occur"


def floats_of(numbers: Array, levels: tuple[int, int] | None) -> Tensor:
    """Numbers of any type as float32, levels scaled to [-1, 1]."""
    x = np.array(numbers, dtype=np.float32)
    if levels is not None:  # by NumPy: torch would start threads of its own in every thread that reads
        first, last = levels
        x -= first
        x *= 2
        x -= last
        x /= last  # this order rounds only once
    return torch.from_numpy(x)
