"""Noise of conditions: a network that learns from y_t = (y + r_y e) / sqrt(1 + r_y^2) instead of y.

The level r_y follows that of the state, r = sigma / alpha. With independent noises, the score of p(x_t | y_t) by x_t is
that of p(x_t, y_t), so that the usual loss for x alone, with y_t as the condition, trains all four estimators of
Batzolis et al. 2021 (arXiv:2111.13606): CDE (no noise), CDiffE (the noise of x), CMDE (less), and VS-CMDE (less and
less during the training). Only CDE is consistent for p(x | y): the others sample p(x | y) with an error that vanishes
with r_y.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Self

import torch
from torch import Tensor

from solvers import InputError, Registry, Solver
from solvers.noise.levels import fresh_numbers, level_keys, path_numbers
from solvers.registry.options import Options
from solvers.registry.ranges import Count, Positive, Range

from ..data.conditions import Condition
from ..paths.base import SDE

KEYS = "condition_keys"
"""The condition (B, 2) from which a sample's noise follows; ``sample`` makes it from the seeds."""
_NOISED = ("vector", "image")  # kinds of conditions
Numbers = Callable[[Tensor, int], Tensor]
"""(levels, count) -> (B, count) standard normal numbers; which they are depends on the count as well."""


@dataclass(frozen=True)
class ConditionNoise(Options):
    """The level of the noise of vectors and images that are conditions. Classes and tokens have none.

    Args:
        path: while sampling, a sample's y_t for all t lie on one Brownian path. Otherwise each t has noise of its own,
            which needs a solver without memory of earlier steps.
    """

    path: bool = field(default=True, kw_only=True)

    def level(self, ratio: Tensor, sde: SDE, size: int) -> Tensor:
        """r_y (B,) where the state has the noise levels ``ratio`` (B,), of a condition of ``size`` numbers."""
        raise NotImplementedError

    def after(self, updates: int) -> Self:
        """The noise after so many updates of a training."""
        return self

    def check(self, sde: SDE, conditions: Sequence[Condition]) -> None:
        """Accepts a path and conditions.

        Raises:
            InputError: no condition is a vector or an image.
        """
        if not any(condition.kind in _NOISED for condition in conditions):
            there = "; ".join(map(str, conditions)) or "none"
            raise InputError(
                f"condition_noise={self} needs a condition that is a vector or an image; there are: {there}"
            )

    def check_solver(self, solver: Solver) -> None:
        """Accepts a solver.

        Raises:
            InputError: the noise is fresh at each time, and the solver extrapolates from one to another.
        """
        if not self.path and not solver.restartable:
            raise InputError(
                f"{solver} combines predictions of several steps, but condition_noise={self} has fresh noise at each: "
                "use a single-step solver such as ddim or heun, or path=True"
            )

    def __str__(self) -> str:
        return condition_noises.format(self)


condition_noises: Registry[ConditionNoise] = Registry("condition noise", ConditionNoise)


@condition_noises.register("none", reference="arXiv:2111.13606, CDE")
@dataclass(frozen=True)
class Without(ConditionNoise):
    """No noise: the network learns from y itself, r_y = 0."""

    def level(self, ratio: Tensor, sde: SDE, size: int) -> Tensor:
        return torch.zeros_like(ratio)


@condition_noises.register("same", reference="arXiv:2111.13606, CDiffE", formula="r_y = r")
@dataclass(frozen=True)
class Same(ConditionNoise):
    """The noise level of the state."""

    def level(self, ratio: Tensor, sde: SDE, size: int) -> Tensor:
        return ratio


@condition_noises.register("scaled", reference="arXiv:2111.13606, CMDE", formula="r_y = c r")
@dataclass(frozen=True)
class Scaled(ConditionNoise):
    """A constant share of the noise level of the state."""

    c: Positive = 0.1

    def level(self, ratio: Tensor, sde: SDE, size: int) -> Tensor:
        return self.c * ratio


