"""The gradient of a classifier of noisy samples, as a change of a prediction."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from solvers import InputError, Prediction
from solvers.types.answers import call
from solvers.types.model_output import Output
from solvers.types.problem import natural

from ..models.counting import add_vjps
from ..models.evaluation import recordable
from ..models.reachable import reachable_modules
from .base import NULL


class Gradient:
    """grad log p(c|x_t) of a classifier, which moves a prediction: x0 + (sigma^2 / alpha) grad, eps - sigma grad.

    Args:
        classifier: called as ``classifier(x, node, **conditions)``, with the conditions of the samples that it names,
            and returns log p(c|x_t) (B,) in nats; or a module called as ``module(x, t)`` with times (B,), which returns
            logits (B, K) of the classes that the samples' only condition of classes names.
    """

    base = NULL  # the role whose prediction is moved

    def __init__(self, classifier: Callable[..., Tensor]) -> None:
        self.classifier = classifier

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        return reachable_modules(self.classifier)

    def moved(self, base: Prediction, x: Tensor, node: Any, conditions: Mapping[str, Tensor]) -> Prediction:
        """The prediction with the class, from that without."""
        grad, wide = self._gradient(x, node, conditions), node.like(x)
        return Prediction(base.x0 + (wide.sigma**2 / wide.alpha) * grad, base.eps - wide.sigma * grad, base.nu)

    def moved_raw(self, output: Output, base: Tensor, x: Tensor, node: Any, conditions: Mapping[str, Tensor]) -> Tensor:
        """The network's output (B, *) with the class, from that without."""
        wide = node.like(x)
        (_, b), (_, d) = output.weights(wide)  # eps = ... + d out, and x0 likewise with b
        scale = -wide.sigma / d if output.name == "eps" else wide.sigma**2 / (wide.alpha * b)
        found: Tensor = base + scale * self._gradient(x, node, conditions)
        return found

    def _gradient(self, x: Tensor, node: Any, conditions: Mapping[str, Tensor]) -> Tensor:
        """grad log p(c|x_t) (B, *) at x (B, *); with a graph where x has one."""
        keep = x.requires_grad and torch.is_grad_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            leaf = x if keep else recordable(x).detach().requires_grad_()
            value = self._log_prob(leaf, node, conditions)
            if value.shape != (len(x),):
                raise InputError(f"the classifier must return log p (B,), got the shape {tuple(value.shape)}")
            if not value.requires_grad:
                raise InputError("the classifier's log p has no gradient: does it run under no_grad, or detach x?")
            add_vjps(len(x))
            (grad,) = torch.autograd.grad(value.sum(), leaf, create_graph=keep, allow_unused=True)
        return torch.zeros_like(x) if grad is None else grad

    def _log_prob(self, x: Tensor, node: Any, conditions: Mapping[str, Tensor]) -> Tensor:
        if isinstance(self.classifier, nn.Module):
            t = torch.as_tensor(node.t, device=x.device).to(torch.promote_types(x.dtype, torch.float32)).flatten()
            logits = call("the classifier", self.classifier, x, t.expand(len(x)))
            return _of_classes(logits, [v for v in conditions.values() if v.ndim == 1 and not v.is_floating_point()])
        taken = _taken(self.classifier, conditions)
        found: Tensor = call("the classifier", self.classifier, x, natural(node, x), taken)
        return found


def _of_classes(logits: Tensor, classes: list[Tensor]) -> Tensor:
    """log p (B,) of the classes (B,), from logits (B, K)."""
    if logits.ndim != 2 or len(classes) != 1:
        raise InputError(
            f"a classifier that is a module returns logits (B, K) of one condition of classes; got the shape "
            f"{tuple(logits.shape)} and {len(classes)} such conditions"
        )
    return logits.log_softmax(1).gather(1, classes[0].long().unsqueeze(1)).squeeze(1)


def _taken(function: Callable[..., Any], conditions: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The conditions that a function names after the state and the node; all if it takes any."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # a function written in C
        return {}
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return dict(conditions)
    names = {p.name for p in parameters[2:]}
    return {name: value for name, value in conditions.items() if name in names}
