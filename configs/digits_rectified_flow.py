"""8x8 digits on straight lines from data to noise (Liu et al. 2022, arXiv:2209.03003)."""

from scoresde.configs.default import ConfigDict
from scoresde.configs.default import get_config as default


def get_config() -> ConfigDict:
    config = default()
    config.sde = "rectified_flow"
    return config
