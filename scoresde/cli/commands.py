"""The commands that need a model: demo, train, sample, likelihood and benchmark."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

import solvers
from solvers import InputError
from solvers.libraries import without_traces
from solvers.registry.outside import Origin

from ..benchmark.runner import Row, write
from ..benchmark.runner import benchmark as run_benchmark
from ..data.dataset import DataCard, Dataset
from ..likelihood.result import LogProb
from ..models.denoiser import Denoiser
from ..result_files import environment, fingerprint, replacing, writable, write_json
from ..runs import build, conditions, config, saved
from ..runs.run import Run, load_run
from ..runs.score import Unfinished, evaluate, options_of, summary, write_results
from ..sampling.batches import check_source
from ..sampling.pictures import is_image
from ..sampling.sample import PICTURES
from ..sampling.sample import sample as draw
from ..training import checkpoint
from ..training.loop import prepared
from ..training.losses import Loss
from ..training.options import TrainingOptions
from ..training.processes import Elsewhere, launched
from .current_folder import import_drawing
from .readers import split

REFERENCES = 10_000  # samples with which a benchmark compares, of a data set that has more


def record(path: Path, command: str, run: Run, **facts: Any) -> None:
    """Writes a JSON file with everything that a reader needs to make the same files again."""
    document = {
        "command": command,
        **facts,
        "step": run.step,
        "config": run.config.to_dict(),
        "environment": environment(device=build.device_of(run.config)),
    }
    write_json(path, document)


def results_folder(arguments: argparse.Namespace, *names: str) -> Path:
    """The folder ``--out``, in which a command writes files of these names; created if needed.

    Raises:
        InputError: it already contains one of them, and ``--overwrite`` is not given.
    """
    out: Path = arguments.out
    if (there := [name for name in names if (out / name).exists()]) and not arguments.overwrite:
        raise InputError(
            f"{out} already contains {', '.join(there)}: use a different --out, or add --overwrite to replace what is "
            "there"
        )
    return writable(out)


def train(arguments: argparse.Namespace, overrides: list[str], command: str) -> None:
    """Trains a model, or resumes its training."""
    cfg = config.read_config(arguments.config, overrides)
    _check_used(cfg, overrides)
    then = f"next: scoresde sample --workdir={arguments.workdir} --seeds=64 --out=samples/"
    try:
        fit(cfg, arguments.workdir, arguments.continue_with_other_data, then)
    except Elsewhere:  # the process that found the error reports it
        sys.exit(2)


def _check_used(cfg: Any, overrides: Sequence[str]) -> None:
    """Rejects an override of ``model.sigma_data`` that neither the network's output nor the loss depends on."""
    given = any(override.startswith("--config.model.sigma_data=") for override in overrides)
    weighting = cfg.training.weighting or cfg.training.loss
    if given and cfg.model.predicts != "edm" and "edm" not in weighting:
        raise InputError(
            f"model.sigma_data is not used: predicts is {cfg.model.predicts!r} and the weighting {weighting!r}, "
            "neither is edm"
        )


def fit(cfg: Any, workdir: Path, other_data: bool = False, then: str = "") -> None:
    """Trains the config's model in a folder, from its last checkpoint if there is one.

    The folder is changed only after all checks, just before the first update.

    Args:
        other_data: resume even if the data are not those that the run was trained on.
        then: a line to print at the end.
    """
    with launched(build.device_of(cfg), cfg.training.precision) as processes, processes.holding(workdir):
        there, data, origin = processes.each(lambda: _read_data(cfg, workdir, other_data))
        card, say = data.card, print if processes.main else _silent
        denoiser, network, loss, options = processes.each(lambda: _build(cfg, card, workdir, origin))
        say(data)
        last = checkpoint.latest(workdir)
        weights = sum(p.numel() for p in network.parameters())
        start = f", resuming {last.name}" if last else ""
        start += f", {processes.count} processes" if processes.count > 1 else ""
        say(f"{cfg.model.network}, {weights:,} weights; {len(data.train)} samples {card.shape}; {cfg.sde}{start}")
        changes = build.changes_of(cfg, card)
        training = prepared(denoiser, network, data.train, loss, options, processes, changes)
        complete = there is not None and training.step == options.steps
        if there and complete and there.card.differences(card):
            error = f"{workdir} is complete: to continue with other data, raise --config.training.steps"
            raise InputError(error) if processes.main else Elsewhere(error)
        # no update of a complete run uses what is given now, so its record stays as it is
        if not complete:
            processes.first(lambda: _record(workdir, cfg, card, there))
        try:
            result = training.run()
        except KeyboardInterrupt:
            last = checkpoint.latest(workdir)
            raise KeyboardInterrupt(f"{last.name} is written; the same command resumes" if last else "") from None
    note = f"already complete; {saved.NAME} stays as it is" if math.isnan(result.loss) else f"loss {result.loss:.4f}"
    note += "" if result.complete else f"; the {options.max_minutes:g} minutes are over, the same command resumes"
    say(f"{workdir}: step {result.step}, {note}", *([then] if then else []), sep="\n")


