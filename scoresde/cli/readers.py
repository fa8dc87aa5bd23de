"""Readers of the arguments' texts. An error is an ``ArgumentTypeError``, whose message argparse shows unchanged."""

from __future__ import annotations

from argparse import ArgumentTypeError
from pathlib import Path

LARGEST = 10_000_000  # more seeds than this are a typing error


def seeds_of(text: str) -> list[int]:
    """Reads seeds: a number of seeds from 0, or single numbers and ranges separated by commas.

    >>> seeds_of("4"), seeds_of("0-3,7"), seeds_of("7-7")
    ([0, 1, 2, 3], [0, 1, 2, 3, 7], [7])

    Raises:
        ArgumentTypeError: any other text, or a range that runs backwards.
    """
    parts = [part.strip() for part in text.split(",")]
    if len(parts) == 1 and parts[0].isdecimal() and int(parts[0]) > 0:
        parts = [f"0-{int(parts[0]) - 1}"]
    if parts == ["0"]:
        raise ArgumentTypeError("0 seeds are no samples; 0-0 is the sample of seed 0")
    seeds: list[int] = []
    for part in parts:
        low, dash, high = (piece.strip() for piece in part.partition("-"))
        if not low.isdecimal() or (dash and not high.isdecimal()) or (dash and int(high) < int(low)):
            raise ArgumentTypeError(f"cannot read the seeds {text!r}; expected a number of samples, 0-63 or 0,5,9")
        if int(high or low) - int(low) >= LARGEST or int(high or low) >= 2**63:
            raise ArgumentTypeError(f"the seeds {text!r} are too many or too large")
        seeds += range(int(low), int(high or low) + 1)
    return seeds


def count_of(text: str) -> int:
    """Reads a positive integer.

    Raises:
        ArgumentTypeError: any other text.
    """
    if not text.strip().isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"must be a positive integer, got {text}")
    return int(text)


def counts_of(text: str) -> list[int]:
    """Reads positive integers, separated by commas; repeats are left out.

    Raises:
        ArgumentTypeError: any other text.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ArgumentTypeError(f"cannot read the evaluations {text!r}; expected positive integers such as 5,10,20,50")
    return list(dict.fromkeys(int(part) for part in parts))


def share_of(text: str) -> tuple[int, int]:
    """Reads k/n: the number of this process, and the number of all processes.

    >>> share_of("2/4")
    (2, 4)

    Raises:
        ArgumentTypeError: any other text.
    """
    which, slash, count = text.partition("/")
    if not (slash and which.isdecimal() and count.isdecimal() and 1 <= int(which) <= int(count)):
        raise ArgumentTypeError(f"cannot read the shards {text!r}; expected k/n with k from 1 to n, such as 2/4")
    return int(which), int(count)


def specs_of(text: str) -> list[str]:
    """Reads specs, separated by commas outside brackets.

    >>> specs_of("ddim(eta=1), pc(predictor=ddpm, corrector_steps=2), heun")
    ['ddim(eta=1)', 'pc(predictor=ddpm, corrector_steps=2)', 'heun']

    Raises:
        ArgumentTypeError: the text is empty.
    """
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    found = [part.strip() for part in parts if part.strip()]
    if not found:
        raise ArgumentTypeError("no solvers given; see scoresde solvers")
    return found


def folder_of(text: str) -> Path:
    """Reads a path.

    Raises:
        ArgumentTypeError: the text is empty; it would mean the current folder.
    """
    if not text.strip():
        raise ArgumentTypeError("the path is empty; use . for the current folder")
    return Path(text)
