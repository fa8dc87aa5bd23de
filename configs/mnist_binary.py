"""28x28 digits in black and white (IDX files in the folder of --config.data.path), by masks; half an hour on a CPU."""

from scoresde.configs.default import ConfigDict
from scoresde.configs.default import get_config as default


def get_config() -> ConfigDict:
    config = default()
    config.process = "absorbing"
    config.data.name = "idx"
    config.data.levels = 2  # brightnesses below 128 are black
    config.model.network = "unet(channels=[16, 32, 32])"
    config.model.predicts = "x0_logits"
    config.model.time = False
    config.training.loss = "masked"
    config.training.steps = 7000
    config.training.batch_size = 32
    config.training.learning_rate = 2e-3
    config.training.schedule = "cosine"
    config.sampling.steps = 128
    return config
