"""``Classifier``: log p(c | x_t) of a network that reads noisy samples, for classifier guidance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from solvers import InputError, Node, Prediction
from solvers.types.answers import call

from ..data.conditions import Condition, check_names
from ..paths.base import SDE, as_sde
from .model import Model
from .reachable import reachable_modules
from .time_labels import LABELS


class Pooled(nn.Module):
    """Logits (B, K) from a network that returns (B, K, *): its means over the places."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor, label: Tensor, /) -> Tensor:
        out: Tensor = self.backbone(x, label)
        return out if out.ndim == 2 else out.flatten(2).mean(2)


@dataclass(frozen=True)
class Classifier(Model):
    """A classifier of noisy samples: ``classifier(x, node, **conditions)`` is log p(c | x_t = x) (B,) in nats.

    It is differentiable by x; ``guide(denoiser, "classifier", classifier=...)`` takes its gradient (Dhariwal and Nichol
    2021, arXiv:2105.05233). It predicts no x0.

    Args:
        network: called as ``network(x, label)`` with x / sqrt(alpha^2 sigma_data^2 + sigma^2) (B, *) and label (B,),
            log(sigma / alpha) / 4; returns logits (B, K).
        sde: the path of the samples.
        condition: the classes.
        sigma_data: standard deviation of the data.
        shape: the shape of one sample, if it is known.
        data_range: the least and the greatest number of its training data, if they are known.

    Raises:
        InputError: the condition has no classes.
    """

    network: Callable[..., Tensor] = field(repr=False)
    sde: SDE
    condition: Condition
    sigma_data: float = 0.5
    shape: tuple[int, ...] | None = None
    data_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "sde", as_sde(self.sde))
        if self.condition.kind != "class":
            raise InputError(f"a classifier is for a condition of classes, got {self.condition}")

    @property
    def conditions(self) -> tuple[Condition, ...]:  # type: ignore[override]  # not a field here
        return (self.condition,)

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        return reachable_modules(self.network)

    def __call__(self, x: Tensor, node: Node | Node[Tensor], **conditions: Tensor) -> Tensor:
        """log p(c | x_t = x) (B,) in nats at x (B, *), of the classes (B,) among the conditions; 0 of an empty row.

        Raises:
            InputError: the classes are missing, or see ``log_probs``.
        """
        name, last = self.condition.name, self.condition.classes
        check_names({n: v for n, v in conditions.items() if n == name}, [name])
        classes = conditions[name].long()
        found = self.log_probs(x, node).gather(1, classes.clamp(max=last - 1)[:, None])[:, 0]
        return torch.where(classes < last, found, torch.zeros_like(found))

    def log_probs(self, x: Tensor, node: Node | Node[Tensor]) -> Tensor:
        """log p(c | x_t = x) (B, K) in nats of all classes, at x (B, *).

        Raises:
            InputError: the network returns another shape.
        """
        wide: Any = node.like(x)
        label = torch.as_tensor(LABELS["c_noise"].of(node, self.sde, 1000), dtype=torch.float64).flatten()
        dtype = next((p.dtype for m in self.modules for p in m.parameters()), x.dtype)
        scaled = x / (wide.alpha * (wide.ratio**2 + self.sigma_data**2) ** 0.5)
        logits = call("the classifier", self.network, scaled.to(dtype), label.to(x.device, dtype).expand(len(x)), {})
        if not isinstance(logits, Tensor) or logits.shape != (len(x), self.condition.classes):
            there = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise InputError(f"the classifier must return logits {(len(x), self.condition.classes)}, got {there}")
        return logits.to(x.dtype).log_softmax(1)

    def predict(self, x: Tensor, node: Node | Node[Tensor], **conditions: Tensor) -> Prediction:
        """A classifier predicts no x0.

        Raises:
            InputError: always.
        """
        raise InputError("a classifier predicts no x0 and draws no samples: it guides those of a denoiser")
