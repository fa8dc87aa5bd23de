"""Noise of a solve: standard normal numbers for an interval of time; those of a sample depend only on its seed."""

from .brownian import BrownianNoise
from .seeded import SeededNoise, generator

__all__ = ["BrownianNoise", "SeededNoise", "generator"]
