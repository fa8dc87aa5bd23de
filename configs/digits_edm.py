"""8x8 digits with EDM's path, noise levels and sampler (Karras et al. 2022, arXiv:2206.00364, table 1)."""

from scoresde.configs.default import ConfigDict
from scoresde.configs.default import get_config as default


def get_config() -> ConfigDict:
    config = default()
    config.sde = "edm"
    config.training.loss = "dsm(weighting=edm, times=lognormal(mean=-1.2, std=1.2))"
    config.sampling.solver = "heun"
    return config
