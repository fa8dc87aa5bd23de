"""The commands that use a trained model: sample and likelihood, and demo, which trains one first."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import solvers
from solvers import InputError, Node
from solvers.multistep.few import Few

from ..data.rows import Batch
from ..guidance.guided import Guided
from ..io.result_files import fingerprint, replacing, writable, write_arrays
from ..runs import build, conditions, config
from ..runs.benchmarks.sources import Source, of_run
from ..runs.class_posterior import class_posterior
from ..runs.run import Run, load_run
from ..runs.score import Unfinished, evaluate, summary, write_results
from ..sampling.pictures import is_image, listing
from ..sampling.sample import PICTURES
from ..sampling.sample import sample as draw
from .benchmarking import Place, Settings, benchmark, compare, rerun, run_benchmark
from .current_folder import import_drawing
from .restoring import restore
from .results import record, results_folder, say_average, say_if_other
from .training import Job, fit, train


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
    grid = f"{result.grid}{_choice(section, run.denoiser.space, result.nodes)}"
    print(f"{len(x)} samples by {result.solver} on the grid {grid}{given.note}, {cost}: {out}")


def _refuse_unused(overrides: Sequence[str]) -> None:
    """Rejects fields of the config that only ``scoresde restore`` uses.

    Raises:
        InputError: such a field is given.
    """
    names = ("operator", "observation", "posterior")
    for name in (n for n in names for o in overrides if o.startswith(f"--config.sampling.{n}=")):
        raise InputError(f"sampling.{name} is used by scoresde restore, which draws samples given an observation")


def _choice(section: Any, space: str, nodes: Sequence[Node]) -> str:
    """A note on the grid of a solver that is named without one, and on ``few`` where it has no table."""
    if section.solver is None:
        return ""
    solver, named = solvers.resolve(section.solver, space)
    method = solvers.make(solver)
    if isinstance(method, Few):
        return "" if method.table(nodes) else f", of which it has no table: it is ipndm in {len(nodes) - 1} steps"
    if section.grid is not None or named is not None or method.nodes is not None:
        return ""
    return " (none was named; --grid=NAME chooses another)"


def likelihood(arguments: argparse.Namespace, overrides: list[str], command: str) -> None:
    """Computes the log-likelihood of a split, or of this process's share of it."""
    run = load_run(arguments.workdir, overrides, ("likelihood", "sampling.ema", "device", "data.path"))
    say_average(run)
    data = build.load_data(run.config, run.card)
    say_if_other(data.card, run.card)
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
    place = Place(out, command, title="scoresde demo: 8x8 digits", overwrite=True)
    settings = Settings(names, [5, 10, 20, 50], run.config.sampling.grid)
    run_benchmark(of_run(run, Source(str(out / "run"))), place, settings, seeds, result=found["ode"])


COMMANDS = {
    "demo": demo,
    "train": train,
    "sample": sample,
    "restore": restore,
    "likelihood": likelihood,
    "benchmark": benchmark,
    "rerun": rerun,
    "compare": compare,
}
