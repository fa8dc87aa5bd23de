"""Grids tuned for a solver on a model: reference trajectories, and searches for the grid with the least error."""

from .grids import Trajectory, TunedGrid, trajectory, tune_grid

__all__ = ["Trajectory", "TunedGrid", "trajectory", "tune_grid"]
