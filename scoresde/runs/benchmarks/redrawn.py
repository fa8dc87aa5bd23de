"""Rows of a benchmark drawn again from what its file contains, and how far the numbers are from those in the file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from solvers import InputError
from solvers.registry.outside import Origin
from solvers.registry.registry import outside_names

from ...benchmark.rows import Row
from ...benchmark.runner import Terms
from ...io.result_files import environment
from ...sampling.plan import OWN
from .sources import Source, subject_of
from .task import Scoring, Task, scoring_of

_COUNTS = ("nfe", "depth", "steps", "program", "skipped")
_PARTS = ("value", "low", "high")


@dataclass(frozen=True)
class Redrawn:
    """A row of a file and the same row drawn again.

    Attributes:
        number: of the row, from 1.
        there, here: the row in the file, and the new one.
        others: in words, what differs in the facts and the environment.
    """

    number: int
    there: Row
    here: Row
    others: tuple[str, ...] = ()

    @property
    def differences(self) -> list[str]:
        """Each number that differs, and by how much."""
        found = []
        for name in _COUNTS:
            was, now = getattr(self.there, name), getattr(self.here, name)
            if was != now:
                found.append(f"{name} is {now!r} instead of {was!r}")
        for name in dict.fromkeys([*self.there.metrics, *self.here.metrics, "error"]):
            was, now = self.there.score(name), self.here.score(name)
            if was is None or now is None:
                found += [] if was is now else [f"{name} is {'missing' if now is None else 'new'}"]
                continue
            for part in _PARTS:
                a, b = getattr(was, part), getattr(now, part)
                if a != b and not (a != a and b != b):
                    label = name if part == "value" else f"{name}_{part}"
                    found.append(f"{label} is {b:.10g} instead of {a:.10g}, {b - a:+.2g}")
        if self.there.drawn != self.here.drawn and not found:
            found.append("the samples differ, without a change of a number above")
        return found

    @property
    def identical(self) -> bool:
        """Whether all numbers and all samples are the same, bit for bit."""
        return not self.differences and self.there.drawn == self.here.drawn

    def __str__(self) -> str:
        row = self.there
        head = f"row {self.number}, {row.solver} on {row.grid}, NFE {row.nfe_budget or 'adaptive'}: "
        if self.identical:
            return f"{head}identical"
        return head + "; ".join(self.differences) + "".join(f"; {other}" for other in self.others)


def rows_again(
    header: Mapping[str, Any],
    rows: Sequence[Row],
    numbers: Sequence[int] | None,
    results: Path,
    moved: Mapping[str, str] | None = None,
    trust: bool = False,
) -> Iterator[Redrawn]:
    """Draws rows of a benchmark again, one by one.

    Args:
        numbers: of the rows, from 1; None for all.
        results: the folder of the results, for messages.
        moved: the folder of the run or the pipeline, or the file of the reference, by the name of the field of
            ``Source``, where it is no longer where the header says.
        trust: import the classes that the file names, which runs their code.

    Raises:
        InputError: there is no such row, the header lacks what is needed, the source is missing or its data are others.
    """
    numbers = range(1, len(rows) + 1) if numbers is None else numbers
    for number in numbers:
        if not 1 <= number <= len(rows):
            raise InputError(f"{results} has the rows 1 to {len(rows)}, and no row {number}")
    origin = Origin(str(results / "results.json"), trusted=trust)
    with origin.limits():
        source, scoring, seeds = _inputs(header, rows, results, moved or {}, trust)
        subject = subject_of(source, trust)
        with subject.origin.limits():
            task = Task.of(subject, seeds, scoring)
            _refuse_other_reference(header, task, results)
            others = _others(header, task)
            for number in numbers:
                row = rows[number - 1]
                yield Redrawn(number, row, drawn_again(task.terms, row), others(row))


def _inputs(
    header: Mapping[str, Any], rows: Sequence[Row], results: Path, moved: Mapping[str, str], trust: bool
) -> tuple[Source, Scoring, list[int]]:
    """The source, the scoring and the seeds in a header.

    Raises:
        InputError: the header lacks one, or names a class of another module without being trusted; what has moved is
            not its source.
    """
    try:
        source, seeds, scoring = Source.read(header["source"]), header["seeds"], scoring_of(header)
        if not all(type(seed) is int for seed in seeds):
            raise TypeError("the seeds are not integers")
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__} {error}"
        raise InputError(f"{results} does not say how its rows are drawn: {reason}") from None
    for name in moved:
        if name not in source.record():
            raise InputError(f"{results} has no {name} that could have moved: it was measured on {source.title}")
    texts = [*source.specs, *(row.solver for row in rows), *(row.grid for row in rows)]
    texts += [] if scoring.features is None else [scoring.features]
    outside = sorted({name for text in texts for name in outside_names(text)})
    if outside and not trust:
        raise InputError(
            f"{results / 'results.json'} names the class {outside[0]}, and importing it runs code: --trust allows it"
        )
    return Source.read(source.record() | dict(moved)), scoring, list(seeds)


def drawn_again(terms: Terms, row: Row) -> Row:
    """A row drawn again in a benchmark's terms."""
    grid = None if row.grid == OWN else row.grid
    jobs = [job for job in terms.jobs([row.solver], grid, [row.nfe_budget or 1]) if job.nfe == row.nfe_budget]
    if not jobs:
        raise InputError(f"{row.solver} has no row of {row.nfe_budget} evaluations any more")
    try:
        plan = terms.plan(jobs[0])
    except InputError as reason:
        return _skipped(row, str(reason))
    return row if row.skipped.startswith("the same steps") else terms.row(jobs[0], plan)


def _skipped(row: Row, reason: str) -> Row:
    return Row(row.solver, row.grid, row.nfe_budget, None, None, row.stochastic, row.n_samples, skipped=reason)


def _refuse_other_reference(header: Mapping[str, Any], task: Task, results: Path) -> None:
    """Rejects a reference that is not that of the file.

    Raises:
        InputError: it is a different one.
    """
    there, here = header.get("reference"), task.facts["reference"]
    if there != here:
        raise InputError(f"{results} was measured with the reference {there!r}, and the data here are {here!r}")


def _others(header: Mapping[str, Any], task: Task) -> Any:
    """A function of a row: in words, what differs from the file in the facts and in the environment."""
    facts = [
        f"{name} was {header.get(name)!r} and is {value!r}"
        for name, value in task.facts.items()
        if name in header and header[name] != value and name not in ("scoresde", "torch", "dtype")
    ]
    here = environment(task.terms.common["device"], task.terms.dtype)

    def words(row: Row) -> tuple[str, ...]:
        there = {**{name: header.get(name) for name in here}, **row.environment}
        changed = [f"{name} was {there[name]} and is {here[name]}" for name in here if there[name] != here[name]]
        return tuple(facts + changed)

    return words
