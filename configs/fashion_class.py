"""Fashion-MNIST by class (IDX files in --config.data.path) on the VP path; a tenth is trained without its class."""

from scoresde.configs.mnist_class import ConfigDict
from scoresde.configs.mnist_class import get_config as mnist


def get_config() -> ConfigDict:
    return mnist()
