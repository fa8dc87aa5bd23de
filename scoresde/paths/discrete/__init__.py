"""Forward processes of discrete states: each token keeps its value, is drawn again, or is masked.

What reverses them, posteriors and rates, follows in ``solvers.types.process``.
"""

from .base import ScheduledProcess, processes
from .rank_one import Absorbing, Binomial, RankOne, Uniform
from .schedules import ProcessSchedule, process_schedules

__all__ = [
    "Absorbing",
    "Binomial",
    "ProcessSchedule",
    "RankOne",
    "ScheduledProcess",
    "Uniform",
    "process_schedules",
    "processes",
]
