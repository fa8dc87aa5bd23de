"""The exponential moving average of a network's weights, with a warm-up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from solvers import InputError


def decay_at(updates: int, decay: float) -> float:
    """The decay after n = ``updates`` updates: min(decay, (1 + n) / (10 + n)), small at first to forget the start."""
    return min(decay, (1 + updates) / (10 + updates))


def averaged(network: nn.Module, decay: float) -> AveragedModel:
    """A copy of the network that averages its weights and buffers; integers, such as counters, are copied.

    ``update_parameters(network)`` updates the average (the first call copies), ``module`` is the averaged network, and
    ``n_averaged`` counts the updates.

    Raises:
        InputError: the decay is not in [0, 1).
    """
    if not 0 <= decay < 1:
        raise InputError(f"ema_decay must be at least 0 and less than 1, got {decay!r}")
    return AveragedModel(network, multi_avg_fn=_warmed(decay), use_buffers=True)


def _warmed(decay: float) -> Callable[[Any, Any, Any], None]:
    @torch.no_grad()
    def update(mean: Any, current: Any, updates: Any) -> None:
        weight = 1 - decay_at(int(updates), decay)
        for old, new in zip(mean, current, strict=True):
            if old.is_floating_point() or old.is_complex():
                old.lerp_(new, weight)
            else:
                old.copy_(new)

    return update
