"""Solvers made of other solvers, and the correctors that they take."""

from .analytical_first_step import AFS
from .churn import Churn
from .correctors import MALA, AnnealedLangevin, Langevin, NoiseRenewal
from .last_steps import Final
from .picard import Picard
from .predictor_corrector import PC
from .restart import Restart
from .step_doubling import StepDoubling

__all__ = [
    "AFS",
    "MALA",
    "PC",
    "AnnealedLangevin",
    "Churn",
    "Final",
    "Langevin",
    "NoiseRenewal",
    "Picard",
    "Restart",
    "StepDoubling",
]
