"""Schedules of the learning rate: the factor of the rate as a function of the updates made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from solvers import Registry
from solvers.registry.options import Options
from solvers.registry.ranges import Positive, Range


class Schedule(Options):
    """A schedule of the learning rate; a frozen dataclass whose fields are its options."""

    def factor(self, step: int, steps: int, warmup: int) -> float:
        """The factor of the learning rate for the update that follows ``step`` of ``steps`` updates.

        Args:
            step: updates made.
            steps: updates in total.
            warmup: updates over which the rate rises linearly; the factor of the warm-up is applied by the caller.
        """
        raise NotImplementedError

    def __str__(self) -> str:
        return schedules.format(self)


schedules: Registry[Schedule] = Registry("schedule of the learning rate", Schedule)


def warm_up(step: int, warmup: int) -> float:
    """The factor of the warm-up, min(1, (step + 1) / warmup); 1 without one."""
    return min(1.0, (step + 1) / warmup) if warmup else 1.0


@schedules.register("constant", reference="Ho et al. 2020, arXiv:2006.11239, appendix B")
@dataclass(frozen=True)
class Constant(Schedule):
    """The same rate throughout."""

    def factor(self, step: int, steps: int, warmup: int) -> float:
        return 1.0


@schedules.register("cosine", reference="Loshchilov and Hutter 2017, arXiv:1608.03983, eq. 5, without restarts")
@dataclass(frozen=True)
class Cosine(Schedule):
    """end + (1 - end) (1 + cos(pi p)) / 2, with the part p of the updates after the warm-up that are made.

    It depends on the number of steps: a run that is resumed with more steps is not the run that had more from the
    start.

    Args:
        end: the factor at the end.
    """

    end: Annotated[float, Range(0, 1)] = 0.0

    def factor(self, step: int, steps: int, warmup: int) -> float:
        made = min(1.0, max(0, step - warmup) / max(1, steps - warmup))
        return self.end + (1 - self.end) * 0.5 * (1 + math.cos(math.pi * made))


@schedules.register("inverse_sqrt", reference="Karras et al. 2024, arXiv:2312.02696, eq. 67")
@dataclass(frozen=True)
class InverseSqrt(Schedule):
    """1 / sqrt(max(1, step / after)): constant for ``after`` updates, then falling with the root of their number.

    It does not depend on the number of steps, so that a run can be extended.

    Args:
        after: updates before the rate falls.
    """

    after: Positive = 2000.0

    def factor(self, step: int, steps: int, warmup: int) -> float:
        return 1 / math.sqrt(max(1.0, step / self.after))
