"""Benchmarks: solvers on one model side by side, and the metrics that compare samples."""

from .metrics import Estimate, compare
from .runner import Row, Truth, benchmark, ode_solution, record

__all__ = ["Estimate", "Row", "Truth", "benchmark", "compare", "ode_solution", "record"]
