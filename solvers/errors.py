"""The exception for invalid user input, and its message for unknown names."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Iterable

LONGEST_MESSAGE, LONGEST_NAME = 2000, 64  # characters of a message, and of a name that is compared with others
NEAR, MARGIN = 0.6, 0.08  # the least likeness of a suggestion, and how much less than the nearest one it may have
LARGEST_COUNT = 1_000_000  # a larger number of steps, probes or layers is a typing error


class InputError(ValueError):
    """Invalid user input, reported in one line. The command line prints it and exits with status 2.

    A message may repeat what somebody passed: its line breaks become blanks, and one of more than ``LONGEST_MESSAGE``
    characters is cut in its middle.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(clipped(" ".join(message.splitlines())))


def clipped(text: str, most: int = LONGEST_MESSAGE) -> str:
    """The text, or its beginning and its end if it has more than ``most`` characters.

    >>> clipped("abcdefghijklmnopqrstuvwxyz", 11)
    'abc ... xyz'
    """
    half = (most - 5) // 2
    return text if len(text) <= most else f"{text[:half]} ... {text[-half:]}"


def shown(value: object) -> str:
    """A value for a message: its ``repr``, cut; an integer whose digits Python does not print is described.

    >>> shown(0.5), shown(10**5000)
    ('0.5', 'an integer of 16610 bits')
    """
    try:
        return clipped(repr(value), 200)
    except ValueError:  # also within a list
        return f"an integer of {value.bit_length()} bits" if isinstance(value, int) else f"a {type(value).__name__}"


def unknown(kind: str, name: object, accepted: Iterable[str], hint: str = "") -> InputError:
    """The error for an unknown name; it lists the nearest matches or, if there are none, all accepted names.

    >>> print(unknown("solver", "huen", ["euler", "heun"]))
    no solver 'huen'; did you mean heun?
    """
    names = sorted(accepted)
    found = near(name if isinstance(name, str) else shown(name), names)
    tail = f"did you mean {', '.join(found)}?" if found else f"accepted: {', '.join(names) or 'none'}"
    return InputError(f"no {kind} {shown(name)}; {tail}{' ' + hint if hint else ''}")


def near(text: str, accepted: Iterable[str]) -> list[str]:
    """At most three of the accepted words that could have been meant: those about as near to the text as the nearest.

    >>> near("heum", ["churn", "euler", "heun"]), near("roh", ["rho"]), near("nope", ["euler", "ode"])
    (['heun'], ['rho'], [])
    """
    words, text = list(accepted), text[:LONGEST_NAME]  # the time of a comparison grows with the square of the length
    slips = [word for word in words if _one_slip(text, word)]
    found = slips[:3] or difflib.get_close_matches(text, words, n=3, cutoff=NEAR)
    ratios = [difflib.SequenceMatcher(None, word, text).ratio() for word in found]
    return [word for word, ratio in zip(found, ratios, strict=True) if ratio >= ratios[0] - MARGIN]


def _one_slip(text: str, word: str) -> bool:
    """Whether the text is the word with one letter replaced, missing or added, or two neighbours swapped."""
    if abs(len(text) - len(word)) > 1 or text == word or max(len(text), len(word)) < 2:
        return False
    start = next((i for i, (a, b) in enumerate(zip(text, word, strict=False)) if a != b), min(len(text), len(word)))
    left, right = text[start:], word[start:]
    swapped = left[1::-1] + left[2:] == right
    return swapped or left[1:] == right[1:] or left[1:] == right or left == right[1:]


def number(name: str, value: object) -> float:
    """Returns ``value`` as a float if it is a real number; not a text, a boolean, or a tensor of several numbers.

    Raises:
        InputError: ``value`` is anything else.
    """
    try:
        if isinstance(value, (str, bytes, bool)):
            raise TypeError
        return float(value)  # type: ignore[arg-type]  # numpy's numbers and tensors of one number too
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise InputError(f"{name} must be a number, got {value!r}") from None


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
        raise InputError(f"{name} must be a positive integer, got {shown(value)}")
    if number > LARGEST_COUNT:
        raise InputError(f"{name} must be at most {LARGEST_COUNT}, got {shown(number)}")
    return number
