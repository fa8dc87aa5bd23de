"""Reads and writes programs as JSON, version 1; docs/program_format.md defines the format."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

from ..errors import InputError, unknown
from ..files import parse_json
from ..types.model_output import PREDICTS, Output
from ..types.node import Node
from .instructions import Combine, Draw, Evaluate, Instruction, State

FORMAT, VERSION = "scoresde-program", 1


class Parts(NamedTuple):
    """The parts of a program, in the order of ``Program``'s fields."""

    solver: str
    output: Output
    nodes: tuple[Node, ...]
    instructions: tuple[Instruction, ...]
    states: tuple[State, ...]


class HasParts(Protocol):
    """The attributes of a program that a file contains."""

    @property
    def solver(self) -> str: ...
    @property
    def output(self) -> Output: ...
    @property
    def nodes(self) -> tuple[Node, ...]: ...
    @property
    def instructions(self) -> tuple[Instruction, ...]: ...
    @property
    def states(self) -> tuple[State, ...]: ...


def write(program: HasParts, note: str = "", facts: Mapping[str, Any] | None = None) -> str:
    """The text of a program, with one line per node and per row.

    Args:
        program: the program to write.
        note: for people; readers ignore it.
        facts: further entries by name, of types that JSON supports; readers ignore them.
    """

    def listed(rows: list[Any]) -> str:
        return "[\n    " + ",\n    ".join(json.dumps(row, allow_nan=False) for row in rows) + "\n  ]"

    nodes = [[_finite(v) for v in (n.t, n.alpha, n.sigma, n.dalpha, n.dsigma)] for n in program.nodes]
    head = {
        "format": FORMAT,
        "version": VERSION,
        **({"note": note} if note else {}),
        "solver": program.solver,
        "output": program.output.name,
        "sigma_data": program.output.sigma_data,
        **(facts or {}),
    }
    lines = [f'"{key}": {json.dumps(value, allow_nan=False)}' for key, value in head.items()]
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


def read(text: str) -> Parts:
    """The parts of the program in a text.

    Raises:
        InputError: the text is not a program, or has an unknown version.
    """
    try:
        document = parse_json(text)
    except InputError as error:
        raise _refused(str(error)) from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise InputError(f'not a program: it does not contain "format": "{FORMAT}"')
    version = document.get("version")
    if type(version) is not int or version != VERSION:
        raise InputError(f"a program of version {_shown(version)}; this library reads version {VERSION}")
    for key in ("solver", "output", "sigma_data", "nodes", "rows", "states"):
        if key not in document:
            raise _refused(f"it has no {key}")
    solver = document["solver"]
    if not isinstance(solver, str) or not solver.isprintable():
        raise _refused(f"solver is {_shown(solver)}, not a line of text")
    nodes = tuple(_node(f"node {k}", values) for k, values in enumerate(_list("nodes", document["nodes"])))
    rows = tuple(_instruction(k, row, nodes) for k, row in enumerate(_list("rows", document["rows"])))
    states = tuple(_state(k, pair, len(rows)) for k, pair in enumerate(_list("states", document["states"])))
    _check_grid(states, nodes)
    return Parts(solver, _output(document["output"], document["sigma_data"]), nodes, rows, states)


def _refused(what: str) -> InputError:
    return InputError(f"not a program: {what}")


def _shown(value: Any) -> str:
    """A value as text for an error message; a list or an object is shown as its kind and length."""
    if isinstance(value, (list, dict)):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _list(where: str, value: Any, length: int | None = None) -> list[Any]:
    if not isinstance(value, list) or len(value) != (len(value) if length is None else length):
        raise _refused(f"{where} is {_shown(value)}, not a list{'' if length is None else f' of {length}'}")
    return value


def _number(where: str, value: Any) -> float:
    try:
        if type(value) in (int, float) and math.isfinite(value):
            return float(value)
    except OverflowError:  # an integer beyond float64
        pass
    raise _refused(f"{where} has {_shown(value)} where a finite number is expected")


