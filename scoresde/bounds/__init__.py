"""Lower bounds of the likelihood, for discrete chains, reverse SDEs and plug-in SDEs; decoders for the bounds."""

from .chain import chain_bound, prior_term, step_terms
from .continuous import continuous_bound
from .decoders import Decoder, Discretised, Gaussian, Levels
from .plug_in import plug_in_bound

__all__ = [
    "Decoder",
    "Discretised",
    "Gaussian",
    "Levels",
    "chain_bound",
    "continuous_bound",
    "plug_in_bound",
    "prior_term",
    "step_terms",
]
