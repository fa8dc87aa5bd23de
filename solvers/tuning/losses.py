"""Losses of a tuning: how far outcomes are from the exact ones, sample by sample or as a set from given samples.

Nearness to the solution of the model's ODE is not nearness to the data; a tuning can aim at either.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from ..errors import InputError
from ..noise.seeded import generator
from ..registry.options import Options
from ..registry.ranges import Positive, Range
from ..registry.registry import Registry

Distance = Callable[[Tensor, Tensor], Tensor]
"""(outcomes (n, d), their places in the batch (n,)) -> their loss (), at least 0; all float64 but the places."""


class TuningLoss(Options):
    """The loss of a tuning. Each is a frozen dataclass; its fields are its options."""

    @property
    def needs_data(self) -> bool:
        """Whether it compares outcomes with samples instead of exact outcomes."""
        return False

    def against(self, target: Tensor) -> Distance:
        """The loss against a target, float64: exact outcomes (B, d), or samples (M, d) if it ``needs_data``."""
        raise NotImplementedError

    def __str__(self) -> str:
        return tuning_losses.format(self)


tuning_losses: Registry[TuningLoss] = Registry("tuning loss", TuningLoss)


def _squares(outcome: Tensor, target: Tensor) -> Tensor:
    """The mean square of each row's difference (n,)."""
    return (outcome - target).square().mean(1)


@tuning_losses.register("squared", formula="mean |x - x*|^2 / d")
@dataclass(frozen=True)
class Squared(TuningLoss):
    """The mean square distance per coordinate to the exact outcome: what ``tune_grid`` minimises."""

    def against(self, target: Tensor) -> Distance:
        return lambda outcome, rows: _squares(outcome, target[rows]).mean()


@tuning_losses.register("pseudo_huber", formula="mean sqrt(|x - x*|^2 / d + delta^2) - delta")
@dataclass(frozen=True)
class PseudoHuber(TuningLoss):
    """The mean distance to the exact outcome, squared below ``delta``: a few far samples count less."""

    delta: Positive = 0.03

    def against(self, target: Tensor) -> Distance:
        return lambda outcome, rows: (_squares(outcome, target[rows]) + self.delta**2).sqrt().mean() - self.delta


@tuning_losses.register("log", formula="exp mean log sqrt(|x - x*|^2 / d + floor^2)")
@dataclass(frozen=True)
class Log(TuningLoss):
    """The geometric mean of the samples' distances to the exact outcome.

    It is near their median, so that samples across a divide hardly count. The floor makes an error of 0 finite.
    """

    floor: Positive = 1e-4

    def against(self, target: Tensor) -> Distance:
        return lambda outcome, rows: (_squares(outcome, target[rows]) + self.floor**2).log().mean().div(2).exp()


@tuning_losses.register(
    "energy",
    reference="Székely and Rizzo 2013, J. Stat. Plan. Inference 143(8)",
    formula="2 E|x-z| - E|x-x'| - E|z-z'|",
)
@dataclass(frozen=True)
class Energy(TuningLoss):
    """The energy distance between outcomes and samples; the root of the dimension divides it."""

    @property
    def needs_data(self) -> bool:
        return True

    def against(self, target: Tensor) -> Distance:
        own, size = _mean_distance(target, target), target.shape[1] ** 0.5

        def distance(outcome: Tensor, rows: Tensor) -> Tensor:
            across, among = _mean_distance(outcome, target), _mean_distance(outcome, outcome)
            value: Tensor = (2 * across - among - own) / size
            return value.clamp_min(0)

        return distance


def _mean_distance(one: Tensor, other: Tensor) -> Tensor:
    # the derivative of the root at 0, a sample's distance to itself, would be infinite
    square = (one.square().sum(1)[:, None] + other.square().sum(1) - 2 * one @ other.mT).clamp_min(0)
    apart = square > 1e-14
    return torch.where(apart, square, 1.0).sqrt().where(apart, 0.0).mean()


@tuning_losses.register("sliced_wasserstein", formula="mean over directions of the mean squared gap of quantiles")
@dataclass(frozen=True)
class SlicedWasserstein(TuningLoss):
    """The squared sliced Wasserstein-2 distance between outcomes and samples, along fixed random directions."""

    directions: Annotated[int, Range(1)] = 128

    @property
    def needs_data(self) -> bool:
        return True

    def against(self, target: Tensor) -> Distance:
        axes = torch.randn(target.shape[1], self.directions, generator=generator(0, 18), dtype=torch.float64)
        axes = (axes / axes.norm(dim=0)).to(target)
        sorted_target = (target @ axes).sort(0).values

        def distance(outcome: Tensor, rows: Tensor) -> Tensor:
            # the quantiles of the samples at the levels of the sorted outcomes
            place = (torch.arange(len(outcome), device=target.device).double() + 0.5) / len(outcome) * len(target) - 0.5
            place = place.clamp(0, len(target) - 1)
            below = place.floor().long()
            above = (below + 1).clamp_max(len(target) - 1)
            share = (place - below).unsqueeze(1).to(target)
            wanted = sorted_target[below] * (1 - share) + sorted_target[above] * share
            gap: Tensor = (outcome @ axes).sort(0).values - wanted
            return gap.square().mean()

        return distance


def bound(
    loss: TuningLoss,
    exact: Tensor,
    features: Callable[[Tensor], Tensor] | None,
    data: Tensor | None,
) -> Distance:
    """The loss of outcomes (n, *) of a batch whose exact outcomes are ``exact`` (B, *), in the space of the features.

    Args:
        features: (n, *) -> (n, *), differentiable; None for the states themselves.
        data: samples (M, *), for a loss that needs them.

    Raises:
        InputError: the loss needs samples and there are none, or they have another shape; features are not finite.
    """
    if loss.needs_data and data is None:
        raise InputError(f"the loss {loss} compares outcomes with samples: pass them as data=")
    if data is not None and data.shape[1:] != exact.shape[1:]:
        raise InputError(f"the samples in data have shape {tuple(data.shape[1:])}, outcomes {tuple(exact.shape[1:])}")

    def seen(x: Tensor) -> Tensor:
        made = x if features is None else features(x)
        if not isinstance(made, Tensor) or made.ndim < 1 or len(made) != len(x):
            raise InputError("features must return a tensor with one row for each sample")
        return made.flatten(1).double() if made.ndim > 1 else made.unsqueeze(1).double()

    target = data.to(exact) if loss.needs_data and data is not None else exact
    with torch.no_grad():
        wanted = seen(target)
    if not torch.isfinite(wanted).all():
        raise InputError("the features of the exact outcomes contain numbers that are not finite")
    inner = loss.against(wanted)
    return lambda outcome, rows: inner(seen(outcome), rows)
