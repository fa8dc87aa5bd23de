"""The commands that use a trained model: sample, likelihood and benchmark, and demo, which trains one first."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

import solvers
from solvers import InputError
from solvers.libraries import without_traces

from ..benchmark.metrics import Estimate
from ..benchmark.metrics import compare as distances
from ..benchmark.runner import Row, write
from ..benchmark.runner import benchmark as run_benchmark
from ..benchmark.token_metrics import MEANINGS, TOKEN_METRICS, meaningful
from ..data.dataset import DataCard
from ..data.rows import Batch
from ..guidance.guided import Guided
from ..io.result_files import environment, fingerprint, replacing, writable, write_arrays
from ..likelihood.result import LogProb
from ..runs import build, conditions, config
from ..runs.class_posterior import class_posterior
from ..runs.run import Run, load_run
from ..runs.score import Unfinished, evaluate, summary, write_results
from ..sampling.pictures import is_image, listing
from ..sampling.sample import PICTURES
from ..sampling.sample import sample as draw
from .current_folder import import_drawing
from .readers import split
from .restoring import restore
from .results import record, results_folder, say_average
from .training import Job, fit, train

REFERENCES = 10_000  # samples with which a benchmark compares, of a data set that has more


def sample(arguments: argparse.Namespace, overrides: list[str], command: str) -> None:
    """Draws samples into samples.npz, samples.json and grid.png; of a text also samples.txt."""
    _refuse_unused(overrides)
    run = load_run(arguments.workdir, overrides, ("sampling", "device"))
    say_average(run)
    names = ("samples.npz", "grid.png", "samples.json", *(["samples.txt"] if run.card.symbols else []))
    out = results_folder(arguments, *names)
    section = run.config.sampling
    with run.origin.limits():
        denoiser, plan = build.guided_plan(run.denoiser, section, run.config)
    given = conditions.choose(run.card.conditions, len(arguments.seeds), arguments.classes, section.get("condition"))
    result = draw(
        denoiser, run.card.shape, arguments.seeds, plan=plan, noise=section.noise, condition=given.rows,
        batch_size=section.batch_size, device=build.device_of(run.config), progress=True,
    )  # fmt: skip
    x = result.x.cpu()
    facts: dict[str, Any] = {
        "solver": result.solver,
        "grid": result.grid,
        "steps": len(result.nodes) - 1,
        "nfe": result.nfe,
        "forwards": result.forwards,
        "vjps": result.vjps,
    }
    if section.get("guidance"):
        facts["guidance"] = str(denoiser.guidance) if isinstance(denoiser, Guided) else None
    cost = f"{result.nfe} NFE, {result.forwards:g} forwards, {result.seconds:.2f} s"
    if result.label_shift is not None:
        facts["label_shift"] = result.label_shift
        cost += f", labels rounded by at most {result.label_shift:.3g}"
    facts |= {"seeds": arguments.seeds, "seconds": result.seconds, "samples": fingerprint(x)}
    facts |= {"conditions": given.facts} if given.facts else {}
    with replacing(out, names) as aside:
        result.save(aside / "samples.npz")
        if is_image(x):
            by_class = conditions.pictures_by_class(run.card.conditions, given.rows, PICTURES)
            result.save(aside / "grid.png", run.card.low, run.card.high, *(by_class or ()))
        if run.card.symbols:
            text = listing(run.card.texts(x), arguments.seeds)
            (aside / "samples.txt").write_bytes(text.encode("latin-1" if run.config.data.name == "bytes" else "utf-8"))
        record(aside / "samples.json", command, run, **facts)
    grid = f"{result.grid}{_choice(section, run.denoiser.space)}"
    print(f"{len(x)} samples by {result.solver} on the grid {grid}{given.note}, {cost}: {out}")


def _refuse_unused(overrides: Sequence[str]) -> None:
    """Rejects fields of the config that only ``scoresde restore`` uses.

    Raises:
        InputError: such a field is given.
    """
    names = ("operator", "observation", "posterior")
    for name in (n for n in names for o in overrides if o.startswith(f"--config.sampling.{n}=")):
        raise InputError(f"sampling.{name} is used by scoresde restore, which draws samples given an observation")


def _choice(section: Any, space: str) -> str:
    """A note on the grid of a solver that is named without one."""
    if section.solver is None or section.grid is not None:
        return ""
    solver, named = solvers.resolve(section.solver, space)
    if named is not None or solvers.make(solver).nodes is not None:
        return ""
    return " (none was named; --grid=NAME chooses another)"


def likelihood(arguments: argparse.Namespace, overrides: list[str], command: str) -> None:
    """Computes the log-likelihood of a split, or of this process's share of it."""
    run = load_run(arguments.workdir, overrides, ("likelihood", "sampling.ema", "device", "data.path"))
    say_average(run)
    data = build.load_data(run.config, run.card)
    _say_if_other(data.card, run.card)
    whole = {"train": data.train, "test": data.test}[arguments.split]
    try:
        rows = whole.first(arguments.limit)
    except MemoryError:
        raise InputError(
            f"the {arguments.split} split has {len(whole):,} samples, for all of which there is no memory: "
            "--limit=1000 scores the first ones"
        ) from None
    x = rows.x
    out = writable(arguments.out or arguments.workdir / "likelihood")
    if arguments.classes:
        of_classes(run, rows, arguments, out, command)
        return
    import_drawing()
    found = evaluate(run, x, arguments.split, out / "shards", arguments.shards, rows.conditions)
    if isinstance(found, Unfinished):
        print(f"{found.done} of {found.total} shards are in {out / 'shards'}: the last process joins them")
        return
    write_results(out, run, x, arguments.split, found, command, rows.conditions)
    print(summary(run, x, arguments.split, found))
    print(out / "likelihood.html")


