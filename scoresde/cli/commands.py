"""The commands of the command line."""

from __future__ import annotations

import argparse
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import solvers
from solvers import InputError
from solvers.conformance import checks
from solvers.errors import positive_integer
from solvers.program import json_format
from solvers.program.from_file import File

from ..benchmark.runner import Row, write
from ..benchmark.runner import benchmark as run_benchmark
from ..likelihood.result import LogProb
from ..paths.base import make_sde
from ..result_files import environment, fingerprint, write_arrays, write_atomically, write_figure, write_json
from ..runs import build, config
from ..runs.run import Run, load_run
from ..runs.score import Unfinished, evaluate, summary, write_results
from ..sampling.sample import sample as draw
from ..show import program_view, solver_cards
from ..show.page import image_grid, is_image, write_report
from ..training import checkpoint
from ..training.loop import train as run_training


def writable(folder: Path) -> Path:
    """Returns ``folder``, created if needed.

    Raises:
        InputError: the folder cannot be created or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}") from None
    return folder


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


def train(arguments: argparse.Namespace, overrides: list[str], command: str) -> None:
    """Trains a model, or resumes its training."""
    cfg = config.read_config(arguments.config, overrides)
    workdir = writable(arguments.workdir)
    fit(cfg, workdir)
    print(f"next: scoresde sample --workdir={workdir} --seeds=0-63 --out=samples/")


def fit(cfg: Any, workdir: Path) -> None:
    """Trains the config's model in a folder, from its last checkpoint if there is one."""
    data = build.load_data(cfg)
    card = build.card_of(cfg, data)
    denoiser, network = build.build_denoiser(cfg, card.shape)
    loss, options = build.build_loss(cfg, card), build.build_options(cfg, card, workdir)
    config.claim(workdir, cfg, card)
    last = checkpoint.latest(workdir)
    weights = sum(p.numel() for p in network.parameters())
    start = f", resuming {last.name}" if last else ""
    print(f"{cfg.model.network}, {weights:,} weights; {len(data.train)} samples {card.shape}; {cfg.sde}{start}")
    try:
        result = run_training(denoiser, network, data.train, loss, options)
    except KeyboardInterrupt:
        last = checkpoint.latest(workdir)
        raise KeyboardInterrupt(f"{last.name} is written; the same command resumes" if last else "") from None
    note = "already complete" if math.isnan(result.loss) else f"loss {result.loss:.4f}"
    print(f"{workdir}: step {result.step}, {note}")


def sample(arguments: argparse.Namespace, overrides: list[str], command: str) -> None:
    """Draws samples into samples.npz, samples.json and grid.png."""
    run = load_run(arguments.workdir, overrides)
    out = writable(arguments.out)
    section = run.config.sampling
    result = draw(
        run.denoiser, run.card.shape, arguments.seeds, plan=build.plan_of(run.denoiser, section), noise=section.noise,
        batch_size=section.batch_size, device=build.device_of(run.config), progress=True,
    )  # fmt: skip
    x = result.x.cpu()
    write_arrays(out / "samples.npz", x=x, seeds=np.array(arguments.seeds))
    if is_image(x):
        buffer = io.BytesIO()
        image_grid(x[:100], run.card.low, run.card.high).save(buffer, "PNG")
        write_atomically(out / "grid.png", buffer.getvalue())
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
    record(
        out / "samples.json",
        command,
        run,
        **facts,
        seeds=arguments.seeds,
        seconds=result.seconds,
        samples=fingerprint(x),
    )
    print(f"{len(x)} samples by {result.solver} on {result.grid}, {cost}: {out}")


def likelihood(arguments: argparse.Namespace, overrides: list[str], command: str) -> None:
    """Computes the log-likelihood of a split, or of this process's share of it."""
    run = load_run(arguments.workdir, overrides)
    if arguments.limit is not None:
        positive_integer("--limit", arguments.limit)
    if arguments.tolerance is not None:
        run.config.likelihood.tolerance = arguments.tolerance
    x = getattr(build.load_data(run.config, run.card), arguments.split)[: arguments.limit]
    out = writable(arguments.out or arguments.workdir / "likelihood")
    found = evaluate(run, x, arguments.split, out / "shards", arguments.shards)
    if isinstance(found, Unfinished):
        print(f"{found.done} of {found.total} shards are in {out / 'shards'}: the last process joins them")
        return
    write_results(out, run, x, arguments.split, found, command)
    print(summary(run, x, arguments.split, found))
    print(out / "likelihood.html")


