"""The cost of a solve with a model, counted before it: what the solver asks, and what the network evaluates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import solvers
from solvers import Grid, InputError, Node, Prediction, Solver
from solvers.budget import FreeModel, evaluations_of

from ..models.model import Model
from .cached_by_value import cached_by_value
from .width import PLANS

_steps_of_nfe = cached_by_value(PLANS)(solvers.steps_of_nfe)


class _Priced(FreeModel):
    """A free model with the parts of another one, which adds up the evaluations of that one's network."""

    def __init__(self, model: Model, bill: list[int]) -> None:
        super().__init__(model.sde)
        self.model, self.bill = model, bill

    def predict(self, x: Tensor, node: Any) -> Prediction:
        self.bill[0] += sum(map(self.model.cost, _each(node)))
        found: Prediction = super().predict(x, node)
        return found

    def pieces(self, nodes: Sequence[Node]) -> Sequence[tuple[_Priced, Sequence[Node]]]:
        return [(_Priced(model, self.bill), places) for model, places in self.model.pieces(nodes)]

    def check_solver(self, solver: Solver) -> None:
        self.model.check_solver(solver)


def _each(node: Any) -> list[Node]:
    """The node itself, or the nodes of a node with tensors."""
    if not isinstance(node.t, Tensor):
        return [node]
    numbers = (node.t, node.alpha, node.sigma, node.dalpha, node.dsigma)
    return [Node(*row) for row in zip(*(v.flatten().tolist() for v in numbers), strict=True)]


def costs(model: Model, solver: Solver, nodes: Sequence[Node]) -> tuple[int, int]:
    """What a solve of one sample along ``nodes`` takes: (NFE, evaluations of the network)."""
    bill = [0]
    with torch.no_grad():
        nfe = evaluations_of(solver, _Priced(model, bill), nodes)
    return nfe, bill[0]


def steps_of(
    model: Model,
    solver: Solver,
    rule: Grid,
    nfe: int | None,
    forwards: int | None,
    t_min: float | None,
    t_max: float | None,
) -> int:
    """The most steps whose NFE is at most ``nfe``, or whose evaluations of the network are at most ``forwards``.

    Raises:
        InputError: both are given; see also ``solvers.steps_of_nfe``.
    """
    if nfe is not None and forwards is not None:
        raise InputError("pass nfe or forwards, not both")
    sde = model.sde
    if forwards is not None:
        return solvers.steps_of_nfe(
            solver, rule, sde, forwards, t_min, t_max, lambda nodes: costs(model, solver, nodes)[1], "forwards"
        )
    assert nfe is not None
    ends = (sde(sde.t_max), sde.clean)
    if len(model.pieces(ends)) == 1:
        return _steps_of_nfe(solver, rule, sde, nfe, t_min, t_max)
    return solvers.steps_of_nfe(solver, rule, sde, nfe, t_min, t_max, lambda nodes: costs(model, solver, nodes)[0])