def of_classes(run: Run, rows: Batch, arguments: argparse.Namespace, out: Path, command: str) -> None:
    """Computes p(c | x) of a split from the likelihood under each class; writes classes.npz and classes.json."""
    found = class_posterior(run, rows, arguments.split, out / "classes", arguments.shards)
    if isinstance(found, Unfinished):
        print(f"{found.done} of {found.total} shards are in {out / 'classes'}: the last process joins them")
        return
    write_arrays(out / "classes.npz", **found.arrays())
    record(out / "classes.json", command, run, split=arguments.split, samples=len(rows), **found.facts())
    print(found, out / "classes.json", sep="\n")


def _say_if_other(card: DataCard, trained: DataCard) -> None:
    """A note if the data are not those of the run: its held-out samples may then be among those it was trained on."""
    if found := trained.differences(card):
        print(f"note: the data are not those that the run was trained on: {', '.join(found)}", file=sys.stderr)


def benchmark(arguments: argparse.Namespace, overrides: list[str], command: str) -> None:
    """Compares solvers at several budgets; writes results.csv, results.json and report.html."""
    run = load_run(arguments.workdir, overrides, ("sampling", "device", "data.path"))
    say_average(run)
    named = [
        name for spec in arguments.solvers for name in (solvers.names(run.denoiser.space) if spec == "all" else [spec])
    ]
    _check_commas(named, run.denoiser.space)
    out = results_folder(arguments, "results.csv", "results.json", "report.html")
    compare(run, out, named, arguments.nfe, arguments.seeds, command, f"{arguments.workdir}")


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


