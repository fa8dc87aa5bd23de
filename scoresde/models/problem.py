"""``Diffusion``: the problem that a solver integrates, made of a denoiser and the conditions of its samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from torch import Tensor

from solvers import Node, Prediction, Problem, Rows, Solver
from solvers.types.model_output import Output

from ..paths.base import SDE, ModelLike
from .model import Model, as_model


@dataclass(frozen=True)
class Diffusion(Problem):
    """A denoiser with the conditions of its samples (each (B, *)), as a problem for a solver."""

    denoiser: ModelLike
    conditions: Mapping[str, Tensor] = field(default_factory=dict)

    @cached_property
    def model(self) -> Model:
        """The denoiser as a ``Model``."""
        return as_model(self.denoiser, None)

    @property
    def space(self) -> str:  # type: ignore[override]
        """The space of the denoiser's states."""
        return self.model.space

    @property
    def path(self) -> SDE:
        """The path that the denoiser was trained on."""
        return self.model.sde

    def predict(self, x: Tensor, node: Node | Node[Tensor]) -> Prediction:
        """The denoiser's prediction at x (B, *), at one node or at one node per sample."""
        return self.model.predict(x, node, **self.conditions)

    @property
    def time_free(self) -> bool:
        return self.model.time_free

    @property
    def checked(self) -> bool:
        return self.model.checked

    @property
    def output(self) -> Output:
        """The kind of output that ``raw`` returns: the network's, or x0 if the denoiser names none."""
        return self.model.output

    def raw(self, x: Tensor, node: Node) -> Tensor:
        """The network's own output at x (B, *)."""
        return self.model.raw(x, node, **self.conditions)

    def log_prob(self, x: Tensor, node: Node) -> Tensor:
        """The log-density (B,) of x_t in nats, if the denoiser has one; correctors that accept or reject need it."""
        known = self.model.log_prob
        return super().log_prob(x, node) if known is None else known(x, node)

    def pieces(self, nodes: Sequence[Node]) -> Sequence[tuple[Problem, Sequence[Node]]]:
        """The problem with the model of each part of a solve."""
        return [(replace(self, denoiser=model), places) for model, places in self.model.pieces(nodes)]

    def check_solver(self, solver: Solver) -> None:
        self.model.check_solver(solver)

    def select(self, rows: Rows) -> Diffusion:
        """The problem restricted to some of the samples."""
        return Diffusion(self.model, {name: value[rows] for name, value in self.conditions.items()})
