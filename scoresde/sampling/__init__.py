"""Sampling and encoding: plans, batching, the solve itself, and CUDA graphs of programs."""

from .batches import Batching
from .plan import Plan
from .sample import Sample, encode

__all__ = ["Batching", "Plan", "Sample", "encode"]
