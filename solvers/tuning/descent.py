"""The descent of a tuning: Adam on few numbers, a validation that decides, and a checkpoint from which it resumes."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import InputError
from ..files import read_document
from ..noise.seeded import generator

FORMAT, VERSION = "scoresde-tuning", 1
_BETAS, _EPS = (0.9, 0.99), 1e-8
_FLOOR = 1e-12  # added to a loss before its log: a loss may be exactly 0
_EVERY = 10  # iterations between two validations
_AVERAGE = 0.95  # the decay of the average of the numbers
_RATE, _LAST_RATE = 0.02, 0.02  # the first rate, which falls like a cosine, and the last as a share of it
_PATIENCE = 20  # validations without a better one that end the descent


class Progress(NamedTuple):
    """Where a tuning is: the loss of its last iteration, the loss on validation samples, and the least of these."""

    iteration: int
    iterations: int
    loss: float
    validation: float
    best: float


@dataclass
class Descent:
    """The state of a descent, of which a checkpoint has every number.

    Attributes:
        iteration: the number of iterations so far.
        numbers: the free numbers, then Adam's two moments and the average of the numbers, each (count,), float64.
        best, best_numbers: the least loss on validation samples, and its free numbers.
        waited: the number of validations since the best.
        seconds, forwards, vjps: the costs so far, in samples' evaluations and vector-Jacobian products.
    """

    numbers: Tensor
    first: Tensor
    second: Tensor
    average: Tensor
    best_numbers: Tensor
    best: float = math.inf
    iteration: int = 0
    waited: int = 0
    loss: float = math.nan
    seconds: float = 0.0
    forwards: int = 0
    vjps: int = 0

    @staticmethod
    def new(count: int) -> Descent:
        """A descent that starts at 0."""
        zero = torch.zeros(count, dtype=torch.float64)
        return Descent(zero, zero, zero, zero, zero)

    def update(self, gradient: Tensor, rate: float) -> None:
        """One step of Adam (Kingma and Ba 2015, arXiv:1412.6980, algorithm 1), after clipping to the norm 1."""
        gradient = gradient / max(1.0, float(gradient.norm()))
        self.iteration += 1
        k, (b1, b2) = self.iteration, _BETAS
        self.first = b1 * self.first + (1 - b1) * gradient
        self.second = b2 * self.second + (1 - b2) * gradient**2
        size = (self.second / (1 - b2**k)).sqrt() + _EPS
        self.numbers = self.numbers - rate * (self.first / (1 - b1**k)) / size
        decay = min(_AVERAGE, k / (k + 9))
        self.average = decay * self.average + (1 - decay) * self.numbers

    def document(self, facts: Mapping[str, Any]) -> str:
        """The text of a checkpoint; every number is written with the digits that give it back."""
        own = {key: value.tolist() if isinstance(value, Tensor) else value for key, value in vars(self).items()}
        return json.dumps({"format": FORMAT, "version": VERSION, **facts, "descent": own}, indent=1) + "\n"

    @staticmethod
    def of(document: Mapping[str, Any]) -> Descent:
        """The descent in a checkpoint."""
        own = document["descent"]
        known: dict[str, Any] = {
            key: torch.tensor(value, dtype=torch.float64) if isinstance(value, list) else value
            for key, value in own.items()
        }
        return Descent(**known)


@dataclass
class Rule:
    """What a descent minimises, and how long.

    Attributes:
        loss: (free numbers, places of samples) -> the loss ().
        validate: free numbers -> the loss on validation samples.
        samples: the number of samples of ``loss``, and how many of them an iteration uses.
        iterations: the most iterations.
        seed: of the samples that an iteration uses.
        nfe: evaluations of a sample.
        save: writes a checkpoint; called after every validation.
        hook: receives the progress after every validation.
        forwards: () -> evaluations of samples so far in this process.
    """

    loss: Callable[[Tensor, Tensor], Tensor]
    validate: Callable[[Tensor], float]
    samples: tuple[int, int]
    iterations: int
    seed: int
    nfe: int
    save: Callable[[Descent], None]
    hook: Callable[[Progress], None] | None
    forwards: Callable[[], int]

    def rows(self, iteration: int) -> Tensor:
        """The places of the samples of an iteration: a function of the seed and its number."""
        every, used = self.samples
        if used == every:
            return torch.arange(every)
        return torch.randperm(every, generator=generator(self.seed, 20, iteration))[:used]

    def run(self, state: Descent, resumed: bool = False) -> Descent:
        """Continues a descent to its end: the best numbers on validation samples are in ``best_numbers``.

        Args:
            state: the descent; it is changed.
            resumed: whether it comes from a checkpoint, which was written after a validation.
        """
        began, forwards = time.perf_counter() - state.seconds, self.forwards() - state.forwards
        judged = resumed
        while True:
            if not judged and (state.iteration % _EVERY == 0 or state.iteration == self.iterations):
                now = self._judge(state)
                state.seconds, state.forwards = time.perf_counter() - began, self.forwards() - forwards
                self.save(state)
                if self.hook is not None:
                    self.hook(Progress(state.iteration, self.iterations, state.loss, now, state.best))
            judged = False
            if state.iteration >= self.iterations or state.waited > _PATIENCE or not self._step(state):
                return state

    def _judge(self, state: Descent) -> float:
        """Validates the numbers and their average; returns the smaller loss."""
        state.waited += 1
        tried = [state.numbers] if state.iteration == 0 else [state.average, state.numbers]
        values = [self.validate(numbers) for numbers in tried]
        for value, numbers in zip(values, tried, strict=True):
            if value < state.best:
                state.best, state.best_numbers, state.waited = value, numbers.clone(), 0
        return min(values)

    def _step(self, state: Descent) -> bool:
        """One iteration; False if the loss or its gradient is not finite, where the descent ends."""
        rows = self.rows(state.iteration)
        numbers = state.numbers.clone().requires_grad_()
        with torch.enable_grad():
            loss = self.loss(numbers, rows)
            (gradient,) = torch.autograd.grad((loss + _FLOOR).log(), numbers)
        state.loss = loss.item()
        state.vjps += self.nfe * len(rows)
        if not (math.isfinite(state.loss) and bool(torch.isfinite(gradient).all())):
            return False
        share = 0.5 * (1 + math.cos(math.pi * state.iteration / self.iterations))
        state.update(gradient, _RATE * (_LAST_RATE + (1 - _LAST_RATE) * share))
        return True


def read_checkpoint(path: str | Path, facts: Mapping[str, Any]) -> dict[str, Any] | None:
    """The document of a checkpoint; None if there is no file.

    Raises:
        InputError: it is not a checkpoint of a tuning, has another version, or belongs to a different tuning.
    """
    if not Path(path).exists():
        return None
    document = read_document(path, "checkpoint", FORMAT, VERSION)
    of, start, descent = (document.get(name) for name in ("of", "start", "descent"))
    names = {f.name for f in fields(Descent)}
    if not (isinstance(of, dict) and isinstance(start, dict) and isinstance(descent, dict) and descent.keys() == names):
        raise InputError(f"{str(path)!r} is not a checkpoint: a part of the tuning is missing")
    for name, value in facts.items():
        if (found := of.get(name)) != value:
            raise InputError(f"{str(path)!r} is a checkpoint of a tuning with {name}={found!r}, not {value!r}")
    return document
