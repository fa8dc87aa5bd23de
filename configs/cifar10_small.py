"""32x32 colour images (CIFAR-10's in a file, --config.data.path) on the VP path, with a small U-Net of diffusers'."""

from scoresde.configs.default import ConfigDict
from scoresde.configs.default import get_config as default


def get_config() -> ConfigDict:
    config = default()
    config.data.name = "file"
    config.model.network = "unet(channels=[32, 64, 64], attention=[2])"
    config.training.learning_rate = 1e-3
    config.training.batch_size = 32
    return config
