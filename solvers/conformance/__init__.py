"""Checks that every solver must pass, and the analytic problems that they are run on."""

from .convergence import measured_order, reaches
from .problems import VE, VP, GaussianData, Mixture, OrthogonalNoise

__all__ = ["VE", "VP", "GaussianData", "Mixture", "OrthogonalNoise", "measured_order", "reaches"]
