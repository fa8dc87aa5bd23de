"""28x28 digits (IDX files in the folder of --config.data.path) on the cosine path."""

from scoresde.configs.mnist_vp import ConfigDict
from scoresde.configs.mnist_vp import get_config as mnist


def get_config() -> ConfigDict:
    config = mnist()
    config.sde = "cosine"
    return config