def benchmark(arguments: argparse.Namespace, overrides: list[str], command: str) -> None:
    """Compares solvers at several budgets; writes results.csv, results.json and report.html."""
    run = load_run(arguments.workdir, overrides)
    out = writable(arguments.out)
    compare(run, out, arguments.solvers, arguments.nfe, arguments.seeds, command, f"{arguments.workdir}")


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
    reference = build.load_data(run.config, run.card).test
    rows = run_benchmark(
        run.denoiser, reference, names, nfe, seeds, shape=run.card.shape, grid=run.config.sampling.grid,
        batch_size=run.config.sampling.batch_size, device=build.device_of(run.config), truth_steps=64, keep=12,
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
    write(rows, out, header)
    write_report(
        out / "report.html",
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
    cfg = config.read_config(arguments.config, [steps, *overrides])
    out = writable(arguments.out)
    fit(cfg, out / "run")
    run = load_run(out / "run")
    test = build.load_data(run.config, run.card).test
    x = test[:64] if arguments.fast else test
    found = evaluate(run, x, "test")
    assert not isinstance(found, Unfinished)  # this process computes every shard
    write_results(out, run, x, "test", found, command)
    print(summary(run, x, "test", found))
    names = ["ddim", "heun", "dpmpp_2m", "ddpm"]
    seeds = range(64 if arguments.fast else 256)
    compare(run, out, names, [5, 10, 20, 50], seeds, command, "scoresde demo: 8x8 digits", found["ode"])


def list_solvers(arguments: argparse.Namespace, overrides: list[str], command: str) -> None:
    """Prints the table of solvers, one solver's card, or one solver's program."""
    if arguments.space is not None and arguments.name is not None:
        raise InputError("--space filters the table of solvers: leave out the solver's name")
    if arguments.show or arguments.json is not None:
        show_program(arguments, command)
        return
    given = [name for name in ("steps", "grid", "sde", "output", "out") if getattr(arguments, name) is not None]
    if given:
        raise InputError(f"--{given[0]} needs a solver's program: add --show to print and draw it, or --json FILE")
    if (arguments.name or "").startswith("file:"):
        print(program_view.text(File(arguments.name.removeprefix("file:")).program))
        return
    if arguments.name is not None:
        print(solver_cards.card(arguments.name))
        return
    names = solvers.names(space=arguments.space)
    print(
        solver_cards.table(solver_cards.rows(names))
        if names
        else f"no solver of {arguments.space} states is registered"
    )


def show_program(arguments: argparse.Namespace, command: str) -> None:
    """Traces a solver on a grid; prints and draws the program, or writes it to a file."""
    if arguments.name is None:
        raise InputError("a program needs the name of one solver: scoresde solvers NAME --steps 8 --show")
    if arguments.show and arguments.json == "-":
        raise InputError("--show and --json - would both print: give --json a file")
    if arguments.out is not None and (not arguments.show or arguments.out.suffix.lower() != ".png"):
        raise InputError(f"--out must be a PNG file, and needs --show; got {arguments.out}")
    program, title = _program(arguments)
    if arguments.json == "-":
        print(json_format.write(program, note=command), end="")
    elif arguments.json is not None:
        path = Path(arguments.json)
        write_atomically(writable(path.parent) / path.name, json_format.write(program, note=command))
    if arguments.show:
        print(program_view.text(program, title))
        path = arguments.out or Path(f"{Path(title.split()[0].partition('(')[0].rpartition(':')[2]).stem}.png")
        write_figure(writable(path.parent) / path.name, program_view.picture(program, title))
        print(f"\n{path}")


def _program(arguments: argparse.Namespace) -> tuple[solvers.Program, str]:
    """The program that the arguments describe, and its title."""
    solver_spec, named = solvers.resolve(arguments.name)
    solver = solvers.make(solver_spec)
    if isinstance(solver, File):
        given = [name for name in ("steps", "grid", "sde", "output") if getattr(arguments, name) is not None]
        if given:
            raise InputError(f"{solver} already fixes its nodes and its output: leave out --{given[0]}")
        return solver.program, str(solver)
    rule = solvers.grids.make(arguments.grid or named or "karras")
    if arguments.steps is None and not rule.fixed:
        raise InputError(f"a program needs a number of steps: add --steps, such as --steps 8 (the grid is {rule})")
    sde = make_sde(arguments.sde or "vp")
    program = solvers.trace(solver, rule.nodes(sde, arguments.steps), sde, arguments.output or "x0")
    return program, f"{solver} on {rule} of {sde}"


def check_solver(arguments: argparse.Namespace, overrides: list[str], command: str) -> int:
    """Prints the verdict of each check, then how many passed; returns status 1 if one fails."""
    solver = solvers.make(arguments.name if ":" in arguments.name else solvers.resolve(arguments.name)[0])
    print(f"{solver}: {solver_cards.declared(solver)}", flush=True)
    passed = []
    for verdict in checks.verdicts(solver):
        print(verdict, flush=True)
        passed.append(verdict.passed)
    print(f"{sum(passed)} of {len(passed)} checks passed")
    return int(not all(passed))


COMMANDS = {
    "demo": demo,
    "train": train,
    "sample": sample,
    "likelihood": likelihood,
    "benchmark": benchmark,
    "solvers": list_solvers,
    "check-solver": check_solver,
}
