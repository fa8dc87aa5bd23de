"""The error of a solve in float32 against float64, in units of the rounding that no solver can avoid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..loop import solve
from ..noise.seeded import SeededNoise
from ..types.node import Node, Prediction
from ..types.problem import Problem
from ..types.schedule import Schedule
from ..types.solver import Solver
from .problems import Mixture

LIMIT = 30
"""The greatest accepted ``roundings_lost``, for solvers of a few tens of operations per step; measured: 11."""


def outcome(solver: Solver, problem: Any, nodes: Sequence[Node], dtype: torch.dtype) -> Tensor:
    """The outcome of a solve in ``dtype``; start and noise are the same in every dtype."""
    rows = range(4 if solver.adaptive else 16)
    x = (math.hypot(nodes[0].alpha, nodes[0].sigma) * SeededNoise(rows, (3,)).initial()).to(dtype)
    return solve(solver, problem, x, nodes, SeededNoise(rows, (3,), dtype)).x


def roundings_lost(solver: Solver, schedule: Schedule, nodes: Sequence[Node]) -> float:
    """The distance of a float32 solve from float64, in units of the error that no solver can avoid.

    This unit is the rounding of the largest state, plus the change of the outcome if every input and every prediction
    of the model is rounded. The float32 solve evaluates its model in float64, so its error is the solver's alone.
    """
    exact, rounded = _RoundedMixture(schedule, False), _RoundedMixture(schedule, True)
    wide = outcome(solver, exact, nodes, torch.float64)
    narrow = outcome(solver, _RoundedMixture(schedule, False), nodes, torch.float32)
    nudged = outcome(solver, rounded, nodes, torch.float64)
    unit = 0.5 * torch.finfo(torch.float32).eps * max(exact.largest, float(wide.abs().max()))
    return float((narrow.double() - wide).abs().max()) / (float((nudged - wide).abs().max()) + unit)


class _RoundedMixture(Problem):
    """A mixture evaluated in float64, whose inputs and predictions are rounded to float32 if ``rounds``.

    Predictions have the state's dtype. ``largest`` is the greatest absolute value of the states so far.
    """

    def __init__(self, schedule: Schedule, rounds: bool) -> None:
        self.mixture, self.rounds, self.largest = Mixture(schedule), rounds, 0.0

    @property
    def path(self) -> Schedule:
        return self.mixture.path

    def predict(self, x: Tensor, node: Any) -> Prediction:
        exact = self.mixture.predict((x.float() if self.rounds else x).double(), node)
        self.largest = max(self.largest, float(x.abs().max()))
        x0, eps = ((v.float() if self.rounds else v).to(x.dtype) for v in (exact.x0, exact.eps))
        return Prediction(x0, eps)
