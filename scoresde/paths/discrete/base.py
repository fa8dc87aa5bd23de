"""The base class of processes whose rates follow one schedule, and their registry."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, overload

import torch
from torch import Tensor

from solvers import InputError, Registry
from solvers.registry.options import Options
from solvers.types.process import Clock, Process, ProcessNode

from .schedules import Linear, ProcessSchedule


@dataclass(frozen=True)
class ScheduledProcess(Options, Process):
    """A process with one clock, -log alpha(t); its author adds transitions and the generator, per unit of the clock.

    ``t_min`` and ``t_max`` limit grids; t_max is the schedule's unless told otherwise.
    """

    schedule: ProcessSchedule = field(default_factory=Linear, kw_only=True)
    t_min: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.t_min < self.t_max:
            raise InputError(f"{type(self).__name__}: t_min must lie in [0, {self.t_max:g}), got {self.t_min:g}")

    @property
    def t_max(self) -> float:
        """The schedule's last time."""
        return self.schedule.t_max

    @overload  # type: ignore[override]
    def __call__(self, t: float) -> ProcessNode: ...
    @overload
    def __call__(self, t: Tensor) -> ProcessNode[Tensor]: ...
    def __call__(self, t: float | Tensor) -> ProcessNode | ProcessNode[Tensor]:
        """The node at a time: for a float in float64; for a tensor (B,) with one node for each sample.

        Raises:
            InputError: a float t is outside [0, t_max].
        """
        if isinstance(t, Tensor):
            return ProcessNode(t, self.clocks(t.double()))
        if not 0 <= t <= self.t_max:
            raise InputError(f"t={t:g} is outside [0, {self.t_max:g}], where {self} is defined")
        clocks = self.clocks(torch.tensor(float(t), dtype=torch.float64))
        return ProcessNode(float(t), tuple(float(clock) + 0.0 for clock in clocks))

    def clocks(self, t: Tensor) -> tuple[Tensor, ...]:
        """The integrals of the rates of the process's parts at times t, float64."""
        return (self.schedule.clock(t),)

    def time_of(self, reading: float, clock: Clock = "natural") -> float:
        if self.mask is None or clock == "rate":
            return min(max(self.schedule.time_of(-reading), 0.0), self.t_max)
        # reading = -log(1 - alpha), so that -log alpha = -log(1 - exp(-reading))
        return (
            min(max(self.schedule.time_of(-math.log(-math.expm1(-reading))), 0.0), self.t_max)
            if reading
            else (self.t_max)
        )

    def reading(self, node: ProcessNode, clock: Clock = "natural") -> float:
        if self.mask is None or clock == "rate":
            return -node.clock
        gone = -math.expm1(-node.clock)
        return -math.log(gone) if gone > 0 else math.inf

    def speed(self, node: ProcessNode, clock: Clock = "natural") -> float:
        if self.mask is None or clock == "rate":
            return 1.0
        return math.expm1(node.clock) if node.clock < 700 else math.inf

    def __str__(self) -> str:
        return processes.format(self)


processes: Registry[ScheduledProcess] = Registry("process", ScheduledProcess)


def spread(value: Any, x: Tensor) -> Tensor:
    """A number of a node as a float64 tensor that broadcasts against laws (B, *, S) of states x (B, *)."""
    number = torch.as_tensor(value, dtype=torch.float64, device=x.device)
    return number.view(-1, *(1,) * x.ndim) if number.ndim else number
