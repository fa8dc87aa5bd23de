"""Networks on a learned path: joins the network and the schedule into one module, so that both train together."""

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

    def forward(self, x: Tensor, label: Tensor, /, **conditions: Tensor) -> Any:
        """The output of the network."""
        return self.network(x, label, **conditions)


def with_schedule(network: nn.Module, sde: SDE) -> nn.Module:
    """The module to pass to ``train``: the network, joined with the schedule if the path is a learned one."""
    return WithSchedule(network, sde.module) if isinstance(sde, LearnedVP) else network


def with_network(denoiser: Denoiser, network: nn.Module) -> Denoiser:
    """The denoiser with ``network`` in place of its own, such as the average that ``train`` returns.

    On a learned path the schedule of ``network`` replaces the path's schedule as well.

    Raises:
        InputError: the path is a learned one, but ``network`` contains no schedule.
    """
    sde = denoiser.sde
    if isinstance(sde, LearnedVP):
        if not isinstance(network, WithSchedule):
            raise InputError("the network of a learned path must contain its schedule: see with_schedule")
        sde = sde.holding(network.schedule)
    return replace(denoiser, network=network, sde=sde)
