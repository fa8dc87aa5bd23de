"""Time grids: rules that place the nodes of a solve, by noise level, by network step, or from a file."""

from .base import Grid, grid, grids
from .few import Few, few_tables
from .files import FileGrid
from .network_steps import DDIMQuad, Leading, Linspace, SGMUniform, Trailing, time_of_index, train_timesteps
from .noise_levels import (
    IDDPM,
    Beta,
    BongTangent,
    FlowShift,
    KarrasExponential,
    KLOptimal,
    Laplace,
    LinearQuadratic,
    Polyexponential,
    VEGeometric,
    VPTime,
)
from .published import AYS, GITS, Resampled
from .rules import Explicit, Karras, LogSNR, Quadratic, Uniform

__all__ = [
    "AYS",
    "GITS",
    "IDDPM",
    "Beta",
    "BongTangent",
    "DDIMQuad",
    "Explicit",
    "Few",
    "FileGrid",
    "FlowShift",
    "Grid",
    "KLOptimal",
    "Karras",
    "KarrasExponential",
    "Laplace",
    "Leading",
    "LinearQuadratic",
    "Linspace",
    "LogSNR",
    "Polyexponential",
    "Quadratic",
    "Resampled",
    "SGMUniform",
    "Trailing",
    "Uniform",
    "VEGeometric",
    "VPTime",
    "few_tables",
    "grid",
    "grids",
    "time_of_index",
    "train_timesteps",
]
