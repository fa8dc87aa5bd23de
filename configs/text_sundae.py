"""Characters of a text by SUNDAE, a network without time that corrects its own samples (arXiv:2112.06749).

It has no likelihood.
"""

from scoresde.configs.default import ConfigDict
from scoresde.configs.text_absorbing import get_config as absorbing


def get_config() -> ConfigDict:
    config = absorbing()
    config.process = "uniform"  # a random share of the characters is drawn again
    config.training.loss = "sundae"
    config.sampling.solver = "sundae"  # draws a random share of the characters again, until they stay
    return config
