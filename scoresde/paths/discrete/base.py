"""The base class of processes whose rates follow one schedule, and their registry."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, overload

import torch
from torch import Tensor

from solvers import InputError, Registry
from solvers.errors import shown
from solvers.registry.options import Options
from solvers.registry.spec import Spec
from solvers.types.process import Clock, DiscretePrediction, Process, ProcessNode

from .schedules import Linear, ProcessSchedule, process_schedules

ENDLESS = 300.0
"""A clock -log alpha beyond which 1 - alpha is 1 in float64, while products with alpha still have all their digits."""


@dataclass(frozen=True)
class ScheduledProcess(Options, Process):
    """A process with one clock, -log alpha(t); its author adds transitions and the generator, per unit of the clock.

    ``t_min`` and ``t_max``, the schedule's last time, limit grids.

    Args:
        schedule: alpha(t), or its spec such as "cosine".
        t_min: where grids that are asked to end there end, and bounds in continuous time.
    """

    schedule: ProcessSchedule = field(default_factory=Linear, kw_only=True)
    t_min: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "schedule", process_schedules.make(self.schedule))  # which may be a spec
        super().__post_init__()
        if not 0 <= self.t_min < self.t_max:
            raise InputError(f"{type(self).__name__}: t_min must lie in [0, {self.t_max:g}), got {self.t_min:g}")

    @property
    def t_max(self) -> float:
        """The schedule's last time."""
        return self.schedule.t_max

    @overload  # type: ignore[override]  # see Process
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
            return self.within(self.schedule.time_of(-reading))
        # reading = -log(1 - alpha), so that -log alpha = -log(1 - exp(-reading))
        return self.within(self.schedule.time_of(-math.log(-math.expm1(-reading)) if reading > 0 else math.inf))

    def within(self, t: float) -> float:
        """The time in [0, t_max] that is nearest to t."""
        return min(max(t, 0.0), self.t_max)

    def masked(self, node: ProcessNode) -> float:
        """The probability that a token is masked at a node, of a process with a mask."""
        return -math.expm1(-node.clocks[0])

    def reading(self, node: ProcessNode, clock: Clock = "natural") -> float:
        if self.mask is None or clock == "rate":
            return -node.clock
        gone = self.masked(node)
        return -math.log(gone) if gone > 0 else math.inf

    def speed(self, node: ProcessNode, clock: Clock = "natural") -> float:
        if self.mask is None or clock == "rate":
            return 1.0
        return math.expm1(min(node.clocks[0], ENDLESS))

    def rates(self, prediction: DiscretePrediction, x: Tensor, t: ProcessNode, clock: Clock = "natural") -> Tensor:
        """The rates (B, *, S) of the reverse process out of x, per unit of a clock; 0 at y = x.

        Where alpha is 0 they are their limit: there the natural clock of a process with a mask is infinitely fast and
        the ratios are 0.

        Raises:
            InputError: alpha is 0 and the prediction is a concrete score, which has no such limit.
        """
        if self.mask is None or clock == "rate" or t.clocks[0] <= ENDLESS:
            return super().rates(prediction, x, t, clock)
        if prediction.ratios is not None:
            raise self._no_score(t)
        return super().rates(prediction, x, replace(t, clocks=(ENDLESS, *t.clocks[1:])), clock)

    def x0_of_ratios(self, ratios: Tensor, x: Tensor, t: ProcessNode[Any]) -> Tensor:
        """See ``Process``.

        Raises:
            InputError: alpha is 0 at t, so that the concrete score does not depend on the clean tokens.
        """
        if not isinstance(t.clock, Tensor) and math.isinf(t.clock):
            raise self._no_score(t)
        return super().x0_of_ratios(ratios, x, t)

    def _no_score(self, t: ProcessNode) -> InputError:
        return InputError(
            f"nothing of the data is left at t={t.t:g} of {self}, so that a concrete score does not show the clean "
            "tokens: begin at a smaller t, or use a schedule that leaves some, such as loglinear"
        )

    def __str__(self) -> str:
        return processes.format(self)


processes: Registry[Process] = Registry("process", Process)


def make_process(spec: str | Spec | Process) -> Process:
    """Makes the process that a spec names; returns a process unchanged.

    >>> str(make_process("absorbing(27, schedule=cosine)"))
    'absorbing(schedule=cosine, states=27)'

    Raises:
        InputError: the name or an option is unknown, or an option is outside its range; it is neither.
    """
    if not isinstance(spec, (str, Spec, Process)):
        raise InputError(f"process must be one of discrete states, such as scoresde.Absorbing(27), got {shown(spec)}")
    return processes.make(spec)


def row_of(values: Any, name: str) -> tuple[float, ...]:
    """Numbers (S,) of any kind as a tuple of floats.

    Raises:
        InputError: they are no row of numbers.
    """
    try:
        row = torch.as_tensor(values, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        row = torch.zeros(())
    if row.ndim != 1:
        raise InputError(f"{name} must be a row of numbers, got {shown(values)}")
    return tuple(row.tolist())


def spread(value: Any, x: Tensor) -> Tensor:
    """A number of a node as a float64 tensor that broadcasts against laws (B, *, S) of states x (B, *)."""
    number = torch.as_tensor(value, dtype=torch.float64, device=x.device)
    return number.view(-1, *(1,) * x.ndim) if number.ndim else number
