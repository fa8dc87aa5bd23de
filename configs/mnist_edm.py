"""28x28 digits (IDX files in --config.data.path) with EDM's path, noise levels and sampler, as in digits_edm."""

from scoresde.configs.mnist_vp import ConfigDict
from scoresde.configs.mnist_vp import get_config as mnist


def get_config() -> ConfigDict:
    config = mnist()
    config.sde = "edm"
    config.training.loss = "dsm(weighting=edm, times=lognormal(mean=-1.2, std=1.2))"
    config.sampling.solver = "heun"
    return config
