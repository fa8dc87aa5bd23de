"""One exception for bad input, and the sentence that every unknown name gets."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Iterable

LARGEST_COUNT = 1_000_000  # more steps, probes or layers than that are a slip of the finger


class InputError(ValueError):
    """Bad input of a user's, told in one line. The command line prints it and exits with status 2."""


def unknown(kind: str, name: object, accepted: Iterable[str], hint: str = "") -> InputError:
    """The error for a name that is not there: the nearest matches, or else everything accepted.

    >>> print(unknown("solver", "huen", ["euler", "heun"]))
    no solver 'huen'; did you mean heun?
    """
    names = sorted(accepted)
    near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.6)
    tail = f"did you mean {', '.join(near)}?" if near else f"accepted: {', '.join(names) or 'none'}"
    return InputError(f"no {kind} {name!r}; {tail}{' ' + hint if hint else ''}")


def positive_integer(name: str, value: object) -> int:
    """``value`` if it is an integer of at least one.

    Raises:
        InputError: anything else, booleans and 10.0 included.
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
