"""CIFAR-10 with the settings of EDM's config F, "VP" (Karras et al. 2022, arXiv:2206.00364). Not trained here.

Expected: FID 1.97 without classes, 1.79 by class (--config.data.labels=label), in 35 evaluations (table 2); each the
least of three. Data: CIFAR-10's own files, in the folder of --config.data.path. 390 625 updates of 512 images, 200
million images, need a GPU: --config.device=cuda. The learning rate rises over the first 10 million (table 7).

The settings are those of the paper and of the authors' program. The differences are: the blocks are diffusers' (see
``UNet``); a gradient that is not finite is an error, where the authors replace its numbers.
"""

from scoresde.configs.default import ConfigDict
from scoresde.configs.default import get_config as default


def get_config() -> ConfigDict:
    config = default()
    config.sde = "edm(t_min=0.002, t_max=80)"
    config.model.network = "unet(size=cifar, dropout=0.13)"
    config.model.predicts = "edm"
    config.model.sigma_data = 0.5
    config.data.name = "cifar"
    config.data.augmentation = "edm(probability=0.12)"
    config.data.dequantise = False
    config.training.loss = "dsm(weighting=edm, times=lognormal(mean=-1.2, std=1.2))"
    config.training.steps = 390_625
    config.training.batch_size = 512
    config.training.learning_rate = 1e-3
    config.training.warmup = 19_531
    config.training.clip = float("inf")
    config.training.averages = "half_life(samples=500000, ramp=0.05)"
    config.training.checkpoint_every = 5000
    config.training.evaluate_every = 50_000
    config.sampling.solver = "heun"
    config.sampling.grid = "karras(rho=7)"
    config.sampling.steps = 18
    return config
