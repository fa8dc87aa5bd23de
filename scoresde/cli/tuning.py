"""The commands that find a solver for a model and a number of evaluations: choose."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from typing import Any

import solvers
from solvers import Choice, InputError, Trajectory
from solvers.tuning.choice import Setting

from ..io.progress import bar as progress_bar
from ..io.result_files import writable
from ..models.evaluation import evaluation
from ..models.problem import Diffusion
from ..runs import build, conditions
from ..runs.run import Run, load_run
from ..sampling.plan import SAMPLER
from ..sampling.trajectory import trajectory
from .results import record, say_average


def choose(arguments: argparse.Namespace, overrides: list[str], command: str) -> None:
    """Finds the solver and the grid with the least error at each budget, and prints the config's fields."""
    run = load_run(arguments.workdir, overrides, ("sampling", "device"))
    say_average(run)
    with run.origin.limits(), evaluation(run.denoiser):
        problem, truth = exact(run, arguments.seeds, arguments.classes)
        found = {nfe: _choice(run, problem, truth, nfe, arguments) for nfe in arguments.nfe}
    if arguments.out is not None:
        facts = {str(nfe): _facts(choice) for nfe, choice in found.items()}
        record(writable(arguments.out) / "choice.json", command, run, seeds=arguments.seeds, choices=facts)
    for nfe, choice in found.items():
        print(f"{nfe} NFE: {choice}", _compared(problem, truth, nfe, choice), fields_of(choice.best), sep="\n")


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
    own = solvers.choose(problem, nfe, truth, [SAMPLER[0]], [SAMPLER[1]]).best
    return f"by default: {own}, {own.error / choice.best.error:.3g} times the least error"


def fields_of(best: Setting) -> str:
    """The fields of the config that choose a setting, as arguments of ``scoresde sample``."""
    given = {"solver": best.solver, "grid": best.grid, "nfe": best.nfe}
    return shlex.join(f"--config.sampling.{name}={value}" for name, value in given.items())


def _facts(choice: Choice) -> dict[str, Any]:
    return {
        "tied": [vars(setting) for setting in choice.tied],
        "settings": [vars(setting) for setting in choice.settings],
        "evaluations": choice.evaluations,
        "full": choice.full,
    }


COMMANDS = {"choose": choose}
