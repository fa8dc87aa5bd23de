"""``cached_by_value``: keeps the results of a function whose arguments compare by value."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, TypeVar

R = TypeVar("R")


def cached_by_value(size: int) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Keeps the last ``size`` results of a pure function of positional arguments.

    The function runs at every call if an argument has no hash, or compares by identity, since such an object may have
    changed (a path that learns, a user's solver with state).

    >>> calls = []
    >>> @cached_by_value(2)
    ... def double(x):
    ...     calls.append(x)
    ...     return 2 * x
    >>> double(3), double(3), double(3.0), calls
    (6, 6, 6.0, [3, 3.0])
    """

    def decorate(function: Callable[..., R]) -> Callable[..., R]:
        kept = lru_cache(maxsize=size, typed=True)(function)

        @wraps(function)
        def call(*arguments: Any) -> R:
            kinds: list[Any] = [type(a) for a in arguments if a is not None]
            if any(kind.__eq__ is object.__eq__ for kind in kinds):
                return function(*arguments)
            try:
                hash(arguments)
            except TypeError:
                return function(*arguments)
            return kept(*arguments)

        return call

    return decorate
