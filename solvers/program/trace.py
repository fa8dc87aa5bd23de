"""Tracing: runs a solver's own steps on symbolic values, which support only sums and products with numbers.

Only solvers of Gaussian states can be traced: a step between discrete states is not a sum.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from ..errors import InputError
from ..loop import solve
from ..time_grids.base import checked
from ..types.model_output import Output
from ..types.node import Node, Prediction
from ..types.problem import Problem
from ..types.schedule import Schedule
from ..types.solver import Solver, solvers
from .instructions import Combine, Draw, Evaluate, Instruction, State
from .program import Program

# a prediction gets its own register if at least this many rows read it; fewer rows read x and the output at less cost
SHARED = 3


class Linear:
    """A symbolic value: a linear combination of a program's registers, with the shape of a batch of one number."""

    __slots__ = ("terms",)
    __array_ufunc__ = None  # products with NumPy numbers then use __rmul__
    shape, ndim = (1, 1), 2

    def __init__(self, terms: dict[int, float]) -> None:
        self.terms = terms

    def __add__(self, other: Any) -> Linear:
        if not isinstance(other, Linear):
            raise NotLinear(f"a sum with a {type(other).__name__}")
        terms: dict[int, float] = self.terms.copy()
        for register, c in other.terms.items():
            terms[register] = terms[register] + c if register in terms else c
        return Linear(terms)

    def __sub__(self, other: Linear) -> Linear:
        return self + -other

    def __neg__(self) -> Linear:
        return -1.0 * self

    def __mul__(self, c: Any) -> Linear:
        if not isinstance(c, (int, float)):
            raise NotLinear(f"a product with a {type(c).__name__}")
        return Linear({register: c * value for register, value in self.terms.items()})

    __rmul__ = __mul__

    def add(self, other: Linear, *, alpha: float) -> Linear:
        """self + alpha other, as ``Tensor.add``."""
        return self + alpha * other

    def __truediv__(self, c: float) -> Linear:
        return self * (1 / c)

    def __len__(self) -> int:
        return 1

    def __getitem__(self, rows: Any) -> Linear:
        if rows != slice(None):
            raise NotLinear(f"some of its rows, {rows}")
        return self

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotLinear(getattr(function, "__name__", str(function)))

    def __getattr__(self, name: str) -> Any:
        raise NotLinear(name)


class NoProgram(InputError):
    """The solver is not linear."""


class NotLinear(AttributeError):
    """An operation on a state other than addition and scaling."""


