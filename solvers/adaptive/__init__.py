"""Adaptive solvers: they choose their own steps inside each interval, by an estimate of the error."""

from .adams import AdamsAdaptive
from .base import Adaptive, Row
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
    "Row",
    "Scipy",
    "TorchDiffEq",
    "Tsit5",
]
