"""The solver ``file``: runs a program from a file; "file:my_solver.json" is accepted like any solver's name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

from torch import Tensor

from ..errors import InputError
from ..files import read_text
from ..types.node import Node
from ..types.problem import Problem
from ..types.solver import Noise, Solver, Step, solvers
from .program import Program, Registers, answer_requests, evaluator


class Place(NamedTuple):
    """The carry: the number of the next step, and the registers that later instructions read."""

    step: int
    registers: Registers


@solvers.register(
    "file",
    prefix=True,
    kind="program",
    reference="docs/program_format.md",
    formula="the rows of the file",
)
@dataclass(frozen=True, eq=False)
class File(Solver):
    """Runs a program from a file that ``Program.to_json`` or other software has written, on the nodes in the file."""

    path: str

    def __post_init__(self) -> None:
        super().__post_init__()
        self.program  # noqa: B018  (fails early if the file is not a program)

    # a file may change: solvers read from one path are equal only if they have the same program
    def __eq__(self, other: object) -> bool:
        return isinstance(other, File) and (self.path, self.program) == (other.path, other.program)

    def __hash__(self) -> int:
        return hash(self.path)

    @cached_property
    def program(self) -> Program:
        """The program in the file, as it was when the solver was made.

        Raises:
            InputError: there is no such file, or it is not a program.
        """
        text = read_text(self.path, "program")
        try:
            return _read(text)
        except InputError as error:
            raise InputError(f"{self.path}: {error}") from None

    @property
    def nodes(self) -> tuple[Node, ...]:
        return self.program.grid

    @property
    def plans_grid(self) -> bool:
        return True

    @property
    def stochastic(self) -> bool:
        return self.program.stochastic

    @property
    def evaluations(self) -> int:
        """The mean number of evaluations of a step, rounded up."""
        return -(-self.program.nfe // len(self.program.states))

    def init(self, problem: Problem, x: Tensor, nodes: Sequence[Node]) -> Place:
        if not _agree(self.program.grid, nodes):
            raise InputError(f"{self} runs on the {len(self.program.grid)} nodes of its own, not on a different grid")
        return Place(0, Registers(x))

    def step(self, problem: Problem, x: Tensor, t: Node, s: Node, carry: Place, noise: Noise | None) -> Step:
        program, registers = self.program, carry.registers.copy()
        state = program.states[carry.step - 1].register if carry.step else 0
        registers.values[state] = registers.inwards(x)  # a hook may have replaced it
        answer_requests(program.rows(registers, carry.step, noise), evaluator(program.output, problem))
        end = registers.values[program.states[carry.step].register]
        return Step(registers.outwards(end), Place(carry.step + 1, registers))

    def to_data(self, problem: Problem, x: Tensor, t: Node, s: Node, carry: Place, noise: Noise | None) -> Step:
        return self.step(problem, x, t, s, carry, noise)

    def __str__(self) -> str:
        return f"file:{self.path}"


@lru_cache(maxsize=8)
def _read(text: str) -> Program:
    return Program.from_json(text)


def _agree(mine: Sequence[Node], others: Sequence[Node]) -> bool:
    """Whether two grids are the same up to the rounding of a different machine."""

    def near(a: float, b: float) -> bool:
        return abs(a - b) <= 1e-9 * max(abs(a), abs(b))

    pairs = zip(mine, others, strict=False)
    return len(mine) == len(others) and all(near(a.alpha, b.alpha) and near(a.sigma, b.sigma) for a, b in pairs)
