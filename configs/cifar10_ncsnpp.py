"""CIFAR-10 with the settings of "NCSN++ cont. (VE)" (Song et al. 2021, arXiv:2011.13456). Not trained here.

Expected: FID 2.38 (table 3). What is not named here is as in cifar10_ddpmpp. The sampler is a predictor-corrector: 1000
steps of reverse diffusion, with a Langevin step after each. The differences are:

- The blocks are diffusers' (see ``UNet``): no FIR filters, no residual path of the input, no Fourier features of
  log(sigma).
- Images lie in [-1, 1], the authors' in [0, 1]. Their noise levels, 0.01 to 50, are therefore doubled.
- The loss is a mean over the 3072 numbers of an image, the authors' is half their sum. Adam does not notice the factor,
  but clipping does: the same norm of 1 is 1536 times as far away.
- The network predicts eps; the authors' network predicts -eps = sigma score.
- There is no Langevin step before the first predictor: 1999 evaluations, not 2000. The size of a step depends on the
  norms of its sample, the authors' on means over a batch.
"""

from scoresde.configs.cifar10_ddpmpp import ConfigDict
from scoresde.configs.cifar10_ddpmpp import get_config as ddpmpp


def get_config() -> ConfigDict:
    config = ddpmpp()
    config.sde = "ve(sigma_min=0.02, sigma_max=100)"
    config.model.network = "unet(size=cifar, channels=[128, 256, 256, 256], layers=4, attention=[1], dropout=0.1)"
    config.model.time_label = "c_noise"
    config.training.averages = "ema(decay=0.999)"
    config.sampling.solver = "pc(predictor=reverse_diffusion, corrector=langevin(snr=0.16), corrector_steps=1)"
    return config