def _silent(*_: object, sep: str = "") -> None:
    """Prints nothing: the main process prints for all."""


def _read_data(cfg: Any, workdir: Path, other_data: bool) -> tuple[saved.Saved | None, Dataset, Origin]:
    """What the folder contains, the config's data, and where the config comes from."""
    there = saved.of_run(workdir, cfg)
    data = build.load_data(cfg, there and there.card)
    if there and not other_data:
        saved.refuse_other_data(workdir, there.card, data.card)
    return there, data, Origin("the config", trusted=True)  # code that the user chose, or what the user typed


def _build(
    cfg: Any, card: DataCard, workdir: Path, origin: Origin
) -> tuple[Denoiser, nn.Module, Loss, TrainingOptions]:
    """What the training needs; also checks what only later commands need."""
    with origin.limits():
        denoiser, network = build.build_denoiser(cfg, card)
        loss, options = build.build_loss(cfg, card), build.build_options(cfg, card, workdir)
        _check_later(Run(cfg, denoiser, card, 0, origin))
    return denoiser, network, loss, options


def _record(workdir: Path, cfg: Any, card: DataCard, there: saved.Saved | None) -> None:
    """Writes ``config.json``, and says what it changes."""
    if changes := saved.write(workdir, cfg, card, there):
        print(f"this run resumes with {', '.join(changes)}; {workdir / saved.NAME} records it")


def _check_later(run: Run) -> None:
    """Checks the sections of the config that only later commands use: a typing error is found before the training.

    Raises:
        InputError: a name or an option in ``sampling`` or ``likelihood`` is invalid.
    """
    for section, check in (("sampling", _check_sampling), ("likelihood", options_of)):
        try:
            check(run)
        except InputError as error:
            raise InputError(f"config.{section}, which later commands use: {error}") from None


def _check_sampling(run: Run) -> None:
    build.plan_of(run.denoiser, run.config.sampling)
    check_source(run.config.sampling.noise)


def sample(arguments: argparse.Namespace, overrides: list[str], command: str) -> None:
    """Draws samples into samples.npz, samples.json and grid.png."""
    run = load_run(arguments.workdir, overrides, ("sampling", "device"))
    out = results_folder(arguments, "samples.npz", "samples.json", "grid.png")
    section = run.config.sampling
    with run.origin.limits():
        plan = build.plan_of(run.denoiser, section)
    given = conditions.choose(run.card.conditions, len(arguments.seeds), arguments.classes, arguments.condition)
    result = draw(
        run.denoiser, run.card.shape, arguments.seeds, plan=plan, noise=section.noise, condition=given.rows,
        batch_size=section.batch_size, device=build.device_of(run.config), progress=True,
    )  # fmt: skip
    x = result.x.cpu()
    facts: dict[str, Any] = {
        "solver": result.solver,
        "grid": result.grid,
        "steps": len(result.nodes) - 1,
        "nfe": result.nfe,
    }
    cost = f"{result.nfe} NFE, {result.seconds:.2f} s"
    if result.label_shift is not None:
        facts["label_shift"] = result.label_shift
        cost += f", labels rounded by at most {result.label_shift:.3g}"
    facts |= {"seeds": arguments.seeds, "seconds": result.seconds, "samples": fingerprint(x)}
    facts |= {"conditions": given.facts} if given.facts else {}
    with replacing(out, ("samples.npz", "grid.png", "samples.json")) as aside:
        result.save(aside / "samples.npz")
        if is_image(x):
            by_class = conditions.pictures_by_class(run.card.conditions, given.rows, PICTURES)
            result.save(aside / "grid.png", run.card.low, run.card.high, *(by_class or ()))
        record(aside / "samples.json", command, run, **facts)
    print(f"{len(x)} samples by {result.solver} on the grid {result.grid}{_choice(section)}{given.note}, {cost}: {out}")


