"""Readers of the arguments' texts. An error is an ``ArgumentTypeError``, whose message argparse shows unchanged."""

from __future__ import annotations

import os
from argparse import ArgumentTypeError
from collections.abc import Mapping
from itertools import accumulate, pairwise
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
    if len(parts) == 1 and (_whole(parts[0]) or 0) > 0:
        parts = [f"0-{int(parts[0]) - 1}"]
    if parts == ["0"]:
        raise ArgumentTypeError("0 seeds are no samples; 0-0 is the sample of seed 0")
    seeds: list[int] = []
    for part in parts:
        low, dash, high = (piece.strip() for piece in part.partition("-"))
        first, last = _whole(low), _whole(high) if dash else _whole(low)
        if first is None or last is None or last < first:
            raise ArgumentTypeError(f"cannot read the seeds {text!r}; expected a number of samples, 0-63 or 0,5,9")
        if last - first + len(seeds) >= LARGEST or last >= 2**63:
            raise ArgumentTypeError(f"the seeds {text!r} are too many or too large")
        seeds += range(first, last + 1)
    return seeds


def _whole(text: str) -> int | None:
    """The whole number that a text is; None for other text. Beyond 20 digits all numbers are the same, too large."""
    return int(text if len(text) <= 20 else "9" * 20) if text.isdecimal() else None


def seed_of(text: str) -> int:
    """Reads one seed, an integer of at least 0.

    Raises:
        ArgumentTypeError: any other text.
    """
    if (number := _whole(text.strip())) is None or number >= 2**63:
        raise ArgumentTypeError(f"must be a seed, an integer of at least 0, got {text}")
    return number


def classes_of(text: str) -> list[int | None]:
    """Reads classes: single numbers and ranges separated by commas; None for ``none``, samples without a class.

    >>> classes_of("3"), classes_of("0-2,7"), classes_of("none")
    ([3], [0, 1, 2, 7], [None])

    Raises:
        ArgumentTypeError: any other text, or a range that runs backwards.
    """
    if text.strip().lower() == "none":
        return [None]
    classes: list[int | None] = []
    for part in text.split(","):
        low, dash, high = (piece.strip() for piece in part.partition("-"))
        first, last = _whole(low), _whole(high) if dash else _whole(low)
        if first is None or last is None or last < first or last >= LARGEST:
            raise ArgumentTypeError(f"cannot read the classes {text!r}; expected 3, 0-9, 0,5,9 or none")
        classes += range(first, last + 1)
    return classes


def count_of(text: str) -> int:
    """Reads a positive integer.

    Raises:
        ArgumentTypeError: any other text.
    """
    if (number := _whole(text.strip())) is None or number < 1:
        raise ArgumentTypeError(f"must be a positive integer, got {text}")
    return number


def counts_of(text: str) -> list[int]:
    """Reads positive integers, separated by commas; repeats are left out.

    Raises:
        ArgumentTypeError: any other text.
    """
    counts = [_whole(part.strip()) or 0 for part in text.split(",")]
    if min(counts) < 1:
        raise ArgumentTypeError(f"cannot read the evaluations {text!r}; expected positive integers such as 5,10,20,50")
    return list(dict.fromkeys(counts))


def share_of(text: str) -> tuple[int, int]:
    """Reads k/n: the number of this process, and the number of all processes; or ``auto``, see ``share_in``.

    >>> share_of("2/4")
    (2, 4)

    Raises:
        ArgumentTypeError: any other text.
    """
    if text.strip() == "auto":
        return share_in(os.environ)
    which, _, count = map(_whole, text.partition("/"))
    if which is None or count is None or not 1 <= which <= count:
        raise ArgumentTypeError(f"cannot read the shards {text!r}; expected k/n with k from 1 to n, such as 2/4")
    return which, count


def free_of(text: str) -> str | list[str]:
    """Reads what a tuning moves: one name, or several between commas.

    >>> free_of("all"), free_of("nodes, labels")
    ('all', ['nodes', 'labels'])
    """
    found = [part.strip() for part in text.split(",")]
    return found[0] if len(found) == 1 else found


def share_in(variables: Mapping[str, str]) -> tuple[int, int]:
    """The share of this process as torchrun (RANK of WORLD_SIZE) and Slurm arrays set it, and as both together do.

    A task of an array is counted from the least id in steps of the array, so that 1-7 and 0-12:2 are seven shares.

    >>> share_in({"RANK": "1", "WORLD_SIZE": "4"})
    (2, 4)
    >>> share_in({"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_COUNT": "7"})
    (7, 7)

    Raises:
        ArgumentTypeError: no such variable is set, or they are not the numbers of a process and of all processes.
    """
    places: list[tuple[int, int]] = []
    if "SLURM_ARRAY_TASK_ID" in variables:
        task, least, step, count = (
            _whole(variables.get(f"SLURM_ARRAY_TASK_{name}", default))
            for name, default in (("ID", ""), ("MIN", "0"), ("STEP", "1"), ("COUNT", ""))
        )
        if task is None or least is None or not step or count is None:
            raise ArgumentTypeError("SLURM_ARRAY_TASK_ID is set, but not with the count of an array")
        places.append(((task - least) // step, count))
    if "RANK" in variables or "WORLD_SIZE" in variables:
        rank, world = _whole(variables.get("RANK", "")), _whole(variables.get("WORLD_SIZE", ""))
        if rank is None or world is None:
            raise ArgumentTypeError("RANK and WORLD_SIZE must both be numbers, as torchrun sets them")
        places.append((rank, world))
    if not places:
        raise ArgumentTypeError("auto needs RANK and WORLD_SIZE, or SLURM_ARRAY_TASK_ID; otherwise write k/n")
    which, total = 0, 1
    for place, count in places:
        if not 0 <= place < count:
            raise ArgumentTypeError(f"process {place} of {count} does not exist: ids are counted from 0")
        which, total = which * count + place, total * count
    return which + 1, total


def specs_of(text: str) -> list[str]:
    """Reads specs, separated by commas outside brackets.

    >>> specs_of("ddim(eta=1), pc(predictor=ddpm, corrector_steps=2), heun")
    ['ddim(eta=1)', 'pc(predictor=ddpm, corrector_steps=2)', 'heun']

    Raises:
        ArgumentTypeError: the text is empty.
    """
    if not (found := split(text, ",")):
        raise ArgumentTypeError("no solvers given; see scoresde solvers")
    return found


def split(text: str, separator: str) -> list[str]:
    """The parts of a text between separators outside brackets, without empty ones.

    >>> split("ddim(eta=1) pc(predictor=ddpm, corrector=langevin)", " ")
    ['ddim(eta=1)', 'pc(predictor=ddpm, corrector=langevin)']
    """
    depths = accumulate((letter in "([") - (letter in ")]") for letter in text)
    cuts = [place for place, depth in enumerate(depths) if depth == 0 and text[place] == separator]
    parts = (text[start + 1 : end].strip() for start, end in pairwise([-1, *cuts, len(text)]))
    return [part for part in parts if part]


def folder_of(text: str) -> Path:
    """Reads a path.

    Raises:
        ArgumentTypeError: the text is empty; it would mean the current folder.
    """
    if not text.strip():
        raise ArgumentTypeError("the path is empty; use . for the current folder")
    return Path(text)
