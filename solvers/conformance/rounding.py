"""What a solve in float32 loses against float64, counted in roundings that no solver can avoid."""

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
"""The most roundings that ``lost`` may be for a solver of a few tens of operations a step; measured: 11."""


def few(solver: Solver, problem: Any, nodes: Sequence[Node], dtype: torch.dtype) -> Tensor:
    """Where a solve in ``dtype`` ends; start and noise are the same in every dtype."""
    rows = range(4 if solver.adaptive else 16)
    x = (math.hypot(nodes[0].alpha, nodes[0].sigma) * SeededNoise(rows, (3,)).initial()).to(dtype)
    return solve(solver, problem, x, nodes, SeededNoise(rows, (3,), dtype)).x


def lost(solver: Solver, schedule: Schedule, nodes: Sequence[Node]) -> float:
    """What a float32 solve loses, in roundings: its distance from float64 over what no solver can avoid.

    That is the rounding of the largest state, and what the method itself makes of it if every state that the model is
    shown, and every answer, is rounded. The model is asked in float64, so that all that is lost is the solver's.
    """
    exact, rounded = _Rounding(Mixture(schedule), False), _Rounding(Mixture(schedule), True)
    wide = few(solver, exact, nodes, torch.float64)
    narrow = few(solver, _Rounding(Mixture(schedule), False), nodes, torch.float32)
    shaken = few(solver, rounded, nodes, torch.float64)
    unit = 0.5 * torch.finfo(torch.float32).eps * max(exact.largest, float(wide.abs().max()))
    return float((narrow.double() - wide).abs().max()) / (float((shaken - wide).abs().max()) + unit)


class _Rounding:
    """A problem that answers in the state's dtype as a model in float64; if ``narrow``, as that model in float32."""

    def __init__(self, problem: Mixture, narrow: bool) -> None:
        self.problem, self.narrow, self.largest = problem, narrow, 0.0
        self.node, self.node_of_lam = problem.node, problem.node_of_lam

    def predict(self, x: Tensor, node: Any) -> Prediction:
        said = self.problem.predict((x.float() if self.narrow else x).double(), node)
        self.largest = max(self.largest, float(x.abs().max()))
        x0, eps = ((v.float() if self.narrow else v).to(x.dtype) for v in (said.x0, said.eps))
        return Prediction(x0, eps)
