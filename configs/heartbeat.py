"""The binary heartbeat, 20 bits of which every fifth is 1 (Sohl-Dickstein et al. 2015, arXiv:1503.03585), by masks.

Its entropy is log2 5 = 2.322 bits. A minute on a CPU.
"""

from scoresde.configs.default import ConfigDict
from scoresde.configs.default import get_config as default


def get_config() -> ConfigDict:
    config = default()
    config.process = "absorbing"
    config.data.name = "heartbeat"
    config.model.network = "mlp(width=128, depth=2)"
    config.model.predicts = "x0_logits"
    config.model.time = False  # the law of a masked bit does not depend on the time
    config.training.loss = "masked"
    config.training.steps = 2000
    config.training.learning_rate = 5e-3
    config.training.schedule = "cosine"
    config.training.averages = "ema(decay=0.99)"
    config.sampling.solver = "first_hitting"
    config.likelihood.bound_indices = 2048  # five sequences: their bound needs many draws each
    return config
