"""Time grids chosen for a model: trajectories of one solve, and searches for the grid with the least error."""

from .grids import Trajectory, TunedGrid, trajectory, tune_grid

__all__ = ["Trajectory", "TunedGrid", "trajectory", "tune_grid"]
