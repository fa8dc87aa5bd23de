"""Forward processes of discrete states: each token keeps its value, is drawn again, masked, or moves to another one.

Posteriors and reverse rates, which every process has, are those of ``solvers.types.process``.
"""

from .base import ScheduledProcess, make_process, processes
from .dense import BirthDeath, DenseRate, DiscretisedGaussian
from .masks import Hybrid, MaskByState, MaskReplace
from .rank_one import Absorbing, Binomial, RankOne, Uniform
from .schedules import ProcessSchedule, process_schedules
from .steps import DenseSteps, GaussianSteps

__all__ = [
    "Absorbing",
    "Binomial",
    "BirthDeath",
    "DenseRate",
    "DenseSteps",
    "DiscretisedGaussian",
    "GaussianSteps",
    "Hybrid",
    "MaskByState",
    "MaskReplace",
    "ProcessSchedule",
    "RankOne",
    "ScheduledProcess",
    "Uniform",
    "make_process",
    "process_schedules",
    "processes",
]
