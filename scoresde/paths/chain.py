"""Discrete chains: any Gaussian path at N of its nodes.

A chain is a path and N nodes on it. Index i, counted from 0, sits at t = (i + 1) / N of the path's range [0, t_max];
index -1 is the data. Its steps are those of the path between neighbouring nodes,

    q(x_i | x_{i-1}) = N(alpha_ts x_{i-1}, sigma_t^2 - (alpha_ts sigma_s)^2), alpha_ts = alpha_t / alpha_s,

so that DDPM's chain, SMLD's and the chains of all other Gaussian paths are one thing: beta_i = 1 - alpha_ts^2.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

import solvers
from solvers import InputError, Node, Prediction, Solver
from solvers.errors import positive_integer, unknown
from solvers.one_step.ancestral import DDPM, forward_kernel, posterior
from solvers.time_grids.beta_schedules import Array
from solvers.time_grids.rules import Explicit

if TYPE_CHECKING:  # a path's ``chain`` makes chains
    from .base import SDE


class Kernel(NamedTuple):
    """A Gaussian N(mean, variance I): mean (B, *), variance a number, or a tensor that fits the mean."""

    mean: Tensor
    variance: float | Tensor


def reverse_kernel(kernel: str | Solver) -> DDPM:
    """The solver ``ddpm`` of a spec, which says what variance the reverse chain has.

    Raises:
        InputError: another solver.
    """
    made = solvers.make(kernel)
    if not isinstance(made, DDPM):
        raise InputError(f"the reverse chain is ddpm(variance=...), got {made}")
    return made


@dataclass(frozen=True)
class Chain:
    """N nodes of a Gaussian path as a Markov chain.

    Args:
        path: the path through them; its t_min becomes t_max / N, the first node's.
        count: N.

    >>> import scoresde
    >>> chain = scoresde.VP().chain(1000)
    >>> chain.node(499) == scoresde.VP()(0.5), round(float(chain.betas[0]), 8)
    (True, 0.00010994)

    Raises:
        InputError: fewer than two nodes, or a number of them that is not the path's own.
    """

    path: SDE
    count: int

    def __post_init__(self) -> None:
        if positive_integer("a chain's number of nodes", self.count) < 2:
            raise InputError("a chain has at least two nodes, got 1")
        if self.path.num_train_timesteps not in (None, self.count):
            name = str(self.path).partition("(")[0]
            raise InputError(f"this {name} has {self.path.num_train_timesteps} nodes, got {self.count}")
        first = self.path.t_max / self.count
        if first != self.path.t_min:  # the labels count from the first node
            object.__setattr__(self, "path", dataclasses.replace(self.path, t_min=first))

    def sde(self) -> SDE:
        """The continuous path through the nodes, exact there, from the first node on: every solver, likelihood and the
        label ``index``, which is i there (of a denoiser with ``num_train_timesteps`` N, the default on the paths of
        ``DDPMChain`` and ``SMLDChain``), take it."""
        return self.path

    def __len__(self) -> int:
        return self.count

    def node(self, index: int) -> Node:
        """The node of an index 0..N-1; of -1, the data.

        Raises:
            InputError: another index.
        """
        if int(index) != index or not -1 <= index < self.count:
            raise InputError(f"index {index} is outside -1..{self.count - 1}, the nodes of this chain (-1 is the data)")
        return self.path.clean if index == -1 else self.path(self._time(index))

    def _time(self, index: int) -> float:
        """t of an index 0..N-1; the last is t_max itself, which t_max N / N may miss by a rounding."""
        return self.path.t_max * (index + 1) / self.count if index < self.count - 1 else self.path.t_max

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """All N of them, by index."""
        return tuple(self.path.nodes([self._time(i) for i in range(self.count)]))

    @cached_property
    def stacked(self) -> Node[Tensor]:
        """The data's node and then all N, as tensors (N + 1,) in float64."""
        t = torch.tensor([self._time(i) for i in range(self.count)], dtype=torch.float64)
        node, clean = self.path(t), self.path.clean
        names = ("t", "alpha", "sigma", "dalpha", "dsigma")
        return Node(*(torch.cat([torch.tensor([getattr(clean, n)]).to(t), getattr(node, n)]) for n in names))

    def steps(self, index: Tensor) -> tuple[Node[Tensor], Node[Tensor]]:
        """The nodes (B,) of indices (B,) in 0..N-1, and those of the indices below.

        Raises:
            InputError: another index.
        """
        for outside in index[(index < 0) | (index >= self.count)].tolist():
            self._step(outside)
        names = ("t", "alpha", "sigma", "dalpha", "dsigma")
        at, below = (Node(*(getattr(self.stacked, n)[i] for n in names)) for i in (index + 1, index))
        return at, below

    @property
    def grid(self) -> Explicit:
        """The grid of a solve through all nodes, to the data; its ``steps`` is None."""
        return Explicit(times=tuple(node.t for node in self.nodes[::-1]), end="zero")

    @cached_property
    def betas(self) -> Array:
        """beta_i = 1 - (alpha_i / alpha_{i-1})^2 (N,): DDPM's; 0 where alpha is 1, as on VE."""
        betas: Array = 0.0 - np.expm1(2 * np.diff(self.stacked.alpha.log().numpy()))
        return betas

    @cached_property
    def sigmas(self) -> Array:
        """sigma_i (N,): the noise scales of a VE chain, and of every other path."""
        return np.asarray(self.stacked.sigma[1:].numpy())

    def forward(self, index: int) -> tuple[float, float]:
        """(alpha_ts, var_ts) of q(x_i | x_{i-1})."""
        return forward_kernel(self.node(self._step(index)), self.node(index - 1))

    def marginal(self, x0: Tensor, index: int) -> Kernel:
        """q(x_i | x0) = N(alpha_i x0, sigma_i^2), for x0 (B, *)."""
        node = self.node(index)
        return Kernel(node.alpha * x0, node.sigma**2)

    def posterior(self, x: Tensor, x0: Tensor, index: int) -> Kernel:
        """q(x_{i-1} | x_i = x, x0), for x and x0 (B, *); see ``solvers.one_step.ancestral.posterior``."""
        q = posterior(self.node(self._step(index)), self.node(index - 1))
        return Kernel(q.on_x * x + q.on_x0 * x0, q.variance)

    def reverse(self, x: Tensor, prediction: Prediction, index: int, kernel: str | Solver = "ddpm") -> Kernel:
        """The model's p(x_{i-1} | x_i = x): the posterior's mean at the predicted x0, and the variance that a solver
        ``ddpm(variance=beta)``, ``beta_tilde``, ``interpolated``, ``learned`` or ``optimal`` has; at index 0, where
        beta_tilde is 0, that of index 1 stands for it (Nichol and Dhariwal 2021, arXiv:2102.09672)."""
        at, below = self.node(self._step(index)), self.node(index - 1)
        mean = self.posterior(x, prediction.x0, index).mean
        return Kernel(mean, reverse_kernel(kernel).variance_of(at, below, prediction.nu, self.lowest))

    @cached_property
    def lowest(self) -> float:
        """beta_tilde of index 1, which stands for that of index 0."""
        return posterior(self.node(1), self.node(0)).variance

    def _step(self, index: int) -> int:
        """The index of a step.

        Raises:
            InputError: it is not one of 0..N-1.
        """
        if not 0 <= index < self.count:
            raise InputError(f"a step ends at one of the indices 0..{self.count - 1}, got {index}")
        return index


EMBEDDINGS: dict[str, Callable[[SDE, int], Chain]] = {"exact": Chain}
"""Chains of a path by name: of the path and the number of nodes."""


def embed(sde: SDE, count: int, embedding: str = "exact") -> Chain:
    """A chain of ``count`` nodes for an SDE; see ``SDE.chain``.

    Raises:
        InputError: an unknown embedding, one that this path does not have, or too few nodes for it.
    """
    if embedding not in EMBEDDINGS:
        raise unknown("embedding", embedding, EMBEDDINGS)
    return EMBEDDINGS[embedding](sde, positive_integer("a chain's number of nodes", count))
