"""Names of other programs for solvers, grids, diffusers' classes and flags, and eta, in terms of this library."""

from .eta import convert_eta

__all__ = ["convert_eta"]
