"""``sharpened``: a solver that sees the laws of clean tokens with their likely values preferred."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from torch import Tensor

from ..errors import InputError
from ..registry.ranges import NonNegative, Range, Share
from ..types.node import Node, Rows
from ..types.problem import Problem, ProblemWrapper
from ..types.process import DiscretePrediction, ProcessNode
from ..types.solver import Noise, Solver, Step, solvers
from ..types.transition import one_hot
from ..wrappers.base import Wrapper
from .base import DiscreteSolver, Moves
from .posteriors import Tweedie


@solvers.register(
    "sharpened",
    kind="posterior",
    order=1,
    native="x0",
    consistent=False,
    stochastic=True,
    nonlinear="states are tokens",
    reference="Holtzman et al. 2020, arXiv:1904.09751 (top_p); Fan et al. 2018, arXiv:1805.04833 (top_k)",
    formula="x0(c)^(1 / temperature) normalised; of it the top_k largest; of these the fewest whose sum reaches top_p",
    note="changes the model's law into one that has no name; nothing is changed at temperature=1, top_k=0, top_p=1",
)
@dataclass(frozen=True)
class Sharpened(Wrapper):
    """Any solver of discrete states, with a temperature, and without unlikely tokens.

    Args:
        solver: any solver of discrete states. One that uses rates computes them from the changed laws.
        temperature: below 1 likely tokens become more likely; at 0 the likeliest is certain.
        top_k: only so many of the likeliest values of each token remain; 0 for all.
        top_p: only the fewest likeliest values whose probabilities reach this sum remain; 1 for all.
    """

    solver: Solver = field(default=Tweedie())
    temperature: NonNegative = 1.0
    top_k: Annotated[int, Range(0)] = 0
    top_p: Share = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.solver.space != "discrete":
            raise InputError(
                f"sharpened changes laws of tokens: give it a solver of discrete states, got {self.solver}"
            )

    @property
    def order(self) -> float:
        """That of the solver; 0 where the law is changed."""
        return self.solver.order if self.consistent else 0.0

    @property
    def consistent(self) -> bool:
        return (self.temperature, self.top_k, self.top_p) == (1, 0, 1) and self.solver.consistent

    @property
    def adaptive(self) -> bool:
        return self.solver.adaptive

    @property
    def restartable(self) -> bool:
        return self.solver.restartable

    def init(self, problem: Problem, x: Tensor, nodes: Any) -> Any:
        return self.solver.init(_Sharp(problem, self), x, nodes)

    def step(self, problem: Problem, x: Tensor, t: Node, s: Node, carry: Any, noise: Noise | None) -> Step:
        return self.solver.step(_Sharp(problem, self), x, t, s, carry, noise)

    def to_data(self, problem: Problem, x: Tensor, t: Node, s: Node, carry: Any, noise: Noise | None) -> Step:
        return self.solver.to_data(_Sharp(problem, self), x, t, s, carry, noise)

    def moves(self, problem: Problem, x: Tensor, t: ProcessNode, s: ProcessNode, carry: Any) -> Moves:
        """The laws of a step of a solver that draws from laws, see ``DiscreteSolver``."""
        assert isinstance(self.solver, DiscreteSolver)
        return self.solver.moves(_Sharp(problem, self), x, t, s, carry)

    def end(self, problem: Problem, x: Tensor, t: ProcessNode, s: ProcessNode, carry: Any) -> Moves:
        """The laws of the last step."""
        assert isinstance(self.solver, DiscreteSolver)
        return self.solver.end(_Sharp(problem, self), x, t, s, carry)

    def law(self, law: Tensor) -> Tensor:
        """The changed law (..., S) of a law (..., S)."""
        if self.temperature == 0:
            return one_hot(law.argmax(-1), law)
        if self.temperature != 1:
            law = (law / law.amax(-1, keepdim=True)) ** (1 / self.temperature)
            law = law / law.sum(-1, keepdim=True)
        if self.top_k or self.top_p < 1:
            found, places = law.sort(dim=-1, descending=True, stable=True)
            if self.top_k:
                found[..., self.top_k :] = 0.0
                found = found / found.sum(-1, keepdim=True)
            before = torch.nn.functional.pad(found.cumsum(-1)[..., :-1], (1, 0))
            found = torch.where(before < self.top_p, found, 0.0)
            law = torch.zeros_like(law).scatter(-1, places, found / found.sum(-1, keepdim=True))
        return law


class _Sharp(ProblemWrapper):
    """A problem whose predictions are sharpened."""

    def __init__(self, problem: Problem, rule: Sharpened) -> None:
        super().__init__(problem)
        self.rule = rule

    def predict(self, x: Tensor, node: Any) -> Any:
        found: Any = self.problem.predict(x, node)
        return DiscretePrediction(self.rule.law(found.x0), own=None if found.own is None else self.rule.law(found.own))

    def select(self, rows: Rows) -> Problem:
        return _Sharp(self.problem.select(rows), self.rule)
