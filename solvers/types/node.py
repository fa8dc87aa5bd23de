"""Nodes and predictions: what a time means on a path, and what a model predicts there.

A Gaussian path is x = alpha(t) x0 + sigma(t) eps with eps ~ N(0, I). ``t`` is the time now, ``s`` the next one;
lam = log(alpha / sigma) and ratio = sigma / alpha. In the coordinates x / alpha against ratio every path has the
same probability-flow ODE, d(x / alpha) / d ratio = eps. Therefore no solver here depends on the kind of path.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, cast

import torch
from torch import Tensor
from typing_extensions import TypeVar

T = TypeVar("T", float, Tensor, default=float)


class AnyNode:
    """A time on any kind of path: its noise level, and whether it is the data.

    The loop uses nothing else. Paths whose states have no arithmetic derive custom nodes from this class.
    """

    __slots__ = ()
    t: Any

    @property
    def noise_level(self) -> float:
        """A number that grows with the noise; nodes are ordered by it."""
        raise NotImplementedError

    @property
    def clean(self) -> bool:
        """Whether the state at this node is the data, without noise."""
        raise NotImplementedError

    @property
    def defect(self) -> str:
        """Why a solve cannot use the node, in words; empty if it can."""
        return "" if math.isfinite(self.t) and math.isfinite(self.noise_level) else f"noise_level={self.noise_level:g}"


@dataclass(frozen=True, slots=True, eq=False)
class Node(AnyNode, Generic[T]):
    """What a time means on a Gaussian path.

    In a solve every number is a Python float computed in float64; in training the numbers are tensors of shape (B,).
    ``dalpha`` and ``dsigma`` are the time derivatives; they are NaN if a schedule does not provide them.
    """

    t: T
    alpha: T
    sigma: T
    dalpha: T = math.nan  # type: ignore[assignment]
    dsigma: T = math.nan  # type: ignore[assignment]

    # compares tuples, where a NaN object equals itself; the comparison of a dataclass does so only up to Python 3.12
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Node) and self._numbers == other._numbers

    def __hash__(self) -> int:
        return hash(self._numbers)

    @property
    def _numbers(self) -> tuple[T, ...]:
        return (self.t, self.alpha, self.sigma, self.dalpha, self.dsigma)

    @property
    def lam(self) -> T:
        """log(alpha / sigma), half the log signal-to-noise ratio; +inf at sigma = 0."""
        if isinstance(self.sigma, Tensor):
            return torch.log(self.alpha / self.sigma)
        return math.inf if self.sigma == 0 else math.log(self.alpha / self.sigma)

    @property
    def ratio(self) -> T:
        """sigma / alpha, the noise level of x / alpha (Karras' sigma)."""
        return self.sigma / self.alpha

    @property
    def noise_level(self) -> float:
        """``ratio``: nodes are ordered by it."""
        return self.ratio  # type: ignore[return-value]  # in a solve the numbers are floats

    @property
    def clean(self) -> bool:
        """Whether sigma is 0."""
        return bool(self.sigma == 0)

    @property
    def defect(self) -> str:
        """alpha and sigma as text if one is not finite, alpha is not positive or sigma is negative; else empty."""
        numbers = (self.t, self.alpha, self.sigma)
        on_path = (
            all(map(math.isfinite, numbers)) and self.alpha > 0 and self.sigma >= 0 and math.isfinite(self.noise_level)
        )
        return "" if on_path else f"alpha={self.alpha:g}, sigma={self.sigma:g}"

    @property
    def f(self) -> T:
        """Drift coefficient of dx = f x dt + g dw: d log alpha / dt."""
        return self.dalpha / self.alpha

    @property
    def g2(self) -> T:
        """Squared diffusion g^2 = d sigma^2 / dt - 2 f sigma^2."""
        return 2 * self.sigma * (self.dsigma - self.f * self.sigma)

    @staticmethod
    def stack(nodes: Sequence[Node], ndim: int = 1) -> Node[Tensor]:
        """Combines the nodes of B samples into one node of tensors (B, 1, ..., 1) of ``ndim`` dimensions, in float64.

        With the ``ndim`` of a state they multiply it, whether or not the receiver calls ``like``.
        """
        columns = torch.tensor([node._numbers for node in nodes], dtype=torch.float64).T.contiguous()
        return Node(*columns.view(5, -1, *(1,) * (ndim - 1)))

    def like(self, x: Tensor) -> Node[T]:
        """This node with numbers that broadcast against ``x`` (B, *): tensors of B numbers become (B, 1, ..., 1).

        They have the dtype of x, and t at least float32, because 16 bits do not distinguish neighbouring times.
        """
        if not isinstance(self.t, Tensor):
            return self
        shape = (-1,) + (1,) * (x.ndim - 1)
        t = self.t.to(x.device, torch.promote_types(x.dtype, torch.float32)).view(shape)
        moved = (v.to(x.device, x.dtype).view(shape) for v in (self.alpha, self.sigma, self.dalpha, self.dsigma))
        return cast("Node[T]", Node(t, *moved))


@dataclass(frozen=True, slots=True)
class Prediction:
    """A model's prediction at x (B, *): the pair with x = alpha x0 + sigma eps, each (B, *).

    ``nu`` (B, *), from models that learned it, places the ancestral variance between beta_tilde (0) and beta (1).
    """

    x0: Tensor
    eps: Tensor
    nu: Tensor | None = None

    def score(self, node: Node) -> Tensor:
        """grad log p_t(x) = -eps / sigma."""
        return (-1 / node.sigma) * self.eps

    def velocity(self, node: Node) -> Tensor:
        """dx/dt of the probability-flow ODE: alpha' x0 + sigma' eps."""
        return node.dalpha * self.x0 + node.dsigma * self.eps


Rows = slice | Tensor
"""A selection of samples from a batch: a slice, or their indices (n,)."""
