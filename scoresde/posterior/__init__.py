"""Draws of p(x0 | y), where y = A(x0) + sigma n was measured: methods by name, over any model and solver."""

from . import check, ddrm, denoisers, loops, particles, replacement
from .base import Posterior, posteriors

make = posteriors.make
names = posteriors.names

__all__ = [
    "Posterior",
    "check",
    "ddrm",
    "denoisers",
    "loops",
    "make",
    "names",
    "particles",
    "posteriors",
    "replacement",
]
