"""The types of a solve: nodes, predictions, paths, problems, solvers, noise, model outputs."""

from .model_output import Output
from .node import AnyNode, Node, Prediction
from .problem import NoDensity, Problem, ProblemWrapper, as_problem
from .schedule import Schedule, as_schedule
from .solver import Corrector, Noise, NoiseSource, Solver, Step, correctors, solvers

__all__ = [
    "AnyNode",
    "Corrector",
    "NoDensity",
    "Node",
    "Noise",
    "NoiseSource",
    "Output",
    "Prediction",
    "Problem",
    "ProblemWrapper",
    "Schedule",
    "Solver",
    "Step",
    "as_problem",
    "as_schedule",
    "correctors",
    "solvers",
]
