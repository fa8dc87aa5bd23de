"""Solvers for diffusion models: nodes, grids, noise, one loop over time, a registry.

This package does not depend on networks or training.
"""

from . import adaptive, discrete, multistep, one_step, program, time_grids, wrappers  # noqa: F401  (imports register classes)
from .budget import evaluations, startup, steps_of_nfe
from .errors import InputError
from .foreign.eta import convert_eta
from .foreign.resolve import resolve
from .loop import Hook, Solution, solve
from .noise.brownian import BrownianNoise
from .noise.seeded import SeededNoise, generator
from .program.analysis import difference, equal, response, terminal_covariance
from .program.program import Program
from .program.trace import trace
from .registry.registry import Info, Registry
from .time_grids.base import Grid, grid, grids
from .tuning.choice import Choice, choose
from .tuning.grids import Trajectory, TunedGrid, trajectory, tune_grid
from .tuning.programs import tune_program
from .tuning.table import Table
from .tuning.tuned_program import TunedProgram
from .types.model_output import Output
from .types.node import AnyNode, Node, Prediction, Rows
from .types.problem import Problem, ProblemWrapper, as_problem
from .types.schedule import Schedule
from .types.solver import Corrector, Noise, NoiseSource, Solver, Step, correctors
from .types.solver import solvers as solvers  # not in __all__: an import of * would replace the package's own name

__version__ = "0.1.0"

register = solvers.register
names = solvers.names
info = solvers.info
make = solvers.make

__all__ = [
    "AnyNode",
    "BrownianNoise",
    "Choice",
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
    "Table",
    "Trajectory",
    "TunedGrid",
    "TunedProgram",
    "__version__",
    "as_problem",
    "choose",
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
    "startup",
    "steps_of_nfe",
    "terminal_covariance",
    "trace",
    "trajectory",
    "tune_grid",
    "tune_program",
]
