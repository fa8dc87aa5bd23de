"""Model outputs, and their conversion to the pair (x0, eps) with x = alpha x0 + sigma eps.

Every conversion is linear in the output and in x. It works on tensors and on symbolic values; applied to the numbers 0
and 1, it returns its own coefficients.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from torch import Tensor

from ..errors import InputError, number, unknown
from .node import Node, Prediction

Quantity = Literal["x0", "eps", "v", "velocity"]
"""The quantity that a method interpolates."""

# (output, x, node, sigma_data) -> (x0, eps); the node's numbers broadcast against x
Convert = Callable[[Any, Any, Any, float], tuple[Any, Any]]


def _from_x0(out: Any, x: Any, node: Any, sigma_data: float) -> tuple[Any, Any]:
    return out, (x - node.alpha * out) / node.sigma


def _from_eps(out: Any, x: Any, node: Any, sigma_data: float) -> tuple[Any, Any]:
    return (x - node.sigma * out) / node.alpha, out


def _from_v(out: Any, x: Any, node: Any, sigma_data: float) -> tuple[Any, Any]:
    # v = alpha eps - sigma x0, of Salimans and Ho 2022 (arXiv:2202.00512, section 4); on any path a scaled rotation
    scale = node.alpha**2 + node.sigma**2
    return (node.alpha * x - node.sigma * out) / scale, (node.sigma * x + node.alpha * out) / scale


def _from_score(out: Any, x: Any, node: Any, sigma_data: float) -> tuple[Any, Any]:
    return _from_eps(-node.sigma * out, x, node, sigma_data)


def _from_velocity(out: Any, x: Any, node: Any, sigma_data: float) -> tuple[Any, Any]:
    # u = alpha' x0 + sigma' eps together with x = alpha x0 + sigma eps
    scale = node.alpha * node.dsigma - node.dalpha * node.sigma
    return (node.dsigma * x - node.sigma * out) / scale, (node.alpha * out - node.dalpha * x) / scale


def _from_edm(out: Any, x: Any, node: Any, sigma_data: float) -> tuple[Any, Any]:
    # D = c_skip y + c_out F with y = x / alpha and sigma / alpha as the noise level (Karras et al. 2022, table 1).
    # eps = (y - D) / ratio = (ratio y / total - sigma_data F / sqrt(total)): nothing cancels at low noise.
    y, ratio = x / node.alpha, node.sigma / node.alpha
    total = ratio**2 + sigma_data**2
    x0 = (sigma_data**2 / total) * y + (ratio * sigma_data / total**0.5) * out
    return x0, (ratio / total) * y - (sigma_data / total**0.5) * out


PREDICTS: dict[str, Convert] = {
    "x0": _from_x0,
    "eps": _from_eps,
    "v": _from_v,
    "score": _from_score,
    "velocity": _from_velocity,
    "edm": _from_edm,
}


# (x0, eps, node, sigma_data) -> the output at x = alpha x0 + sigma eps whose reading is x0 and eps
_TARGETS: dict[str, Callable[[Any, Any, Any, float], Any]] = {
    "x0": lambda x0, eps, node, sigma_data: x0,
    "eps": lambda x0, eps, node, sigma_data: eps,
    "v": lambda x0, eps, node, sigma_data: node.alpha * eps - node.sigma * x0,
    "score": lambda x0, eps, node, sigma_data: eps / -node.sigma,
    "velocity": lambda x0, eps, node, sigma_data: node.dalpha * x0 + node.dsigma * eps,
    # (D - c_skip y) / c_out at D = x0, in which nothing cancels
    "edm": lambda x0, eps, node, sigma_data: (
        ((node.ratio / sigma_data) * x0 - sigma_data * eps) / (node.ratio**2 + sigma_data**2) ** 0.5
    ),
}


class Output(NamedTuple):
    """The output of a network, by name.

    One of "x0", "eps", "v" (alpha eps - sigma x0), "score", "velocity" (dx/dt of the ODE), or "edm" (the raw network F
    inside EDM's preconditioning, for data of standard deviation ``sigma_data``).
    """

    name: str = "x0"
    sigma_data: float = 0.5

    def check(self) -> Output:
        """Returns the object itself if its fields are valid.

        Raises:
            InputError: the name is unknown, or sigma_data is not positive.
        """
        if self.name not in PREDICTS:
            raise unknown("prediction type", self.name, PREDICTS)
        if not number("sigma_data", self.sigma_data) > 0:
            raise InputError(f"sigma_data must be positive, got {self.sigma_data!r}")
        return self

    def read(self, out: Any, x: Any, node: Any) -> Prediction:
        """The prediction that corresponds to an output (B, *) at x (B, *); the node's numbers broadcast against x."""
        return Prediction(*PREDICTS[self.name](out, x, node, self.sigma_data))

    def weights(self, node: Node) -> tuple[tuple[float, float], tuple[float, float]]:
        """((a, b), (c, d)) with x0 = a x + b out and eps = c x + d out."""
        (a, c), (b, d) = (PREDICTS[self.name](out, x, node, self.sigma_data) for out, x in ((0.0, 1.0), (1.0, 0.0)))
        return (a, b), (c, d)

    def target(self, x0: Any, eps: Any, node: Any) -> Any:
        """The output (B, *) that is right at x = alpha x0 + sigma eps: a network is trained to return its mean.

        The node's numbers broadcast against x0 and eps (B, *).
        """
        return _TARGETS[self.name](x0, eps, node, self.sigma_data)

    def of(self, prediction: Prediction, x: Any, node: Node) -> Any:
        """The output (B, *) that corresponds to a prediction at x; the inverse of ``read``.

        Raises:
            InputError: the output depends on derivatives of the path that are not finite at the node.
        """
        if self.name in ("x0", "eps"):
            return prediction.x0 if self.name == "x0" else prediction.eps
        (a, b), (c, d) = self.weights(node)
        if not all(map(math.isfinite, (a, b, c, d))):
            raise InputError(
                f"cannot compute {self.name} from x0 and eps at t={node.t:g}: the path's derivatives are not finite"
            )
        # of the two equations, use the one in which the output has the larger weight
        if abs(node.alpha * b) >= abs(node.sigma * d):
            return (1 / b) * prediction.x0 - (a / b) * x
        return (1 / d) * prediction.eps - (c / d) * x


def quantity(prediction: Prediction, node: Node, name: Quantity) -> Tensor:
    """The quantity (B, *) that a method interpolates.

    It is x0, eps, v = cos(phi) eps - sin(phi) x0 with tan(phi) = ratio, or the velocity eps - x0 of the straight path.
    """
    if name == "x0":
        return prediction.x0
    if name == "eps":
        return prediction.eps
    if name == "velocity":
        return prediction.eps - prediction.x0
    scale = math.hypot(1, node.ratio)
    return (1 / scale) * prediction.eps - (node.ratio / scale) * prediction.x0
