"""A variance-preserving path whose noise schedule is learned (Kingma et al. 2021, arXiv:2107.00630).

The path is written in gamma = -log(alpha^2 / sigma^2) = -2 lam: alpha^2 = sigmoid(-gamma), sigma^2 = sigmoid(gamma).
gamma rises over t in [0, 1] from one learned end to the other,

    gamma(t) = gamma_0 + (gamma_1 - gamma_0) u(t),    u(0) = 0, u(1) = 1, u' > 0,

and u, the interior, is t itself or a learned monotone function. The loss ``ContinuousBound`` trains ends and interior.
"""

from __future__ import annotations

import math
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from solvers import InputError, Node
from solvers.libraries import library
from solvers.registry.ranges import Count

from .base import SDE, sdes

# initial values: the share of the sigmoids in the rise of the interior, their slope, and how far outside of [0, 1]
# their centres extend
_SHARE, _SLOPE, _MARGIN = 0.5, 16.0, 0.25


class GammaNetwork(nn.Module):
    """The ends and the interior of gamma, with float32 parameters.

    Before training, gamma is a line in t, to within a thousandth of its range. The ends are gamma_0 = middle - reach
    exp(p_0) and gamma_1 = middle + reach exp(p_1), with one parameter for each. Its unit is half the range, so one
    learning rate fits both the ends and the network, and the ends never cross.
    """

    def __init__(self, gamma_min: float, gamma_max: float, width: int) -> None:
        super().__init__()
        self.options = (gamma_min, gamma_max, width)
        self.middle, self.reach = (gamma_min + gamma_max) / 2, (gamma_max - gamma_min) / 2
        self.stretch = nn.Parameter(torch.zeros(2))
        self.interior = MonotoneNetwork(width) if width else None

    def ends(self) -> tuple[Tensor, Tensor]:
        """The ends gamma(0) and gamma(1), float64 on the CPU."""
        low, high = (self.reach * self.stretch.cpu().double().exp()).unbind()
        return self.middle - low, self.middle + high

    def share(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The interior u and its derivative u' at t, each of the shape of t, float64 on the CPU."""
        time = t.cpu().double()
        if self.interior is None:
            return time, torch.ones_like(time)
        found: tuple[Tensor, Tensor] = self.interior(time)
        return found


class MonotoneNetwork(nn.Module):
    """A monotone function u(t) with u(0) = 0 and u(1) = 1.

    u(t) = (g(t) - g(0)) / (g(1) - g(0)) with g(t) = w t + sum_k c_k sigmoid(a_k t + b_k) and positive w, c and a: a
    linear layer and two dense layers of positive weights (Kingma et al. 2021, arXiv:2107.00630, appendix H).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        centres = (torch.arange(width, dtype=torch.float64) + 0.5) / width * (1 + 2 * _MARGIN) - _MARGIN
        self.linear = nn.Parameter(_inverse_softplus(torch.tensor([1 - _SHARE])))
        self.heights = nn.Parameter(_inverse_softplus(torch.full((width,), _SHARE * (1 + 2 * _MARGIN) / width)))
        self.slopes = nn.Parameter(_inverse_softplus(torch.full((width,), _SLOPE)))
        self.offsets = nn.Parameter((-_SLOPE * centres).float())

    def weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The weights w (1,), c, a and b (width,), float64 on the CPU."""
        w, c, a = (nn.functional.softplus(p.cpu().double()) for p in (self.linear, self.heights, self.slopes))
        return w, c, a, self.offsets.cpu().double()

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The values u and u' at t, each of the shape of t."""
        w, c, a, b = self.weights()
        low, high = torch.sigmoid(b), torch.sigmoid(a + b)
        at = torch.sigmoid(a * t.unsqueeze(-1) + b)
        rise = w + (c * (high - low)).sum()
        u = (w * t + (c * (at - low)).sum(-1)) / rise
        # rounding must not move the ends
        u = torch.where(t == 0, 0 * u, torch.where(t == 1, 1 + 0 * u, u))
        return u, (w + (c * a * at * (1 - at)).sum(-1)) / rise


def _inverse_softplus(value: Tensor) -> Tensor:
    double = value.double()
    return (double + torch.log(-torch.expm1(-double))).float()


def node_of_gamma(t: Tensor, gamma: Tensor, slope: Tensor) -> Node[Tensor]:
    """The variance-preserving node of gamma and its derivative ``slope`` at t, each (B,); it is differentiable."""
    signal, noise = torch.sigmoid(-gamma), torch.sigmoid(gamma)
    alpha, sigma = signal.sqrt(), noise.sqrt()
    return Node(t, alpha, sigma, -0.5 * slope * noise * alpha, 0.5 * slope * signal * sigma)


@sdes.register("learned_vp", aliases=("vdm",), reference="Kingma et al. 2021, arXiv:2107.00630, eq. 17")
@dataclass(frozen=True, eq=False)
class LearnedVP(SDE):
    """Variance preserving with a learned gamma(t) = -2 lam on [0, 1]: alpha^2 = sigmoid(-gamma), sigma^2 = 1 - alpha^2.

    Two such paths are equal only if they are the same object, because each has its own weights. Only the loss
    ``ContinuousBound`` trains the weights; in solves and in other losses no gradient reaches them.

    Args:
        schedule: "linear", a line between the learned ends, or "monotone", a learned monotone function.
        gamma_min, gamma_max: the ends before training, gamma(0) and gamma(1). With levels h apart, the decoder at t = 0
            is almost certain of the level if sigma / alpha = exp(gamma_min / 2) is h / 6 or less: -13.3 for 256 levels.
        width: the width of the monotone network.
        learn: train the schedule; False keeps it fixed.
        module: the weights; by default new ones. ``dataclasses.replace`` keeps the weights, so a path with a shorter
            range of t shares them.
        t_min, t_max: the range of t, within [0, 1].

    >>> sde = LearnedVP("linear", -8.0, 4.0)
    >>> [round(-2 * sde(t).lam, 12) for t in (0.0, 0.5, 1.0)]
    [-8.0, -2.0, 4.0]

    Raises:
        InputError: the ends are not in order or not finite, the width is not positive, the range of t leaves [0, 1], or
            the weights were made for different options.
    """

    schedule: Literal["monotone", "linear"] = "monotone"
    gamma_min: float = -13.3
    gamma_max: float = 5.0
    width: Count = 64
    learn: bool = True
    module: GammaNetwork = field(default=None, repr=False, kw_only=True)  # type: ignore[assignment]
    t_min: float = field(default=0.0, kw_only=True)
    t_max: float = field(default=1.0, kw_only=True)

    # compare by identity; the base class compares the fields
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __post_init__(self) -> None:
        super().__post_init__()
        if not -math.inf < self.gamma_min < self.gamma_max < math.inf:
            raise InputError(
                f"learned_vp: needs gamma_min < gamma_max, both finite, got {self.gamma_min:g} and {self.gamma_max:g}"
            )
        if not 0 <= self.t_min < self.t_max <= 1:
            raise InputError(f"learned_vp: needs 0 <= t_min < t_max <= 1, got {self.t_min:g} and {self.t_max:g}")
        options = (self.gamma_min, self.gamma_max, self.width if self.schedule == "monotone" else 0)
        if self.module is None:
            object.__setattr__(self, "module", GammaNetwork(*options).requires_grad_(self.learn))
        elif self.module.options != options:
            raise InputError(
                "learned_vp: the weights were made for a different schedule, width, gamma_min or gamma_max"
            )

    def __str__(self) -> str:
        options = copy(self)
        object.__setattr__(options, "module", None)  # weights are not part of a spec
        return sdes.format(options)

    def holding(self, module: GammaNetwork) -> LearnedVP:
        """A path with the same options and different weights, such as their average."""
        return replace(self, module=module)

    def ends(self) -> tuple[Tensor, Tensor]:
        """The ends gamma(0) and gamma(1), float64 on the CPU, with gradients."""
        return self.module.ends()

    def share(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The interior u and its derivative u' at t (B,), float64 on the CPU, with gradients."""
        return self.module.share(t)

    def gamma(self, t: Tensor) -> Tensor:
        """The values gamma(t) (B,) at t (B,), in float64 on the CPU, with gradients."""
        low, high = self.ends()
        return low + (high - low) * self.share(t)[0]

    def alpha(self, t: Tensor) -> Tensor:
        return self._node(t).alpha

    def sigma(self, t: Tensor) -> Tensor:
        return self._node(t).sigma

    def _node(self, t: Tensor) -> Node[Tensor]:
        with torch.no_grad():
            low, high = self.ends()
            u, rate = self.share(t)
            node = node_of_gamma(t, low + (high - low) * u, (high - low) * rate)
            return Node(t, *(v.to(t.device, t.dtype) for v in (node.alpha, node.sigma, node.dalpha, node.dsigma)))

    def t_of_lam(self, lam: float) -> float:
        return min(max(self._inverse(lam), self.t_min), self.t_max)

    def _inverse(self, lam: float) -> float:
        """The time in [0, 1] where log(alpha / sigma) = lam."""
        low, high = (float(end.detach()) for end in self.ends())
        u = (-2 * lam - low) / (high - low)
        interior = self.module.interior
        if not 0 < u < 1 or interior is None:
            return min(max(u, 0.0), 1.0)
        with torch.no_grad():
            w, c, a, b = (v.numpy() for v in interior.weights())
        expit = library("scipy.special").expit
        start = expit(b)
        rise = float(w[0] + c @ (expit(a + b) - start))

        def above(t: float) -> float:
            return float(w[0] * t + c @ (expit(a * t + b) - start)) - u * rise

        if not above(0.0) < 0 < above(1.0):  # up to rounding, t is an end
            return 0.0 if above(0.0) >= 0 else 1.0
        return float(library("scipy.optimize").brentq(above, 0.0, 1.0, xtol=1e-15, rtol=4 * np.finfo(float).eps))
