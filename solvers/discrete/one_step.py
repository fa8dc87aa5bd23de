"""Solvers of discrete states with one evaluation a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..types.process import Clock, ProcessNode
from ..types.solver import Step, solvers
from .base import DiscreteSolver, Moves, Product, evaluated


@solvers.register(
    "tweedie",
    aliases=("analytic", "posterior_sampling"),
    kind="posterior",
    order=1,
    native="x0",
    reference="Austin et al. 2021, arXiv:2107.03006, eq. 4; Lou et al. 2023, arXiv:2310.16834, theorem 4.2",
    formula="x_s ~ P_{s->t}[y, x] sum_c w(c) P_s[c, y], each token on its own",
    note="exact for one token; in general its error is the dependence of the tokens within a step",
)
@dataclass(frozen=True)
class Tweedie(DiscreteSolver):
    """Each token is drawn from its exact posterior given the state now: the best law of independent tokens."""

    def moves(self, problem: Any, x: Tensor, t: ProcessNode, s: ProcessNode, carry: Any) -> Moves:
        x = yield Product(problem.path.posterior(evaluated(problem, x, t).x0, x, t, s), x)
        return Step(x, carry)


@solvers.register(
    "tau_hold",
    kind="rates",
    order=1,
    native="rates",
    reference="Gillespie 2001, J. Chem. Phys. 115, 1716; Gat et al. 2024, arXiv:2407.15595",
    formula="stays with probability exp(-h sum_y r(y)), else y ~ r(y)",
)
@dataclass(frozen=True)
class TauHold(DiscreteSolver):
    """The rates out of each token are frozen at t, and at most one move of each token is made.

    A token stays with the probability that its frozen rates leave it unmoved, so that this is a law for every step
    length. On the natural ``clock`` of a process with a mask it equals ``tweedie``.
    """

    clock: Clock = "natural"

    def moves(self, problem: Any, x: Tensor, t: ProcessNode, s: ProcessNode, carry: Any) -> Moves:
        process = problem.path
        rates = process.rates(evaluated(problem, x, t), x, t, self.clock)
        x = yield Product(held(rates, x, process.elapsed(t, s, self.clock)), x)
        return Step(x, carry)


def held(rates: Tensor, x: Tensor, duration: float) -> Tensor:
    """The law (B, *, S) of a token that leaves x (B, *) at constant rates (B, *, S), and moves once at most."""
    total = rates.sum(-1, keepdim=True)
    moved = -torch.expm1(-duration * total)
    away = torch.where(total > 0, rates * (moved / torch.where(total > 0, total, 1.0)), 0.0)
    return away.scatter(-1, x[..., None], 1 - moved)
