"""8x8 digits as 17 levels, masked and filled in; the network sees the levels one-hot."""

from scoresde.configs.default import ConfigDict
from scoresde.configs.default import get_config as default


def get_config() -> ConfigDict:
    config = default()
    config.process = "absorbing"
    config.data.name = "digits"
    config.model.network = "mlp(width=512, depth=3)"
    config.model.predicts = "x0_logits"
    config.model.time = False
    config.training.loss = "masked"
    config.training.learning_rate = 1e-3
    config.training.schedule = "cosine"
    config.sampling.steps = 64
    return config
