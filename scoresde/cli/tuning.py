"""The commands that find a solver for a model and a number of evaluations: choose, and tune, which makes one."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

import solvers
from solvers import Choice, InputError, Trajectory
from solvers.files import read_json
from solvers.tuning import TunedProgram, tuning_losses
from solvers.tuning.choice import Setting
from solvers.tuning.descent import Progress
from solvers.tuning.tuned_program import PROGRAM

from ..io.progress import bar as progress_bar
from ..io.result_files import writable
from ..models.evaluation import evaluation
from ..models.problem import Diffusion
from ..runs import build, conditions
from ..runs.run import Run, load_run
from ..sampling.plan import sampler_for
from ..sampling.trajectory import trajectory
from .results import record, say_average

TRIED, TRIED_ON = 100, 64  # iterations of the tuning that choose tries, and seeds of each of its parts
_NO_START = "it starts from a solver whose grid can be tuned, such as ipndm, and each of these has a grid of its own"


def choose(arguments: argparse.Namespace, overrides: list[str], command: str) -> None:
    """Finds the solver and the grid with the least error at each budget, and prints the config's fields."""
    run = load_run(arguments.workdir, overrides, ("sampling", "device"))
    say_average(run)
    with run.origin.limits(), evaluation(run.denoiser):
        problem, truth = exact(run, arguments.seeds, arguments.classes)
        found = {nfe: _choice(run, problem, truth, nfe, arguments) for nfe in arguments.nfe}
        compared = {nfe: _compared(problem, truth, nfe, choice) for nfe, choice in found.items()}
        gains = {} if arguments.without_tuning else _gains(run, found, arguments)
    if arguments.out is not None:
        facts = {str(nfe): _facts(choice) | gains.get(nfe, {}) for nfe, choice in found.items()}
        record(writable(arguments.out) / "choice.json", command, run, seeds=arguments.seeds, choices=facts)
    for nfe, choice in found.items():
        print(f"{nfe} NFE: {choice}", compared[nfe], sep="\n")
        if nfe in gains:
            tuned, untuned = gains[nfe]["tuned"]["rms"], gains[nfe]["untuned_held_out"]
            print(
                f"tuned in {TRIED} iterations: {tuned:.4g}; the best has {untuned:.4g}, on {TRIED_ON} other seeds:"
                f" scoresde tune --workdir={arguments.workdir} --nfe={nfe} --out=tuned"
            )
        elif not arguments.without_tuning:
            print(f"no tuning was tried: {_NO_START}")
        print(fields_of(choice.best))


def _gains(run: Run, found: Mapping[int, Choice], arguments: argparse.Namespace) -> dict[int, dict[str, Any]]:
    """What a short tuning gains at each budget: its error on held-out seeds, and that of the best untuned setting."""
    after = max(arguments.seeds) + 1
    seeds = [range(after + k * TRIED_ON, after + (k + 1) * TRIED_ON) for k in range(3)]
    parts = [exact(run, part, arguments.classes) for part in seeds]
    problem, truths = parts[0][0], [truth for _, truth in parts]
    gains = {}
    for nfe, choice in found.items():
        if not (starts := _starts(choice)):
            continue
        with progress_bar(None, desc=f"tune, {nfe} NFE", total=TRIED) as bar:
            made = solvers.tune_program(
                starts, problem, nfe, truths[0], validation=truths[1], held_out=truths[2], iterations=TRIED,
                progress=_shown(bar),
            )  # fmt: skip
        tuned = made.held_out[PROGRAM]._asdict()
        gains[nfe] = {"tuned": tuned, "untuned_held_out": _error(parts[2], choice.best), "iterations": TRIED}
    return gains


def _shown(bar: Any) -> Callable[[Progress], None]:
    """Shows the progress of a tuning on a bar."""

    def show(at: Progress) -> None:
        bar.update(at.iteration - bar.n)
        bar.set_postfix_str(f"validation {at.best:.3g}")

    return show


def _starts(choice: Choice) -> list[str]:
    """The two best solvers, from which a tuning may start."""
    return list(dict.fromkeys(s.solver for s in choice.settings if solvers.make(s.solver).own_grid is None))[:2]


def exact(run: Run, seeds: Sequence[int], classes: Sequence[int | None] | None) -> tuple[Diffusion, Trajectory]:
    """The run's problem, with its guidance, and the exact solution from some seeds.

    Raises:
        InputError: the run's states are discrete, and have no ODE.
    """
    if run.config.process is not None:
        raise InputError(
            "discrete states have no ODE whose exact solution solvers could approach: scoresde benchmark "
            "--solvers=all compares their samples with data"
        )
    section = run.config.sampling
    denoiser, _ = build.guided_by(run.denoiser, section, run.config)
    given = conditions.choose(run.card.conditions, len(seeds), classes, section.get("condition"))
    return trajectory(
        denoiser, run.card.shape, seeds, condition=given.rows, batch_size=section.batch_size,
        device=build.device_of(run.config), progress=True,
    )  # fmt: skip


def _choice(run: Run, problem: Diffusion, truth: Trajectory, nfe: int, arguments: argparse.Namespace) -> Choice:
    """The best settings at one budget, with a bar over the measurements."""
    with progress_bar(None, desc=f"choose, {nfe} NFE") as bar:

        def show(done: int, total: int, setting: str) -> None:
            bar.total = total
            bar.update(done - bar.n)
            bar.set_postfix_str(setting)

        grids = arguments.grids or ([run.config.sampling.grid] if run.config.sampling.grid else None)
        return solvers.choose(problem, nfe, truth, arguments.solvers, grids, show=show)


