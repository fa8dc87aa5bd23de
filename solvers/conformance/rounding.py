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
from ..types.schedule import Schedule
from ..types.solver import Solver
from .problems import Mixture

LOST = 30
"""The greatest accepted value of ``lost``, for solvers of a few tens of operations per step; measured: 11."""


def few(solver: Solver, problem: Any, nodes: Sequence[Node], dtype: torch.dtype) -> Tensor:
    """The outcome of a solve in ``dtype``; start and noise are the same in every dtype."""
    rows = range(4 if solver.adaptive else 16)
    x = (math.hypot(nodes[0].alpha, nodes[0].sigma) * SeededNoise(rows, (3,)).initial()).to(dtype)
    return solve(solver, problem, x, nodes, SeededNoise(rows, (3,), dtype)).x


def lost(solver: Solver, schedule: Schedule, nodes: Sequence[Node]) -> float:
    """The distance of a float32 solve from float64, in units of the error that no solver can avoid.

    This unit is the rounding of the largest state, plus the change of the outcome if every input and every prediction
    of the model is rounded. The float32 solve evaluates its model in float64, so its error is the solver's alone.
    """
    exact, rounded = _Rounding(Mixture(schedule), False), _Rounding(Mixture(schedule), True)
    wide = few(solver, exact, nodes, torch.float64)
    narrow = few(solver, _Rounding(Mixture(schedule), False), nodes, torch.float32)
    shaken = few(solver, rounded, nodes, torch.float64)
    unit = 0.5 * torch.finfo(torch.float32).eps * max(exact.largest, float(wide.abs().max()))
    return float((narrow.double() - wide).abs().max()) / (float((shaken - wide).abs().max()) + unit)


class _Rounding:
    """A problem with a float64 model, rounded to float32 if ``narrow``; predictions have the state's dtype."""

    def __init__(self, problem: Mixture, narrow: bool) -> None:
        self.problem, self.narrow, self.largest = problem, narrow, 0.0
        self.node, self.node_of_lam = problem.node, problem.node_of_lam

    def predict(self, x: Tensor, node: Any) -> Prediction:
        exact = self.problem.predict((x.float() if self.narrow else x).double(), node)
        self.largest = max(self.largest, float(x.abs().max()))
        x0, eps = ((v.float() if self.narrow else v).to(x.dtype) for v in (exact.x0, exact.eps))
        return Prediction(x0, eps)
