"""Verdicts: the result of a check, and the runner that turns an error into one."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

UNDECLARED = "measured {:.2f}; declare it by @solvers.register(name, order=...), or a property `order`"

T = TypeVar("T")
G = TypeVar("G")


@dataclass(frozen=True)
class Check:
    """The result of one check of a solver or of another method.

    Attributes:
        name: what was checked.
        passed: whether the method passes.
        detail: the measured numbers; for an order, the error at each NFE.
        hint: where to look if the check fails.
        skipped: whether nothing could be checked because the solver declares no order; ``passed`` is then True.
    """

    name: str
    passed: bool
    detail: str
    hint: str = ""
    skipped: bool = False

    def __str__(self) -> str:
        if self.skipped:
            return f"SKIP  {self.name}: no order is declared; {self.detail}"
        if self.passed:
            return f"PASS  {self.name}: {self.detail}"
        return f"FAIL  {self.name}: {self.detail}\n      look at: {self.hint}"


def attempted(verify: Callable[[T, G], Iterator[Check]], subject: T, given: G) -> Iterator[Check]:
    """The results of one check of a subject; an error that the subject raises becomes a failed check."""
    try:
        yield from verify(subject, given)
    except Exception as error:
        name = verify.__name__.removeprefix("check_").replace("_", " ")
        line, frames = str(error).partition("\n")[0], traceback.extract_tb(error.__traceback__)
        file = getattr(sys.modules.get(type(subject).__module__), "__file__", None)
        frame = ([frame for frame in frames if frame.filename == file] or frames)[-1]
        where = f"line {frame.lineno} of {frame.filename}, in {frame.name}: {frame.line}"
        yield Check(name, False, f"raised {type(error).__name__}: {line}", where)
