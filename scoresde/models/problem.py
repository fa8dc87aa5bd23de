"""The problem of a denoiser: what a solver integrates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from solvers import Node, Prediction, Problem, Rows
from solvers.types.model_output import Output

from ..paths.base import SDE, Denoises
from .denoises import Model, adapted


@dataclass(frozen=True)
class Diffusion(Problem):
    """The samples of a denoiser, with their conditions (each (B, *))."""

    denoiser: Denoises
    conditions: Mapping[str, Tensor] = field(default_factory=dict)

    @cached_property
    def model(self) -> Model:
        """The denoiser with all of its parts."""
        return adapted(self.denoiser)

    @property
    def path(self) -> SDE:
        """The path that the denoiser was trained on."""
        return self.model.sde

    def predict(self, x: Tensor, node: Node | Node[Tensor]) -> Prediction:
        """The denoiser's prediction at x (B, *), at one node or at one a sample."""
        return self.model.predict(x, node, **self.conditions)

    @property
    def output(self) -> Output:
        """What the denoiser's network puts out; x0 where it has no output of its own."""
        return self.model.output

    def raw(self, x: Tensor, node: Node) -> Tensor:
        """The network's own output at x (B, *)."""
        return self.model.raw(x, node, **self.conditions)

    def log_prob(self, x: Tensor, node: Node) -> Tensor:
        """The log-density (B,) of x_t in nats, where the denoiser knows it; correctors that accept or reject ask."""
        known = self.model.log_prob
        return super().log_prob(x, node) if known is None else known(x, node)

    def select(self, rows: Rows) -> Diffusion:
        """The problem of some of the samples."""
        return Diffusion(self.model, {name: value[rows] for name, value in self.conditions.items()})