def _compared(problem: Diffusion, truth: Trajectory, nfe: int, choice: Choice) -> str:
    """The error of the default solver at the budget."""
    solver, grid = sampler_for(nfe)
    own = solvers.choose(problem, nfe, truth, [solver], [grid]).best
    return f"by default: {own}, {own.error / choice.best.error:.3g} times the least error"


def fields_of(best: Setting) -> str:
    """The fields of the config that choose a setting, as arguments of ``scoresde sample``."""
    given = {"solver": best.solver, "grid": best.grid, "nfe": best.nfe}
    return shlex.join(f"--config.sampling.{name}={value}" for name, value in given.items())


def tune(arguments: argparse.Namespace, overrides: list[str], command: str) -> None:
    """Tunes a program for each budget into OUT/nfeN.json; those that are there already are kept."""
    run = load_run(arguments.workdir, overrides, ("sampling", "device"))
    say_average(run)
    named = arguments.solvers or ["ipndm"]
    if all(solvers.make(solvers.resolve(spec)[0]).own_grid is not None for spec in named):
        raise InputError(f"cannot tune {', '.join(named)}: {_NO_START}")
    out, data = writable(arguments.out), _data_of(run, arguments.loss)
    count = arguments.samples
    seeds = [range(k * count, (k + 1) * count) for k in range(3)]
    files = {nfe: out / f"nfe{nfe}.json" for nfe in arguments.nfe}
    identity = _identity(run, arguments)
    left = [nfe for nfe, path in files.items() if arguments.overwrite or not _is_kept(path, identity)]
    with run.origin.limits(), evaluation(run.denoiser):
        if left:
            parts = [exact(run, part, arguments.classes) for part in seeds]
            for nfe in left:
                made, best = _tuned(run, parts, nfe, arguments, data)
                facts = {"command": command, "seeds": f"0-{3 * count - 1}", "of": identity}
                made.save(files[nfe], **facts, chosen={**vars(best), "held_out": _error(parts[2], best)})
                _part(files[nfe]).unlink(missing_ok=True)
                print(made, _line(files[nfe]), sep="\n")
    for nfe in [n for n in files if n not in left]:
        print(f"{nfe} NFE: {files[nfe]} is there already; --overwrite tunes it again", _line(files[nfe]), sep="\n")


def _line(path: Path) -> str:
    """The field of the config that chooses a tuned program."""
    return shlex.join([f"--config.sampling.solver=file:{path}"])


def _part(path: Path) -> Path:
    """The file of a tuning that is not finished."""
    return path.with_suffix(".part.json")


def _data_of(run: Run, loss: str) -> Tensor | None:
    """Training samples, if the loss compares sets."""
    if not tuning_losses.make(loss).needs_data:
        return None
    return build.load_data(run.config, run.card).train.some(2048).x


def _identity(run: Run, arguments: argparse.Namespace) -> dict[str, Any]:
    """What decides a tuned program, as plain JSON types: the run, its guidance and conditions, and the options."""
    own, given = run.config.to_dict(), vars(arguments)
    options = ("solvers", "grids", "classes", "samples", "free", "loss", "iterations", "batch")
    facts = {
        "step": run.step,
        "average": run.average and run.average.facts(),
        **{name: own[name] for name in ("sde", "model", "training", "data", "seed")},
        **{name: own["sampling"].get(name) for name in ("guidance", "condition")},
        **{name: given[name] for name in options},
    }
    found: dict[str, Any] = json.loads(json.dumps(facts))
    return found


def _is_kept(path: Path, identity: Mapping[str, Any]) -> bool:
    """Whether there is a program of the same tuning.

    Raises:
        InputError: there is another file, which differs in what the message names.
    """
    if not path.exists():
        return False
    document = read_json(path, "program")
    facts = document.get("tuning") if isinstance(document, dict) else None
    there = facts.get("of") if isinstance(facts, dict) else None
    if not isinstance(there, dict):
        raise InputError(f"{path} is no program of scoresde tune: use a different --out, or add --overwrite")
    if other := next((name for name, value in identity.items() if there.get(name) != value), None):
        raise InputError(
            f"{path} is of another tuning, which differs in {other}: use a different --out, or add --overwrite to "
            "replace it"
        )
    return True


def _tuned(
    run: Run,
    parts: Sequence[tuple[Diffusion, Trajectory]],
    nfe: int,
    arguments: argparse.Namespace,
    data: Tensor | None,
) -> tuple[TunedProgram, Setting]:
    """The tuned program at one budget, and the best untuned setting."""
    problem, truths = parts[0][0], [truth for _, truth in parts]
    choice = _choice(run, problem, truths[0], nfe, arguments)
    with progress_bar(None, desc=f"tune, {nfe} NFE", total=arguments.iterations) as bar:
        made = solvers.tune_program(
            _starts(choice), problem, nfe, truths[0], validation=truths[1], held_out=truths[2], free=arguments.free,
            loss=arguments.loss, data=data, iterations=arguments.iterations, batch=arguments.batch,
            progress=_shown(bar), checkpoint=_part(arguments.out / f"nfe{nfe}.json"),
        )  # fmt: skip
    return made, choice.best


def _error(part: tuple[Diffusion, Trajectory], setting: Setting) -> float:
    """The root-mean-square error of an untuned setting on some samples."""
    problem, truth = part
    return float(truth.errors(setting.solver, problem, truth.place(setting.grid, setting.steps)).mean().sqrt())


def _facts(choice: Choice) -> dict[str, Any]:
    return {
        "tied": [vars(setting) for setting in choice.tied],
        "settings": [vars(setting) for setting in choice.settings],
        "evaluations": choice.evaluations,
        "full": choice.full,
    }


COMMANDS = {"choose": choose, "tune": tune}
