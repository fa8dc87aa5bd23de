"""The public names of ``scoresde``; the package imports this module when one of them is used for the first time."""

from solvers import InputError

from .bounds.chain import chain_bound
from .bounds.continuous import continuous_bound
from .bounds.discrete import discrete_bound
from .bounds.plug_in import plug_in_bound
from .guidance.guide import guide
from .guidance.guided import Guided
from .likelihood.learned_dequantisation import (
    VariationalDequantiser,
    fit_dequantiser,
    load_dequantiser,
    save_dequantiser,
)
from .likelihood.log_prob import dequantise, log_prob
from .likelihood.result import LogProb
from .likelihood.sample_with_log_prob import sample_with_log_prob
from .models import targets
from .models.check import Check, check
from .models.classifier import Classifier
from .models.denoiser import Denoiser, label_shift, time_labels
from .models.discrete.denoiser import DiscreteDenoiser
from .models.discrete.keep import keep
from .paths import chains
from .paths.base import SDE, make_sde, sdes
from .paths.discrete.base import make_process, processes
from .paths.discrete.dense import BirthDeath, DenseRate, DiscretisedGaussian
from .paths.discrete.masks import Hybrid, MaskByState, MaskReplace
from .paths.discrete.rank_one import Absorbing, Binomial, RankOne, Uniform
from .paths.discrete.steps import DenseSteps, GaussianSteps
from .paths.learned_vp import LearnedVP
from .paths.standard import EDM, VE, VP, Cosine, RectifiedFlow, SubVP
from .posterior.condition import condition
from .runs.load import load
from .runs.train import Trained, train
from .sampling.eps_power import eps_power
from .sampling.plan import Plan, plan
from .sampling.restore import restore
from .sampling.restored import Restored
from .sampling.sample import Sample, encode, sample
from .sampling.trajectory import trajectory

__all__ = [
    "EDM",
    "SDE",
    "VE",
    "VP",
    "Absorbing",
    "Binomial",
    "BirthDeath",
    "Check",
    "Classifier",
    "Cosine",
    "Denoiser",
    "DenseRate",
    "DenseSteps",
    "DiscreteDenoiser",
    "DiscretisedGaussian",
    "GaussianSteps",
    "Guided",
    "Hybrid",
    "InputError",
    "LearnedVP",
    "LogProb",
    "MaskByState",
    "MaskReplace",
    "Plan",
    "RankOne",
    "RectifiedFlow",
    "Restored",
    "Sample",
    "SubVP",
    "Trained",
    "Uniform",
    "VariationalDequantiser",
    "chain_bound",
    "chains",
    "check",
    "condition",
    "continuous_bound",
    "dequantise",
    "discrete_bound",
    "encode",
    "eps_power",
    "fit_dequantiser",
    "guide",
    "keep",
    "label_shift",
    "load",
    "load_dequantiser",
    "log_prob",
    "make_process",
    "make_sde",
    "plan",
    "plug_in_bound",
    "processes",
    "restore",
    "sample",
    "sample_with_log_prob",
    "save_dequantiser",
    "sdes",
    "targets",
    "time_labels",
    "train",
    "trajectory",
]
