"""Benchmarks: solvers compared on one model, and distances between sets of samples."""

from .metrics import Estimate, compare
from .rows import Row, record
from .runner import benchmark
from .truth import Truth, ode_solution

__all__ = ["Estimate", "Row", "Truth", "benchmark", "compare", "ode_solution", "record"]
