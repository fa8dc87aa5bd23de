"""Models on a learned path: a network and the schedule of its path, trained, averaged and saved as one module."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from solvers import InputError

from ..paths.base import SDE
from ..paths.learned_vp import GammaNetwork, LearnedVP
from .denoiser import Denoiser


class WithSchedule(nn.Module):
    """A network and the schedule of its path as one module: trained, averaged, saved and moved together."""

    def __init__(self, network: nn.Module, schedule: GammaNetwork) -> None:
        super().__init__()
        self.network, self.schedule = network, schedule

    def forward(self, x: Tensor, label: Tensor, **conditions: Tensor) -> Any:
        """The network's answer."""
        return self.network(x, label, **conditions)


def with_schedule(network: nn.Module, sde: SDE) -> nn.Module:
    """What ``train`` is to train: the network, together with the schedule where the path has a learned one."""
    return WithSchedule(network, sde.module) if isinstance(sde, LearnedVP) else network


def with_network(denoiser: Denoiser, network: nn.Module) -> Denoiser:
    """The denoiser with a copy of its network, such as ``train``'s average, and on a learned path with that copy's
    schedule.

    Raises:
        InputError: the path is a learned one, and the copy holds no schedule.
    """
    sde = denoiser.sde
    if isinstance(sde, LearnedVP):
        if not isinstance(network, WithSchedule):
            raise InputError("the network of a learned path comes with its schedule: see with_schedule")
        sde = sde.holding(network.schedule)
    return replace(denoiser, network=network, sde=sde)
