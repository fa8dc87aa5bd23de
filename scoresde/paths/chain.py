"""Discrete chains: N nodes of any Gaussian path, as a Markov chain.

A chain is a path and N nodes on it. Index i, counted from 0, is at t = (i + 1) / N t_max; index -1 is the data. A step
of the chain is the step of the path between neighbouring nodes, from s (index i - 1) to t (index i):

    q(x_i | x_{i-1}) = N(alpha_ts x_{i-1}, sigma_t^2 - (alpha_ts sigma_s)^2), alpha_ts = alpha_t / alpha_s.

One class therefore covers DDPM's chain, SMLD's and the chain of every other Gaussian path, with beta_i = 1 -
alpha_ts^2.
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

if TYPE_CHECKING:  # ``base`` imports this module for ``SDE.chain``
    from .base import SDE


class Kernel(NamedTuple):
    """A Gaussian N(mean, variance I): mean (B, *); variance a number, or a tensor that broadcasts to the mean."""

    mean: Tensor
    variance: float | Tensor


def reverse_kernel(kernel: str | Solver) -> DDPM:
    """The solver ``ddpm`` from a spec; its option ``variance`` sets the variance of the reverse chain.

    Raises:
        InputError: the spec names a different solver.
    """
    made = solvers.make(kernel)
    if not isinstance(made, DDPM):
        raise InputError(f"the kernel of a reverse chain must be ddpm(variance=...), got {made}")
    return made


@dataclass(frozen=True)
class Chain:
    """N nodes of a Gaussian path as a Markov chain.

    Args:
        path: the path through the nodes; its t_min becomes t_max / N, the time of the first node.
        count: N, the number of nodes.

    >>> import scoresde
    >>> chain = scoresde.VP().chain(1000)
    >>> chain.node(499) == scoresde.VP()(0.5), round(float(chain.betas[0]), 8)
    (True, 0.00010994)

    Raises:
        InputError: there are fewer than two nodes, or the path has a fixed number of nodes and ``count`` differs.
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
        """The continuous path through the nodes, exact at them, from the first node to the last.

        Every solver and every likelihood accepts it. At node i the time label ``index`` is i, for a denoiser with
        ``num_train_timesteps`` = N, which is the default on the paths of ``DDPMChain`` and ``SMLDChain``.
        """
        return self.path

    def __len__(self) -> int:
        return self.count

    def node(self, index: int) -> Node:
        """The node of an index 0..N-1; index -1 is the data.

        Raises:
            InputError: the index is outside -1..N-1.
        """
        if int(index) != index or not -1 <= index < self.count:
            raise InputError(f"index {index} is outside -1..{self.count - 1}, the nodes of this chain (-1 is the data)")
        return self.path.clean if index == -1 else self.path(self._time(index))

    def _time(self, index: int) -> float:
        """The time of an index 0..N-1. The last one is t_max itself, from which t_max N / N may differ by rounding."""
        return self.path.t_max * (index + 1) / self.count if index < self.count - 1 else self.path.t_max

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """All N nodes, by index."""
        return tuple(self.path.nodes([self._time(i) for i in range(self.count)]))

    @cached_property
    def stacked(self) -> Node[Tensor]:
        """The node of the data and then all N nodes, as tensors (N + 1,) in float64."""
        t = torch.tensor([self._time(i) for i in range(self.count)], dtype=torch.float64)
        node, clean = self.path(t), self.path.clean
        names = ("t", "alpha", "sigma", "dalpha", "dsigma")
        return Node(*(torch.cat([torch.tensor([getattr(clean, n)]).to(t), getattr(node, n)]) for n in names))

    def steps(self, index: Tensor) -> tuple[Node[Tensor], Node[Tensor]]:
        """The nodes (B,) of indices (B,) in 0..N-1, and the nodes of the indices one below.

        Raises:
            InputError: an index is outside 0..N-1.
        """
        for outside in index[(index < 0) | (index >= self.count)].tolist():
            self._step(outside)
        names = ("t", "alpha", "sigma", "dalpha", "dsigma")
        at, below = (Node(*(getattr(self.stacked, n)[i] for n in names)) for i in (index + 1, index))
        return at, below

    @property
    def grid(self) -> Explicit:
        """The grid of a solve through all nodes to the data; it needs no ``steps``."""
        return Explicit(times=tuple(node.t for node in self.nodes[::-1]), end="zero")

    @cached_property
    def betas(self) -> Array:
        """DDPM's beta_i = 1 - (alpha_i / alpha_{i-1})^2 (N,); 0 where alpha is constant, as on VE."""
        betas: Array = 0.0 - np.expm1(2 * np.diff(self.stacked.alpha.log().numpy()))
        return betas

    @cached_property
    def sigmas(self) -> Array:
        """The noise scales sigma_i (N,)."""
        return np.asarray(self.stacked.sigma[1:].numpy())

    def forward(self, index: int) -> tuple[float, float]:
        """The scale and the variance (alpha_ts, var_ts) of q(x_i | x_{i-1})."""
        return forward_kernel(self.node(self._step(index)), self.node(index - 1))

    def marginal(self, x0: Tensor, index: int) -> Kernel:
        """The marginal q(x_i | x0) = N(alpha_i x0, sigma_i^2), for x0 (B, *)."""
        node = self.node(index)
        return Kernel(node.alpha * x0, node.sigma**2)

    def posterior(self, x: Tensor, x0: Tensor, index: int) -> Kernel:
        """The posterior q(x_{i-1} | x_i = x, x0), for x and x0 (B, *); see ``solvers.one_step.ancestral.posterior``."""
        q = posterior(self.node(self._step(index)), self.node(index - 1))
        return Kernel(q.on_x * x + q.on_x0 * x0, q.variance)

    def reverse(self, x: Tensor, prediction: Prediction, index: int, kernel: str | Solver = "ddpm") -> Kernel:
        """The reverse step p(x_{i-1} | x_i = x) of a model: the mean of the posterior at the predicted x0.

        ``kernel`` sets the variance: ``ddpm(variance=beta)``, or ``beta_tilde``, ``interpolated``, ``learned`` or
        ``optimal`` in place of ``beta``. At index 0, where beta_tilde is 0, the beta_tilde of index 1 replaces it
        (Nichol and Dhariwal 2021, arXiv:2102.09672).
        """
        at, below = self.node(self._step(index)), self.node(index - 1)
        mean = self.posterior(x, prediction.x0, index).mean
        return Kernel(mean, reverse_kernel(kernel).variance_of(at, below, prediction.nu, self.lowest))

    @cached_property
    def lowest(self) -> float:
        """The variance beta_tilde of index 1, which replaces that of index 0, where beta_tilde is 0."""
        return posterior(self.node(1), self.node(0)).variance

    def _step(self, index: int) -> int:
        """The index of a step, checked.

        Raises:
            InputError: the index is outside 0..N-1.
        """
        if not 0 <= index < self.count:
            raise InputError(f"the index of a step must be in 0..{self.count - 1}, got {index}")
        return index


EMBEDDINGS: dict[str, Callable[[SDE, int], Chain]] = {"exact": Chain}
"""Embeddings by name: each maps a path and a number of nodes to a chain."""


def embed(sde: SDE, count: int, embedding: str = "exact") -> Chain:
    """A chain of ``count`` nodes for an SDE; see ``SDE.chain``.

    Raises:
        InputError: the embedding is unknown, the path does not have it, or it needs more nodes.
    """
    if embedding not in EMBEDDINGS:
        raise unknown("embedding", embedding, EMBEDDINGS)
    return EMBEDDINGS[embedding](sde, positive_integer("a chain's number of nodes", count))
