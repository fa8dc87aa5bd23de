"""Lower bounds of the likelihood, for discrete chains, reverse SDEs, plug-in SDEs and discrete states; decoders."""

from .chain import chain_bound, prior_term, step_terms
from .continuous import continuous_bound
from .decoders import Decoder, Discretised, Gaussian, Levels
from .discrete import discrete_bound
from .plug_in import plug_in_bound

__all__ = [
    "Decoder",
    "Discretised",
    "Gaussian",
    "Levels",
    "chain_bound",
    "continuous_bound",
    "discrete_bound",
    "plug_in_bound",
    "prior_term",
    "step_terms",
]
