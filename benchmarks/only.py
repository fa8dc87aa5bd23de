"""``--only NAME ...``: measures a few solvers anew and leaves the rows of all others as they are, byte for byte."""

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
    """Gives a script the option."""
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="measure these solvers and keep the rows of all others"
    )


def names(given: Sequence[str]) -> list[str]:
    """The registered names of what was given, each once.

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
    """A committed result file with the rows of some solvers in place of those it had, in the order of a whole run.

    Args:
        path: the file, a header and rows.
        header: what this run would write; the file keeps its own.
        fresh: the rows of the solvers ``only``.
        columns, order: those that tell rows apart, and their values in the order of a whole run.
        timings: columns that change from run to run. A row in which nothing but these and the rounding of another
            processor has changed stays as it is.

    Raises:
        InputError: the file was written by another command, or with other versions of torch or numpy.
    """
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    before = document["header"]
    for key in ("command", *PINNED):
        was, now = (str(part[key]).split("+")[0] for part in (before, header))
        if was != now:
            raise InputError(f"{path.name} is of {key} {was!r}, this run of {now!r}: measure all solvers anew")
    known = [row for row in document["rows"] if name_of(row["solver"]) in only]
    others = [row for row in document["rows"] if name_of(row["solver"]) not in only]
    rows = [next((old for old in known if _same(old, row, timings)), row) for row in fresh]
    places = {values: place for place, values in enumerate(order)}

    def place(row: Row) -> int:
        return places.get(tuple(row[column] for column in columns), len(places))

    return {"header": before, "rows": sorted([*others, *rows], key=place)}


def _same(old: Any, new: Any, timings: Sequence[str]) -> bool:
    """Whether two values of JSON are equal but for timings and for what another processor rounds differently: 1e-12,
    the rounding that conformance leaves out, and a millionth."""
    if isinstance(old, float) and isinstance(new, float):
        return math.isclose(old, new, rel_tol=1e-6, abs_tol=1e-12)
    if isinstance(old, dict) and isinstance(new, dict):
        return old.keys() == new.keys() and all(_same(old[k], new[k], timings) for k in old if k not in timings)
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(_same, old, new, [timings] * len(old)))
    return bool(old == new)


def run(main: Callable[[], None]) -> None:
    """Runs a script; an error of its user's is one line and exit status 2."""
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
