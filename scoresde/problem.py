"""The problem of a denoiser: what a solver integrates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from solvers import Node, Prediction, Rows
from solvers.grids import node_of_lam, nodes_of_lam
from solvers.outputs import Output

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
        return node_of_lam(self.denoiser.sde, lam)

    def nodes_of_lam(self, lams: Sequence[float]) -> list[Node]:
        """The path at every lam."""
        return nodes_of_lam(self.denoiser.sde, lams)

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

    @property
    def log_prob(self) -> Callable[[Tensor, Node], Tensor]:
        """The log-density (B,) of x_t in nats, where the denoiser knows it; correctors that accept or reject ask."""
        known: Callable[[Tensor, Node], Tensor] = self.denoiser.log_prob  # type: ignore[attr-defined]
        return known

    def select(self, rows: Rows) -> Diffusion:
        """The problem of some of the samples."""
        return Diffusion(self.denoiser, {name: value[rows] for name, value in self.conditions.items()})
