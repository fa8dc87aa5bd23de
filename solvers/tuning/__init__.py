"""Grids tuned for a solver on a model: reference trajectories, and searches for the grid with the least error."""

from .choice import Choice, Setting, choose
from .decoding import decoding_costs, jump_your_steps
from .grids import Trajectory, TunedGrid, trajectory, tune_grid

__all__ = [
    "Choice",
    "Setting",
    "Trajectory",
    "TunedGrid",
    "choose",
    "decoding_costs",
    "jump_your_steps",
    "trajectory",
    "tune_grid",
]
