"""Programs as JSON, version 1: docs/program_format.md says what a file means."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from .errors import InputError
from .instructions import Combine, Draw, Evaluate, Instruction, State, reads
from .outputs import Output
from .types import Node

if TYPE_CHECKING:
    from .program import Program

FORMAT, VERSION = "scoresde-program", 1


def write(program: Program) -> str:
    """The text of a program, a node and a row a line."""

    def listed(rows: list[Any]) -> str:
        return "[\n    " + ",\n    ".join(json.dumps(row, allow_nan=False) for row in rows) + "\n  ]"

    nodes = [[_finite(v) for v in (n.t, n.alpha, n.sigma, n.dalpha, n.dsigma)] for n in program.nodes]
    facts = {
        "format": FORMAT,
        "version": VERSION,
        "solver": program.solver,
        "output": program.output.name,
        "sigma_data": program.output.sigma_data,
    }
    lines = [f'"{key}": {json.dumps(value, allow_nan=False)}' for key, value in facts.items()]
    lines += [f'"nodes": {listed(nodes)}', f'"rows": {listed([_row(i) for i in program.instructions])}']
    lines.append(f'"states": {json.dumps([list(state) for state in program.states])}')
    return "{\n  " + ",\n  ".join(lines) + "\n}\n"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _row(instruction: Instruction) -> dict[str, Any]:
    if isinstance(instruction, Combine):
        return {"sum": [list(term) for term in instruction.terms]}
    if isinstance(instruction, Evaluate):
        return {"model": instruction.x, "node": instruction.node}
    return {"noise": [instruction.t, instruction.s]}


def read(text: str) -> Program:
    """The program that a text holds.

    Raises:
        InputError: the text is not a program, or of a version that is not known here.
    """
    from .program import Program

    try:
        document = json.loads(text)
    except ValueError as error:
        raise InputError(f"not a program: the text is not JSON ({error})") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise InputError(f'not a program: it does not say "format": "{FORMAT}"')
    if document.get("version") != VERSION:
        raise InputError(f"a program of version {document.get('version')!r}; this library reads version {VERSION}")
    try:
        nodes = tuple(_node(values) for values in document["nodes"])
        instructions = tuple(_instruction(row) for row in document["rows"])
        states = tuple(State(_whole(register), _whole(node)) for register, node in document["states"])
        output = Output(str(document["output"]), float(document.get("sigma_data", 0.5)))
        program = Program(str(document["solver"]), output.check(), nodes, instructions, states)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(f"not a program: {what}") from None
    _check(program)
    return program


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{value!r} stands where a finite number is expected")
    return float(value)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} stands where an index is expected")
    return value


def _node(values: Any) -> Node:
    t, alpha, sigma, *slopes = values
    dalpha, dsigma = (math.nan if v is None else _number(v) for v in (slopes or (None, None)))
    return Node(_number(t), _number(alpha), _number(sigma), dalpha, dsigma)


def _instruction(row: Any) -> Instruction:
    if row.get("sum"):
        return Combine(tuple((_whole(register), _number(c)) for register, c in row["sum"]))
    if "model" in row:
        return Evaluate(_whole(row["model"]), _whole(row["node"]))
    if "noise" in row:
        t, s = row["noise"]
        return Draw(_whole(t), _whole(s))
    raise ValueError(f"a row is a sum, a model or a noise, not {json.dumps(row)[:60]}")


def _check(program: Program) -> None:
    """Refuses what could not be run: registers and nodes that do not exist when they are asked for."""
    for k, instruction in enumerate(program.instructions):
        for register in reads(instruction):
            if register > k:
                raise InputError(f"not a program: row {k} reads the register {register}, which is not made yet")
        places: tuple[int, ...] = () if isinstance(instruction, Combine) else tuple(instruction)
        if isinstance(instruction, Evaluate):
            places = (instruction.node,)
        for place in places:
            if place >= len(program.nodes):
                raise InputError(f"not a program: row {k} names the node {place} of {len(program.nodes)}")
            if isinstance(instruction, Evaluate) and program.nodes[place].sigma <= 0:
                raise InputError(f"not a program: row {k} asks the model at sigma = 0")
    registers = [state.register for state in program.states]
    if not registers or registers != sorted(set(registers)) or registers[-1] > len(program.instructions):
        raise InputError("not a program: states are the registers at the ends of the steps, in order")
    if registers[0] == 0 or any(state.node >= len(program.nodes) for state in program.states):
        raise InputError("not a program: a state names a register or a node that it does not have")
    if [state.node for state in program.states] != list(range(1, len(registers) + 1)):
        raise InputError("not a program: the grid's nodes come first, a step for each but the first")
    if any(node.alpha <= 0 or node.sigma < 0 for node in program.nodes):
        raise InputError("not a program: a node has alpha <= 0 or sigma < 0")
