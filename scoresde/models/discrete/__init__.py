"""Models of discrete states: a network, and the exact model of a data set."""

from .denoiser import DiscreteDenoiser
from .empirical import DiscreteEmpirical, ExactDiscrete
from .model import DiscreteModel

__all__ = ["DiscreteDenoiser", "DiscreteEmpirical", "DiscreteModel", "ExactDiscrete"]