@dataclass(frozen=True)
class UpTo(ConditionNoise):
    """The base class of levels that grow geometrically from ``least``, at r <= ``least``, to a largest one at t_max.

    r_y = least (largest / least)^p with p = log(r / least) / log(r_max / least).
    """

    least: Positive = field(default=5e-3, kw_only=True)

    def largest_of(self, size: int) -> float:
        """The level at t_max of a condition of ``size`` numbers."""
        raise NotImplementedError

    def level(self, ratio: Tensor, sde: SDE, size: int) -> Tensor:
        most = self._most(sde)
        share = torch.log(ratio.clamp_min(self.least) / self.least) / math.log(most / self.least)
        return torch.exp(share * math.log(self.largest_of(size) / self.least)) * self.least

    def check(self, sde: SDE, conditions: Sequence[Condition]) -> None:
        super().check(sde, conditions)
        self._most(sde)
        for condition in conditions:
            if condition.kind in _NOISED and (most := self.largest_of(math.prod(condition.shape))) < self.least:
                raise InputError(f"condition_noise={self}: the largest level is {most:g}, below the least one")

    def _most(self, sde: SDE) -> float:
        most = float(sde(sde.t_max).ratio)
        if not self.least < most < math.inf:
            raise InputError(f"condition_noise={self} needs a path with a largest noise level above it; got {sde}")
        return most


@condition_noises.register("geometric", reference="arXiv:2111.13606, CMDE, section 4", formula="up to largest")
@dataclass(frozen=True)
class Geometric(UpTo):
    """Levels that grow geometrically with that of the state, up to ``largest``; the defaults are the paper's CMDE."""

    largest: Positive = 1.0

    def largest_of(self, size: int) -> float:
        return self.largest


@condition_noises.register(
    "decay", reference="arXiv:2111.13606, VS-CMDE", formula="largest = K e s / (n (s - e) + K e) after n of K updates"
)
@dataclass(frozen=True)
class Decay(UpTo):
    """Geometric levels whose largest one falls from ``start`` to ``end`` during the training, and then stays.

    A run samples with the level of its last update.

    Args:
        start: by default the root of the number of a row's numbers, as in the paper.
        end: the largest level after ``steps`` updates.
        made: how many updates have been made.
    """

    start: float | None = None
    end: Positive = 1.0
    steps: Count = 500_000
    made: Annotated[int, Range(0)] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start is not None and not self.end <= self.start < math.inf:
            raise InputError(f"decay: start must be at least end={self.end:g}, got {self.start:g}")

    def largest_of(self, size: int) -> float:
        start = max(math.sqrt(size), self.end) if self.start is None else self.start
        whole = self.steps * self.end
        return whole * start / (min(self.made, self.steps) * (start - self.end) + whole)

    def after(self, updates: int) -> Self:
        return replace(self, made=updates)


condition_noises.add_labels({"cde": "none", "cdiffe": "same", "cmde": "geometric(largest=1.0)", "vs_cmde": "decay"})


def noise_of(spec: str | ConditionNoise | None) -> ConditionNoise | None:
    """The noise of a spec; None for ``none``."""
    made = None if spec is None else condition_noises.make(spec)
    return None if isinstance(made, Without) else made


def keyed(noise: ConditionNoise | None, seeds: Sequence[int], device: torch.device | str) -> dict[str, Tensor]:
    """The condition ``KEYS`` of samples with these seeds; nothing without noise."""
    return {} if noise is None else {KEYS: level_keys(seeds).to(device)}


def noised(
    noise: ConditionNoise, given: Mapping[str, Any], known: Sequence[Condition], node: Any, sde: SDE, numbers: Numbers
) -> dict[str, Any]:
    """The conditions, with y_t in place of each vector and image y; an empty row stays empty.

    Args:
        given: the conditions by name, each (B, *).
        node: one node for all samples, or one of the times (B,).
        numbers: the source of e.
    """
    found, first = dict(given), 0
    ratio = torch.as_tensor(node.ratio, dtype=torch.float64).detach().cpu().flatten()
    there = [condition for condition in known if condition.kind in _NOISED and condition.name in found]
    sizes = [math.prod(condition.shape) for condition in there]
    for condition, size in zip(there, sizes, strict=True):
        y, level = found[condition.name], noise.level(ratio, sde, size)
        wide = level.to(y).view(-1, *(1,) * (y.ndim - 1))
        e = numbers(level, sum(sizes))[:, first : first + size].view_as(y)
        found[condition.name] = (y + wide * e) / (1 + wide**2).sqrt()
        first += size
    return found


def of_keys(noise: ConditionNoise, keys: Tensor, dtype: torch.dtype) -> Numbers:
    """The numbers of samples with keys (B, 2)."""
    made = path_numbers if noise.path else fresh_numbers
    return lambda levels, count: made(keys, levels, count, dtype)


def missing_keys(noise: ConditionNoise) -> InputError:
    """The error of a prediction without keys."""
    return InputError(
        f"the model was trained with condition_noise={noise}: its predictions depend on a sample's noise, which only "
        f"sample and encode have; log_prob and bounds need condition_noise=none (or pass {KEYS}, of level_keys(seeds))"
    )
