"""Ranges of options, as annotations: ``eta: Annotated[float, Range(0, 1)] = 0.0``.

Construction, cards and pages read them, so that each range is written once, next to its option.
"""

from __future__ import annotations

import math
import operator
import types
import typing
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union

from ..errors import LARGEST_COUNT, InputError, shown, unknown


@dataclass(frozen=True)
class Range:
    """The numbers from ``low`` to ``high``; ``ends`` are the brackets, and a round bracket excludes its end.

    An ``int`` option accepts integers only. No range contains NaN. A range contains inf only if inf is an included end.

    >>> print(Range(0, 1, "(]"), 0.0 in Range(0, 1, "(]"), 1.0 in Range(0, 1, "(]"))
    (0, 1] False True
    """

    low: float = -math.inf
    high: float = math.inf
    ends: Literal["[]", "(]", "[)", "()"] = "[]"

    def __contains__(self, value: Any) -> bool:
        try:
            above = self.low < value if self.ends[0] == "(" else self.low <= value
            below = value < self.high if self.ends[1] == ")" else value <= self.high
        except TypeError:
            return False
        return bool(above and below)

    def __str__(self) -> str:
        return f"{self.ends[0]}{self.low:g}, {self.high:g}{self.ends[1]}"

    def words(self, kind: type) -> str:
        """The range of an ``int`` or a ``float`` option in words, with the kind of number.

        >>> Range(1, 4).words(int), Range(1).words(int), Range(0, 1).words(float), Range(0).words(float)
        ('integer, 1 to 4', 'integer, 1 or more', 'number in [0, 1]', 'number, 0 or more')
        """
        if kind is int:
            return f"integer, {self.low:g} {'or more' if self.high == math.inf else f'to {self.high:g}'}"
        if self.high < math.inf:
            return f"number in {self}"
        return f"number above {self.low:g}" if self.ends[0] == "(" else f"number, {self.low:g} or more"

    def check(self, value: Any, kind: type, option: str, owner: Callable[[], str]) -> None:
        """Rejects a value outside the range.

        Raises:
            InputError: the value is outside the range; the message names the class, the option, the range and the
                value.
        """
        if wanted := (self._refused_integer if kind is int else self._refused_number)(value):
            given = f"{value:g}" if isinstance(value, float) else shown(value)
            raise InputError(f"{owner()}: {option} must {wanted}, got {given}")

    def _refused_integer(self, value: Any) -> str:
        try:
            number = operator.index(value)  # numpy's integers too
        except TypeError:
            number = None
        if number is not None and number in self and not isinstance(value, bool):
            return f"be at most {LARGEST_COUNT}" if self.high == math.inf and number > LARGEST_COUNT else ""
        if self.high < math.inf:
            return f"be one of {self.low:g} to {self.high:g}"
        return "be a positive integer" if self.low == 1 else f"be an integer of at least {self.low:g}"

    def _refused_number(self, value: Any) -> str:
        if value in self:
            return ""
        if self.high < math.inf:
            return f"lie in {self}"
        least = f"at least {self.low:g}" if self.ends[0] == "[" else f"greater than {self.low:g}"
        least = "positive" if (self.low, self.ends[0]) == (0, "(") else least
        return f"be finite and {least}" if value == math.inf else f"be {least}"


@dataclass(frozen=True, eq=False)
class Choice:
    """The names that a text option accepts, from a table such as a dict of published grids."""

    names: Collection[str]

    def words(self, kind: type) -> str:
        """The names in words."""
        return " | ".join(sorted(self.names))

    def check(self, value: Any, kind: type, option: str, owner: Callable[[], str]) -> None:
        """Rejects a name that is not listed.

        Raises:
            InputError: the name is not listed; the message names the class, the option and the nearest matches.
        """
        if value not in self.names:
            raise unknown(f"{option} of {owner()}", value, self.names)


Positive = Annotated[float, Range(0, ends="()")]
NonNegative = Annotated[float, Range(0, ends="[)")]
Fraction = Annotated[float, Range(0, 1)]
Inside = Annotated[float, Range(0, 1, "()")]
Share = Annotated[float, Range(0, 1, "(]")]
AnyPositive = Annotated[float, Range(0, ends="(]")]
Count = Annotated[int, Range(1)]


def marks(hint: Any) -> list[Range | Choice]:
    """The ranges and choices that an annotation contains, at any depth."""
    found = [part for part in typing.get_args(hint) if isinstance(part, (Range, Choice))]
    return found + [mark for part in typing.get_args(hint) for mark in marks(part)]


def check(value: Any, hint: Any, option: str, owner: Callable[[], str]) -> None:
    """Rejects a value outside the ranges of its annotation; in a tuple, every number is checked.

    Raises:
        InputError: see ``Range.check``.
    """
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        for mark in parts[1:]:
            if isinstance(mark, (Range, Choice)):
                mark.check(value, parts[0], option, owner)
    elif origin in (Union, types.UnionType) and value is not None:
        for part in parts:
            check(value, part, option, owner)
    elif origin is tuple:
        for number in value:
            check(number, parts[0], f"every number of {option}", owner)
