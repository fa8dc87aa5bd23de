"""The commands that need no run: solvers, guidances, posteriors, operators,
import-solver, check-solver and check-posterior."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import solvers
from solvers import InputError
from solvers.conformance import Check, checks
from solvers.files import parse_json, write_atomically
from solvers.program import json_format
from solvers.program.from_file import File

from ..interop.solver_files import import_solver
from ..io.result_files import writable, write_figure
from ..paths.base import make_sde
from ..posterior import check, ddrm, denoisers, loops, particles, replacement  # noqa: F401  # which register methods
from ..posterior.base import posteriors
from ..sampling.plan import NAMED
from ..show import guidance_cards, posterior_cards, program_view, solver_cards
from .current_folder import import_drawing


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
        write_atomically(_writable_file(Path(arguments.json)), json_format.write(program, note=command))
    if arguments.show:
        print(program_view.text(program, title))
        import_drawing()
        path = arguments.out or Path(f"{Path(title.split()[0].partition('(')[0].rpartition(':')[2]).stem}.png")
        write_figure(_writable_file(path), program_view.picture(program, title))
        print(f"\n{path}")


def _writable_file(path: Path) -> Path:
    """Returns the path of a file.

    Raises:
        InputError: its folder does not exist or cannot be written to.
    """
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: there is no folder {path.parent}")
    return writable(path.parent) / path.name


def import_table(arguments: argparse.Namespace, overrides: list[str], command: str) -> None:
    """Writes the program of a table that another project has published, and prints what it is."""
    out = _writable_file(arguments.out)
    if out.exists() and not arguments.overwrite:
        raise InputError(f"{out} exists: use a different --out, or add --overwrite to replace it")
    settings = dict(_setting(text) for text in arguments.set or ())
    made = import_solver(
        arguments.file, arguments.kind, arguments.sde, output=arguments.output, solver=arguments.solver,
        table_sde=arguments.table_sde, quantity=arguments.quantity, **settings,
    )  # fmt: skip
    made.save(out)
    print(made, f"--config.sampling.solver=file:{out}", sep="\n")


def _setting(text: str) -> tuple[str, Any]:
    """The name and the value of NAME=VALUE; a value that is not JSON is a text."""
    name, separator, value = text.partition("=")
    if not separator:
        raise InputError(f"cannot read the setting {text!r}; expected NAME=VALUE, such as afs=true")
    try:
        return name.strip(), parse_json(value)
    except InputError:
        return name.strip(), value.strip()


def _program(arguments: argparse.Namespace) -> tuple[solvers.Program, str]:
    """The program that the arguments describe, and its title."""
    solver_spec, named = solvers.resolve(arguments.name)
    solver = solvers.make(solver_spec)
    if isinstance(solver, File):
        given = [name for name in ("steps", "grid", "sde", "output") if getattr(arguments, name) is not None]
        if given:
            raise InputError(f"{solver} already fixes its nodes and its output: leave out --{given[0]}")
        return solver.program, str(solver)
    rule = solvers.grids.make(arguments.grid or named or solver.own_grid or NAMED)
    if arguments.steps is None and not rule.fixed:
        raise InputError(f"a program needs a number of steps: add --steps, such as --steps 8 (the grid is {rule})")
    sde = make_sde(arguments.sde or "vp")
    program = solvers.trace(solver, rule.nodes(sde, arguments.steps), sde, arguments.output or "x0")
    return program, f"{solver} on {rule} of {sde}"


def check_solver(arguments: argparse.Namespace, overrides: list[str], command: str) -> int:
    """Prints the verdict of each check, then how many passed; returns status 1 if one fails."""
    solver = solvers.make(arguments.name if ":" in arguments.name else solvers.resolve(arguments.name)[0])
    print(f"{solver}: {solver_cards.declared(solver)}", flush=True)
    return _report(checks.verdicts(solver))


def check_posterior(arguments: argparse.Namespace, overrides: list[str], command: str) -> int:
    """Prints the verdict of each check, then how many passed; returns status 1 if one fails."""
    method = posteriors.make(arguments.name)
    print(f"{method}: {f'exact for {method.exact_for}' if method.exact_for else 'exact for no data'}", flush=True)
    return _report(check.verdicts(method))


def _report(verdicts: Iterable[Check]) -> int:
    """Prints verdicts as they come, then how many passed; returns 1 if one fails, else 0."""
    passed, skipped = [], 0
    for verdict in verdicts:
        print(verdict, flush=True)
        skipped += verdict.skipped
        passed += [] if verdict.skipped else [verdict.passed]
    print(f"{sum(passed)} of {len(passed)} checks passed" + (f", {skipped} skipped" if skipped else ""))
    return int(not all(passed))


def list_guidances(arguments: argparse.Namespace, overrides: list[str], command: str) -> None:
    """Prints the table of guidance, or one card."""
    print(guidance_cards.table() if arguments.name is None else guidance_cards.card(arguments.name))


def list_posteriors(arguments: argparse.Namespace, overrides: list[str], command: str) -> None:
    """Prints the table of methods that draw from p(x0 | y), or one card."""
    print(
        posterior_cards.posterior_table() if arguments.name is None else posterior_cards.posterior_card(arguments.name)
    )


def list_operators(arguments: argparse.Namespace, overrides: list[str], command: str) -> None:
    """Prints the table of measurement operators, or one card."""
    print(posterior_cards.operator_table() if arguments.name is None else posterior_cards.operator_card(arguments.name))


COMMANDS = {
    "solvers": list_solvers,
    "guidances": list_guidances,
    "posteriors": list_posteriors,
    "operators": list_operators,
    "import-solver": import_table,
    "check-solver": check_solver,
    "check-posterior": check_posterior,
}
