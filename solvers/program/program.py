"""``Program``: a linear solver on a grid as a short table of numbers. It can be run, driven step by step, and saved.

Every value is a register, made once: register 0 is the start, and instruction k makes register k + 1. ``trace`` makes
the program of a solver.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import InputError
from ..loop import Hook, Solution
from ..types.answers import counting, drawn, fault, predicted, raw_output, replacement, version, writes
from ..types.model_output import Output
from ..types.node import Node, Prediction
from ..types.problem import Problem, as_problem
from ..types.solver import Noise
from . import json_format
from .instructions import Combine, Draw, Evaluate, Instruction, State, reads


@dataclass(frozen=True, repr=False)
class Program:
    """A linear solver on a grid, as a list of instructions with numeric coefficients.

    Attributes:
        solver: the spec of the traced solver, for people.
        output: the output that the model must have; the coefficients apply to it.
        nodes: every node that the program uses: the grid's first, then those between them.
        instructions: instruction k makes register k + 1.
        states: the state at the end of every step; the last one is the outcome.
    """

    solver: str
    output: Output
    nodes: tuple[Node, ...]
    instructions: tuple[Instruction, ...]
    states: tuple[State, ...]

    @property
    def nfe(self) -> int:
        """The number of model evaluations of a sample."""
        return sum(isinstance(i, Evaluate) for i in self.instructions)

    @property
    def draws(self) -> int:
        """The number of noise draws of a sample."""
        return sum(isinstance(i, Draw) for i in self.instructions)

    @property
    def grid(self) -> tuple[Node, ...]:
        """The nodes of the grid: the start, and where each step ends."""
        return self.nodes[: len(self.states) + 1]

    @property
    def stochastic(self) -> bool:
        """Whether the program draws noise."""
        return self.draws > 0

    @property
    def start(self) -> Node:
        """The node of the start."""
        return self.nodes[0]

    @property
    def end(self) -> Node:
        """The node of the outcome."""
        return self.nodes[self.states[-1].node]

    @cached_property
    def last_use(self) -> tuple[tuple[int, ...], ...]:
        """For every instruction, the registers that no later instruction reads; a backward pass finds them."""
        seen: set[int] = {self.states[-1].register}
        dying: list[tuple[int, ...]] = []
        for k in range(len(self.instructions) - 1, -1, -1):
            read = dict.fromkeys(reads(self.instructions[k]))
            unread = () if k + 1 in seen else (k + 1,)  # a value that is never read: noise drawn to keep the order
            dying.append((*(r for r in read if r not in seen), *unread))
            seen.update(read)
        return tuple(reversed(dying))

    @cached_property
    def _ordered(self) -> tuple[Instruction, ...]:
        """The instructions with the terms of each sum reordered: first a register that no later instruction reads.

        The sum is accumulated in that register's tensor. The order depends on the program alone, and so does rounding.
        """
        made: list[Instruction] = []
        for instruction, dying in zip(self.instructions, self.last_use, strict=True):
            if isinstance(instruction, Combine):
                head = next((term for term in instruction.terms if term[0] in dying), instruction.terms[0])
                instruction = Combine((head, *(term for term in instruction.terms if term is not head)))
            made.append(instruction)
        return tuple(made)

    def run(self, problem: Problem, x: Tensor, noise: Noise | None = None, hooks: Sequence[Hook] = ()) -> Tensor:
        """Runs the program from x (B, *) at the first node and returns the state at the last one.

        The numbers are those of ``solve`` with the traced solver. Sums are accumulated in place in registers that are
        no longer needed, so memory does not grow with the number of steps. With gradients enabled every sum is a new
        tensor. 16-bit states are kept in float32. Models that store their input or reuse output buffers must copy them.
        If the model's output is the program's, the program uses it as it is (``Problem.raw``) and converts nothing.

        Args:
            problem: the path and the model.
            x: the state (B, *) at the first node; it is not changed.
            noise: the noise source, needed if the program draws.
            hooks: each is called with (x, node) after every step; its result, if not None, replaces x.

        Raises:
            InputError: noise is missing.
        """
        steps = self._advance(x, noise, bool(hooks), not torch.is_grad_enabled())
        evaluate = evaluator(self.output, as_problem(problem))
        answer: Any = None
        while True:
            try:
                request = steps.send(answer)
            except StopIteration as stop:
                outcome: Tensor = stop.value
                return outcome
            answer = None
            if isinstance(request, Request):
                answer = evaluate(request.x, request.node)
            else:
                for hook in hooks:
                    replaced = replacement(hook, request.x if answer is None else answer, request.node)
                    answer = answer if replaced is None else replaced

    def solve(self, problem: Problem, x: Tensor, noise: Noise | None = None, hooks: Sequence[Hook] = ()) -> Solution:
        """Runs the program like ``run`` and returns a ``Solution``, as ``solvers.solve`` does."""
        return self.solution(self.run(problem, x, noise, hooks))

    def solution(self, x: Tensor) -> Solution:
        """The ``Solution`` for the outcome x (B, *) of a run."""
        none = torch.zeros(len(x), dtype=torch.long)
        return Solution(x, self.end, none + self.nfe, self.nfe, None, none, none)

    def steps(
        self, x: Tensor, noise: Noise | None = None
    ) -> Generator[Request, Prediction | Tensor | Answer | None, Tensor]:
        """A generator that yields a request for each model evaluation, so that a foreign loop can drive the solver.

        Send the answer back, or call ``request.answer`` in a ``for`` loop. The answer is a ``Prediction``, the model's
        own output (B, *) if the program was traced for it, or an ``Answer``. The ``x`` of an ``Answer`` replaces the
        yielded state, for loops that blend it with a known image, for example. The generator returns the state at the
        last node; the last request contains it as ``outcome``.

        Raises:
            InputError: noise or an answer is missing.
        """
        inner = self._advance(x, noise, True, False)
        request: Request | None = None
        answer: Answer | None = None
        while True:
            try:
                following = inner.send(answer)
            except StopIteration as stop:
                outcome: Tensor = stop.value
                if request is not None:
                    request.outcome = outcome
                return outcome
            answer = None
            if isinstance(following, Request):
                request = following
                request.x = counting(request.x)
                before = version(request.x)
                sent = yield request
                given = request.given if sent is None else sent
                if given is None:
                    raise InputError(f"the program waits for the model's answer at t={request.node.t:g}")
                answer = given if isinstance(given, Answer) else Answer(given)
                if answer.x is None and version(request.x) != before:
                    raise writes("the loop", "request.x; a state that replaces it is sent as Answer(output, x)")
                self._check(answer.output, request)

    def _check(self, answer: Any, request: Request) -> None:
        """Rejects an answer to a request that is neither a prediction nor an output like the state."""
        parts = (answer.x0, answer.eps) if isinstance(answer, Prediction) else (answer,)
        for part in parts if isinstance(request.x, Tensor) else ():
            if wrong := fault(part, request.x):
                where = f"at t={request.node.t:g}, for states {tuple(request.x.shape)}"
                raise InputError(f"the answer to the program's request contains {wrong}, {where}")

    def to_json(self) -> str:
        """The program as text, see docs/program_format.md; ``from_json`` returns an equal program."""
        return json_format.write(self)

    @staticmethod
    def from_json(text: str) -> Program:
        """The program in a text.

        Raises:
            InputError: the text is not a program, or has an unknown version.
        """
        return Program(*json_format.read(text))

    def __repr__(self) -> str:
        return f"<Program {self}>"

    def __str__(self) -> str:
        return f"{self.solver}: {len(self.states)} steps, {self.nfe} NFE, {self.output.name}"

    def rows(
        self, registers: Registers, step: int, noise: Noise | None, in_place: bool = False
    ) -> Generator[Request, Any, None]:
        """Executes the instructions of one step: the only interpreter of instructions.

        It yields a ``Request`` for each model evaluation and receives the output (B, *), a Prediction or an Answer.

        Args:
            registers: the values after the steps before. Values of this step are added; those that no later
                instruction reads are removed.
            step: the number of the step.
            noise: the noise source, needed if the program draws.
            in_place: whether to overwrite registers whose tensors are used nowhere else.
        """
        first = self.states[step - 1].register if step else 0
        last = self.states[step].register
        values, nodes = registers.values, self.nodes
        for k in range(first + 1, last + 1):
            instruction, dying = self._ordered[k - 1], self.last_use[k - 1]
            if isinstance(instruction, Combine):
                value = registers.sum(instruction.terms, dying, in_place)
                if in_place:
                    registers.mine.add(k)
            elif isinstance(instruction, Evaluate):
                register, node = instruction.x, nodes[instruction.node]
                value = yield Request(registers.outwards(values[register]), node)
                if type(value) is Answer:
                    if value.x is not None:
                        values[register] = registers.inwards(value.x)
                        registers.mine.discard(register)
                    value = value.output
                state = values[register]
                if type(value) is Prediction:
                    value = self.output.of(value, state, node)
                value = registers.inwards(value)
                if register in registers.mine and shares(value, state):
                    value = value.clone()  # the model returned its input
            else:
                assert noise is not None
                value = registers.inwards(drawn(noise, nodes[instruction.t], nodes[instruction.s]))
            values[k] = value
            registers.release(dying, keep=last)

    def _advance(
        self, x: Tensor, noise: Noise | None, shown: bool, in_place: bool
    ) -> Generator[Request | Shown, Any, Tensor]:
        """Executes every step. Yields a Request for each evaluation and receives an output, a Prediction or an Answer.

        With ``shown`` it also yields Shown after every step and receives the state that replaces it, or None.
        """
        if noise is None and self.stochastic:
            raise InputError(f"{self.solver} draws noise: give it a noise source")
        registers = Registers(x)
        for step, (register, node) in enumerate(self.states):
            yield from self.rows(registers, step, noise, in_place)
            if shown:
                replaced = yield Shown(registers.outwards(registers.values[register]), self.nodes[node])
                if replaced is not None:
                    registers.values[register] = registers.inwards(replaced)
                registers.mine.discard(register)  # the receiver may keep the tensor
        outcome: Tensor = registers.outwards(registers.values[self.states[-1].register])
        return outcome


class Registers:
    """The values of a run that later instructions read.

    All have one dtype, for any dtype of the model, the noise and the hooks: that of the start, or float32 for a 16-bit
    start. 16 bits are too few for sums, and some kernels round them differently at the end of a row than within it.
    Symbolic values, those of a trace, have no dtype.

    Attributes:
        values: the value of each register.
        mine: the registers whose tensors are used nowhere else.
        free: tensors that may be overwritten: no later instruction reads their registers.
    """

    __slots__ = ("dtype", "free", "mine", "outer", "values")

    def __init__(self, x: Any) -> None:
        self.outer: torch.dtype | None = x.dtype if isinstance(x, Tensor) else None
        self.dtype = torch.float32 if self.outer is not None and self.outer.itemsize < 4 else self.outer
        self.values: dict[int, Any] = {0: self.inwards(x)}
        self.mine: set[int] = set()
        self.free: list[Tensor] = []

    def inwards(self, value: Any) -> Any:
        """A value converted to the registers' dtype."""
        return value if self.dtype is None or value.dtype == self.dtype else value.to(self.dtype)

    def outwards(self, value: Any) -> Any:
        """A value converted to the dtype of the start."""
        return value if self.outer == self.dtype else value.to(self.outer)

    def copy(self) -> Registers:
        """A copy with the same values, for a step that must not change these registers."""
        made = Registers(self.values[next(iter(self.values))])
        made.outer, made.dtype, made.values = self.outer, self.dtype, dict(self.values)
        return made

    def sum(self, terms: Sequence[tuple[int, float]], dying: Sequence[int], in_place: bool) -> Any:
        """The sum of coefficient times register; in place and as a new tensor it has the same bits."""
        (first, c), *rest = terms
        values = self.values
        if not in_place:
            value = values[first] * c
            for register, c in rest:
                value = value.add(values[register], alpha=c)
            return value
        if first in self.mine and first in dying:
            value = values[first]
            self.mine.discard(first)
            if c != 1.0:
                value.mul_(c)
        else:
            fits = self.free and self.free[-1].shape == values[first].shape
            value = torch.mul(values[first], c, out=self.free.pop()) if fits else values[first] * c
        for register, c in rest:
            value.add_(values[register], alpha=c)
        return value

    def release(self, dying: Sequence[int], keep: int) -> None:
        """Removes the registers ``dying``, except ``keep``; later sums may overwrite their tensors."""
        for register in dying:
            if register == keep:
                continue
            gone = self.values.pop(register, None)
            if register in self.mine:
                self.mine.discard(register)
                self.free.append(gone)


