"""The three instructions of a program; instruction k makes register k + 1."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple


class Combine(NamedTuple):
    """The register sum of coefficient x register."""

    terms: tuple[tuple[int, float], ...]


class Evaluate(NamedTuple):
    """The model's output at the register ``x`` and the node of that index."""

    x: int
    node: int


class Draw(NamedTuple):
    """Standard normal numbers for the interval between the nodes of those indices."""

    t: int
    s: int


Instruction = Combine | Evaluate | Draw


class State(NamedTuple):
    """The state at the end of a step: its register and its node."""

    register: int
    node: int


def reads(instruction: Instruction) -> Iterator[int]:
    """The registers that an instruction reads."""
    if isinstance(instruction, Combine):
        yield from (register for register, _ in instruction.terms)
    elif isinstance(instruction, Evaluate):
        yield instruction.x