class _Tracer(Problem):
    """The problem and the noise source of a symbolic solve; it records the instructions."""

    def __init__(self, nodes: Sequence[Node], schedule: Schedule | None, output: Output) -> None:
        self.schedule, self.written = schedule, output
        self.nodes = list(nodes)
        self.index = {(node.t, node.alpha, node.sigma): k for k, node in enumerate(nodes)}
        self.instructions: list[Instruction] = []
        self.states: list[State] = []
        self.used: set[int] = {0}

    @property
    def path(self) -> Schedule:
        if self.schedule is None:
            raise InputError("this solver evaluates the path between the grid's nodes: pass the schedule to trace")
        return self.schedule

    def emit(self, instruction: Instruction) -> int:
        self.instructions.append(instruction)
        return len(self.instructions)

    def place(self, node: Node) -> int:
        """The node's index; a new node is appended."""
        key = (node.t, node.alpha, node.sigma)
        if key not in self.index:
            self.index[key] = len(self.nodes)
            self.nodes.append(node)
        return self.index[key]

    def register(self, x: Linear, fresh: bool = False) -> int:
        """The register of a value; a value that is a sum gets its register here. ``fresh``: not an already used one."""
        if len(x.terms) == 1:
            ((register, c),) = x.terms.items()
            if c == 1.0 and register >= 0 and not (fresh and register in self.used):
                self.used.add(register)
                return register
        terms = tuple(term for term in x.terms.items() if term[1] != 0.0)
        register = self.emit(Combine(terms or ((0, 0.0),)))
        x.terms = {register: 1.0}
        self.used.add(register)
        return register

    def predict(self, x: Linear, node: Node) -> Prediction:  # type: ignore[override]
        register = self.register(x)
        out = self.emit(Evaluate(register, self.place(node)))
        self.used.add(out)
        return Prediction(Linear({-2 * out: 1.0}), Linear({-2 * out - 1: 1.0}))  # type: ignore[arg-type]

    def __call__(self, t: Node, s: Node) -> Any:
        draw = self.emit(Draw(self.place(t), self.place(s)))
        self.used.add(draw)
        return Linear({draw: 1.0})

    def end_of_step(self, x: Any, node: Node) -> None:
        """A hook that gives the state a register, so that the length of sums does not grow with the number of steps."""
        self.states.append(State(self.register(x, fresh=True), self.place(node)))

    def program(self, solver: Solver) -> Program:
        """The program of the recorded instructions, with the model's own output in its registers.

        While tracing, the keys -2 r and -2 r - 1 stand for the x0 and the eps of the output in register r. A prediction
        that ``SHARED`` or more rows read gets its own register; otherwise each row reads x and the output instead.
        """
        readers = Counter(r for i in self.instructions if isinstance(i, Combine) for r, _ in i.terms if r < 0)
        renamed: dict[int, tuple[tuple[int, float], ...]] = {0: ((0, 1.0),)}
        instructions: list[Instruction] = []

        def emit(instruction: Instruction) -> tuple[tuple[int, float], ...]:
            instructions.append(instruction)
            return ((len(instructions), 1.0),)

        for k, instruction in enumerate(self.instructions, 1):
            if isinstance(instruction, Combine):
                terms: dict[int, float] = {}
                for r, c in instruction.terms:
                    for register, inner in renamed[r]:
                        terms[register] = terms.get(register, 0.0) + c * inner
                renamed[k] = emit(Combine(tuple(terms.items())))
            elif isinstance(instruction, Evaluate):
                x = renamed[instruction.x][0][0]
                renamed[k] = emit(instruction._replace(x=x))
                out = renamed[k][0][0]
                for key, weights in zip(
                    (-2 * k, -2 * k - 1), self.written.weights(self.nodes[instruction.node]), strict=True
                ):
                    pair = tuple((r, w) for r, w in zip((x, out), weights, strict=True) if w != 0.0)
                    renamed[key] = emit(Combine(pair)) if readers[key] >= SHARED and pair != ((out, 1.0),) else pair
            else:
                renamed[k] = emit(instruction)
        states = tuple(State(renamed[state.register][0][0], state.node) for state in self.states)
        return Program(str(solver), self.written, tuple(self.nodes), tuple(instructions), states)


def trace(
    solver: str | Solver,
    nodes: Sequence[Node],
    schedule: Schedule | None = None,
    output: str | Output = "x0",
) -> Program:
    """The program of a linear solver on a grid, found by running ``solve`` on symbolic values.

    Args:
        solver: a linear solver, see ``solvers.info(name).linear``.
        nodes: the grid, see ``solvers.grid``.
        schedule: the path, for solvers that evaluate it between the nodes (``dpm_2``, ``churn``, ...).
        output: the model's output. The program's coefficients apply to it, so nothing is converted at run time.

    >>> import scoresde, solvers
    >>> program = trace("dpmpp_2m", solvers.grid("karras", scoresde.VP(), steps=20))
    >>> program.nfe, len(program.instructions)
    (20, 40)

    Raises:
        NoProgram: an InputError; the solver is not linear.
        InputError: the solver needs the schedule; the output is unknown.
    """
    method, nodes = solvers.make(solver), checked(tuple(nodes))
    output = (Output(output) if isinstance(output, str) else output).check()
    if not method.linear:
        raise NoProgram(f"{method} has no program: {method.nonlinear}")
    tracer, x = _Tracer(nodes, schedule, output), Linear({0: 1.0})
    noise: Any = tracer
    try:
        solve(method, tracer, x, nodes, noise, [tracer.end_of_step])  # type: ignore[arg-type]
    except (NotLinear, TypeError) as error:
        raise NoProgram(f"{method} has no program: its steps are not linear, they use {str(error)!r}") from error
    return tracer.program(method)
