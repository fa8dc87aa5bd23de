"""The option ``--only NAME ...``: measures a few solvers again and keeps the rows of all others, byte for byte."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import solvers
from solvers import InputError

Row = dict[str, Any]
PINNED = ("torch", "numpy")  # rows of one file are measured with one version of these


def add_only(parser: argparse.ArgumentParser) -> None:
    """Adds the option to a script's parser."""
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="measure these solvers and keep the rows of all others"
    )


def names(given: Sequence[str]) -> list[str]:
    """The registered names of the given names and aliases, without repeats.

    Raises:
        InputError: a name that is not registered.
    """
    return list(dict.fromkeys(solvers.info(name).name for name in given))


def name_of(spec: str) -> str:
    """The registered name in a canonical spec.

    >>> name_of("ddim(eta=1.0)")
    'ddim'
    """
    return spec.partition("(")[0]


def merged(
    path: Path,
    header: Mapping[str, Any],
    fresh: Sequence[Row],
    only: Sequence[str],
    columns: Sequence[str],
    order: Iterable[tuple[object, ...]],
    timings: Sequence[str] = (),
) -> dict[str, Any]:
    """A committed result file in which the rows of some solvers are replaced, in the order of a whole run.

    Args:
        path: the file, a header and rows.
        header: the header of this run; the file keeps its header.
        fresh: the rows of the solvers ``only``.
        columns, order: the columns that identify a row, and their values in the order of a whole run.
        timings: columns that change from run to run. A row is kept if only these and the rounding of a different
            processor have changed.

    Raises:
        InputError: the file was written by a different command, or with different versions of torch or numpy.
    """
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    before = document["header"]
    for key in ("command", *PINNED):
        was, now = (str(part[key]).split("+")[0] for part in (before, header))
        if was != now:
            raise InputError(f"{path.name} has {key} {was!r}, this run has {now!r}: measure all solvers again")
    known = [row for row in document["rows"] if name_of(row["solver"]) in only]
    others = [row for row in document["rows"] if name_of(row["solver"]) not in only]
    rows = [next((old for old in known if _same(old, row, timings)), row) for row in fresh]
    places = {values: place for place, values in enumerate(order)}

    def place(row: Row) -> int:
        return places.get(tuple(row[column] for column in columns), len(places))

    return {"header": before, "rows": sorted([*others, *rows], key=place)}


def _same(old: Any, new: Any, timings: Sequence[str]) -> bool:
    """Whether two values of JSON are equal except for timings and for the rounding of a different processor.

    The tolerances are 1e-12, the rounding that conformance ignores, and a relative 1e-6.
    """
    if isinstance(old, float) and isinstance(new, float):
        return math.isclose(old, new, rel_tol=1e-6, abs_tol=1e-12)
    if isinstance(old, dict) and isinstance(new, dict):
        return old.keys() == new.keys() and all(_same(old[k], new[k], timings) for k in old if k not in timings)
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(_same, old, new, [timings] * len(old)))
    return bool(old == new)


def run(main: Callable[[], None]) -> None:
    """Runs a script; invalid user input is reported in one line, with exit status 2."""
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
