"""Gaussian paths x_t = alpha(t) x0 + sigma(t) eps: closed-form paths, a learned one, and those of discrete chains."""

from .base import SDE, ModelLike, sdes
from .chain import Chain
from .chain_paths import ChainSDE, SMLDChainSDE
from .chains import DDPMChain, SMLDChain
from .importance import Adaptive, Importance
from .learned_vp import GammaNetwork, LearnedVP
from .standard import EDM, VE, VP, Cosine, RectifiedFlow, SubVP
from .time_samplers import Discrete, LogitNormal, LogNormal, LogSNR, LowDiscrepancy, TimeSampler, Uniform, times

__all__ = [
    "EDM",
    "SDE",
    "VE",
    "VP",
    "Adaptive",
    "Chain",
    "ChainSDE",
    "Cosine",
    "DDPMChain",
    "Discrete",
    "GammaNetwork",
    "Importance",
    "LearnedVP",
    "LogNormal",
    "LogSNR",
    "LogitNormal",
    "LowDiscrepancy",
    "ModelLike",
    "RectifiedFlow",
    "SMLDChain",
    "SMLDChainSDE",
    "SubVP",
    "TimeSampler",
    "Uniform",
    "sdes",
    "times",
]
