"""Grids in files: JSON files with noise levels, which the spec ``file:PATH`` names."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import finite, read_document, write_document
from ..types.node import Node
from ..types.schedule import Schedule
from .base import Grid, grids
from .rules import Explicit

FORMAT, VERSION = "scoresde-grid", 1


def write_grid(path: str | Path, ratios: Sequence[float], facts: Mapping[str, Any]) -> None:
    """Writes noise levels sigma / alpha, greatest first, and facts about them, to a JSON file.

    Args:
        facts: further entries of the file, of types that JSON supports; numbers that are not finite become null.

    Raises:
        InputError: the file cannot be written.
    """
    document = {"format": FORMAT, "version": VERSION, "ratios": list(ratios), **finite(facts)}
    text = json.dumps(document, indent=1, allow_nan=False) + "\n"
    write_document(path, "grid", text)


def read_grid(path: str | Path) -> tuple[float, ...]:
    """Reads the noise levels sigma / alpha of a file.

    Raises:
        InputError: the file cannot be read, is not a grid, or has a version that this library does not support.
    """
    document = read_document(path, "grid", FORMAT, VERSION)
    levels = document.get("ratios")
    if not isinstance(levels, list) or any(isinstance(r, bool) or not isinstance(r, (int, float)) for r in levels):
        raise InputError(f"{str(path)!r} is not a grid: its ratios are not a list of numbers")
    descending = all(high > low for high, low in pairwise(levels))
    if len(levels) < 2 or not descending or not (levels[-1] >= 0 and levels[0] < math.inf):
        raise InputError(f"{str(path)!r} is not a grid: ratios must be at least two, finite, from noise to data")
    return tuple(float(r) for r in levels)


@grids.register(
    "file",
    prefix=True,
    formula="sigma_i / alpha_i = ratios[i], as the file lists them",
    note="file:PATH is short for file(path=PATH). tune_grid writes such files.",
)
@dataclass(frozen=True, eq=False)
class FileGrid(Grid):
    """The noise levels sigma / alpha in a file, such as those of a tuned grid; a last 0 is sigma = 0."""

    path: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.path:
            raise InputError("file needs the path of a grid: file:PATH")
        _ = self.listed  # fails early if the file is not a grid

    @cached_property
    def listed(self) -> Explicit:
        """The grid of the file as an explicit list."""
        return Explicit(ratios=read_grid(self.path), end=self.end)

    # a file may change: grids read from one path are equal only if they have the same levels
    def __eq__(self, other: object) -> bool:
        return isinstance(other, FileGrid) and (self.path, self.listed) == (other.path, other.listed)

    def __hash__(self) -> int:
        return hash((self.path, self.listed))

    @property
    def fixed(self) -> bool:
        return True

    def intervals(self, steps: int | None) -> int:
        count = self.listed.intervals(None)
        if steps not in (None, count):
            raise InputError(f"the grid {self.path!r} has {count} steps, not {steps}")
        return count

    def nodes(
        self, schedule: Schedule | Any, steps: int | None, t_min: float | None = None, t_max: float | None = None
    ) -> tuple[Node, ...]:
        self.intervals(steps)
        try:
            return self.listed.nodes(schedule, None, t_min, t_max)
        except InputError as error:
            raise InputError(f"the grid {self.path!r}: {error}") from None
