"""Wrappers: solvers built around another solver; and the correctors that ``pc`` uses."""

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
