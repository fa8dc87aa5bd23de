"""Grids of discrete states on which independent tokens cost least: Jump Your Steps, exactly or for a network.

A step that draws every token on its own ignores how tokens depend on each other within the step. For the exact model
the cost of a step is the expected KL divergence of the joint law of x_s given x_t from the product of its tokens' laws,
which is their conditional total correlation, sum_i H(x_s^i | x_t) - H(x_s | x_t). The sum over a solve is the KL
divergence between its paths and the true ones, and so bounds that of its samples (Park et al. 2024, arXiv:2410.07761,
"compounding decoding error"). Dynamic programming finds the nodes with the least sum.

On small spaces the costs are exact. For a model of any size they are estimated on noisy data, without an approximation
of the rates: a term of the bound of the reverse chain, E KL(q(x_s | x_t, x0) | p(x_s | x_t)), is the cost of its step
and the information I(x0; x_s | x_t), whose sum over a solve is that of its ends on every grid. So the grid of the
tightest bound (Watson et al. 2021, arXiv:2106.03802) is that of the least cost; the error of a network is part of it.
One evaluation of each noisy state serves the steps to all later nodes.

>>> import torch, scoresde
>>> law = torch.tensor([0.4, 0.1, 0.1, 0.4])  # of two bits: 00, 01, 10, 11
>>> process = scoresde.Absorbing(2)
>>> found = jump_your_steps(process, law, 4)
>>> len(found.times), found.times[0], found.times[-1]
(5, 1.0, 0.0)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..discrete.base import Product, evaluated
from ..errors import InputError, positive_integer
from ..noise.uniform import UniformNoise
from ..time_grids.rules import Explicit
from ..types.problem import as_problem
from ..types.process import Process, ProcessNode
from ..types.transition import one_hot
from .search import Array, cheapest_path

LARGEST = 4096  # states of a whole, whose square is stored


def tokens_in(process: Process, law: Tensor) -> int:
    """The number d of tokens of a law (states^d,).

    Raises:
        InputError: the law has no such length, has more than 4096 numbers, or is no law.
    """
    size = round(math.log(max(1, law.numel())) / math.log(process.states))
    if law.ndim != 1 or size < 1 or process.states**size != len(law):
        raise InputError(f"the law must have {process.states}^d numbers for d tokens of {process}, got {law.numel()}")
    if process.values**size > LARGEST:
        raise InputError(f"{size} tokens of {process.values} values have more than {LARGEST} states: too many to list")
    if not bool((law >= 0).all()) or not 0 < float(law.sum()) < math.inf:
        raise InputError("the law must be numbers of at least 0, not all of them 0")
    return size


def decoding_costs(process: Process, law: Tensor, nodes: Sequence[ProcessNode]) -> Array:
    """The costs (n, n) in nats of steps between nodes, from noise to data: [i, j] of i to j > i, else infinite.

    Args:
        process: the process.
        law: of the data, (states^d,), in the order of ``solvers.conformance.kernels.all_states``.
        nodes: n nodes.

    Raises:
        InputError: see ``tokens_in``.
    """
    size, values = tokens_in(process, law), process.values
    clean = torch.zeros((values,) * size, dtype=torch.float64)
    clean[(slice(process.states),) * size] = law.double().view((process.states,) * size) / law.double().sum()
    marginals = [_after(process, process.clean, node, clean.unsqueeze(-1)).flatten() for node in nodes]
    costs = np.full((len(nodes), len(nodes)), math.inf)
    for j, s in enumerate(nodes):
        start = torch.diag(marginals[j]).view(*(values,) * size, -1)  # p(x_s), once for each x_s in the last place
        for i in range(j):
            joint = _after(process, s, nodes[i], start).view(values**size, *(values,) * size)  # (x_t, x_s)
            seen = _entropy(marginals[i])
            parts = [joint.sum([k + 1 for k in range(size) if k != token]) for token in range(size)]
            tokens = sum(_entropy(part) - seen for part in parts)
            costs[i, j] = max(0.0, tokens - (_entropy(joint) - seen))
    return costs


def bound_costs(problem: Any, data: Tensor, nodes: Sequence[ProcessNode]) -> Array:
    """The terms (n, n) in nats of the bound of steps between nodes, from noise to data: [i, j] of i to j > i, else
    infinite; means over the data.

    A noisy state of each row is drawn for each node, from seeds 0 to B - 1, and is evaluated once. The random numbers
    are the same at all nodes, so that differences of grids are estimated better than their bounds.

    Args:
        problem: a model of discrete states, such as a ``DiscreteDenoiser``.
        data: clean tokens (B, *).
        nodes: n nodes.

    Raises:
        InputError: the states of the problem are not discrete, or the data are no tokens of its process.
    """
    known = as_problem(problem)
    process = known.path
    if not isinstance(process, Process):
        raise InputError(f"bounds of steps are those of discrete states, got a model on {process}")
    inside = data.ndim > 1 and not data.dtype.is_floating_point and len(data) > 0
    if not inside or not bool(((data >= 0) & (data < process.states)).all()):
        raise InputError(
            f"the data must be whole numbers (B, *) from 0 to {process.states - 1}, of at least one sample"
        )
    x0 = data.long()
    noise = UniformNoise(range(len(x0)), tuple(x0.shape[1:]), device=x0.device)
    numbers = [noise(nodes[0], nodes[-1]) for _ in range(2)]  # type: ignore[arg-type]  # it reads no numbers of nodes
    costs = np.full((len(nodes), len(nodes)), math.inf)
    with torch.no_grad():
        for i, t in enumerate(nodes[:-1]):
            x = Product(process.marginal(x0, t), x0).draw(partial(next, iter(numbers)))
            found = evaluated(known, x, t).x0
            for j, s in enumerate(nodes[i + 1 :], i + 1):
                exact, law = (process.posterior(p, x, t, s) for p in (one_hot(x0, found), found))
                costs[i, j] = max(0.0, _relative(exact, law) / len(x0))
    return costs


def tightest_grid(
    problem: Any,
    data: Tensor,
    steps: int,
    *,
    t_min: float | None = None,
    t_max: float | None = None,
    candidates: int = 32,
) -> Explicit:
    """The grid of ``steps`` steps on which the bound of a model is tightest for the data, among equally spaced times.

    Args:
        problem, data: see ``bound_costs``. Hundreds of samples, which the model evaluates ``candidates`` times.
        steps, t_min, t_max, candidates: see ``jump_your_steps``.

    Raises:
        InputError: see ``bound_costs``; there are more steps than candidates; every grid of these times has an infinite
            bound, since the model holds data for impossible.
    """
    known = as_problem(problem)
    costs = partial(bound_costs, known, data)
    return _cheapest(known.path, costs, steps, t_min, t_max, candidates)


def jump_your_steps(
    process: Process,
    law: Tensor,
    steps: int,
    *,
    t_min: float | None = None,
    t_max: float | None = None,
    candidates: int = 64,
) -> Explicit:
    """The grid of ``steps`` steps with the least sum of costs, among equally spaced times.

    Args:
        process: the process.
        law: of the data, (states^d,), in the order of ``solvers.conformance.kernels.all_states``.
        steps: the number of steps.
        t_min, t_max: its range; by default that of the process, which ends at the data.
        candidates: the number of intervals between the times that may become nodes.

    Raises:
        InputError: see ``tokens_in``; there are more steps than candidates.
    """
    return _cheapest(process, partial(decoding_costs, process, law), steps, t_min, t_max, candidates)


def _cheapest(
    process: Any,
    costs: Callable[[Sequence[ProcessNode]], Array],
    steps: int,
    t_min: float | None,
    t_max: float | None,
    candidates: int,
) -> Explicit:
    """The grid of the least sum of ``costs`` (nodes) (n, n)."""
    positive_integer("steps", steps)
    if steps > positive_integer("candidates", candidates):
        raise InputError(f"candidates={candidates} are too few for {steps} steps")
    lo, hi = process.t_min if t_min is None else t_min, process.t_max if t_max is None else t_max
    times = [float(t) for t in np.linspace(hi, lo, candidates + 1)]
    found = costs(process.nodes(times))
    path = cheapest_path(found, steps)
    if not math.isfinite(sum(found[i, j] for i, j in pairwise(path))):
        raise InputError("every grid of these times has an infinite bound: the model holds data for impossible")
    return Explicit(times=tuple(times[i] for i in path))


def _after(process: Process, s: ProcessNode, t: ProcessNode, law: Tensor) -> Tensor:
    """The law (S, ..., S, n) after the transition of every token from s to t, of n laws."""
    transition = process.transition(s, t, torch.zeros(1, 1, dtype=torch.int64))
    for token in range(law.ndim - 1):
        law = transition.push(law.movedim(token, -1)).movedim(-1, token)
    return law


def _entropy(law: Tensor) -> float:
    return -float(torch.special.xlogy(law, law).sum())


def _relative(p: Tensor, q: Tensor) -> float:
    """sum p log(p / q)."""
    return float((torch.special.xlogy(p, p) - torch.special.xlogy(p, q)).sum())
