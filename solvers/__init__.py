"""Solvers of diffusion models: nodes, grids, noise, one loop, a registry. Knows nothing of networks or training."""

from . import (  # noqa: F401  (they register)
    adams,
    adaptive_adams,
    adaptive_sde,
    afs,
    ancestral,
    ancestral_steps,
    blackbox,
    compose,
    discrete_grids,
    embedded,
    er_sde,
    exponential,
    grid_files,
    grid_tables,
    langevin,
    picard,
    recorded,
    refined,
    restart,
    runge_kutta,
    seeds,
    sigma_grids,
    singlestep,
    unified,
)
from .analysis import difference, equal, response, terminal_covariance
from .brownian import BrownianNoise
from .control import Control, FixedGrid
from .errors import InputError
from .eta import convert_eta
from .grids import Grid, Schedule, grid, grids
from .loop import Hook, Solution, evaluations, solve, startup, steps_of_nfe
from .names import resolve
from .noise import SeededNoise, generator
from .outputs import Output
from .program import Program
from .registry import Info, Registry
from .trace import trace
from .tuning import Trajectory, TunedGrid, trajectory, tune_grid
from .types import Corrector, Node, Noise, Prediction, Problem, Rows, Solver, Step, correctors, solvers

register = solvers.register
names = solvers.names
info = solvers.info
make = solvers.make

__all__ = [
    "BrownianNoise",
    "Control",
    "Corrector",
    "FixedGrid",
    "Grid",
    "Hook",
    "Info",
    "InputError",
    "Node",
    "Noise",
    "Output",
    "Prediction",
    "Problem",
    "Program",
    "Registry",
    "Rows",
    "Schedule",
    "SeededNoise",
    "Solution",
    "Solver",
    "Step",
    "Trajectory",
    "TunedGrid",
    "convert_eta",
    "correctors",
    "difference",
    "equal",
    "evaluations",
    "generator",
    "grid",
    "grids",
    "info",
    "make",
    "names",
    "register",
    "resolve",
    "response",
    "solve",
    "solvers",
    "startup",
    "steps_of_nfe",
    "terminal_covariance",
    "trace",
    "trajectory",
    "tune_grid",
]