def _choice(section: Any) -> str:
    """A note on the grid of a solver that is named without one."""
    if section.solver is None or section.grid is not None or solvers.resolve(section.solver)[1] is not None:
        return ""
    if solvers.make(solvers.resolve(section.solver)[0]).nodes is not None:
        return ""
    return " (none was named; --grid=NAME chooses another)"


def likelihood(arguments: argparse.Namespace, overrides: list[str], command: str) -> None:
    """Computes the log-likelihood of a split, or of this process's share of it."""
    run = load_run(arguments.workdir, overrides, ("likelihood", "device", "data.path"))
    data = build.load_data(run.config, run.card)
    _say_if_other(data.card, run.card)
    rows = {"train": data.train, "test": data.test}[arguments.split].first(arguments.limit)
    x = rows.x
    out = writable(arguments.out or arguments.workdir / "likelihood")
    import_drawing()
    found = evaluate(run, x, arguments.split, out / "shards", arguments.shards, rows.conditions)
    if isinstance(found, Unfinished):
        print(f"{found.done} of {found.total} shards are in {out / 'shards'}: the last process joins them")
        return
    write_results(out, run, x, arguments.split, found, command, rows.conditions)
    print(summary(run, x, arguments.split, found))
    print(out / "likelihood.html")


def _say_if_other(card: DataCard, trained: DataCard) -> None:
    """A note if the data are not those of the run: its held-out samples may then be among those it was trained on."""
    if found := trained.differences(card):
        print(f"note: the data are not those that the run was trained on: {', '.join(found)}", file=sys.stderr)


def benchmark(arguments: argparse.Namespace, overrides: list[str], command: str) -> None:
    """Compares solvers at several budgets; writes results.csv, results.json and report.html."""
    run = load_run(arguments.workdir, overrides, ("sampling", "device", "data.path"))
    named = [name for spec in arguments.solvers for name in (solvers.names("gaussian") if spec == "all" else [spec])]
    _check_commas(named)
    out = results_folder(arguments, "results.csv", "results.json", "report.html")
    compare(run, out, named, arguments.nfe, arguments.seeds, command, f"{arguments.workdir}")


def _check_commas(specs: Sequence[str]) -> None:
    """Checks names of solvers between commas; one name may contain spaces, as "DPM++ 2M Karras" does.

    Raises:
        InputError: an unknown name; if its words are names, the message says that commas separate solvers.
    """
    for spec in specs:
        try:
            solvers.resolve(spec)
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
    with run.origin.limits():
        rows = run_benchmark(
            run.denoiser, reference, names, nfe, seeds, shape=run.card.shape, grid=run.config.sampling.grid,
            batch_size=run.config.sampling.batch_size, device=build.device_of(run.config), truth_steps=64, keep=12,
            condition=conditions.of_test(data.test, len(seeds)),
        )  # fmt: skip
    header = {
        **environment(build.device_of(run.config)),
        "command": command,
        "sde": run.config.sde,
        "network": run.config.model.network,
        "step": run.step,
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
        )
    print(table(rows))
    print(f"{out / 'report.html'}")


def table(rows: Sequence[Row]) -> str:
    """The rows of a benchmark as text."""
    lines = [
        f"{'solver':28s} {'NFE':>4s} {'steps':>5s} {'sliced W2':>22s} {'Frechet':>9s} {'ODE error':>10s} {'s':>6s}"
    ]
    for row in rows:
        if row.skipped:
            lines.append(f"{row.solver:28s} {row.nfe_budget or '':>4} skipped: {row.skipped}")
            continue
        w, f = row.metrics["sliced_wasserstein"], row.metrics["frechet"]
        error = f"{row.error.value:10.4f}" if row.error else f"{'-':>10s}"
        lines.append(
            f"{row.solver:28s} {row.nfe:4d} {row.steps:5d} {w.value:8.4f} [{w.low:.4f},{w.high:.4f}] {f.value:8.3f} "
            f"{error} {row.seconds:6.2f}"
        )
    return "\n".join(lines)


def demo(arguments: argparse.Namespace, overrides: list[str], command: str) -> None:
    """Trains on real digits, samples with four solvers, scores held-out digits and writes the page."""
    steps = "--config.training.steps=300" if arguments.fast else "--config.training.steps=4500"
    cfg = config.override(config.read_config(arguments.config, [steps]), overrides)
    out = writable(arguments.out)
    import_drawing()
    fit(cfg, out / "run")
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
    "likelihood": likelihood,
    "benchmark": benchmark,
}
