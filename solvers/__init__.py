"""Solvers of diffusion models: nodes, grids, noise, one loop, a registry. Knows nothing of networks or training."""

from . import (  # noqa: F401  (they register)
    adams,
    adaptive_adams,
    adaptive_sde,
    afs,
    ancestral,
    ancestral_steps,
    blackbox,
    churn,
    discrete_grids,
    embedded,
    er_sde,
    exponential,
    grid_files,
    grid_tables,
    langevin,
    last_steps,
    picard,
    predictor_corrector,
    recorded,
    refined,
    restart,
    rules,
    runge_kutta,
    sa_solver,
    seeds,
    sigma_grids,
    singlestep,
    step_doubling,
    uni_pc,
)
from .analysis import difference, equal, response, terminal_covariance
from .brownian import BrownianNoise
from .budget import evaluations, startup, steps_of_nfe
from .errors import InputError
from .eta import convert_eta
from .grids import Grid, grid, grids
from .loop import Hook, Solution, solve
from .names import resolve
from .node import AnyNode, Node, Prediction, Rows
from .noise import SeededNoise, generator
from .outputs import Output
from .problem import Problem, ProblemWrapper, as_problem
from .program import Program
from .registry import Info, Registry
from .schedule import Schedule
from .trace import trace
from .tuning import Trajectory, TunedGrid, trajectory, tune_grid
from .types import Corrector, Noise, NoiseSource, Solver, Step, correctors, solvers

__version__ = "0.1.0"

register = solvers.register
names = solvers.names
info = solvers.info
make = solvers.make

__all__ = [
    "AnyNode",
    "BrownianNoise",
    "Corrector",
    "Grid",
    "Hook",
    "Info",
    "InputError",
    "Node",
    "Noise",
    "NoiseSource",
    "Output",
    "Prediction",
    "Problem",
    "ProblemWrapper",
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
    "__version__",
    "as_problem",
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
