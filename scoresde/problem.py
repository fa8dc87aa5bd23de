"""The problem of a denoiser: what a solver integrates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from solvers import Node, Prediction, Problem, Rows
from solvers.outputs import Output

from .sde import SDE, Denoises


@dataclass(frozen=True)
class Diffusion(Problem):
    """The samples of a denoiser, with their conditions (each (B, *))."""

    denoiser: Denoises
    conditions: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def path(self) -> SDE:
        """The path that the denoiser was trained on."""
        return self.denoiser.sde

    def predict(self, x: Tensor, node: Node | Node[Tensor]) -> Prediction:
        """The denoiser's prediction at x (B, *), at one node or at one a sample."""
        return self.denoiser.predict(x, node, **self.conditions)

    @property
    def output(self) -> Output | None:
        """What the denoiser's network puts out, where it has one."""
        return getattr(self.denoiser, "output", None)

    def raw(self, x: Tensor, node: Node) -> Tensor:
        """The network's own output at x (B, *)."""
        out: Tensor = self.denoiser.raw(x, node, **self.conditions)  # type: ignore[attr-defined]
        return out

    def log_prob(self, x: Tensor, node: Node) -> Tensor:
        """The log-density (B,) of x_t in nats, where the denoiser knows it; correctors that accept or reject ask."""
        known = getattr(self.denoiser, "log_prob", None)
        return super().log_prob(x, node) if known is None else known(x, node)

    def select(self, rows: Rows) -> Diffusion:
        """The problem of some of the samples."""
        return Diffusion(self.denoiser, {name: value[rows] for name, value in self.conditions.items()})
