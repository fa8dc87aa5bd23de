"""A linear solver on a grid as a short table of numbers: run, driven step by step, written to a file.

Every value is a register, made once: register 0 is the start, and instruction k makes register k + 1. ``trace`` makes
programs of solvers.
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
from ..types.model_output import Output
from ..types.node import Node, Prediction
from ..types.problem import Problem, as_problem
from ..types.solver import Noise
from . import json_format
from .instructions import Combine, Draw, Evaluate, Instruction, State, reads


@dataclass(frozen=True)
class Program:
    """A solver's numbers on a grid.

    Attributes:
        solver: the spec that it was traced from, for people.
        output: what the model is expected to put out; the coefficients are those of that output.
        nodes: every node that the program speaks of: those of the grid first, then the ones between them.
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
        """Model evaluations of a sample."""
        return sum(isinstance(i, Evaluate) for i in self.instructions)

    @property
    def draws(self) -> int:
        """Noise draws of a sample."""
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
        """Where the program begins."""
        return self.nodes[0]

    @property
    def end(self) -> Node:
        """Where it arrives."""
        return self.nodes[self.states[-1].node]

    @cached_property
    def last_use(self) -> tuple[tuple[int, ...], ...]:
        """For every instruction, the registers that it is the last to read: found by a backward pass."""
        seen: set[int] = {self.states[-1].register}
        dying: list[tuple[int, ...]] = []
        for k in range(len(self.instructions) - 1, -1, -1):
            read = dict.fromkeys(reads(self.instructions[k]))
            unread = () if k + 1 in seen else (k + 1,)  # a value that nobody reads: noise drawn to keep the order
            dying.append((*(r for r in read if r not in seen), *unread))
            seen.update(read)
        return tuple(reversed(dying))

    @cached_property
    def _ordered(self) -> tuple[Instruction, ...]:
        """The instructions, in every sum the first register that dies there put first: its tensor takes the sum. The
        order does not depend on who holds the tensors, so neither does the rounding."""
        made: list[Instruction] = []
        for instruction, dying in zip(self.instructions, self.last_use, strict=True):
            if isinstance(instruction, Combine):
                head = next((term for term in instruction.terms if term[0] in dying), instruction.terms[0])
                instruction = Combine((head, *(term for term in instruction.terms if term is not head)))
            made.append(instruction)
        return tuple(made)

    def run(self, problem: Problem, x: Tensor, noise: Noise | None = None, hooks: Sequence[Hook] = ()) -> Tensor:
        """The state at the last node, from x (B, *) at the first: the numbers of ``solve`` with the traced solver.

        Sums are accumulated in place in registers that are no longer needed, so memory does not grow with the number of
        steps, and nothing is computed on the way but the sums; with gradients enabled every sum is a new tensor. 16-bit
        states are carried in float32. A model that keeps the tensor that it was shown, or writes over one that it has
        answered with, has to copy it. A problem with ``raw`` (see ``Problem``) is asked for its model's own output.

        Args:
            problem: the path and the model.
            x: the state (B, *) at the first node; it is left as it is.
            noise: needed where the program draws.
            hooks: each is called with (x, node) after every step; what it returns, if not None, replaces x.

        Raises:
            InputError: noise is missing.
        """
        steps = self._advance(x, noise, bool(hooks), not torch.is_grad_enabled())
        ask = asker(self.output, as_problem(problem))
        answer: Any = None
        try:
            while True:
                request = steps.send(answer)
                answer = None
                if isinstance(request, Request):
                    answer = ask(request.x, request.node)
                else:
                    for hook in hooks:
                        replaced = hook(request.x if answer is None else answer, request.node)
                        answer = answer if replaced is None else replaced
        except StopIteration as stop:
            outcome: Tensor = stop.value
            return outcome

    def solve(self, problem: Problem, x: Tensor, noise: Noise | None = None, hooks: Sequence[Hook] = ()) -> Solution:
        """``run``, with what ``solvers.solve`` tells besides the state."""
        return self.solution(self.run(problem, x, noise, hooks))

    def solution(self, x: Tensor) -> Solution:
        """The outcome x (B, *) of a run, with the evaluations that it took."""
        none = torch.zeros(len(x), dtype=torch.long)
        return Solution(x, self.end, none + self.nfe, self.nfe, None, none, none)

    def steps(
        self, x: Tensor, noise: Noise | None = None
    ) -> Generator[Request, Prediction | Tensor | Answer | None, Tensor]:
        """Yields where the model is to be asked; send the answer back, and any foreign loop drives the solver.

        The answer is a ``Prediction``, the model's own output (B, *) if it is the one that the program was traced for,
        or an ``Answer`` whose ``x`` replaces the state that was yielded (a loop that blends it with a known image,
        say). In a ``for`` loop, call ``request.answer``. What the generator returns is the state at the last node, and
        the last request keeps it as ``outcome``.

        Raises:
            InputError: noise is missing, or no answer came.
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
                sent = yield request
                given = request.given if sent is None else sent
                if given is None:
                    raise InputError(f"the program waits for the model's answer at t={request.node.t:g}")
                answer = given if isinstance(given, Answer) else Answer(given)

    def to_json(self) -> str:
        """The program as text, see docs/program_format.md; ``from_json`` gives an equal one back."""
        return json_format.write(self)

    @staticmethod
    def from_json(text: str) -> Program:
        """The program that a text holds.

        Raises:
            InputError: the text is not a program, or of a version that is not known here.
        """
        return Program(*json_format.read(text))

    def __str__(self) -> str:
        return f"{self.solver}: {len(self.states)} steps, {self.nfe} NFE, {self.output.name}"

    def rows(
        self, registers: Registers, step: int, noise: Noise | None, in_place: bool = False
    ) -> Generator[Request, Any, None]:
        """Executes the rows of one step: the one interpreter of instructions.

        Yields a ``Request`` where the model is to be asked, and is sent the output (B, *), a Prediction or an Answer.

        Args:
            registers: what the steps before have left; the step's values are added, those read for the last time leave.
            step: the number of the step.
            noise: needed where the program draws.
            in_place: write over registers that nobody else holds.
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
                    value = value.clone()  # a model that answers with its input
            else:
                assert noise is not None
                value = registers.inwards(noise(nodes[instruction.t], nodes[instruction.s]))
            values[k] = value
            registers.release(dying, keep=last)

    def _advance(
        self, x: Tensor, noise: Noise | None, shown: bool, in_place: bool
    ) -> Generator[Request | Shown, Any, Tensor]:
        """Every step: yields a Request and is sent the output, an Answer or a Prediction; yields Shown after every step
        where ``shown``, and is sent the state to go on with, or None."""
        if noise is None and self.stochastic:
            raise InputError(f"{self.solver} draws noise: give it a noise source")
        registers = Registers(x)
        for step, (register, node) in enumerate(self.states):
            yield from self.rows(registers, step, noise, in_place)
            if shown:
                replaced = yield Shown(registers.outwards(registers.values[register]), self.nodes[node])
                if replaced is not None:
                    registers.values[register] = registers.inwards(replaced)
                registers.mine.discard(register)  # somebody may have kept it
        outcome: Tensor = registers.outwards(registers.values[self.states[-1].register])
        return outcome


