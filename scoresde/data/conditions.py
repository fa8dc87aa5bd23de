"""Conditions: what a network receives in addition to the sample and the time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from solvers import InputError
from solvers.errors import positive_integer, unknown

KINDS = ("class", "vector", "image", "tokens")


@dataclass(frozen=True)
class Condition:
    """What a condition is. Its rows enter the network as the argument ``name``.

    Attributes:
        name: the network's argument.
        kind: "class", integers (B,) in 0 .. classes - 1, and ``classes`` itself for "no class"; "vector", floats
            (B, n); "image", floats (B, C, H, W) of the height and width of the sample; "tokens", floats (B, L, n).
        shape: the shape of one row: () of a class.
        classes: how many classes there are; 0 for the other kinds.

    Raises:
        InputError: an unknown kind, a shape that does not suit it, or no classes.
    """

    name: str
    kind: Literal["class", "vector", "image", "tokens"]
    shape: tuple[int, ...] = ()
    classes: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown("kind of condition", self.kind, KINDS)
        object.__setattr__(self, "shape", tuple(self.shape))
        lengths = {"class": 0, "vector": 1, "image": 3, "tokens": 2}[self.kind]
        if len(self.shape) != lengths:
            raise InputError(f"the condition {self.name}: a row of the kind {self.kind} has {lengths} dimensions, "
                             f"got the shape {self.shape}")  # fmt: skip
        if self.kind == "class":
            positive_integer(f"the number of classes of {self.name}", self.classes)
