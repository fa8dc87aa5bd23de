"""Characters of a text (--config.data.path=FILE), masked and filled in (Sahoo et al. 2024, arXiv:2406.07524)."""

from scoresde.configs.default import ConfigDict
from scoresde.configs.default import get_config as default


def get_config() -> ConfigDict:
    config = default()
    config.process = "absorbing"
    config.data.name = "text"
    config.data.length = 64
    config.model.network = "transformer(width=128, depth=4, heads=4)"
    config.model.predicts = "x0_logits"
    config.model.time = False  # the law of a masked character does not depend on the time
    config.training.loss = "masked"
    config.training.steps = 3000
    config.training.batch_size = 64
    config.training.learning_rate = 1e-3
    config.training.schedule = "cosine"
    config.training.averages = "ema(decay=0.995)"
    config.sampling.steps = 64
    return config
