"""What a tuned solver cost: the facts that the file of a tuned program reports about its tuning."""

from __future__ import annotations

from typing import Any, NamedTuple

from solvers import InputError, Solver
from solvers.files import parse_json, read_json
from solvers.program.from_file import File
from solvers.wrappers.base import Wrapper


class Tuning(NamedTuple):
    """The fitted numbers of a solver, what fitting them cost, and what they imitate; None where it is not known."""

    parameters: int | None = None
    tuning_nfe: float | None = None
    tuning_seconds: float | None = None
    teacher: str | None = None


def tuning_of(method: Solver) -> Tuning:
    """The facts about the tuning of a solver from a file, which is also found inside of wrappers.

    They are in the object ``tuned`` of the program's file, or of its note if that is JSON: ``parameters`` (how many
    numbers were fitted), ``evaluations`` (of the model, the teacher's included), ``seconds`` and ``teacher``. Values of
    another type are left out.
    """
    while isinstance(method, Wrapper):
        method = method.inner
    if not isinstance(method, File):
        return Tuning()
    document = read_json(method.path, "program")
    found = document.get("tuned") or _in_note(document.get("note"))
    if not isinstance(found, dict):
        return Tuning()
    number = {key: value for key, value in found.items() if type(value) in (int, float) and abs(value) < 2**53}
    parameters, teacher = number.get("parameters"), found.get("teacher")
    return Tuning(
        parameters if type(parameters) is int else None,
        _float(number.get("evaluations")),
        _float(number.get("seconds")),
        teacher if type(teacher) is str else None,
    )


def _float(value: Any) -> float | None:
    return None if value is None else float(value)


def _in_note(note: Any) -> Any:
    try:
        document = parse_json(note) if type(note) is str else None
    except InputError:
        return None
    return document.get("tuned") if isinstance(document, dict) else None
