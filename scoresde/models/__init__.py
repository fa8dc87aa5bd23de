"""Models on a path: denoisers, time labels, networks, targets with an exact score, and the problem of a solver."""

from .denoiser import Denoiser, label_shift
from .learned_path import WithSchedule, with_network, with_schedule
from .model import LabelShiftRecorder, Model, ModelObserver, ModelWrapper, as_model
from .networks import MLP, FourierFeatures, UNet
from .problem import Diffusion
from .targets import Empirical, Gaussian, GaussianMixture

__all__ = [
    "MLP",
    "Denoiser",
    "Diffusion",
    "Empirical",
    "FourierFeatures",
    "Gaussian",
    "GaussianMixture",
    "LabelShiftRecorder",
    "Model",
    "ModelObserver",
    "ModelWrapper",
    "UNet",
    "WithSchedule",
    "as_model",
    "label_shift",
    "with_network",
    "with_schedule",
]