def _index(where: str, value: Any) -> int:
    if type(value) is not int or value < 0:
        raise _refused(f"{where} has {_shown(value)} where an index is expected")
    return value


def _output(name: Any, sigma_data: Any) -> Output:
    if not isinstance(name, str):
        raise _refused(f"output is {_shown(name)}, not a name")
    if name not in PREDICTS:
        raise unknown("model output", name[:40], PREDICTS)
    return Output(name, _number("sigma_data", sigma_data)).check()


def _node(where: str, values: Any) -> Node:
    t, alpha, sigma = (_number(where, v) for v in _list(where, values, 5)[:3])
    dalpha, dsigma = (math.nan if v is None else _number(where, v) for v in values[3:])
    if not (alpha > 0 and sigma >= 0 and math.isfinite(sigma / alpha)):
        raise _refused(f"{where} has alpha={alpha:g} and sigma={sigma:g}; alpha must be positive, sigma not negative")
    return Node(t, alpha, sigma, dalpha, dsigma)


def _instruction(k: int, row: Any, nodes: tuple[Node, ...]) -> Instruction:
    """The instruction of row k, which makes register k + 1 and may read only the registers 0 to k."""

    def register(value: Any) -> int:
        if _index(f"row {k}", value) > k:
            raise _refused(f"row {k} reads the register {_shown(value)}, which is not made yet")
        return int(value)

    def node(value: Any) -> int:
        if _index(f"row {k}", value) >= len(nodes):
            raise _refused(f"row {k} names the node {_shown(value)}; there are {len(nodes)} nodes")
        return int(value)

    kind = sorted(row) if isinstance(row, dict) else []
    if kind == ["sum"]:
        pairs = [_list(f"a term of row {k}", pair, 2) for pair in _list(f"row {k}", row["sum"])]
        terms = tuple((register(r), _number(f"row {k}", c)) for r, c in pairs)
        if not terms or len(dict(terms)) < len(terms):
            raise _refused(f"row {k} is an empty sum or contains one register twice")
        return Combine(terms)
    if kind == ["model", "node"]:
        evaluation = Evaluate(register(row["model"]), node(row["node"]))
        if nodes[evaluation.node].sigma == 0:
            raise _refused(f"row {k} evaluates the model at sigma = 0")
        return evaluation
    if kind == ["noise"]:
        t, s = _list(f"row {k}", row["noise"], 2)
        return Draw(node(t), node(s))
    raise _refused(f"row {k} is {_shown(row)}, not a sum, a model with its node, or a noise")


def _state(k: int, pair: Any, rows: int) -> State:
    register, node = (_index(f"state {k}", value) for value in _list(f"state {k}", pair, 2))
    if not 1 <= register <= rows:
        raise _refused(f"state {k} is the register {_shown(register)}; the rows make the registers 1 to {rows}")
    if node != k + 1:
        raise _refused(f"state {k} is at the node {_shown(node)}; the grid's nodes come first, so it must be {k + 1}")
    return State(register, node)


def _check_grid(states: tuple[State, ...], nodes: tuple[Node, ...]) -> None:
    """Rejects states that are not in the order of the steps, and grids on which sigma / alpha is not monotonic."""
    if not states or len(states) >= len(nodes):
        raise _refused(
            f"{len(states)} states on {len(nodes)} nodes; at least one step is needed, and each step ends at a node"
        )
    for k, (one, other) in enumerate(pairwise(states)):
        if other.register <= one.register:
            raise _refused(f"state {k + 1} is made before state {k}")
    ratios = [node.ratio for node in nodes[: len(states) + 1]]
    sign = -1 if ratios[0] > ratios[-1] else 1
    for k, (now, after) in enumerate(pairwise(ratios)):
        if not sign * (after - now) > 0:
            raise _refused(f"the nodes {k} and {k + 1} of the grid coincide or are out of order in sigma / alpha")
