"""A program run inside the sampling loop of another library."""

from __future__ import annotations

import torch
from torch import Tensor

from solvers import Noise, Prediction, Program
from solvers.program.instructions import Combine, Evaluate
from solvers.program.program import Answer

from ..sampling.failures import Seen
from .k_diffusion import working


class ForeignRun:
    """A program in progress: it returns a state, receives the model's output for it, and returns the next state.

    The foreign loop evaluates the model at ``shown`` (B, *), which has the loop's dtype; inside, states of 16 bits are
    kept in float32. If the loop changed the state before the evaluation (it blended it with a known image, say), the
    changed state replaces the one shown. The program and the loop share no memory, so the loop may write into its
    tensors.

    Args:
        program: the program to run.
        sample: the state (B, *) at the first evaluation. For the few programs that do something before it (churn draws
            noise, afs takes a step), this is the state after that.
        noise: the source of the program's draws.
        place: the index of the first evaluation in the loop's list of timesteps.
    """

    def __init__(self, program: Program, sample: Tensor, noise: Noise, place: int) -> None:
        self.program, self.place, self.shape = program, place, sample.shape
        self.seen = Seen()
        self._steps = program.steps(working(sample) / scale_before(program), noise)
        self.request = next(self._steps)
        self.shown: Tensor | None = None
        self._version = 0

    def state(self, sample: Tensor) -> Tensor:
        """The state (B, *) at which the model was evaluated, in the dtype of the computation."""
        return working(sample) if self._replaced(sample) else self.request.x

    def answer(self, output: Tensor | Prediction, sample: Tensor) -> Tensor:
        """The state (B, *) at the next evaluation, or the result after the last one, in the dtype of ``sample``."""
        kept = output.clone() if isinstance(output, Tensor) else Prediction(output.x0.clone(), output.eps.clone())
        self.seen(output if isinstance(output, Tensor) else output.x0, self.request.node)
        answer = Answer(kept, working(sample).clone() if self._replaced(sample) else None)
        try:
            self.request = self._steps.send(answer)
            following = self.request.x
        except StopIteration as stop:
            following = self.seen.report(stop.value, self.program.solver)
        self.place += 1
        self.shown = following.to(sample.dtype, copy=True)
        self._version = 0 if self.shown.is_inference() else self.shown._version
        return self.shown

    def _replaced(self, sample: Tensor) -> bool:
        """Whether the state differs from the one shown: a tensor of other numbers, or the same tensor written over."""
        if sample is self.shown and not sample.is_inference():  # torch counts the writes, so no numbers are compared
            return bool(sample._version != self._version)
        return self.shown is None or not torch.equal(sample, self.request.x.to(sample.dtype))


def amplification(program: Program) -> float:
    """The largest absolute coefficient of a program's sums."""
    sums = [instruction.terms for instruction in program.instructions if isinstance(instruction, Combine)]
    return max((abs(c) for terms in sums for _, c in terms), default=0.0)


def scale_before(program: Program) -> float:
    """The factor of the first state before the first evaluation; 1 if nothing comes before that."""
    values = [1.0]
    for instruction in program.instructions:
        if isinstance(instruction, Evaluate):
            return values[instruction.x]
        terms = instruction.terms if isinstance(instruction, Combine) else ()
        values.append(sum(c * values[register] for register, c in terms))
    return 1.0
