"""Grids of discrete states on which independent tokens cost least: Jump Your Steps, exactly on small spaces.

A step that draws every token on its own ignores how tokens depend on each other within the step. For the exact model
the cost of a step is the expected KL divergence of the joint law of x_s given x_t from the product of its tokens' laws,
which is their conditional total correlation, sum_i H(x_s^i | x_t) - H(x_s | x_t). The sum over a solve is the KL
divergence between its paths and the true ones, and so bounds that of its samples (Park et al. 2024, arXiv:2410.07761,
"compounding decoding error"). Dynamic programming finds the nodes with the least sum.

>>> import torch, scoresde
>>> law = torch.tensor([0.4, 0.1, 0.1, 0.4])  # of two bits: 00, 01, 10, 11
>>> process = scoresde.Absorbing(2)
>>> found = jump_your_steps(process, law, 4)
>>> len(found.times), found.times[0], found.times[-1]
(5, 1.0, 0.0)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, positive_integer
from ..time_grids.rules import Explicit
from ..types.process import Process, ProcessNode
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
    positive_integer("steps", steps)
    if steps > positive_integer("candidates", candidates):
        raise InputError(f"candidates={candidates} are too few for {steps} steps")
    lo, hi = process.t_min if t_min is None else t_min, process.t_max if t_max is None else t_max
    times = [float(t) for t in np.linspace(hi, lo, candidates + 1)]
    path = cheapest_path(decoding_costs(process, law, process.nodes(times)), steps)
    return Explicit(times=tuple(times[i] for i in path))


def _after(process: Process, s: ProcessNode, t: ProcessNode, law: Tensor) -> Tensor:
    """The law (S, ..., S, n) after the transition of every token from s to t, of n laws."""
    transition = process.transition(s, t, torch.zeros(1, 1, dtype=torch.int64))
    for token in range(law.ndim - 1):
        law = transition.push(law.movedim(token, -1)).movedim(-1, token)
    return law


def _entropy(law: Tensor) -> float:
    return -float(torch.special.xlogy(law, law).sum())
