"""Nodes of noise levels, and functions of noise levels whose derivatives are central differences."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..time_grids.noise_levels import time_of
from ..types.node import Node
from ..types.schedule import Schedule
from .search import Array

STEP = 1e-5
"""The step of a difference in log(sigma / alpha): its error is about 1e-10, that of rounding about 1e-11."""
_NEAR = 1e-6  # the largest relative difference between a noise level and its node's


class Differences(torch.autograd.Function):
    """A function of log(sigma / alpha) (n,) -> (m,), computed in float64 by NumPy, with derivatives by differences.

    Where a path ends, differences are one-sided: the function is evaluated between ``low`` and ``high`` only. Values
    that are NaN, such as derivatives that a path does not define, have the derivative 0.
    """

    @staticmethod
    def forward(ctx: Any, levels: Tensor, function: Callable[[Array], Array], low: float, high: float) -> Tensor:
        ctx.save_for_backward(levels)
        ctx.function, ctx.low, ctx.high = function, low, high
        return torch.from_numpy(function(levels.detach().numpy().copy()))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        at = ctx.saved_tensors[0].detach().numpy()
        slopes = []
        for k in range(len(at)):
            up, down = at.copy(), at.copy()
            up[k], down[k] = min(at[k] + STEP, ctx.high), max(at[k] - STEP, ctx.low)
            slopes.append((ctx.function(up) - ctx.function(down)) / (up[k] - down[k]))
        jacobian = torch.from_numpy(np.nan_to_num(np.array(slopes)).reshape(len(at), -1))
        return jacobian @ torch.nan_to_num(gradients[0]), None, None, None


def range_of(schedule: Schedule) -> tuple[float, float]:
    """The least and the greatest log(sigma / alpha) of a path."""
    low, high = schedule(schedule.t_min), schedule(schedule.t_max)
    return -low.lam, -high.lam


def node_of(schedule: Schedule, ratio: float) -> Node:
    """The node of a noise level sigma / alpha; of 0 it is the data.

    Raises:
        InputError: the path does not reach it.
    """
    if ratio == 0:
        return schedule.clean
    ends = [schedule(t) for t in (schedule.t_min, schedule.t_max)]
    for end in ends:
        if end.ratio == ratio:
            return end
    node = schedule(time_of(schedule, ratio, schedule.t_min, schedule.t_max))
    if not math.isclose(node.ratio, ratio, rel_tol=_NEAR):
        shown = " to ".join(f"{end.ratio:.4g}" for end in ends)
        raise InputError(f"the path {schedule} has sigma / alpha from {shown}, and {ratio:.4g} is needed")
    return node


def node_at(schedule: Schedule, ratio: Tensor, x: Tensor, ends: tuple[float, float]) -> Node | Node[Tensor]:
    """The node of a noise level (), for a model that is evaluated at x (B, *); ``ends`` is the path's ``range_of``.

    If gradients of the level are needed, its numbers are tensors (B, 1, ..., 1), float64, through which they pass.
    """
    level = ratio.log().clamp(*ends)
    if not (ratio.requires_grad and torch.is_grad_enabled()):
        return schedule.node_of_lam(-level.item())

    def numbers(levels: Array) -> Array:
        node = schedule.node_of_lam(-float(levels[0]))
        return np.array([node.t, node.alpha, node.sigma, node.dalpha, node.dsigma])

    found: Tensor = Differences.apply(level.view(1), numbers, *ends)  # type: ignore[no-untyped-call]
    shape = (len(x),) + (1,) * (x.ndim - 1)
    return Node(*(number.expand(len(x)).view(shape) for number in found))
