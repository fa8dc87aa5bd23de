"""Solvers of discrete states: steps that draw every token from a law.

A step alternates between laws and draws. ``moves`` is a generator that yields a law of the next state and receives a
state drawn from it; what it returns ends the step. So the same code draws samples (``follow``) and, on small spaces,
gives the exact kernel of a step without any draw (``solvers.conformance.kernels``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import InputError
from ..types.process import Clock, DiscretePrediction, Process, ProcessNode
from ..types.solver import Noise, Solver, Step

_SUM = 1e-4  # by how much a law of a clean token may miss a sum of one: the rounding of float32 over many values
Uniform = Callable[[], Tensor]
"""Draws uniform numbers (B, *), one for each token."""


@dataclass(frozen=True)
class Product:
    """The law of a state whose tokens are independent.

    Attributes:
        law: the law of each token (B, *, S); it sums to one.
        x: the states (B, *) from which tokens move.
    """

    law: Tensor
    x: Tensor

    def draw(self, uniform: Uniform) -> Tensor:
        """A state (B, *): first whether each token moves, then where to, with one uniform number for each."""
        away = self.law.scatter(-1, self.x[..., None], 0.0)
        cumulative = away.cumsum(-1)
        moved = uniform() < cumulative[..., -1]
        return torch.where(moved, picked(cumulative, uniform()), self.x)


@dataclass(frozen=True)
class OneOf:
    """The law of a state in which one token changes.

    Attributes:
        law: (B, *, S), the probability that the token in this place becomes this value; what is missing to one in all
            places together is the probability that the state stays.
        x: the states (B, *) before.
    """

    law: Tensor
    x: Tensor

    def draw(self, uniform: Uniform) -> Tensor:
        """A state (B, *); the two uniform numbers of each sample are its first ones."""
        first, second = (uniform().flatten(1)[:, 0] for _ in range(2))
        flat = self.law.flatten(1, -2)  # (B, d, S)
        places = flat.sum(-1).cumsum(-1)
        place = torch.searchsorted(places, first[:, None].contiguous(), right=True)[:, 0]
        moved = place < flat.shape[1]
        place = place.clamp_max(flat.shape[1] - 1)
        rows = torch.arange(len(flat), device=flat.device)
        token = picked(flat[rows, place].cumsum(-1), second)
        out = self.x.flatten(1).clone()
        out[rows, place] = torch.where(moved, token, out[rows, place])
        return out.view_as(self.x)


Law = Product | OneOf
Moves = Generator[Law, Tensor, Step]


def picked(cumulative: Tensor, uniform: Tensor) -> Tensor:
    """The tokens (*) at uniform numbers (*) of a law with the cumulative sums (*, S), which need not end at one."""
    total = cumulative[..., -1:].contiguous()
    cumulative = cumulative.contiguous()
    found = torch.searchsorted(cumulative, uniform[..., None] * total, right=True)
    # rounding may reach the total, beyond which no token lies; the first that has it is the last possible one
    return torch.minimum(found, torch.searchsorted(cumulative, total))[..., 0]


def follow(moves: Moves, uniform: Uniform) -> Step:
    """The result of a step whose laws are drawn from."""
    try:
        law = next(moves)
        while True:
            law = moves.send(law.draw(uniform))
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


class DiscreteSolver(Solver):
    """A solver of discrete states; a subclass implements ``moves``.

    ``order`` is that of the law of the end state in total variation.
    """

    space: ClassVar[str] = "discrete"
    stochastic: ClassVar[bool] = True
    nonlinear: ClassVar[str] = "states are tokens"

    def check(self, process: Process) -> None:
        """Accepts a process, or says why the solver has no meaning for it.

        Raises:
            InputError: it has none.
        """

    def init(self, problem: Any, x: Tensor, nodes: Any) -> Any:
        self.check(problem.path)
        return None

    def moves(self, problem: Any, x: Tensor, t: ProcessNode, s: ProcessNode, carry: Any) -> Moves:
        """The laws of a step from x (B, *) at t to s; returns the state at s."""
        raise NotImplementedError

    def end(self, problem: Any, x: Tensor, t: ProcessNode, s: ProcessNode, carry: Any) -> Moves:
        """The laws of the last step, to the data: each token is drawn from the law of its clean value.

        A value after which the token is impossible is not drawn, for any prediction.
        """
        x = yield Product(problem.path.possible(evaluated(problem, x, t).x0, x, t), x)
        return Step(x, carry)

    def step(self, problem: Any, x: Tensor, t: Any, s: Any, carry: Any, noise: Noise | None) -> Step:
        return follow(self.moves(problem, x, t, s, carry), lambda: _drawn(noise, t, s))

    def to_data(self, problem: Any, x: Tensor, t: Any, s: Any, carry: Any, noise: Noise | None) -> Step:
        return follow(self.end(problem, x, t, s, carry), lambda: _drawn(noise, t, s))


def _drawn(noise: Noise | None, t: Any, s: Any) -> Tensor:
    assert noise is not None  # see solve: all discrete solvers are stochastic
    return noise(t, s)


def evaluated(problem: Any, x: Tensor, t: ProcessNode) -> DiscretePrediction:
    """The problem's prediction at x (B, *).

    Raises:
        InputError: the law of a clean token is not one: negative, not finite, of another sum or shape; or a concrete
            score is not finite.
    """
    found: DiscretePrediction = problem.predict(x, t)
    wanted = (*x.shape, problem.path.values)
    if found.x0.shape != wanted:
        raise InputError(f"the model predicts laws {tuple(found.x0.shape)} of tokens {tuple(x.shape)}, needed {wanted}")
    total = found.x0.sum(-1)  # NaN and infinity fail every comparison
    right = (found.x0 >= 0).all(-1) & ((total - 1).abs() < _SUM)
    if found.ratios is not None:
        right &= found.ratios.isfinite().all(-1)
    if not bool(right.all()):
        row = int((~right.flatten(1).all(1)).nonzero()[0])
        raise InputError(
            f"the model's law of sample {row}{_at(t)} is none: probabilities are at least 0, and their sum is 1"
        )
    return found


def _at(node: ProcessNode[Any]) -> str:
    return "" if isinstance(node.t, Tensor) else f" at t={node.t:g}"


def pure_noise(process: Process, t: ProcessNode, clock: Clock) -> bool:
    """Whether a clock is infinite at t, where a state is a draw from the prior and says nothing about the data.

    A step from there draws from the posterior of each token: rates have no meaning for an infinite duration.
    """
    return not math.isfinite(process.reading(t, clock))
