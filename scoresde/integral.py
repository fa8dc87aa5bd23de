"""The log-density carried along with the samples, from one end of a path to the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

import solvers
from solvers import InputError, Node

from .checks import leaves_torch
from .divergence import Divergence
from .problem import WithLogDensity
from .sample import Plan, batches_of, check_finite
from .sde import Denoises


class Carried(NamedTuple):
    """The states (B, *) at both ends, what the log-density of x gains (B, m) in nats, and evaluations (B,)."""

    start: Tensor
    end: Tensor
    change: Tensor
    nfe: Tensor


@dataclass(frozen=True)
class Carrier:
    """What every solve of a likelihood shares.

    The model sees samples of ``shape`` in ``dtype`` on ``device``; the state is float64. ``seeds`` are of the probes,
    one per sample.
    """

    denoiser: Denoises
    rule: Divergence
    seeds: list[int]
    shape: tuple[int, ...]
    conditions: Mapping[str, Tensor]
    differentiable: bool
    dtype: torch.dtype
    device: torch.device | str
    batch_size: int | None
    progress: bool

    def along(self, plan: Plan, nodes: tuple[Node, ...], clean: Callable[[slice], Tensor]) -> Carried:
        """Carries x / alpha, ``clean(rows)`` (n, *) for the rows of a batch, along nodes, which run either way.

        Raises:
            InputError: a solver that leaves torch, where gradients are asked for; an outcome that is not finite.
        """
        if self.differentiable and leaves_torch(plan.solver):
            raise InputError(f"{plan.solver} leaves torch, so no gradient passes: take another for differentiable=True")
        start, end, d = nodes[0], nodes[-1], math.prod(self.shape)
        batches = batches_of(len(self.seeds), self.batch_size)
        parts = []
        bar = tqdm(total=(len(nodes) - 1) * len(batches), desc="log p", disable=not self.progress, leave=False)

        def advance(state: Tensor, node: Node) -> None:
            bar.update()

        with bar, torch.set_grad_enabled(self.differentiable):
            for rows in batches:
                problem = WithLogDensity(
                    self.denoiser,
                    self.shape,
                    {name: value[rows] for name, value in self.conditions.items()},
                    self.rule,
                    self.rule.draw(self.seeds[rows], d),
                    self.differentiable,
                    self.dtype,
                    self.device,
                )
                state = problem.start(clean(rows), start)
                solution = solvers.solve(plan.solver, problem, state, nodes, hooks=[advance])
                states, channels = problem.split(solution.x)
                # l is the log-density of x / alpha: back to that of x at both ends
                change = problem.log_density_change(channels, start, end) - d * math.log(end.alpha / start.alpha)
                parts.append(Carried(problem.split(state)[0], states, change, solution.nfe))
        found = Carried(*(torch.cat(values) for values in zip(*parts, strict=True)))
        check_finite(torch.cat([found.end.flatten(1), found.change], 1), plan)
        return found
