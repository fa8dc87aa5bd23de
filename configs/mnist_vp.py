"""28x28 digits (IDX files in the folder of --config.data.path) on the VP path, with diffusers' U-Net."""

from scoresde.configs.default import ConfigDict
from scoresde.configs.default import get_config as default


def get_config() -> ConfigDict:
    config = default()
    config.data.name = "idx"
    config.model.network = "unet(channels=[32, 64, 64])"
    config.training.learning_rate = 5e-4
    config.training.batch_size = 64
    config.training.averages = "ema(decay=0.9995)"
    return config
