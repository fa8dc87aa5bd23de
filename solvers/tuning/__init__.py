"""The best solver for a budget, and grids and programs tuned to a model: searches for the least error in few steps."""

from .choice import Choice, Setting, choose
from .decoding import bound_costs, decoding_costs, jump_your_steps, tightest_grid
from .grids import Trajectory, TunedGrid, trajectory, tune_grid
from .losses import TuningLoss, tuning_losses
from .programs import tune_program
from .table import Table
from .tuned_program import TunedProgram

__all__ = [
    "Choice",
    "Setting",
    "Table",
    "Trajectory",
    "TunedGrid",
    "TunedProgram",
    "TuningLoss",
    "bound_costs",
    "choose",
    "decoding_costs",
    "jump_your_steps",
    "tightest_grid",
    "trajectory",
    "tune_grid",
    "tune_program",
    "tuning_losses",
]
