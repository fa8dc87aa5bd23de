"""8x8 digits as an SMLD chain of 232 noise scales (Song et al. 2021, arXiv:2011.13456, appendix F).

The network receives the index of the noise scale. To sample with the chain itself, use
--solver=smld --grid=leading --steps=232.
"""

from scoresde.configs.default import ConfigDict
from scoresde.configs.default import get_config as default


def get_config() -> ConfigDict:
    config = default()
    config.sde = "smld_chain(sigma_min=0.01, sigma_max=50, num_train_timesteps=232)"
    config.model.network = "mlp(label_scale=0.017)"  # labels in 0 .. 4
    config.model.time_label = "index"
    config.training.loss = "dsm(times=discrete)"
    config.likelihood.bound = "ddpm(variance=beta)"
    return config
