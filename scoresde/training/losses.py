"""Denoising score matching (Vincent 2011): a target, whose error is squared, and a time sampler.

With x = alpha x0 + sigma eps, let d_x0 and d_eps be the errors of a prediction; alpha d_x0 + sigma d_eps = 0. Every
target is a linear form in x0 and eps, so its error is d_eps times a factor. The targets weight |d_eps|^2 by

    eps 1    x0 (sigma / alpha)^2    v ((alpha^2 + sigma^2) / alpha)^2    velocity (sigma' - alpha' sigma / alpha)^2
    edm (r^2 + sigma_data^2) / sigma_data^2    with r = sigma / alpha
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from solvers import InputError, Registry
from solvers.errors import unknown
from solvers.registry.options import Options
from solvers.types.answers import predicted

from ..models.model import as_model
from ..paths.base import ModelLike
from ..paths.time_samplers import TimeSampler, Uniform

# (d_x0, d_eps, node, sigma_data) -> the error whose square is the loss; the node's numbers broadcast over (B, *)
TARGETS: dict[str, Callable[[Tensor, Tensor, Any, float], Tensor]] = {
    "eps": lambda d_x0, d_eps, node, sigma_data: d_eps,
    "x0": lambda d_x0, d_eps, node, sigma_data: d_x0,
    # Salimans and Ho 2022 (arXiv:2202.00512), section 4
    "v": lambda d_x0, d_eps, node, sigma_data: node.alpha * d_eps - node.sigma * d_x0,
    # Lipman et al. 2023 (arXiv:2210.02747), eq. 9
    "velocity": lambda d_x0, d_eps, node, sigma_data: node.dalpha * d_x0 + node.dsigma * d_eps,
    # Karras et al. 2022 (arXiv:2206.00364), table 1: unit weight on the raw network F
    "edm": lambda d_x0, d_eps, node, sigma_data: (
        (node.ratio**2 + sigma_data**2) ** 0.5 / (node.ratio * sigma_data) * d_x0
    ),
}


class Loss(Options):
    """A training loss; a frozen dataclass whose fields are its options."""

    def __call__(self, denoiser: Any, x0: Tensor, generator: torch.Generator, **conditions: Tensor) -> Tensor:
        """The loss of each sample (B,), a mean over its dimensions.

        Args:
            denoiser: the model.
            x0: clean data (B, *), on the denoiser's device.
            generator: on the CPU; the only source of times and noise, which are drawn in float64 and then rounded.
            conditions: conditions of the samples, passed to the denoiser, each (B, *).
        """
        raise NotImplementedError

    def __str__(self) -> str:
        return losses.format(self)


losses: Registry[Loss] = Registry("loss", Loss)


def normal_like(x0: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal noise of the shape, dtype and device of x0 (B, *), drawn in float64 on the CPU."""
    return torch.randn(x0.shape, generator=generator, dtype=torch.float64).to(x0.dtype).to(x0.device)


@losses.register("dsm", reference="Vincent 2011; Song et al. 2021, arXiv:2011.13456, eq. 7")
@dataclass(frozen=True)
class DSM(Loss):
    """Denoising score matching.

    Args:
        target: the quantity whose error is squared: "eps", "x0", "v" (alpha eps - sigma x0), "velocity"
            (alpha' x0 + sigma' eps) or "edm" (x0 weighted by (r^2 + sigma_data^2) / (r sigma_data)^2). It may differ
            from the network's output.
        times: the sampler of times on the path.

    Raises:
        InputError: an unknown target.
    """

    target: Literal["eps", "x0", "v", "velocity", "edm"] = "eps"
    times: TimeSampler = field(default=Uniform())

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target not in TARGETS:
            raise unknown("training target", self.target, TARGETS)

    def __call__(self, denoiser: ModelLike, x0: Tensor, generator: torch.Generator, **conditions: Tensor) -> Tensor:
        """See ``Loss``.

        Raises:
            InputError: the target "edm" with a denoiser that has no ``sigma_data``.
        """
        sigma_data = as_model(denoiser).sigma_data
        if self.target == "edm" and sigma_data is None:
            raise InputError("the training target 'edm' needs a denoiser with sigma_data")
        node = denoiser.sde(self.times.sample(denoiser.sde, len(x0), generator))
        eps = normal_like(x0, generator)
        wide = node.like(x0)
        prediction = predicted(denoiser.predict, wide.alpha * x0 + wide.sigma * eps, node, conditions)
        error = TARGETS[self.target](prediction.x0 - x0, prediction.eps - eps, wide, sigma_data or 1.0)
        return (error**2).flatten(1).mean(1)
