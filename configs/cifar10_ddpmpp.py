"""CIFAR-10 with the settings of "DDPM++ cont. (VP)" (Song et al. 2021, arXiv:2011.13456). Not trained here.

Expected: FID 2.55 (table 3), of the best of the checkpoints after every 50 000 updates. Data: CIFAR-10's own files, in
the folder of --config.data.path. 1.3 million updates of 128 images, 166.4 million images, need a GPU:
--config.device=cuda.

The path, loss, optimiser, warm-up, clipping, average, dropout, flips and the 1000 steps of Euler-Maruyama are those of
the paper and of the authors' config. The differences are:

- The blocks are diffusers' (see ``UNet``), with the published widths, depths and attention.
- Times of training begin at 0.001, where the sampler ends; the authors' begin at 1e-5, where their likelihood ends.
- The sampler's last step goes to x0; the authors' goes to the mean of Euler-Maruyama's step.
"""

from scoresde.configs.default import ConfigDict
from scoresde.configs.default import get_config as default


def get_config() -> ConfigDict:
    config = default()
    config.sde = "vp(beta_min=0.1, beta_max=20, t_min=0.001)"
    config.model.network = (
        "unet(size=cifar, channels=[128, 256, 256, 256], layers=4, attention=[1], dropout=0.1, label_scale=0.001)"
    )
    config.model.predicts = "eps"
    config.model.time_label = "999t"
    config.data.name = "cifar"
    config.data.augmentation = "flip"
    config.data.dequantise = False
    config.training.loss = "dsm(weighting=dsm, times=uniform)"
    config.training.steps = 1_300_000
    config.training.batch_size = 128
    config.training.learning_rate = 2e-4
    config.training.warmup = 5000
    config.training.clip = 1.0
    config.training.averages = "ema(decay=0.9999)"
    config.training.checkpoint_every = 10_000
    config.training.keep_every = 50_000
    config.training.evaluate_every = 50_000
    config.sampling.solver = "euler_maruyama"
    config.sampling.grid = "uniform(end=zero)"
    config.sampling.steps = 1000
    return config
