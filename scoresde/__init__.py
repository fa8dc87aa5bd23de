"""Score-based diffusion models: paths, denoisers, training, sampling, likelihood, and an honest benchmark."""

from solvers import InputError

from . import chains, targets
from .denoiser import Denoiser, time_labels
from .likelihood import LogProb, dequantise, log_prob
from .moments import eps_power
from .sample import Sample, encode, sample
from .sde import EDM, SDE, VE, VP, Cosine, RectifiedFlow, SubVP, make_sde, sdes

__all__ = [
    "EDM",
    "SDE",
    "VE",
    "VP",
    "Cosine",
    "Denoiser",
    "InputError",
    "LogProb",
    "RectifiedFlow",
    "Sample",
    "SubVP",
    "chains",
    "dequantise",
    "encode",
    "eps_power",
    "log_prob",
    "make_sde",
    "sample",
    "sdes",
    "targets",
    "time_labels",
]
