"""Small processes of discrete states, and a problem on them whose laws are all known, on which solvers are measured."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..types.node import Rows
from ..types.problem import Problem
from ..types.process import Clock, DiscretePrediction, Process, ProcessNode
from ..types.schedule import Schedule
from ..types.transition import Matrix, Transition
from .kernels import all_states

CONCENTRATION = 20.0  # of the law of the data: its tokens depend on each other, but weakly


@dataclass(frozen=True)
class SmallProcess(Process):
    """A process with any generator, at rate one from t = 0 on.

    Attributes:
        generator: the rows of the generator Q (S, S); the last value is the mask if ``masks``.
        size: the number of tokens of the problem on it.
        t_min, t_max: the range on which orders are measured; 0 is the data.
    """

    name: str
    generator: tuple[tuple[float, ...], ...]
    size: int = 2
    masks: bool = False
    mixture: bool = False  # type: ignore[misc]  # a class variable of other processes
    ordinal: bool = False
    t_min: float = 0.1
    t_max: float = 2.0

    @property
    def states(self) -> int:
        """The number of values of the data's tokens."""
        return len(self.generator) - self.masks

    @property
    def mask(self) -> int | None:
        """The value that means "masked"."""
        return self.states if self.masks else None

    @cached_property
    def matrix(self) -> Tensor:
        """The generator (S, S)."""
        return torch.tensor(self.generator, dtype=torch.float64)

    @property
    def prior(self) -> Tensor:
        return torch.matrix_exp(50 * self.matrix)[0]

    def __call__(self, t: Any) -> ProcessNode[Any]:  # type: ignore[override]
        return ProcessNode(t, (t,))

    def transition(self, s: ProcessNode[Any], t: ProcessNode[Any], x: Tensor) -> Transition:
        time = torch.as_tensor(t.clock, dtype=torch.float64) - torch.as_tensor(s.clock, dtype=torch.float64)
        return Matrix(torch.matrix_exp(time[..., None, None] * self.matrix).to(x.device))

    def generator_columns(self, x: Tensor, t: ProcessNode[Any]) -> Tensor:
        return self.matrix.T.to(x.device)[x]

    def generator_rows(self, x: Tensor, t: ProcessNode[Any]) -> Tensor:
        return self.matrix.to(x.device)[x]

    def reading(self, node: ProcessNode, clock: Clock = "natural") -> float:
        if not self.masks or clock == "rate":
            return -node.clock
        return -math.log(-math.expm1(-node.clock)) if node.clock else math.inf

    def time_of(self, reading: float, clock: Clock = "natural") -> float:
        if not self.masks or clock == "rate":
            return -reading
        return -math.log(-math.expm1(-reading))

    def speed(self, node: ProcessNode, clock: Clock = "natural") -> float:
        if not self.masks or clock == "rate":
            return 1.0
        return math.expm1(node.clock)

    def __str__(self) -> str:
        return self.name


def _uniform(states: int) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(1 / states - (a == b) for b in range(states)) for a in range(states))


def _absorbing(states: int) -> tuple[tuple[float, ...], ...]:
    rows = [tuple(-1.0 * (a == b) + (b == states) for b in range(states + 1)) for a in range(states)]
    return (*rows, (0.0,) * (states + 1))


def birth_death(states: int) -> tuple[tuple[float, ...], ...]:
    """The generator of a token that moves to each neighbour at rate one."""
    matrix = np.diag(np.ones(states - 1), 1) + np.diag(np.ones(states - 1), -1)
    rows: list[list[float]] = (matrix - np.diag(matrix.sum(1))).tolist()
    return tuple(map(tuple, rows))


UNIFORM = SmallProcess("uniform", _uniform(3), mixture=True)
ABSORBING = SmallProcess("absorbing", _absorbing(2), size=3, masks=True, mixture=True, t_max=4.0)
BIRTH_DEATH = SmallProcess("birth_death", birth_death(4), ordinal=True)
PROCESSES: tuple[Schedule, ...] = (UNIFORM, ABSORBING, BIRTH_DEATH)


@dataclass(frozen=True)
class ExactDiscrete(Problem):
    """Data with a random law on all states of a few tokens, with exact predictions.

    Attributes:
        path: the process.
        concentration: of the Dirichlet law that the data's law is drawn from; the smaller, the more tokens depend on
            each other.
    """

    path: SmallProcess
    concentration: float = CONCENTRATION
    space = "discrete"

    @property
    def time_free(self) -> bool:
        return self.path.masks and self.path.mixture

    @cached_property
    def points(self) -> Tensor:
        """All states of clean data (n, d)."""
        return all_states(self.path.states, self.path.size)

    @cached_property
    def law(self) -> Tensor:
        """The probability (n,) of each of ``points``."""
        return torch.from_numpy(np.random.default_rng(1).dirichlet([self.concentration] * len(self.points)))

    def joint(self, x: Tensor, node: ProcessNode[Any]) -> Tensor:
        """P(point and x_t = x) (B, n), of states x (B, d) at a node."""
        seen = self.path.transition(self.path.clean, node, x).columns(x)  # (B, d, S)
        found = self.law.expand(len(x), -1)
        for i in range(x.shape[1]):
            found = found * seen[:, i][:, self.points[:, i]]
        return found

    def marginal(self, node: ProcessNode) -> Tensor:
        """The law (N,) of the state at a node, over all states."""
        return self.joint(all_states(self.path.values, self.path.size), node).sum(1)

    def predict(self, x: Tensor, node: Any) -> DiscretePrediction:  # type: ignore[override]
        """The exact laws (B, d, S) of the clean tokens; those of the data where x is impossible."""
        joint = self.joint(x, node)
        total = joint.sum(1, keepdim=True)
        posterior = torch.where(total > 0, joint / torch.where(total > 0, total, 1.0), self.law)
        law = posterior.new_zeros(*x.shape, self.path.values)
        for i in range(x.shape[1]):
            law[:, i].index_add_(1, self.points[:, i], posterior)
        return DiscretePrediction(law)

    def select(self, rows: Rows) -> ExactDiscrete:
        return self
