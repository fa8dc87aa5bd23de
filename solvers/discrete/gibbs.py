"""``gibbs``: after each step of a predictor, single tokens are drawn again given all others."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..registry.ranges import Count
from ..types.process import ProcessNode
from ..types.solver import Solver, solvers
from .base import Law, OneOf, evaluated
from .correctors import Corrected
from .posteriors import Tweedie


@solvers.register(
    "gibbs",
    aliases=("gibbs_corrected",),
    kind="x0 + MCMC",
    order=2,
    native="loo",
    evaluations=2,
    reference="Gourevitch et al. 2026, arXiv:2605.22765; Geman and Geman 1984",
    formula="a step of the predictor; then one token, picked evenly, becomes y ~ sum_c loo(c) P_s[c, y]",
    note="a move leaves the law of x_s as it is, exactly, and so forgets a share of the earlier error: with as many "
    "moves in each step, however short, the order is one more than the predictor's. A move draws one token of all, so "
    "that this needs more steps than tokens; in fewer steps the predictor alone is better at equal NFE",
)
@dataclass(frozen=True)
class Gibbs(Corrected):
    """A predictor, and after each of its steps moves of one token each, to its exact law given all other tokens.

    On a process with a mask, the token is masked before the model is evaluated, since the prediction for a token that
    the model sees is that token.

    Args:
        predictor: any solver of discrete states that draws from laws.
        corrector_steps: the number of moves after each step.
    """

    predictor: Solver = field(default=Tweedie())
    corrector_steps: Count = 1

    @property
    def order(self) -> float:
        """One more than the predictor's: an error of its steps is forgotten at a rate for each step, not for time."""
        return self.predictor.order + 1 if self.predictor.order else 0.0

    def corrected(self, problem: Any, x: Tensor, t: ProcessNode, s: ProcessNode) -> Generator[Law, Tensor, Tensor]:
        for _ in range(self.corrector_steps):
            x = yield from moved_once(problem, x, s)
        return x


def moved_once(problem: Any, x: Tensor, s: ProcessNode) -> Generator[OneOf, Tensor, Tensor]:
    """The laws of one move of Gibbs sampling at s, from x (B, *); returns the state (B, *)."""
    process, mask = problem.path, problem.path.mask
    at, every = x, torch.ones_like(x, dtype=torch.float64)
    if mask is not None:
        law = every.new_zeros(*x.shape, process.values)
        law[..., mask] = 1 / x[0].numel()
        at = yield OneOf(law, x)
        # the picked token is the one that was masked; if none was, it is any of those that are masked anyway
        changed = at != x
        same = ~changed.flatten(1).any(1).view(-1, *(1,) * (x.ndim - 1))
        every = (changed | (same & (at == mask))).double()
    loo = process.loo_of_x0(evaluated(problem, at, s).x0, at, s)
    law = process.transition(process.clean, s, at).push(loo)
    count = every.flatten(1).sum(1).clamp_min(1).view(-1, *(1,) * (x.ndim - 1))
    return (yield OneOf(law * (every / count)[..., None], at))
