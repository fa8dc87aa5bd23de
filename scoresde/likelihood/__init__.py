"""Log-likelihood by the probability-flow ODE, with estimates of its errors; dequantisation of discrete data."""

from .density_ode import DensitySolve, WithLogDensity
from .dequantisation import TruncatedNormal, UniformNoise, dequantisers
from .divergence import Divergence, Exact, Hutchinson, HutchPP, Orthogonal, divergences
from .learned_dequantisation import Saved, VariationalDequantiser, fit_dequantiser, load_dequantiser, save_dequantiser
from .log_prob import dequantise
from .result import LogProb

__all__ = [
    "DensitySolve",
    "Divergence",
    "Exact",
    "HutchPP",
    "Hutchinson",
    "LogProb",
    "Orthogonal",
    "Saved",
    "TruncatedNormal",
    "UniformNoise",
    "VariationalDequantiser",
    "WithLogDensity",
    "dequantise",
    "dequantisers",
    "divergences",
    "fit_dequantiser",
    "load_dequantiser",
    "save_dequantiser",
]
