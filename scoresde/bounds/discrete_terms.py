"""The terms of variational bounds of discrete states, in nats, each at one noisy state of each sample.

For a chain of nodes 0 = t_0 < ... < t_N

    -log p(x0) <= KL(q(x_N | x0) | prior) + sum_i E KL(q(x_{i-1} | x_i, x0) | p(x_{i-1} | x_i))

(Austin et al. 2021, arXiv:2107.03006, eq. 1). p is the ``posterior`` of the model's laws of clean tokens, each token on
its own, as the solver ``tweedie`` uses it; the term of the step to the data is -log p(x0 | x_1). In the limit of many
steps the sum becomes the integral of the score entropy (Lou et al. 2023, arXiv:2310.16834, theorem 3.6)

    int E sum_{tokens, y != x} Q[y, x] (s - r log s + r (log r - 1)) d clock

with the model's ratios s(y) and those of the clean sample, r(y) = P_t[x0, y] / P_t[x0, x].

Samples of a process with a mask start from masks alone, also where its schedule leaves a token unmasked at t_max. The
noisy states of its bounds are therefore those of tokens that are masked at t_max: the terms need no other change, since
what happens between two times does not depend on what happens after them.

Laws are computed in float64, also where a network has float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from solvers import InputError
from solvers.discrete.base import Product
from solvers.noise.draws import Draws, Stream
from solvers.types.process import DiscretePrediction, Process, ProcessNode
from solvers.types.transition import one_hot


def noisy_law(process: Process, x0: Tensor, node: ProcessNode[Any]) -> Tensor:
    """The laws (B, *, S) of the noisy tokens given the clean ones (B, *); of a process with a mask, of tokens that are
    masked at t_max."""
    law = process.marginal(x0, node)
    if not masked_at_last(process):
        return law
    mask = torch.full_like(x0, process.mask)  # type: ignore[arg-type]  # there is one
    ahead = process.transition(node, process(process.t_max), x0).columns(mask)
    law = law * ahead
    law = law / law.sum(-1, keepdim=True)
    # an infinite clock has no transition from itself to itself
    last = torch.as_tensor(node.t, device=x0.device).expand(len(x0)) >= process.t_max
    return torch.where(last.view(-1, *(1,) * x0.ndim), one_hot(mask, law), law)


def masked_at_last(process: Process) -> bool:
    """Whether samples start from masks alone."""
    return process.mask is not None and float(process.prior[process.mask]) == 1


def noised(process: Process, x0: Tensor, node: ProcessNode[Any], uniform: Callable[[], Tensor]) -> Tensor:
    """Noisy states (B, *) of clean ones; ``uniform`` draws numbers (B, *)."""
    return Product(noisy_law(process, x0, node), x0).draw(uniform)


def uniforms(draws: Draws, x: Tensor, count: int, stream: Stream = "noise") -> Callable[[], Tensor]:
    """A function that returns ``count`` times uniform numbers of the shape of x (B, *), float64, one after another."""
    numbers = draws.uniform(stream, count * x[0].numel()).to(x.device)
    parts: Iterator[Tensor] = iter(numbers.view(len(x), count, *x.shape[1:]).unbind(1))
    return lambda: next(parts)


def prior_term(process: Process, x0: Tensor) -> Tensor:
    """KL(q(x_T | x0) | prior) (B,), for x0 (B, *)."""
    law = noisy_law(process, x0, process(process.t_max))
    return _relative(law, process.prior.to(law)).flatten(1).sum(1)


def step_term(
    process: Process,
    prediction: DiscretePrediction,
    x0: Tensor,
    x: Tensor,
    t: ProcessNode[Any],
    s: ProcessNode[Any],
) -> Tensor:
    """KL(q(x_s | x_t, x0) | p(x_s | x_t)) (B,) at x (B, *); at s = 0 it is -log p(x0 | x_t).

    Args:
        prediction: the model's at x.
    """
    exact = process.posterior(one_hot(x0, prediction.x0), x, t, s)
    return _relative(exact, process.posterior(prediction.x0, x, t, s)).flatten(1).sum(1)


def score_entropy(
    process: Process, prediction: DiscretePrediction, x0: Tensor, x: Tensor, t: ProcessNode[Any]
) -> Tensor:
    """sum_{y != x} Q[y, x] (s - r log s + r (log r - 1)) (B,) over the tokens of x (B, *), per unit of the clock."""
    rates = process.generator_columns(x, t).scatter(-1, x[..., None], 0.0)
    exact = process.ratios(DiscretePrediction(one_hot(x0, prediction.x0)), x, t)
    found = process.ratios(prediction, x, t)
    moves = rates > 0
    r, s = torch.where(moves, exact, 0.0), torch.where(moves, found, 0.0)
    return (rates * (s - r + _relative_terms(r, s))).flatten(1).sum(1)


def clock_rate(process: Process, t: Tensor) -> Tensor:
    """d clock / dt (B,) at times t (B,), float64.

    Raises:
        InputError: the process has steps and no rates.
    """
    with torch.enable_grad():
        time = t.detach().double().requires_grad_()
        clock = process(time).clock
        if not isinstance(clock, Tensor) or not clock.requires_grad:
            raise InputError(f"{process} has no rates in continuous time: give the number of steps")
        (found,) = torch.autograd.grad(clock.sum(), time)
    return found


def hazard(process: Process, t: Tensor) -> Tensor:
    """-alpha' / (1 - alpha) (B,) at times t (B,): the rate at which masked tokens get a value, infinite at t = 0."""
    return clock_rate(process, t) / torch.expm1(process(t).clock)


def _relative(p: Tensor, q: Tensor) -> Tensor:
    """KL(p | q) (*) of laws (*, S)."""
    return _relative_terms(p, q).sum(-1)


def _relative_terms(p: Tensor, q: Tensor) -> Tensor:
    """p log(p / q), 0 where p is 0; no gradient there, where q may be 0 as well."""
    some = p > 0
    return torch.where(some, p * (torch.log(torch.where(some, p, 1.0)) - torch.log(torch.where(some, q, 1.0))), 0.0)
