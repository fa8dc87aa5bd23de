"""Score-based diffusion models: paths, denoisers, training, sampling, likelihood, and an honest benchmark."""

from solvers import InputError, __version__

from . import chains, targets
from .bounds import chain_bound
from .continuous_bound import continuous_bound
from .denoiser import Denoiser, label_shift, time_labels
from .learned_vp import LearnedVP
from .likelihood import LogProb, dequantise, log_prob
from .load import load
from .moments import eps_power
from .plan import Plan, plan
from .plug_in_bound import plug_in_bound
from .sample import Sample, encode, sample
from .sampled_density import sample_with_log_prob
from .sde import SDE, make_sde, sdes
from .standard import EDM, VE, VP, Cosine, RectifiedFlow, SubVP
from .variational_dequantisation import VariationalDequantiser, fit_dequantiser, load_dequantiser, save_dequantiser

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
    "Plan",
    "RectifiedFlow",
    "Sample",
    "SubVP",
    "VariationalDequantiser",
    "__version__",
    "chain_bound",
    "chains",
    "continuous_bound",
    "dequantise",
    "encode",
    "eps_power",
    "fit_dequantiser",
    "label_shift",
    "load",
    "load_dequantiser",
    "log_prob",
    "make_sde",
    "plan",
    "plug_in_bound",
    "sample",
    "sample_with_log_prob",
    "save_dequantiser",
    "sdes",
    "targets",
    "time_labels",
]
