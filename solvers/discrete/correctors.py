"""Correctors of discrete states: after a step, moves at its end that bring the state nearer to the law there."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..errors import InputError
from ..registry.ranges import Count, Positive
from ..types.process import Clock, ProcessNode
from ..types.solver import Solver, solvers
from .base import DiscreteSolver, Law, Moves, Product, evaluated, pure_noise
from .posteriors import Tweedie
from .rates import moved


class Corrected(DiscreteSolver):
    """The base class of solvers that correct the state after each step of a predictor; a subclass has the options
    ``predictor`` and ``corrector_steps``, and ``corrected``."""

    predictor: Solver
    corrector_steps: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.predictor, DiscreteSolver) or type(self.predictor).step is not DiscreteSolver.step:
            name = solvers.info_of(self).name
            raise InputError(f"{name} needs a predictor that draws from laws, such as tweedie, got {self.predictor}")

    @property
    def evaluations(self) -> int:
        return self.predictor.evaluations + self.corrector_steps

    @property
    def consistent(self) -> bool:
        return self.predictor.consistent

    @property
    def restartable(self) -> bool:
        return self.predictor.restartable

    def init(self, problem: Any, x: Tensor, nodes: Any) -> Any:
        return self.predictor.init(problem, x, nodes)

    def moves(self, problem: Any, x: Tensor, t: ProcessNode, s: ProcessNode, carry: Any) -> Moves:
        assert isinstance(self.predictor, DiscreteSolver)  # see __post_init__
        made = yield from self.predictor.moves(problem, x, t, s, carry)
        x = yield from self.corrected(problem, made.x, t, s)
        return made._replace(x=x)

    def corrected(self, problem: Any, x: Tensor, t: ProcessNode, s: ProcessNode) -> Generator[Law, Tensor, Tensor]:
        """The laws of the moves at s after a step from t, from x (B, *); returns the state (B, *)."""
        raise NotImplementedError

    def end(self, problem: Any, x: Tensor, t: ProcessNode, s: ProcessNode, carry: Any) -> Moves:
        assert isinstance(self.predictor, DiscreteSolver)
        return self.predictor.end(problem, x, t, s, carry)


@solvers.register(
    "discrete_pc",
    kind="rates + MCMC",
    order=1,
    native="rates",
    evaluations=2,
    reference="Campbell et al. 2022, arXiv:2205.14987, section 4.4",
    formula="a step of the predictor, then moves at the rates R(x, y) + r(y) of the path at s, over size h",
    note="does not raise the order; with exact rates, more steps of the predictor are a better use of its evaluations",
    shared=("pc",),
)
@dataclass(frozen=True)
class DiscretePC(Corrected):
    """A predictor, and after each of its steps moves forwards and back in time at once.

    The rates of these moves leave p_s unchanged. A move of duration h draws all tokens at once, and changes p_s by an
    error of order h^2.

    Args:
        predictor: any solver of discrete states.
        corrector_steps: the number of moves after each step.
        size: the duration of a move, as a share of the step.
        clock: the clock of a step.
    """

    predictor: Solver = field(default=Tweedie())
    corrector_steps: Count = 1
    size: Positive = 1.0
    clock: Clock = "natural"

    @property
    def order(self) -> float:
        return min(self.predictor.order, 1.0)

    def corrected(self, problem: Any, x: Tensor, t: ProcessNode, s: ProcessNode) -> Generator[Law, Tensor, Tensor]:
        process = problem.path
        if pure_noise(process, t, self.clock):
            return x  # the step has no duration
        duration = self.size * process.elapsed(t, s, self.clock)
        for _ in range(self.corrector_steps):
            x = yield Product(moved(self._rates(problem, x, s), x, duration), x)
        return x

    def _rates(self, problem: Any, x: Tensor, s: ProcessNode) -> Tensor:
        """The rates (B, *, S) of the forward and the reverse process together, out of x (B, *) at s."""
        process = problem.path
        back = process.rates(evaluated(problem, x, s), x, s, self.clock)
        forward = process.speed(s, self.clock) * process.generator_rows(x, s)
        found: Tensor = (back + forward).scatter(-1, x[..., None], 0.0)
        return found
