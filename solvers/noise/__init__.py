"""Noise of a solve: standard normal numbers for an interval of time, per sample and by its seed alone."""

from .brownian import BrownianNoise
from .seeded import SeededNoise, generator

__all__ = ["BrownianNoise", "SeededNoise", "generator"]
