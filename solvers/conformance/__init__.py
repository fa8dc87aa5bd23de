"""Checks that every solver must pass, and the analytic problems that they are run on."""

from .checks import check, verdicts
from .convergence import measured_order, reaches, terminal_variance
from .problems import VE, VP, GaussianData, Mixture, OrthogonalNoise
from .verdict import Check

__all__ = [
    "VE",
    "VP",
    "Check",
    "GaussianData",
    "Mixture",
    "OrthogonalNoise",
    "check",
    "measured_order",
    "reaches",
    "terminal_variance",
    "verdicts",
]