def compare(
    run: Run,
    out: Path,
    names: Sequence[str],
    nfe: Sequence[int],
    seeds: Sequence[int],
    command: str,
    title: str,
    result: LogProb | None = None,
) -> None:
    """Benchmarks solvers on a run's model against its held-out data; writes the results and the page."""
    import_drawing()
    with without_traces():
        from ..show.page import write_report  # here, so that the other commands do not wait for matplotlib

    data = build.load_data(run.config, run.card)
    _say_if_other(data.card, run.card)
    reference = data.test.first(REFERENCES).x
    metrics, notes = None, list[str]()
    if run.config.process is not None:
        metrics = meaningful(reference, data.train.some(min(REFERENCES, len(data.train))).x)
        notes = _floor(data.train.some(min(len(seeds), len(data.train))).x, reference, metrics)
    with run.origin.limits():
        rows = run_benchmark(
            run.denoiser, reference, names, nfe, seeds, shape=run.card.shape, grid=run.config.sampling.grid,
            batch_size=run.config.sampling.batch_size, device=build.device_of(run.config), truth_steps=64, keep=12,
            metrics=metrics, condition=conditions.of_test(data.test, len(seeds)),
        )  # fmt: skip
    header = {
        **environment(build.device_of(run.config)),
        "command": command,
        "path": run.config.process or run.config.sde,
        "network": run.config.model.network,
        "step": run.step,
        "average": run.average and run.average.facts(),
        "reference": f"held-out {run.config.data.name}, {len(reference)} samples, {fingerprint(reference)}",
        "seeds": list(seeds),
        "config": run.config.to_dict(),
    }
    with replacing(out, ("results.csv", "report.html", "results.json")) as aside:
        write(rows, aside, header)
        write_report(
            aside / "report.html",
            title=title,
            rows=rows,
            low=run.card.low,
            high=run.card.high,
            reference=reference,
            likelihood=result,
            header=header,
            notes=notes,
            texts=None if run.config.process is None or is_image(reference) else run.card.texts,
        )
    print(*[table(rows), *notes, f"{out / 'report.html'}"], sep="\n")


def _floor(train: Tensor, reference: Tensor, names: Sequence[str]) -> list[str]:
    """What the metrics of tokens mean, and their values for training samples (N, *)."""
    shown = ", ".join(f"{k} {_interval(v).strip()}" for k, v in distances(train, reference, names).items())
    meanings = [f"{name}: {MEANINGS[name]}" for name in names]
    return [*meanings, f"{len(train)} training samples have {shown}; no sampler is better than that"]


def table(rows: Sequence[Row]) -> str:
    """The rows of a benchmark as text."""
    tokens = [name for name in TOKEN_METRICS if any(name in row.metrics for row in rows)]
    heads = [f"{name:>22s}" for name in tokens] or [f"{'sliced W2':>22s}", f"{'Frechet':>9s}", f"{'ODE error':>10s}"]
    lines = [" ".join([f"{'solver':28s} {'NFE':>4s} {'steps':>5s}", *heads, f"{'s':>6s}"])]
    for row in rows:
        if row.skipped:
            lines.append(f"{row.solver:28s} {row.nfe_budget or '':>4} skipped: {row.skipped}")
            continue
        cells = [_interval(row.metrics[name]) for name in tokens or ("sliced_wasserstein",)]
        if not tokens:
            error = f"{row.error.value:10.4f}" if row.error else f"{'-':>10s}"
            cells += [f"{row.metrics['frechet'].value:9.3f}", error]
        lines.append(" ".join([f"{row.solver:28s} {row.nfe:4d} {row.steps:5d}", *cells, f"{row.seconds:6.2f}"]))
    return "\n".join(lines)


def _interval(found: Estimate) -> str:
    return f"{found.value:8.4f} [{found.low:.4f},{found.high:.4f}]"[:24].rjust(22)


def demo(arguments: argparse.Namespace, overrides: list[str], command: str) -> None:
    """Trains on real digits, samples with four solvers, scores held-out digits and writes the page."""
    steps = "--config.training.steps=300" if arguments.fast else "--config.training.steps=4500"
    cfg = config.override(config.read_config(arguments.config, [steps]), overrides)
    out = writable(arguments.out)
    import_drawing()
    fit(Job(cfg), out / "run", command)
    run = load_run(out / "run", trust=True)  # its config was just written
    rows = build.load_data(run.config, run.card).test.first(64 if arguments.fast else None)
    x = rows.x
    found = evaluate(run, x, "test", conditions=rows.conditions)
    assert not isinstance(found, Unfinished)  # this process computes every shard
    write_results(out, run, x, "test", found, command, rows.conditions)
    print(summary(run, x, "test", found))
    names = ["ddim", "heun", "dpmpp_2m", "ddpm"]
    seeds = range(64 if arguments.fast else 256)
    compare(run, out, names, [5, 10, 20, 50], seeds, command, "scoresde demo: 8x8 digits", found["ode"])


COMMANDS = {
    "demo": demo,
    "train": train,
    "sample": sample,
    "restore": restore,
    "likelihood": likelihood,
    "benchmark": benchmark,
}
