"""What a tuned solver cost: the facts about the tuning of a program in a file, and of ``few``."""

from __future__ import annotations

from typing import Any, NamedTuple

from solvers import Solver
from solvers.files import read_json
from solvers.multistep.few import Few
from solvers.program.from_file import File
from solvers.program.instructions import Combine
from solvers.time_grids.few import few_tables
from solvers.wrappers.base import Wrapper

EXACT = "exact solution"  # the teacher, unless a file names another one


class Tuning(NamedTuple):
    """The fitted numbers of a solver, what fitting them cost, and what they imitate; None where it is not known."""

    parameters: int | None = None
    tuning_nfe: float | None = None
    tuning_seconds: float | None = None
    teacher: str | None = None


def tuning_of(method: Solver, nfe: int | None = None) -> Tuning:
    """The facts about the tuning of ``few`` at a budget, or of a solver from a file, also inside of wrappers.

    They are in the object ``tuning`` of the program's file, as ``TunedProgram.save`` writes it: its ``costs`` have
    ``forwards``, ``vjps`` and ``teacher``, evaluations that are added, and ``seconds``. A file may also have
    ``parameters``, the number of fitted numbers, and ``teacher``, the solver that was imitated, in words. Without them
    these are the number of the program's coefficients, and the exact solution. Values of another type are left out.
    """
    while isinstance(method, Wrapper):
        method = method.inner
    if isinstance(method, Few):
        table = few_tables().get(method.nfe or nfe or 0)
        return Tuning() if table is None else Tuning(table.tuned, None, table.seconds, EXACT)
    if not isinstance(method, File):
        return Tuning()
    found = read_json(method.path, "program").get("tuning")
    if not isinstance(found, dict):
        return Tuning()
    there = found.get("costs")
    costs: dict[str, Any] = there if isinstance(there, dict) else {}
    counts = [number for name in ("forwards", "vjps", "teacher") if (number := _number(costs.get(name))) is not None]
    parameters, teacher = found.get("parameters"), found.get("teacher")
    terms = sum(len(row.terms) for row in method.program.instructions if isinstance(row, Combine))
    return Tuning(
        parameters if type(parameters) is int and 0 <= parameters < 2**53 else terms,
        sum(counts) if counts else None,
        _number(costs.get("seconds")),
        teacher if type(teacher) is str else EXACT,
    )


def _number(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) and 0 <= value < 2**53 else None
