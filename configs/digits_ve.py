"""8x8 digits on the VE path."""

from scoresde.configs.default import ConfigDict
from scoresde.configs.default import get_config as default


def get_config() -> ConfigDict:
    config = default()
    config.sde = "ve(sigma_min=0.01, sigma_max=50)"
    return config
