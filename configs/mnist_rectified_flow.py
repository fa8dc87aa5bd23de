"""28x28 digits (IDX files in the folder of --config.data.path) on straight lines from data to noise."""

from scoresde.configs.mnist_vp import ConfigDict
from scoresde.configs.mnist_vp import get_config as mnist


def get_config() -> ConfigDict:
    config = mnist()
    config.sde = "rectified_flow"
    return config
