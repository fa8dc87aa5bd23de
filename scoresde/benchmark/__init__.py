"""Benchmarks: solvers compared on one model, and distances between sets of samples."""

from .metrics import Estimate, compare
from .runner import Row, Truth, benchmark, ode_solution, record

__all__ = ["Estimate", "Row", "Truth", "benchmark", "compare", "ode_solution", "record"]
