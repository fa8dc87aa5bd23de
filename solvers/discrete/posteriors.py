"""Solvers of discrete states with one evaluation a step, from the law of the clean tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from ..errors import InputError
from ..types.process import DiscretePrediction, Process, ProcessNode
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
    shared=("ancestral",),
)
@dataclass(frozen=True)
class Tweedie(DiscreteSolver):
    """Each token is drawn from its exact posterior given the state now: the best law of independent tokens."""

    def moves(self, problem: Any, x: Tensor, t: ProcessNode, s: ProcessNode, carry: Any) -> Moves:
        x = yield Product(problem.path.posterior(evaluated(problem, x, t).x0, x, t, s), x)
        return Step(x, carry)


@solvers.register(
    "euler_dfm",
    kind="posterior",
    order=1,
    native="x0",
    reference="Gat et al. 2024, arXiv:2407.15595, eq. 12 and algorithm 1",
    formula="a clean token y ~ x0; the token becomes y with probability 1 - (1 - alpha_s) / (1 - alpha_t)",
    note="discrete flow matching's rate: the same marginals as the reverse process, with fewer moves",
)
@dataclass(frozen=True)
class EulerDFM(DiscreteSolver):
    """Each token becomes a draw of its clean value with the probability that the mixture path moves it.

    The path is that of discrete flow matching, x_t = x0 with probability kappa = alpha_t and noise otherwise. For masks
    it equals ``tweedie``.
    """

    def check(self, process: Process) -> None:
        if not process.mixture:
            raise InputError(f"euler_dfm moves along a mixture of data and noise, which {process} is not: use tweedie")

    def moves(self, problem: Any, x: Tensor, t: ProcessNode, s: ProcessNode, carry: Any) -> Moves:
        x0 = evaluated(problem, x, t).x0
        share = 1 - math.expm1(-s.clock) / math.expm1(-t.clock)
        away = (share * x0).scatter(-1, x[..., None], 0.0)
        x = yield Product(away.scatter(-1, x[..., None], 1 - away.sum(-1, keepdim=True)), x)
        return Step(x, carry)


class Known(NamedTuple):
    """The prediction (B, *, S) at the states x (B, *) of the last step."""

    x: Tensor
    x0: Tensor


@solvers.register(
    "mdlm_cache",
    aliases=("ddpm_cache",),
    kind="posterior",
    order=1,
    native="x0",
    reference="Sahoo et al. 2024, arXiv:2406.07524, section 4",
    formula="tweedie; a sample that did not change is not evaluated again",
    note="for models without time; at most as many evaluations as tokens, however many steps",
)
@dataclass(frozen=True)
class MDLMCache(DiscreteSolver):
    """``tweedie`` for models that do not depend on the time: a sample is evaluated only after it has changed."""

    def init(self, problem: Any, x: Tensor, nodes: Any) -> Any:
        if not problem.time_free:
            raise InputError("mdlm_cache needs a model without time on a process with a mask: use tweedie")
        return super().init(problem, x, nodes)

    def moves(self, problem: Any, x: Tensor, t: ProcessNode, s: ProcessNode, carry: Known | None) -> Moves:
        known = self._known(problem, x, t, carry)
        x = yield Product(problem.path.posterior(known.x0, x, t, s), x)
        return Step(x, known)

    def end(self, problem: Any, x: Tensor, t: ProcessNode, s: ProcessNode, carry: Known | None) -> Moves:
        known = self._known(problem, x, t, carry)
        x = yield Product(known.x0, x)
        return Step(x, known)

    def _known(self, problem: Any, x: Tensor, t: ProcessNode, carry: Known | None) -> Known:
        if carry is None:
            return Known(x, evaluated(problem, x, t).x0)
        masked = (x == problem.path.mask).flatten(1).any(1)
        rows = (masked & (x != carry.x).flatten(1).any(1)).nonzero()[:, 0]
        x0 = carry.x0
        if len(rows):
            fresh: DiscretePrediction = evaluated(problem.select(rows.cpu()), x[rows], t)
            x0 = x0.index_copy(0, rows, fresh.x0)
        return Known(x, problem.path.possible(x0, x, t))  # a token that is not masked is known
