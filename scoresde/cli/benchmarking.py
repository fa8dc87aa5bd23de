"""The command ``benchmark``, and ``rerun`` and ``compare``, which read its results."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

import solvers
from solvers import InputError
from solvers.libraries import without_traces

from ..benchmark.comparison import Difference, compared, read_whole
from ..benchmark.metrics import Estimate
from ..benchmark.metrics import compare as distances
from ..benchmark.rows import FILES, NewerVersion, Row, labels_of, read, set_aside, write
from ..benchmark.runner import measure
from ..benchmark.store import Unfinished
from ..benchmark.token_metrics import MEANINGS, TOKEN_METRICS
from ..io.result_files import replacing, writable
from ..likelihood.result import LogProb
from ..models.model import as_model
from ..runs.benchmarks.redrawn import Redrawn, rows_again
from ..runs.benchmarks.sources import Source, Subject, subject_of
from ..runs.benchmarks.task import Scoring, Task
from .current_folder import import_drawing
from .readers import split
from .results import say_average, say_if_other


@dataclass(frozen=True)
class Place:
    """Where the results of a benchmark are written, and by which command.

    Attributes:
        out: the folder.
        command: the command line, without what chooses a share of the work.
        share: (k, n): this process computes every n-th row, from the k-th.
        overwrite: whether results of a different benchmark are replaced.
    """

    out: Path
    command: str
    title: str = ""
    share: tuple[int, int] = (1, 1)
    overwrite: bool = False


class Settings(NamedTuple):
    """The solvers, grids and budgets of a benchmark, see ``Terms.jobs``."""

    names: Sequence[str]
    nfe: Sequence[int]
    grids: str | Sequence[str] | None = None


def benchmark(arguments: argparse.Namespace, overrides: list[str], command: str) -> None:
    """Compares solvers at several budgets; writes results.csv, results.json, times.json and report.html."""
    given = {name: vars(arguments)[name] for name in ("workdir", "diffusers", "target", "sde", "reference")}
    source = Source(**{name: value and str(value) for name, value in given.items()}, overrides=tuple(overrides))
    subject = subject_of(source, arguments.trust)
    if subject.run is not None:
        say_average(subject.run)
    space = as_model(subject.denoiser, None).space
    named = [name for spec in arguments.solvers for name in (solvers.names(space) if spec == "all" else [spec])]
    _check_commas(named, space)
    grid = subject.config.sampling.grid
    if arguments.grids and grid:
        raise InputError(f"--grid={grid} is the grid of all solvers: leave it out, or name it in --grids")
    scoring = Scoring(arguments.metrics and tuple(arguments.metrics), arguments.features, arguments.round)
    words = [word for word in command.split(" ") if not word.startswith("--shards=") and word != "--overwrite"]
    out = writable(arguments.out)
    place = Place(out, " ".join(words), source.title, arguments.shards, arguments.overwrite)
    run_benchmark(subject, place, Settings(named, arguments.nfe, arguments.grids or grid), arguments.seeds, scoring)


def _check_commas(specs: Sequence[str], space: str = "gaussian") -> None:
    """Checks names of solvers between commas; one name may contain spaces, as "DPM++ 2M Karras" does.

    Raises:
        InputError: an unknown name; if its words are names, the message says that commas separate solvers.
    """
    for spec in specs:
        try:
            solvers.resolve(spec, space)
        except InputError as error:
            words = split(spec, " ")
            if len(words) > 1 and all(solvers.solvers.knows(word.partition("(")[0]) for word in words):
                advice = f"separate solvers by commas, --solvers={', '.join(words)!r}"
                raise InputError(f"no solver {spec!r}; {advice}") from None
            raise error


def run_benchmark(
    subject: Subject,
    place: Place,
    settings: Settings,
    seeds: Sequence[int],
    scoring: Scoring | None = None,
    result: LogProb | None = None,
) -> None:
    """Benchmarks solvers on a model against its real samples; writes the results and the page."""
    scoring = scoring or Scoring()
    import_drawing()
    with without_traces():
        from ..show.page import write_report  # here, so that the other commands do not wait for matplotlib

    if subject.run is not None and subject.card is not None:
        say_if_other(subject.card, subject.run.card)
    with subject.origin.limits():
        task = Task.of(subject, seeds, scoring).kept_in(place.out, place.overwrite)
        jobs = task.terms.jobs(settings.names, settings.grids, settings.nfe)
        _refuse_to_drop(place, {(str(job.method), job.grid, job.nfe) for job in jobs})
        rows = measure(task.terms, jobs, place.share)
    store = task.terms.store
    assert store is not None
    if isinstance(rows, Unfinished):
        print(f"{rows.done} of {rows.total} rows are in {store.folder}: the last process joins them")
        return
    notes = _notes(task)
    header = task.header(place.command, scoring, any(row.error is not None for row in rows))
    with replacing(place.out, FILES) as aside:
        write(rows, aside, header)
        write_report(
            aside / "report.html",
            title=place.title,
            rows=rows,
            low=subject.low,
            high=subject.high,
            reference=subject.reference,
            likelihood=result,
            header=header,
            notes=notes,
            texts=subject.texts,
        )
    print(*[table(rows), *notes, f"{place.out / 'report.html'}"], sep="\n")


def _notes(task: Task) -> list[str]:
    """What a reader needs to know to read the numbers."""
    terms, subject = task.terms, task.subject
    if terms.reference is None:
        return [
            "There are no real samples to compare with (--reference=FILE): the error is the distance of each sample to "
            "the exact solution of the probability-flow ODE, and says nothing of how good the model is."
        ]
    notes = [task.caution] if task.caution else []
    if subject.train is None or as_model(subject.denoiser, None).space != "discrete":
        return notes
    some = subject.train.some(min(len(terms.seeds), len(subject.train))).x
    return notes + _floor(some, terms.reference, list(terms.metrics))


def _refuse_to_drop(place: Place, coming: set[tuple[str, str, int | None]]) -> None:
    """Rejects a folder with rows that this benchmark would leave out; damaged results are reported and set aside.

    Raises:
        InputError: there are such rows, or results of a newer version, and nothing is to be replaced.
    """
    path = place.out / "results.json"
    if not path.exists():
        return
    try:
        there = read(place.out)[1]
    except NewerVersion:
        if not place.overwrite:
            raise
        return
    except InputError as error:
        print(f"note: {error}; it is now {set_aside(path).name}", file=sys.stderr)
        return
    gone = [row for row in there if (row.solver, row.grid, row.nfe_budget) not in coming]
    if gone and not place.overwrite:
        first = f"{gone[0].solver} on {gone[0].grid}, NFE {gone[0].nfe_budget or 'adaptive'}"
        raise InputError(
            f"{place.out} already contains results.json with {len(gone)} rows that this command leaves out, such as "
            f"{first}: name them too, use a different --out, or add --overwrite to replace what is there"
        )


def _floor(train: Tensor, reference: Tensor, names: Sequence[str]) -> list[str]:
    """What the metrics of tokens mean, and their values for training samples (N, *)."""
    names = [name for name in names if name in MEANINGS]
    shown = ", ".join(f"{k} {_interval(v).strip()}" for k, v in distances(train, reference, names).items())
    meanings = [f"{name}: {MEANINGS[name]}" for name in names]
    return [*meanings, f"{len(train)} training samples have {shown}; no sampler is better than that"] if names else []


def table(rows: Sequence[Row]) -> str:
    """The rows of a benchmark as text."""
    names = list(dict.fromkeys(name for row in rows for name in row.metrics))
    tokens = [name for name in TOKEN_METRICS if name in names]
    usual = ["sliced_wasserstein", "frechet"]
    default = not tokens and all(name in names for name in usual)
    wide = tokens or (usual[:1] if default else names)
    heads = [f"{'sliced W2' if default else name:>22s}" for name in wide]
    heads += [f"{'Frechet':>9s}"] if default else []
    heads += [] if tokens else [f"{'ODE error':>10s}"]
    labels = labels_of(rows)
    width = max(28, *map(len, labels))
    lines = [" ".join([f"{'solver':{width}s} {'NFE':>4s} {'steps':>5s}", *heads, f"{'s':>6s}"])]
    for label, row in zip(labels, rows, strict=True):
        if row.skipped:
            lines.append(f"{label:{width}s} {row.nfe_budget or '':>4} skipped: {row.skipped}")
            continue
        cells = [_interval(row.metrics[name]) for name in wide]
        cells += [f"{row.metrics['frechet'].value:9.3f}"] if default else []
        if not tokens:
            cells.append(f"{row.error.value:10.4f}" if row.error else f"{'-':>10s}")
        lines.append(" ".join([f"{label:{width}s} {row.nfe:4d} {row.steps:5d}", *cells, f"{row.seconds:6.2f}"]))
    return "\n".join(lines)


def _interval(found: Estimate) -> str:
    return f"{found.value:8.4f} [{found.low:.4f},{found.high:.4f}]"[:24].rjust(22)


def rerun(arguments: argparse.Namespace, overrides: list[str], command: str) -> int:
    """Draws rows of a benchmark again from what its file contains; returns status 1 if a number differs."""
    header, rows = read(arguments.results)
    found: list[Redrawn] = []
    given = {name: vars(arguments)[name] for name in ("workdir", "diffusers", "reference")}
    moved = {name: str(value) for name, value in given.items() if value is not None}
    for again in rows_again(header, rows, arguments.row, arguments.results, moved, arguments.trust):
        print(again, flush=True)
        found.append(again)
    return int(not all(again.identical for again in found))


def compare(arguments: argparse.Namespace, overrides: list[str], command: str) -> None:
    """Prints the differences of the rows that two benchmarks have in common."""
    one, two = (read_whole(folder) for folder in arguments.folders)
    found = compared(one, two)
    print(_differences(found, *map(str, arguments.folders)))


def _differences(found: Sequence[Difference], one: str, two: str) -> str:
    """The differences of two benchmarks as text."""
    lines = [f"{two} minus {one}, with 95 % intervals", ""]
    labels = labels_of(found)
    width = max(28, *map(len, labels))
    lines.append(f"{'solver':{width}s} {'budget':>6s} {'metric':20s} {'first':>10s} {'second':>10s} difference")
    for label, each in zip(labels, found, strict=True):
        apart = f"{each.apart.value:+.4g} [{each.apart.low:+.4g}, {each.apart.high:+.4g}]"
        notes = [each.verdict] + ([] if each.paired else ["not paired"])
        budget = "-" if each.budget is None else str(each.budget)
        lines.append(
            f"{label:{width}s} {budget:>6s} {each.metric:20s} {each.first.value:10.4g} {each.second.value:10.4g} "
            f"{apart}, {', '.join(notes)}"
        )
    return "\n".join(lines)
