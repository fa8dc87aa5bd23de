"""28x28 digits by class (IDX files in --config.data.path) on the VP path; a tenth is trained without its class."""

from scoresde.configs.mnist_vp import ConfigDict
from scoresde.configs.mnist_vp import get_config as mnist


def get_config() -> ConfigDict:
    config = mnist()
    config.data.labels = "label"
    config.model.condition_dropout = 0.1
    return config
