"""Exact kernels of discrete solvers on small spaces: the law of the end of a solve, without a draw.

All S^d states are listed, a step becomes its matrix (N, N), and laws are multiplied by it. A step that draws k times is
followed along every sequence of outcomes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..discrete.base import DiscreteSolver, Law, Moves, Product
from ..types.process import Process, ProcessNode
from ..types.solver import Step


def all_states(states: int, size: int) -> Tensor:
    """All states (S^d, d) of ``size`` tokens, the last token changing fastest."""
    return torch.tensor(list(itertools.product(range(states), repeat=size)))


def index_of(x: Tensor, states: int) -> Tensor:
    """The places (n,) of states x (n, d) in ``all_states``."""
    powers = states ** torch.arange(x.shape[1] - 1, -1, -1, device=x.device)
    return (x * powers).sum(1)


def matrix_of(law: Law, states: int) -> Tensor:
    """The probabilities (n, N) of all states under the laws of n states (n, d)."""
    if isinstance(law, Product):
        found = law.law[:, 0]
        for i in range(1, law.law.shape[1]):
            found = (found[:, :, None] * law.law[:, i, None, :]).flatten(1)
        return found
    found = law.law.new_zeros(len(law.x), states ** law.x.shape[1])
    for i in range(law.x.shape[1]):
        changed = law.x[:, None].repeat(1, states, 1)
        changed[:, :, i] = torch.arange(states)
        found.scatter_add_(1, index_of(changed.flatten(0, 1), states).view(-1, states), law.law[:, i])
    stays = 1 - law.law.flatten(1).sum(1)
    return found.scatter_add_(1, index_of(law.x, states)[:, None], stays[:, None])


def kernel(step: Callable[[Tensor], Moves], space: Tensor, states: int) -> Tensor:
    """The matrix (N, N) of a step from each of the states (N, d), all there are, to each."""
    count = len(space)
    start, weight = torch.arange(count), torch.ones(count, dtype=torch.float64)
    outcomes: list[Tensor] = []  # of each earlier draw, the state's place on every path
    while True:
        law = _after(step(space[start]), [space[outcome] for outcome in outcomes])
        if isinstance(law, Step):
            end = index_of(law.x, states)
            found = torch.zeros(count * count, dtype=torch.float64)
            return found.index_add_(0, start * count + end, weight).view(count, count)
        ahead = weight[:, None] * matrix_of(law, states)
        paths, place = ahead.nonzero(as_tuple=True)  # what is impossible is not followed
        weight, start = ahead[paths, place], start[paths]
        outcomes = [*(outcome[paths] for outcome in outcomes), place]


def _after(moves: Moves, outcomes: Sequence[Tensor]) -> Law | Step:
    """What a step yields after the outcomes of its draws so far; its end if there is no further draw."""
    try:
        law = next(moves)
        for outcome in outcomes:
            law = moves.send(outcome)
    except StopIteration as end:
        step: Step = end.value
        return step
    return law


def end_law(solver: DiscreteSolver, problem: Any, start: Tensor, size: int, nodes: Sequence[ProcessNode]) -> Tensor:
    """The law (N,) of the end of a solve along ``nodes``, from a state with the law ``start`` (N,) of ``all_states``.

    For solvers that pass nothing from step to step.
    """
    process: Process = problem.path
    space = all_states(process.values, size)
    carry, law = solver.init(problem, space, nodes), start
    for t, s in pairwise(nodes):
        moves = solver.end if s.clean else solver.moves

        def step(x: Tensor, moves: Any = moves, t: ProcessNode = t, s: ProcessNode = s) -> Moves:
            made: Moves = moves(problem, x, t, s, carry)
            return made

        law = law @ kernel(step, space, process.values)
    return law
