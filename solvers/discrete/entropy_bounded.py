"""``entropy_bounded``: as many masked tokens at once as their laws allow, within a bound on the error."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..registry.ranges import NonNegative
from ..types.process import Process, ProcessNode
from ..types.solver import Noise, NoiseSource, Step, as_source, solvers
from ..types.transition import one_hot
from .base import DiscreteSolver, Law, Moves, Product, evaluated


@solvers.register(
    "entropy_bounded",
    aliases=("eb_sampler", "eb"),
    kind="posterior",
    order=0,
    native="x0",
    adaptive=True,
    reference="Ben-Hamu et al. 2025, arXiv:2505.24857, algorithm 1",
    formula="of the tokens that a step unmasks, those of least entropy while sum H - max H <= budget; then evaluate "
    "again",
    note="for processes with a mask. The budget decides the error, so that no order in the steps is promised. budget=0 "
    "is exact, with one evaluation for each token whose value is not certain. In one step from t_max to the data it is "
    "the published method",
)
@dataclass(frozen=True)
class EntropyBounded(DiscreteSolver):
    """A step draws which tokens it unmasks; it unmasks those of least entropy first, several with one evaluation.

    Tokens that are drawn together are independent, which costs at most sum H - max H nats of their joint law. The
    budget bounds that for each evaluation.

    Args:
        budget: the bound, in nats. A larger one needs fewer evaluations.
    """

    budget: NonNegative = 0.1

    def check(self, process: Process) -> None:
        if process.mask is None or not process.mixture:
            raise InputError(f"entropy_bounded unmasks tokens, which {process} does not mask: use tweedie")

    def step(self, problem: Any, x: Tensor, t: Any, s: Any, carry: Any, noise: Noise | None) -> Step:
        assert noise is not None  # see solve: the solver is stochastic
        return _follow(self.moves(problem, x, t, s, carry), as_source(noise), t, s)

    def to_data(self, problem: Any, x: Tensor, t: Any, s: Any, carry: Any, noise: Noise | None) -> Step:
        return self.step(problem, x, t, s, carry, noise)

    def moves(self, problem: Any, x: Tensor, t: ProcessNode, s: ProcessNode, carry: Any) -> Moves:
        process = problem.path
        waiting = x == process.mask
        stays = math.exp(process.reading(t) - process.reading(s))  # (1 - alpha_s) / (1 - alpha_t)
        if stays > 0:
            law = one_hot(x, process.prior.to(x.device))
            law[..., 0] = torch.where(waiting, 1 - stays, law[..., 0])  # any token that is not the mask: it is picked
            law[..., process.mask] = torch.where(waiting, stays, law[..., process.mask])
            waiting = waiting & ((yield Product(law, x)) != process.mask)
        count = torch.zeros(len(x), dtype=torch.long)
        while len(rows := waiting.flatten(1).any(1).cpu().nonzero()[:, 0]):
            x0 = evaluated(problem.select(rows), x[rows], at_masked_share(process, x[rows])).x0
            chosen = within(x0, waiting[rows], self.budget)
            law = one_hot(x, x0)
            law[rows] = torch.where(chosen[..., None], x0, law[rows])
            x = yield Product(law, x)
            waiting = waiting.index_put((rows.to(x.device),), waiting[rows] & ~chosen)
            count[rows] += 1
        return Step(x, carry, accepted=count)

    end = moves


def within(x0: Tensor, waiting: Tensor, budget: float) -> Tensor:
    """Which of the waiting tokens (B, *) are of the largest set of least entropy with sum H - max H <= budget.

    Args:
        x0: their laws (B, *, S).
    """
    entropy = torch.special.entr(x0).sum(-1).masked_fill(~waiting, math.inf).flatten(1)
    found, places = entropy.sort(dim=1, stable=True)
    before = torch.nn.functional.pad(found.cumsum(1)[:, :-1], (1, 0))  # the sum without the largest
    chosen = torch.zeros_like(waiting.flatten(1)).scatter(1, places, before <= budget)
    return chosen.view_as(waiting) & waiting


def at_masked_share(process: Any, x: Tensor) -> Any:
    """The nodes, one for each sample, at which as many of its tokens x (B, *) are expected to be masked as are.

    Without a masked token it is the one at which half a token is.
    """
    shares = (x == process.mask).flatten(1).double().mean(1).clamp_min(0.5 / x[0].numel())
    times = [process.time_of(-math.log(share)) if share < 1 else process.t_max for share in shares.tolist()]
    return process(torch.tensor(times, dtype=torch.float64))


def _follow(moves: Moves, noise: NoiseSource, t: Any, s: Any) -> Step:
    """The result of a step whose laws are drawn from.

    A sample draws random numbers only if its law needs them, so that it does not depend on the evaluations of others.
    """
    try:
        law: Law = next(moves)
        while True:
            away = law.law.scatter(-1, law.x[..., None], 0.0)
            rows = away.flatten(1).sum(1).cpu().nonzero()[:, 0]
            x = law.x.clone()
            if len(rows):
                x[rows] = Product(law.law[rows], law.x[rows]).draw(partial(noise.select(rows), t, s))
            law = moves.send(x)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
