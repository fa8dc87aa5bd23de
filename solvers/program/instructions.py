"""The three instructions of a program. Instruction k, counted from 0, makes register k + 1."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple


class Combine(NamedTuple):
    """Makes the sum of the terms (register, coefficient): each coefficient times its register."""

    terms: tuple[tuple[int, float], ...]


class Evaluate(NamedTuple):
    """Evaluates the model: its output at the state in register ``x`` and the node of index ``node``."""

    x: int
    node: int


class Draw(NamedTuple):
    """Draws standard normal numbers for the interval between the nodes of indices ``t`` and ``s``."""

    t: int
    s: int


Instruction = Combine | Evaluate | Draw


class State(NamedTuple):
    """The state at the end of a step: the indices of its register and its node."""

    register: int
    node: int


def reads(instruction: Instruction) -> Iterator[int]:
    """The registers that an instruction reads."""
    if isinstance(instruction, Combine):
        yield from (register for register, _ in instruction.terms)
    elif isinstance(instruction, Evaluate):
        yield instruction.x
