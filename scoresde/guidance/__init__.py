"""Guidance: models that combine several predictions, as other models."""

from .base import Guidance, guidances
from .guide import guide
from .guided import Guided
from .linear import CFG, CFGPP, Autoguidance, Classifier, Compose, Negative
from .nonlinear import APG, Rescale, Threshold, ZeroStar

__all__ = [
    "APG",
    "CFG",
    "CFGPP",
    "Autoguidance",
    "Classifier",
    "Compose",
    "Guidance",
    "Guided",
    "Negative",
    "Rescale",
    "Threshold",
    "ZeroStar",
    "guidances",
    "guide",
]
