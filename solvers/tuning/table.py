"""``Table``: a deterministic linear program as numbers, which are the same for every Gaussian path."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..program.analysis import response
from ..program.instructions import Combine, Evaluate, Instruction, State
from ..program.program import Program
from ..types.answers import predicted
from ..types.model_output import Output
from ..types.node import Node
from ..types.problem import Problem, as_problem
from ..types.schedule import Schedule, as_schedule
from .places import node_at, node_of, range_of


@dataclass(frozen=True, eq=False)
class Table:
    """A deterministic program on N evaluations as numbers that have the same meaning on every Gaussian path.

    With y = x / alpha and D(y, r) the model's prediction of x0 at the noise level r = sigma / alpha,

        y_n = start_n y + sum_{j<n} weights_nj D(y_j, labels_j),   n = 0 .. N,

    where y is the start and y_N the outcome. In these coordinates all Gaussian paths have one probability-flow ODE. All
    tensors are float64 and on the CPU; ``run`` is differentiable in them.

    Attributes:
        begin: the noise level of the start y.
        ratios: the noise levels of y_0 .. y_N (N + 1,); the last one may be 0.
        labels: the noise levels at which the model is evaluated (N,). They may differ from those of the states.
        start: (N + 1,).
        weights: (N + 1, N), zero for j >= n.
    """

    begin: float
    ratios: Tensor
    labels: Tensor
    start: Tensor
    weights: Tensor

    @staticmethod
    def of(program: Program) -> Table:
        """The table of a program.

        >>> import scoresde, solvers
        >>> program = solvers.trace("ddim", solvers.grid("explicit(times=[8, 2, 0.5], end=zero)", scoresde.EDM()))
        >>> table = Table.of(program)
        >>> table.labels.tolist(), table.start.tolist(), table.weights[2].tolist()
        ([8.0, 2.0, 0.5], [1.0, 0.25, 0.0625, 0.0], [0.1875, 0.75, 0.0])

        Raises:
            InputError: the program draws noise, or runs from data to noise.
        """
        if program.stochastic:
            raise InputError(f"{program.solver} draws noise: a table is made of a deterministic program")
        if program.end.ratio > program.start.ratio:
            raise InputError(f"this program of {program.solver} encodes: a table runs from noise to data")
        found = response(program, Output("x0"))
        nodes = [program.nodes[i.node] for i in program.instructions if isinstance(i, Evaluate)]
        alphas = np.array([node.alpha for node in (*nodes, program.end)])
        rows = np.concatenate([found.evaluated, found.states[-1:]]) / alphas[:, None]
        ratios = torch.tensor([node.ratio for node in (*nodes, program.end)], dtype=torch.float64)
        start, weights = torch.from_numpy(rows[:, 0] * program.start.alpha), torch.from_numpy(rows[:, 1:].copy())
        return Table(program.start.ratio, ratios, ratios[:-1].clone(), start, weights)

    @property
    def nfe(self) -> int:
        """The number N of evaluations."""
        return len(self.labels)

    def run(self, problem: Problem, y: Tensor, schedule: Schedule | None = None) -> Tensor:
        """The outcome y_N = x_N / alpha (B, *) from the start y = x / alpha (B, *); see ``predictions``."""
        return self.row(self.nfe, y, self.predictions(problem, y, schedule))

    def predictions(self, problem: Problem, y: Tensor, schedule: Schedule | None = None) -> list[Tensor]:
        """The model's N predictions of x0, each (B, *), from the start y = x / alpha (B, *).

        Gradients pass to all numbers of the table and to y. For them, the model is evaluated a second time in the
        backward pass, so that no more than one evaluation's intermediate results are stored at once, for any N.

        Args:
            schedule: the path; that of the problem if None.
        """
        problem = as_problem(problem)
        path = as_schedule(problem.path if schedule is None else schedule)
        ends = range_of(path)

        def denoised(state: Tensor, label: Tensor) -> Tensor:
            node = node_at(path, label, state, ends)
            x = node.like(state).alpha * state
            return (problem.predict(x, node) if problem.checked else predicted(problem.predict, x, node)).x0

        found: list[Tensor] = []
        for n in range(self.nfe):
            found.append(_Again.apply(denoised, self.row(n, y, found), self.labels[n]))  # type: ignore[no-untyped-call]
        return found

    def row(self, n: int, y: Tensor, predictions: Sequence[Tensor]) -> Tensor:
        """The state y_n (B, *) from the start and the first n predictions, each (B, *)."""
        state = self.start[n].to(y.device) * y
        for weight, prediction in zip(self.weights[n, :n].to(y.device), predictions, strict=False):
            state = state + weight * prediction
        return state

    def program(self, schedule: Schedule, output: str | Output = "x0", solver: str = "table") -> Program:
        """The program of the table on one path.

        Its grid has the states whose noise level is below that of all earlier ones. The model is evaluated at nodes
        of the grid where labels and noise levels agree, and at nodes of their own elsewhere.

        Args:
            schedule: the path, which must reach all noise levels.
            output: the model's output, to which the program's coefficients apply.
            solver: the name in the program, for people.

        Raises:
            InputError: the path does not reach a noise level, or the output is unknown.
        """
        path = as_schedule(schedule)
        output = (Output(output) if isinstance(output, str) else output).check()
        return _Writer(self, path, output).program(solver)

    def begun_at(self, ratio: float) -> Table:
        """The table of a start at another noise level, for a path that begins at more noise or at less.

        Between the two levels the prediction is taken as constant, D_0 of the first row, so that the table's start is
        D_0 + c (y - D_0), c = begin / ratio, of the new start y. The first row has no prediction yet, and starts from
        c y. Labels above ``ratio`` become ``ratio``, and the states that are evaluated there shrink by the same factor.

        Args:
            ratio: the noise level of the new start; both are to be far above the noise levels of the data.

        >>> import scoresde, solvers
        >>> program = solvers.trace("ddim", solvers.grid("explicit(times=[8, 2, 0.5], end=zero)", scoresde.EDM()))
        >>> table = Table.of(program).begun_at(16)
        >>> table.labels.tolist(), table.start.tolist(), table.weights[2].tolist()
        ([8.0, 2.0, 0.5], [0.5, 0.125, 0.03125, 0.0], [0.21875, 0.75, 0.0])

        Raises:
            InputError: a later state of the table has as much noise as the new start.
        """
        later = float(self.ratios[1:].max())
        if not ratio > later:
            raise InputError(f"this table has a state at sigma / alpha {later:.4g}: it cannot begin at {ratio:.4g}")
        share = self.begin / ratio
        labels, ratios = self.labels.clamp(max=ratio), self.ratios.clamp(max=ratio)
        shrink = torch.cat([labels / self.labels, labels.new_ones(1)])
        weights = self.weights.clone()
        weights[1:, 0] += (1 - share) * self.start[1:]
        return Table(ratio, ratios, labels, share * shrink * self.start, shrink[:, None] * weights)

    def ends(self) -> list[int]:
        """The rows whose states are the ends of steps; of several at one noise level, the last."""
        *inner, last = self.ratios.tolist()
        found: list[int] = []
        least = self.begin
        for n, ratio in enumerate(inner):
            if found and ratio == least:
                found[-1] = n
            elif last < ratio < least:
                found.append(n)
                least = ratio
        return [*found, self.nfe]


class _Again(torch.autograd.Function):
    """A function of two tensors that is evaluated again in the backward pass, so that it stores its inputs only.

    ``torch.utils.checkpoint`` does the same, but imports torch's compiler, which takes seconds.
    """

    @staticmethod
    def forward(ctx: Any, function: Callable[[Tensor, Tensor], Tensor], one: Tensor, other: Tensor) -> Tensor:
        ctx.function = function
        ctx.save_for_backward(one, other)
        return function(one, other)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inputs = [
            x.detach().requires_grad_(need) for x, need in zip(ctx.saved_tensors, ctx.needs_input_grad[1:], strict=True)
        ]
        with torch.enable_grad():
            value = ctx.function(*inputs)
        if not value.requires_grad:
            raise InputError("the model's predictions have no gradients: it detaches them, or disables gradients")
        wanted = [x for x in inputs if x.requires_grad]
        found = iter(torch.autograd.grad(value, wanted, gradients[0], allow_unused=True))
        return None, *(next(found) if x.requires_grad else None for x in inputs)


class _Writer:
    """The instructions of a table on a path."""

    def __init__(self, table: Table, path: Schedule, output: Output) -> None:
        self.table, self.output = table, output
        self.start, self.weights = table.start.tolist(), table.weights.tolist()
        ends = table.ends()
        self.step = {n: k for k, n in enumerate(ends, 1)}  # the index of the node of a state that ends a step
        levels = [table.begin, *(float(table.ratios[n]) for n in ends)]
        self.nodes: list[Node] = [node_of(path, ratio) for ratio in levels]
        self.path = path
        self.instructions: list[Instruction] = []
        self.states: list[State] = []
        self.predictions: list[int] = []  # the registers of the predictions of x0

    def emit(self, instruction: Instruction) -> int:
        self.instructions.append(instruction)
        return len(self.instructions)

    def row(self, n: int, alpha: float) -> int:
        """The register of alpha y_n."""
        terms = [(0, self.start[n] * alpha / self.nodes[0].alpha)]
        terms += [(r, w * alpha) for r, w in zip(self.predictions, self.weights[n], strict=False)]
        kept = tuple((r, c) for r, c in terms if c != 0.0)
        return self.emit(Combine(kept or ((0, 0.0),)))

    def evaluate(self, n: int, state: int | None) -> None:
        """Evaluates the model in row n; ``state`` is the register of the row's state if it ends a step."""
        ratio = float(self.table.labels[n])
        begins = n == 0 and self.start[0] == 1.0 and state is None  # the state is the start itself
        if state is not None and ratio == float(self.table.ratios[n]):
            place, x = self.step[n], state
        elif begins and ratio == self.table.begin:
            place, x = 0, 0
        else:
            node = node_of(self.path, ratio)
            place = len(self.nodes)
            self.nodes.append(node)
            if state is None:
                x = self.row(n, node.alpha)
            else:
                x = self.emit(Combine(((state, node.alpha / self.nodes[self.step[n]].alpha),)))
        out = self.emit(Evaluate(x, place))
        if self.output.name != "x0":
            on_x, on_out = self.output.weights(self.nodes[place])[0]
            out = self.emit(Combine(tuple((r, c) for r, c in ((x, on_x), (out, on_out)) if c != 0.0)))
        self.predictions.append(out)

    def program(self, solver: str) -> Program:
        for n in range(self.table.nfe + 1):
            state = None
            if n in self.step:
                state = self.row(n, self.nodes[self.step[n]].alpha)
                self.states.append(State(state, self.step[n]))
            if n < self.table.nfe:
                self.evaluate(n, state)
        return Program(solver, self.output, tuple(self.nodes), tuple(self.instructions), tuple(self.states))
