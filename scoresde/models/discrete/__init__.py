"""Models of discrete states: a network, the exact model of a data set, and either of them with known tokens."""

from .denoiser import DiscreteDenoiser
from .empirical import DiscreteEmpirical, ExactDiscrete
from .keep import keep
from .model import DiscreteModel

__all__ = ["DiscreteDenoiser", "DiscreteEmpirical", "DiscreteModel", "ExactDiscrete", "keep"]
