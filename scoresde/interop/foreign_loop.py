"""One pass of a program through a loop that belongs to somebody else."""

from __future__ import annotations

import torch
from torch import Tensor

from solvers import Noise, Prediction, Program
from solvers.program.instructions import Combine, Evaluate
from solvers.program.program import Answer

from .k_diffusion import working


class Run:
    """A program on its way: it shows a state, is told what the model says of it, and shows the next.

    The foreign loop asks the model at ``shown`` (B, *), which has the loop's dtype; inside, states of 16 bits are kept
    in float32. A loop that answers for another state than the one shown (it blended it with a known image, say)
    has that state taken over. Nothing that is kept lies in the loop's memory, nor the other way round, so that a loop
    may write into its tensors as it likes.

    Args:
        program: what to run.
        sample: the state (B, *) at the first evaluation, which is where the loop asks first. The few programs that
            do something before (churn draws noise, afs takes a step) are begun where they would have come to it.
        noise: the source of the program's draws.
        place: the index of the first evaluation in the loop's list of timesteps.
    """

    def __init__(self, program: Program, sample: Tensor, noise: Noise, place: int) -> None:
        self.program, self.place, self.shape = program, place, sample.shape
        self._steps = program.steps(working(sample) / scale_before(program), noise)
        self.request = next(self._steps)
        self.shown: Tensor | None = None
        self._version = 0

    def state(self, sample: Tensor) -> Tensor:
        """The state (B, *) that the model was asked at, as this pass keeps it."""
        return working(sample) if self._replaced(sample) else self.request.x

    def answer(self, output: Tensor | Prediction, sample: Tensor) -> Tensor:
        """The next state to show (B, *) in the dtype of ``sample``, or, after the last answer, the outcome."""
        kept = output.clone() if isinstance(output, Tensor) else Prediction(output.x0.clone(), output.eps.clone())
        answer = Answer(kept, working(sample).clone() if self._replaced(sample) else None)
        try:
            self.request = self._steps.send(answer)
            following = self.request.x
        except StopIteration as stop:
            following = stop.value
        self.place += 1
        self.shown = following.to(sample.dtype, copy=True)
        self._version = 0 if self.shown.is_inference() else self.shown._version
        return self.shown

    def _replaced(self, sample: Tensor) -> bool:
        """Whether the state is not what was shown: other numbers, in another tensor or written into the same one."""
        if sample is self.shown and not sample.is_inference():  # which counts the changes, so that nothing is compared
            return bool(sample._version != self._version)
        return self.shown is None or not torch.equal(sample, self.request.x.to(sample.dtype))


def scale_before(program: Program) -> float:
    """By what the first state is multiplied before the first evaluation; 1 where nothing comes before that."""
    values = [1.0]
    for instruction in program.instructions:
        if isinstance(instruction, Evaluate):
            return values[instruction.x]
        terms = instruction.terms if isinstance(instruction, Combine) else ()
        values.append(sum(c * values[register] for register, c in terms))
    return 1.0