class Registers:
    """The values of a run that are still to be read.

    All have one dtype, whatever the model, the noise and the hooks come with: that of the start, or float32 for a start
    of 16 bits, which are too few to sum in, and which some kernels round otherwise at the end of a row than within.
    Symbolic values, those of a trace, have none.

    Attributes:
        values: by register.
        mine: registers in tensors that nobody else holds.
        free: tensors of registers that were read for the last time.
    """

    __slots__ = ("dtype", "free", "mine", "outer", "values")

    def __init__(self, x: Any) -> None:
        self.outer: torch.dtype | None = x.dtype if isinstance(x, Tensor) else None
        self.dtype = torch.float32 if self.outer is not None and self.outer.itemsize < 4 else self.outer
        self.values: dict[int, Any] = {0: self.inwards(x)}
        self.mine: set[int] = set()
        self.free: list[Tensor] = []

    def inwards(self, value: Any) -> Any:
        """A value in the registers' dtype."""
        return value if self.dtype is None or value.dtype == self.dtype else value.to(self.dtype)

    def outwards(self, value: Any) -> Any:
        """A value in the dtype of the start."""
        return value if self.outer == self.dtype else value.to(self.outer)

    def copy(self) -> Registers:
        """The same values, for a step that must leave these as they are."""
        made = Registers(self.values[next(iter(self.values))])
        made.outer, made.dtype, made.values = self.outer, self.dtype, dict(self.values)
        return made

    def sum(self, terms: Sequence[tuple[int, float]], dying: Sequence[int], in_place: bool) -> Any:
        """The sum of coefficient x register, with the same bits in place and as a new tensor."""
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
        """Drops registers that were read for the last time; their tensors may be written over."""
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
    """An answer of the model with the state that it was really asked at, if that is another than the program's."""

    output: Any
    x: Tensor | None = None


class Request:
    """Where the model is to be asked.

    Attributes:
        x: the state (B, *).
        node: its time.
        outcome: the state at the last node, once the last request was answered and the generator has ended.
    """

    __slots__ = ("given", "node", "outcome", "x")

    def __init__(self, x: Tensor, node: Node) -> None:
        self.x, self.node = x, node
        self.given: Prediction | Tensor | Answer | None = None
        self.outcome: Any = None

    def answer(self, given: Prediction | Tensor | Answer) -> None:
        """For loops that cannot send: the answer is taken when the loop comes round."""
        self.given = given


def shares(one: Any, other: Any) -> bool:
    """Whether two tensors lie in the same memory."""
    return bool(one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr())


def asker(output: Output, problem: Problem) -> Callable[[Tensor, Node], Any]:
    """(x, node) -> the model's output: its own where it is the program's, else a prediction, to be converted."""
    return problem.raw if problem.output == output else problem.predict


def answered(requests: Generator[Request, Any, None], ask: Callable[[Tensor, Node], Any]) -> None:
    """Answers every request of a generator."""
    answer: Any = None
    try:
        while True:
            request = requests.send(answer)
            answer = ask(request.x, request.node)
    except StopIteration:
        return
