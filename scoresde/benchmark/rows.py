"""The rows of a benchmark and their files: ``results.json`` with all facts, ``results.csv``, and ``times.json``.

A row contains what differs between rows; what all rows share is in the header, once. Files contain a format and a
version. Wall-clock times are in ``times.json`` alone, so that the other two have the same bytes on every run.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Protocol, get_args, get_type_hints

from torch import Tensor

from solvers import InputError
from solvers.errors import shown
from solvers.files import read_json

from ..io.result_files import environment, write_csv, write_json
from .metrics import Estimate
from .ties import marks

FORMAT, VERSION = "scoresde-benchmark", 1
FILES = ("results.csv", "report.html", "times.json", "results.json")  # of a whole benchmark, the record last
TIMES = ("seconds", "seconds_per_sample")
_NESTED = ("metrics", "error", "samples", "states", "environment")  # fields of a row that are not columns
_WHAT = "benchmark's result file"


@dataclass(frozen=True)
class Row:
    """The result of one solver at one budget.

    Attributes:
        solver, grid: canonical specs.
        nfe_budget: the budget; None for a solver that chooses its evaluations, which has none.
        nfe: model evaluations per sample, as counted; None if the row was skipped.
        steps: steps of the grid, including a last step to sigma = 0.
        stochastic: whether the solver draws noise.
        n_samples: how many samples were drawn.
        metrics: distances from the reference, by name.
        error: root-mean-square distance per dimension to the exact solution; None for stochastic solvers.
        seconds, seconds_per_sample: wall-clock time.
        skipped: the reason why the row has no numbers, or "": a budget below the cost of one step or without a step
            more than a smaller one, a grid whose nodes coincide, or samples that are not finite.
        samples: the first few samples (K, *), on the CPU; not written to result files.
        states: the first sample on its way, from its start to its end (K, *), see ``states_of``; None for tokens; not
            written to result files.
        depth: calls of the network one after the other, for a batch; a call for several nodes counts once.
        free_first_step: whether a formula replaces the first evaluation.
        program: the first 16 digits of the SHA-256 of the solver's program as JSON; None if it has no program.
        drawn: the ``fingerprint`` of all samples, before they are rounded.
        parameters, tuning_nfe, tuning_seconds, teacher: of ``few``, and of a solver in a tuned file, as it reports
            them: how many numbers were fitted, what that cost in evaluations and seconds where it is known, and the
            solver that was imitated.
        environment: the software and hardware that computed the row; in a file only what differs from the header's.
    """

    solver: str
    grid: str
    nfe_budget: int | None
    nfe: int | None
    steps: int | None
    stochastic: bool
    n_samples: int
    metrics: dict[str, Estimate] = field(default_factory=dict)
    error: Estimate | None = None
    seconds: float | None = None
    seconds_per_sample: float | None = None
    skipped: str = ""
    samples: Tensor | None = field(default=None, repr=False, compare=False)
    states: Tensor | None = field(default=None, repr=False, compare=False)
    depth: int | None = None
    free_first_step: bool = False
    program: str | None = None
    drawn: str | None = None
    parameters: int | None = None
    tuning_nfe: float | None = None
    tuning_seconds: float | None = None
    teacher: str | None = None
    environment: dict[str, str] = field(default_factory=dict, compare=False)

    def score(self, name: str) -> Estimate | None:
        """A metric by name, or "error"; None if the row has none."""
        return self.error if name == "error" else self.metrics.get(name)


class Setting(Protocol):
    """The attributes of a row that say how its samples were drawn, but for the budget."""

    @property
    def solver(self) -> str: ...
    @property
    def grid(self) -> str: ...


def labels_of(rows: Sequence[Setting]) -> list[str]:
    """The name of each row's setting: its solver, and its grid where the solver has several."""
    grids: dict[str, set[str]] = {}
    for row in rows:
        grids.setdefault(row.solver, set()).add(row.grid)
    return [row.solver if len(grids[row.solver]) == 1 else f"{row.solver}, {row.grid}" for row in rows]


def record(row: Row) -> dict[str, Any]:
    """A row as flat columns of numbers, strings and None, without its samples."""
    columns: dict[str, Any] = {f.name: getattr(row, f.name) for f in fields(row) if f.name not in _NESTED}
    for name, estimate in {**row.metrics, "error": row.error}.items():
        for part in ("value", "low", "high"):
            columns[_column(name, part)] = None if estimate is None else getattr(estimate, part)
    return columns


def _column(name: str, part: str) -> str:
    return name if part == "value" else f"{name}_{part}"


