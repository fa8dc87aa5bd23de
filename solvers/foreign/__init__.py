"""What other programs call things: labels of solvers and grids, diffusers' classes and flags, and eta."""

from .eta import convert_eta

__all__ = ["convert_eta"]
