"""``DiscreteModel``: an object that predicts the laws of clean tokens on a process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from solvers.types.process import DiscretePrediction, Process

from ..model import Model


class DiscreteModel(Model):
    """A model of discrete states: a ``process`` and ``predict``; everything else is as in ``Model``."""

    space = "discrete"
    if TYPE_CHECKING:

        @property
        def process(self) -> Process:
            """The process that the model was trained on."""

    @property
    def sde(self) -> Process:  # type: ignore[override]
        """The process: what a path is for Gaussian states."""
        return self.process

    def predict(self, x: Tensor, node: Any, **conditions: Tensor) -> DiscretePrediction:  # type: ignore[override]
        """The laws (B, *, S) of the clean tokens at x (B, *)."""
        raise NotImplementedError

    def log_x0(self, x: Tensor, node: Any, **conditions: Tensor) -> Tensor:
        """The logarithms (B, *, S) of the laws of the clean tokens at x (B, *), -inf of those that are impossible."""
        return self.predict(x, node, **conditions).x0.log()
