"""Problems on a denoiser: what a solver integrates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from solvers import Node, Prediction

from .sde import Denoises


@dataclass(frozen=True)
class Diffusion:
    """The samples of a denoiser, with their conditions (each (B, *))."""

    denoiser: Denoises
    conditions: Mapping[str, Tensor] = field(default_factory=dict)

    def node(self, t: float) -> Node:
        """The path at t."""
        return self.denoiser.sde(t)

    def node_of_lam(self, lam: float) -> Node:
        """The path where log(alpha / sigma) = lam."""
        return self.denoiser.sde(self.denoiser.sde.t_of_lam(lam))

    def predict(self, x: Tensor, node: Node) -> Prediction:
        """The denoiser's prediction at x (B, *)."""
        return self.denoiser.predict(x, node, **self.conditions)

    def select(self, rows: slice) -> Diffusion:
        """The problem of some of the samples."""
        return Diffusion(self.denoiser, {name: value[rows] for name, value in self.conditions.items()})
