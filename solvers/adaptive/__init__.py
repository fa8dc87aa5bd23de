"""Adaptive solvers: they estimate their error and choose their own inner steps in each interval of the grid."""

from .adams import AdamsAdaptive
from .base import Adaptive, Progress
from .embedded_pairs import RK23, RK45, DPMAdaptive, Tsit5
from .gotta_go_fast import GottaGoFast, Increments
from .other_libraries import BlackBox, Dopri5, Scipy, TorchDiffEq

__all__ = [
    "RK23",
    "RK45",
    "AdamsAdaptive",
    "Adaptive",
    "BlackBox",
    "DPMAdaptive",
    "Dopri5",
    "GottaGoFast",
    "Increments",
    "Progress",
    "Scipy",
    "TorchDiffEq",
    "Tsit5",
]
