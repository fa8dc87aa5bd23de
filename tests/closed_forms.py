"""Targets, models and paths of several test files, with the numbers that are known of them in closed form."""

import math
from dataclasses import dataclass

import torch
from torch import nn

from scoresde.models.targets import GaussianMixture
from scoresde.paths.learned_vp import LearnedVP
from solvers import Prediction, generator


def mixture(d):
    """Four normals in d dimensions, every covariance full."""
    g = torch.Generator().manual_seed(d)
    means = 0.6 * torch.randn(4, d, generator=g, dtype=torch.float64)
    a = 0.3 / d**0.5 * torch.randn(4, d, d, generator=g, dtype=torch.float64)
    return GaussianMixture(means, a @ a.mT + 0.01 * torch.eye(d), [0.1, 0.2, 0.3, 0.4])


def exact(target, sde, x):
    """The log-density of x0 + ratio(t_min) eps at x."""
    node = sde(sde.t_min)
    return target.log_prob(node.alpha * x, node) + x[0].numel() * math.log(node.alpha)


def exact_prior(target, sde):
    """The log-density of x at t_max, to take the place of the path's normal."""
    return lambda x: target.log_prob(x, sde(sde.t_max))


class Shifted(nn.Module):
    """A network with a condition: it answers x0 = tanh(w x + y)."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def forward(self, x, label, y):
        return torch.tanh(self.w * x + y.view(-1, *(1,) * (x.ndim - 1)))


@dataclass(frozen=True)
class Shrunk:
    """A denoiser whose eps is too small by two fifths."""

    of: object

    @property
    def sde(self):
        return self.of.sde

    def predict(self, x, node, **conditions):
        wide, eps = node.like(x), 0.6 * self.of.predict(x, node).eps
        return Prediction((x - wide.sigma * eps) / wide.alpha, eps)


def bent(schedule="monotone", gamma_min=-11.0, gamma_max=8.0, width=6, seed=0, strength=2.0):
    """A path whose weights are far from where they start; its ends are those that are given."""
    sde = LearnedVP(schedule, gamma_min, gamma_max, width)
    with torch.no_grad():
        for name, parameter in sde.module.named_parameters():
            if name != "stretch":
                parameter += strength * torch.randn(parameter.shape, generator=generator(seed))
    return sde
