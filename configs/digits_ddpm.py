"""8x8 digits as a DDPM of 1000 steps, with the betas and the loss of Ho et al. (arXiv:2006.11239).

The network receives the index of the step. To sample with the chain itself, use
--solver="ddpm(variance=beta)" --grid=leading --steps=1000.
"""

from scoresde.configs.default import ConfigDict
from scoresde.configs.default import get_config as default


def get_config() -> ConfigDict:
    config = default()
    config.sde = "ddpm_chain(schedule=linear, beta_start=0.0001, beta_end=0.02, num_train_timesteps=1000)"
    config.model.network = "mlp(label_scale=0.016)"  # fine enough to distinguish neighbouring steps
    config.model.predicts = "eps"
    config.model.time_label = "index"
    config.training.loss = "dsm(times=discrete)"
    config.training.steps = 12000
    config.training.averages = "ema(decay=0.9995)"
    config.likelihood.bound = "ddpm(variance=beta)"
    return config
