"""Solvers of discrete states: tokens such as letters, levels and bits.

A step yields laws of the next state; drawing from them makes samples, and summing over them exact kernels.
"""

from . import correctors, decode, entropy_bounded, exact, gibbs, posteriors, psi, rates, sharpened, two_stage
from .base import DiscreteSolver, OneOf, Product

__all__ = [
    "DiscreteSolver",
    "OneOf",
    "Product",
    "correctors",
    "decode",
    "entropy_bounded",
    "exact",
    "gibbs",
    "posteriors",
    "psi",
    "rates",
    "sharpened",
    "two_stage",
]
