"""8x8 digits on a learned path, trained through the variational bound (Kingma et al. 2021, arXiv:2107.00630).

The digits keep their 17 levels. Before training, gamma ends at 5 as in the paper, and starts at -7.75 = -13.3 + 2 log
16: the paper's -13.3 is for 256 levels, and 17 levels are 16 times as far apart.
"""

from scoresde.configs.default import ConfigDict
from scoresde.configs.default import get_config as default


def get_config() -> ConfigDict:
    config = default()
    config.sde = "learned_vp(schedule=monotone, gamma_min=-7.75, gamma_max=5)"
    config.data.dequantise = False
    config.training.loss = "continuous_bound(times=low_discrepancy, decoder=levels(bin_width=0.125))"
    config.likelihood.bound = "continuous"
    return config
