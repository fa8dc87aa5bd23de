"""The exception for invalid user input, and its message for unknown names."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Iterable

LARGEST_COUNT = 1_000_000  # a larger number of steps, probes or layers is a typing error


class InputError(ValueError):
    """Invalid user input, reported in one line. The command line prints it and exits with status 2."""


def unknown(kind: str, name: object, accepted: Iterable[str], hint: str = "") -> InputError:
    """The error for an unknown name; it lists the nearest matches or, if there are none, all accepted names.

    >>> print(unknown("solver", "huen", ["euler", "heun"]))
    no solver 'huen'; did you mean heun?
    """
    names = sorted(accepted)
    near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.6)
    tail = f"did you mean {', '.join(near)}?" if near else f"accepted: {', '.join(names) or 'none'}"
    return InputError(f"no {kind} {name!r}; {tail}{' ' + hint if hint else ''}")


def positive_integer(name: str, value: object) -> int:
    """Returns ``value`` if it is an integer from 1 to ``LARGEST_COUNT``.

    Raises:
        InputError: ``value`` is anything else, including booleans and 10.0.
    """
    try:
        number = operator.index(value)  # type: ignore[arg-type]  # numpy's integers too
    except TypeError:
        number = 0
    if isinstance(value, bool) or number < 1:
        raise InputError(f"{name} must be a positive integer, got {value!r}")
    if number > LARGEST_COUNT:
        raise InputError(f"{name} must be at most {LARGEST_COUNT}, got {number}")
    return number
