"""Score-based diffusion models: paths, denoisers, training, sampling, likelihood, and an honest benchmark."""

from solvers import InputError

from . import chains, targets
from .bounds import chain_bound
from .continuous_bound import continuous_bound
from .denoiser import Denoiser, label_shift, time_labels
from .learned_vp import LearnedVP
from .likelihood import LogProb, dequantise, log_prob
from .load import load
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
    "LearnedVP",
    "LogProb",
    "RectifiedFlow",
    "Sample",
    "SubVP",
    "chain_bound",
    "chains",
    "continuous_bound",
    "dequantise",
    "encode",
    "eps_power",
    "label_shift",
    "load",
    "log_prob",
    "make_sde",
    "sample",
    "sdes",
    "targets",
    "time_labels",
]