def write(rows: Sequence[Row], folder: str | Path, header: Mapping[str, Any]) -> None:
    """Writes ``results.json`` (the header and the rows), ``results.csv`` (the rows) and ``times.json``.

    The column ``best`` has the metrics in which a row is the best of its budget or tied with it, see ``ties``.

    Args:
        folder: created if needed; files in it are replaced only when the new ones are complete.
        header: what a reader needs to run a row again: the command, the config, the seeds, the reference and its
            ``fingerprint``, ... Written as given, after the ``environment`` of the first row.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    first, rows = _environments(rows)
    best = marks(rows)
    records = [
        {"row": number, **record(row), "best": " ".join(names)}
        for number, (row, names) in enumerate(zip(rows, best, strict=True), 1)
    ]
    plain = [{name: value for name, value in columns.items() if name not in TIMES} for columns in records]
    own = [{"environment": row.environment} if row.environment else {} for row in rows]
    full = [{**columns, **other} for columns, other in zip(plain, own, strict=True)]
    document = {"format": FORMAT, "version": VERSION, "header": {**(first or environment()), **header}, "rows": full}
    write_json(folder / "results.json", document)
    write_csv(folder / "results.csv", plain)
    write_json(folder / "times.json", {name: [columns[name] for columns in records] for name in TIMES})


def _environments(rows: Sequence[Row]) -> tuple[dict[str, str], list[Row]]:
    """The environment of the first row that was drawn, and all rows with only what differs from it."""
    first = next((row.environment for row in rows if row.environment), {})

    def apart(row: Row) -> dict[str, str]:
        return {name: value for name, value in row.environment.items() if first.get(name) != value}

    return first, [replace(row, environment=apart(row)) for row in rows]


def read(folder: str | Path) -> tuple[dict[str, Any], list[Row]]:
    """Reads the header and the rows that ``write`` wrote into a folder; the rows have no samples.

    Without ``times.json``, or if it does not fit, the rows have no times.

    Raises:
        InputError: ``results.json`` is missing, is of a newer version, or ``write`` did not write it.
    """
    path = Path(folder) / "results.json"
    try:
        document = read_json(path, _WHAT)
        _check_version(path, document)
        times = _times(path.with_name("times.json"), len(document["rows"]))
        rows = [row_of({**columns, **moment}) for columns, moment in zip(document["rows"], times, strict=True)]
        return {**document["header"]}, rows
    except (KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__} {error}"
        raise InputError(f"{str(path)!r} is not a {_WHAT}: {reason}") from None


class NewerVersion(InputError):
    """A result file of a newer version than this library reads."""


def _check_version(path: Path, document: dict[str, Any]) -> None:
    """Rejects a file of a different format or of a newer version.

    Raises:
        KeyError, TypeError, NewerVersion: it is one.
    """
    if document["format"] != FORMAT:
        raise TypeError(f"format is {shown(document['format'])}")
    version = document["version"]
    if type(version) is not int or version < 1:
        raise TypeError(f"version is {shown(version)}")
    if version > VERSION:
        raise NewerVersion(
            f"{str(path)!r} is a {_WHAT} of version {shown(version)}, and this scoresde reads versions up to {VERSION}"
            ": update scoresde"
        )


def _times(path: Path, count: int) -> list[dict[str, float | None]]:
    """The times of each row, None where they are not known."""
    none: list[dict[str, float | None]] = [dict.fromkeys(TIMES)] * count
    try:
        document = read_json(path, "file of times")
        columns = {name: [_number(value) for value in document[name]] for name in TIMES}
        return [{name: columns[name][place] for name in TIMES} for place in range(count)]
    except (InputError, KeyError, TypeError, IndexError):
        return none


def _number(value: Any) -> float | None:
    if value is None:
        return None
    if type(value) not in (int, float):
        raise TypeError(f"a time is {shown(value)}")
    return float(value)


def set_aside(path: Path) -> Path:
    """Renames a damaged file, so that it is kept and not read again; returns its new name."""
    free = (path.with_name(f"{path.name}.damaged{k or ''}") for k in range(10_000))
    target = next(name for name in free if not name.exists())
    os.replace(path, target)
    return target


def _typed(columns: dict[str, Any], name: str, hint: Any) -> Any:
    """A column's value.

    Raises:
        KeyError, TypeError: there is none, or it is not of the type ``hint``.
    """
    value, kinds = columns[name], get_args(hint) or (hint,)
    large = type(value) is int and abs(value) > 2**53
    if large or (type(value) not in kinds and not (float in kinds and type(value) is int)):
        raise TypeError(f"{name} is {shown(value)}")
    return float(value) if float in kinds and value is not None else value


def row_of(columns: dict[str, Any]) -> Row:
    """The row of ``record``'s columns.

    Raises:
        KeyError, TypeError: a column is missing, or has a value of another type.
    """

    def estimate(name: str) -> Estimate | None:
        parts = [_typed(columns, _column(name, part), float | None) for part in ("value", "low", "high")]
        return None if None in parts else Estimate(*parts)

    hints = get_type_hints(Row)
    facts = {f.name: _typed(columns, f.name, hints[f.name]) for f in fields(Row) if f.name not in _NESTED}
    names = [key.removesuffix("_low") for key in columns if key.endswith("_low") and key != "error_low"]
    scores = {name: estimate(name) for name in names}
    there = columns.get("environment", {})
    if not isinstance(there, dict) or not all(type(v) is str for v in there.values()):
        raise TypeError(f"environment is {shown(there)}")
    return Row(
        **facts,
        metrics={k: v for k, v in scores.items() if v is not None},
        error=estimate("error"),
        environment=there,
    )
