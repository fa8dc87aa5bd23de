"""The finished rows of a benchmark in a folder, so that a benchmark that was stopped resumes, and processes share it.

A row is a file with its columns, its first samples, the states of one of them, its values on parts of the samples, and
the facts of the benchmark. It is written as soon as it is done, and named by a hash of its solver, grid and budget.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from solvers import InputError
from solvers.files import parse_json, remove_unfinished

from ..io.checked_arrays import as_text, read_checked, write_checked
from ..io.result_files import writable
from .metrics import Estimate
from .rows import Row, record, row_of, set_aside
from .truth import Truth

FOLDER = "rows"  # in the folder of a benchmark's results
_TRUTH = "exact.npz"
_MALFORMED = (InputError, KeyError, ValueError, TypeError, AttributeError)


class Unfinished(NamedTuple):
    """How many of a benchmark's rows are done, while rows of other processes are missing."""

    done: int
    total: int


@dataclass(frozen=True)
class Store:
    """A folder of finished rows of one benchmark.

    Attributes:
        folder: where they are, created if needed.
        facts: what decides the numbers, as plain JSON types; rows with other facts belong to a different benchmark.
        replace: whether rows of a different benchmark are replaced; otherwise they are an error.
    """

    folder: Path
    facts: Mapping[str, Any]
    replace: bool = False

    def path(self, key: str) -> Path:
        """The file of a row."""
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"

    def get(self, key: str) -> Row | None:
        """A finished row; None if there is none, or if it is damaged: then it is reported and set aside.

        Raises:
            InputError: it belongs to a different benchmark.
        """
        arrays = self._read(self.path(key))
        if arrays is None:
            return None
        try:
            return _row(arrays)
        except _MALFORMED as error:
            self._damaged(self.path(key), error)
            return None

    def put(self, key: str, row: Row) -> None:
        """Writes a row."""
        arrays: dict[str, Any] = {"plain": as_text({**record(row), "environment": row.environment})}
        for name, kept in (("samples", row.samples), ("states", row.states)):
            if kept is not None:
                arrays[name] = kept.numpy()
        for name, score in {**row.metrics, **({"error": row.error} if row.error else {})}.items():
            arrays[f"again.{name}"] = np.array(score.again, dtype=np.float64)
        self._write(self.path(key), arrays)

    def truth(self) -> Truth | None:
        """The exact solution; None if there is none, or if it is damaged.

        Raises:
            InputError: it belongs to a different benchmark.
        """
        arrays = self._read(self.folder / _TRUTH)
        if arrays is None:
            return None
        try:
            x, at_t_min = (torch.from_numpy(arrays[name]) for name in ("x", "at_t_min"))
            return Truth(x, at_t_min, float(arrays["error"]), int(arrays["nfe"]))
        except _MALFORMED as error:
            self._damaged(self.folder / _TRUTH, error)
            return None

    def put_truth(self, truth: Truth) -> None:
        """Writes the exact solution."""
        arrays = {"x": truth.x.numpy(), "at_t_min": truth.at_t_min.numpy(), "error": truth.error, "nfe": truth.nfe}
        self._write(self.folder / _TRUTH, arrays)

    def _write(self, path: Path, arrays: Mapping[str, Any]) -> None:
        writable(path.parent)
        write_checked(path, arrays, self.facts)
        remove_unfinished(path)

    def _read(self, path: Path) -> dict[str, Any] | None:
        if not path.exists():
            return None
        try:
            arrays, there = read_checked(path, "row")
        except InputError as error:
            self._damaged(path, error)
            return None
        if (other := self._other(there)) and not self.replace:
            raise InputError(
                f"{self.folder} contains rows of a different benchmark, such as {path.name}: {other}; use a different "
                "--out, or add --overwrite to replace what is there"
            )
        return None if other else arrays

    def _other(self, there: Mapping[str, Any]) -> str:
        """The first fact in which a row's facts differ from these; empty if none does."""
        names = (n for n in {**self.facts, **there} if there.get(n) != self.facts.get(n))
        return next((f"{n} is {there.get(n)!r} there and {self.facts.get(n)!r} here" for n in names), "")

    def _damaged(self, path: Path, error: BaseException) -> None:
        aside = set_aside(path)
        warnings.warn(f"{path} is damaged ({error}): it is now {aside.name}, and is computed again", stacklevel=4)


def stored_rows(folder: Path) -> list[Row]:
    """The finished rows in a folder, of any benchmark; what is damaged is left out."""
    found = []
    for path in sorted(folder.glob("*.npz")):
        try:
            found.append(_row(read_checked(path, "row")[0]))
        except _MALFORMED:
            continue
    return found


def key_of(solver: str, grid: str, nfe: int | None) -> str:
    """The name of a row in a store."""
    return json.dumps([solver, grid, nfe])


def _row(arrays: Mapping[str, Any]) -> Row:
    """The row in the arrays of a file.

    Raises:
        InputError, KeyError, ValueError, TypeError, AttributeError: an array is missing or is not what it should be.
    """
    row = row_of(dict(parse_json(str(arrays["plain"][()]))))
    kept = {name: torch.from_numpy(arrays[name]) for name in ("samples", "states") if name in arrays}

    def whole(name: str, score: Estimate) -> Estimate:
        return replace(score, again=tuple(map(float, arrays[f"again.{name}"])))

    return replace(
        row,
        samples=kept.get("samples"),
        states=kept.get("states"),
        metrics={name: whole(name, score) for name, score in row.metrics.items()},
        error=row.error and whole("error", row.error),
    )
