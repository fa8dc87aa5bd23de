"""Two benchmarks compared row by row: the differences of their metrics, of paired samples where these are shared."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from solvers import InputError

from .metrics import HIGHER, Estimate
from .rows import Row, read
from .store import FOLDER, stored_rows
from .ties import difference

Results = tuple[dict[str, Any], list[Row], str]
_SAME = ("reference", "features", "conversion")  # without these in common, two numbers measure different things
_UNBIASED = ("error", "mmd", "invalid")  # of these, only the scatter depends on the number of samples


@dataclass(frozen=True)
class Difference:
    """The difference of a metric between the same rows of two benchmarks.

    Attributes:
        solver, grid, budget: of the row.
        metric: its name, or "error".
        first, second: the values of the two benchmarks.
        apart: the second minus the first, with an interval.
        paired: whether the interval is that of paired samples.
        counts: the numbers of samples of the two benchmarks, where they differ.
    """

    solver: str
    grid: str
    budget: int | None
    metric: str
    first: Estimate
    second: Estimate
    apart: Estimate
    paired: bool
    counts: tuple[int, int] | None = None

    @property
    def verdict(self) -> str:
        """Which benchmark is better: "first better", "second better" or "tied"; or why that is not known."""
        if self.counts is not None and self.metric not in _UNBIASED:
            one, two = self.counts
            return f"not comparable: it depends on the number of samples, {one} and {two}"
        if self.apart.low <= 0 <= self.apart.high:
            return "tied"
        return "second better" if (self.apart.value > 0) == (self.metric in HIGHER) else "first better"


def read_whole(folder: str | Path) -> Results:
    """The header and the rows of a benchmark's results, with the values on parts of the samples where they are kept.

    Raises:
        InputError: see ``rows.read``.
    """
    header, rows = read(folder)
    kept = {(row.solver, row.grid, row.nfe_budget): row for row in stored_rows(Path(folder) / FOLDER)}

    def whole(row: Row) -> Row:
        other = kept.get((row.solver, row.grid, row.nfe_budget))
        same = other is not None and (other.metrics, other.error) == (row.metrics, row.error)
        return replace(row, metrics=other.metrics, error=other.error) if other is not None and same else row

    return header, [whole(row) for row in rows], str(folder)


def compared(one: Results, two: Results) -> list[Difference]:
    """The differences of all rows and metrics that two benchmarks have in common.

    Intervals are those of paired samples if the two have the same seeds and the metric's values on parts of the samples
    are kept.

    Raises:
        InputError: they have different references, features or conversions of the samples, or no row in common.
    """
    (header, rows, name), (other, others, second) = one, two
    for fact in _SAME:
        if header.get(fact) != other.get(fact):
            raise InputError(
                f"{name} and {second} cannot be compared: {fact} is {header.get(fact)!r} in the first and "
                f"{other.get(fact)!r} in the second"
            )
    paired = header.get("seeds") == other.get("seeds") is not None
    partners = {(row.solver, row.grid, row.nfe_budget): row for row in others}
    found = []
    for row in rows:
        if (partner := partners.get((row.solver, row.grid, row.nfe_budget))) is not None:
            found += _of_rows(row, partner, paired)
    if not found:
        raise InputError(f"{name} and {second} have no row in common that was drawn in both")
    return found


def _of_rows(row: Row, partner: Row, paired: bool) -> list[Difference]:
    made, counts = [], (row.n_samples, partner.n_samples)
    differ = counts if counts[0] != counts[1] else None
    for metric in [*row.metrics, "error"]:
        first, second = row.score(metric), partner.score(metric)
        if first is not None and second is not None:
            given = (second, first) if paired else (replace(second, again=()), replace(first, again=()))
            apart, are_paired = difference(*given)
            made.append(
                Difference(row.solver, row.grid, row.nfe_budget, metric, first, second, apart, are_paired, differ)
            )  # fmt: skip
    return made
