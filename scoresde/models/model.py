"""``Model``: a denoiser whose optional parts have defaults, and the adapter from a user's object to it.

A denoiser is any object with ``.sde`` and ``.predict(x, node, **conditions)``. All other parts are optional: the
network's own output, a density, the standard deviation of the data, rounded labels. Every public function calls
``adapted`` once on its denoiser; all code behind it can rely on the attributes of ``Model``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from solvers import InputError, Node, Prediction
from solvers.types.model_output import Output

from ..paths.base import SDE, Denoises


class Model:
    """A denoiser whose optional parts have defaults.

    Attributes:
        sde: the path that it was trained on.
        sigma_data: standard deviation of the data; None if it is not known.
        log_prob: (x, node) -> the log-density (B,) of x_t in nats; None if it is not known.
        round_labels: whether the network receives the nearest label of its training instead of the exact one.
    """

    sde: SDE
    sigma_data: float | None = None
    log_prob: Callable[[Tensor, Node], Tensor] | None = None
    round_labels: bool = False

    def predict(self, x: Tensor, node: Node | Node[Tensor], **conditions: Tensor) -> Prediction:
        """The prediction x0 and eps (B, *) at x (B, *)."""
        raise NotImplementedError

    @property
    def output(self) -> Output:
        """The kind of output that ``raw`` returns; x0 by default."""
        return Output("x0")

    def raw(self, x: Tensor, node: Node | Node[Tensor], **conditions: Tensor) -> Tensor:
        """Evaluates the model once and returns the kind ``output``, (B, *) at x (B, *)."""
        return self.predict(x, node, **conditions).x0

    def label_shift(self, node: Node | Node[Tensor]) -> float:
        """The distance by which rounding moves the label at a node (with tensors: the largest); 0 without rounding."""
        return 0.0


class Adapted(Model):
    """A user's denoiser as a ``Model``; the constructor looks up its optional parts."""

    def __init__(self, denoiser: Denoises) -> None:
        self.denoiser, self.sde = denoiser, denoiser.sde
        self.sigma_data, self.log_prob = getattr(denoiser, "sigma_data", None), getattr(denoiser, "log_prob", None)
        output, raw = getattr(denoiser, "output", None), getattr(denoiser, "raw", None)
        self._native: tuple[Output, Callable[..., Tensor]] | None = None
        if output is not None and raw is not None:
            self._native = output, raw

    @property
    def output(self) -> Output:
        return super().output if self._native is None else self._native[0]

    def predict(self, x: Tensor, node: Node | Node[Tensor], **conditions: Tensor) -> Prediction:
        return self.denoiser.predict(x, node, **conditions)

    def raw(self, x: Tensor, node: Node | Node[Tensor], **conditions: Tensor) -> Tensor:
        return super().raw(x, node, **conditions) if self._native is None else self._native[1](x, node, **conditions)


class WithLabelShift(Model):
    """A denoiser that rounds its labels and records, in ``largest``, the largest shift over its evaluations."""

    round_labels = True

    def __init__(self, denoiser: Model) -> None:
        self.denoiser, self.largest = denoiser, 0.0
        self.sde, self.sigma_data, self.log_prob = denoiser.sde, denoiser.sigma_data, denoiser.log_prob

    @property
    def output(self) -> Output:
        return self.denoiser.output

    def predict(self, x: Tensor, node: Node | Node[Tensor], **conditions: Tensor) -> Prediction:
        self.largest = max(self.largest, self.label_shift(node))
        return self.denoiser.predict(x, node, **conditions)

    def raw(self, x: Tensor, node: Node | Node[Tensor], **conditions: Tensor) -> Tensor:
        self.largest = max(self.largest, self.label_shift(node))
        return self.denoiser.raw(x, node, **conditions)

    def label_shift(self, node: Node | Node[Tensor]) -> float:
        return self.denoiser.label_shift(node)


def adapted(denoiser: Any) -> Model:
    """The denoiser as a ``Model``; a ``Model`` is returned unchanged.

    Raises:
        InputError: the object has no ``sde`` or no ``predict``.
    """
    if isinstance(denoiser, Model):
        return denoiser
    missing = [name for name in ("sde", "predict") if not hasattr(denoiser, name)]
    if missing:
        raise InputError(
            f"a denoiser needs .sde and .predict(x, node); {type(denoiser).__name__} has no {missing[0]}: "
            "wrap a network in scoresde.Denoiser(network, sde, predicts=...)"
        )
    return Adapted(denoiser)