class Shown(NamedTuple):
    """The state (B, *) at the end of a step."""

    x: Tensor
    node: Node


class Answer(NamedTuple):
    """A model's answer, with the state ``x`` at which the model was evaluated if it differs from the program's."""

    output: Any
    x: Tensor | None = None


class Request:
    """A program's request for a model evaluation.

    Attributes:
        x: the state (B, *).
        node: its node.
        outcome: the state at the last node, after the last request is answered and the generator has ended.
    """

    __slots__ = ("given", "node", "outcome", "x")

    def __init__(self, x: Tensor, node: Node) -> None:
        self.x, self.node = x, node
        self.given: Prediction | Tensor | Answer | None = None
        self.outcome: Any = None

    def answer(self, given: Prediction | Tensor | Answer) -> None:
        """Sets the answer, for ``for`` loops, which cannot send; the generator reads it when the loop continues."""
        self.given = given


def shares(one: Any, other: Any) -> bool:
    """Whether two tensors share their memory."""
    return bool(one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr())


def evaluator(output: Output, problem: Problem) -> Callable[[Tensor, Node], Any]:
    """The function (x, node) that evaluates the model: ``raw`` if its output is the program's, else ``predict``."""
    if problem.checked:
        return problem.raw if problem.output == output else problem.predict
    if problem.output == output:
        return lambda x, node: raw_output(problem.raw, x, node)
    return lambda x, node: predicted(problem.predict, x, node)


def answer_requests(requests: Generator[Request, Any, None], evaluate: Callable[[Tensor, Node], Any]) -> None:
    """Runs a generator to its end and answers every request with ``evaluate``."""
    answer: Any = None
    while True:
        try:
            request = requests.send(answer)
        except StopIteration:
            return
        answer = evaluate(request.x, request.node)
