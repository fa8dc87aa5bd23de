"""The base class of training losses, and denoising score matching (Vincent 2011).

A loss of denoising score matching is three choices. The *output* of the network (``Denoiser.predicts``) is the quantity
in which it answers. The *weighting* is the weight of its error at each noise level. The *time sampler* decides how
often a noise level is seen.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from solvers import Node, Registry
from solvers.noise.draws import Draws
from solvers.registry.options import Options
from solvers.types.answers import raw_output

from ..models.model import as_model
from ..paths.base import SDE, ModelLike
from ..paths.time_samplers import TimeSampler, Uniform
from .weightings import ScoreMatching, Weighting


class Loss(Options):
    """A training loss; a frozen dataclass whose fields are its options."""

    def __call__(
        self, denoiser: Any, x0: Tensor, draws: Draws, state: nn.Module | None = None, **conditions: Tensor
    ) -> Tensor:
        """The loss of each sample (B,), a mean over its dimensions.

        Args:
            denoiser: the model.
            x0: clean data (B, *), on the denoiser's device.
            draws: the only source of times and noise, of the same rows of the batch.
            state: what ``Loss.state`` returned.
            conditions: conditions of the samples, passed to the denoiser, each (B, *).
        """
        raise NotImplementedError

    def nodes(self, sde: SDE, draws: Draws, state: nn.Module | None = None) -> Node[Tensor]:
        """The nodes (B,) at which the loss of the rows is evaluated, float64 on the CPU."""
        raise NotImplementedError

    def state(self, sde: SDE) -> nn.Module | None:
        """What the loss learns (parameters) or remembers (buffers); None if that is nothing."""
        return None

    def remember(self, state: nn.Module | None, draws: Draws, losses: Tensor) -> None:
        """Puts the losses (B,) of an update into the state, after it.

        The draws and losses are those of the whole batch, so that the state is the same on all processes.
        """

    def __str__(self) -> str:
        return losses.format(self)


losses: Registry[Loss] = Registry("loss", Loss)


@losses.register("dsm", reference="Vincent 2011; Song et al. 2021, arXiv:2011.13456, eq. 7")
@dataclass(frozen=True)
class DSM(Loss):
    """Denoising score matching: E w(t) |eps_model - eps|^2, a mean over dimensions, at x = alpha x0 + sigma eps.

    The error is measured in the network's own output, where it has no rounding errors from a conversion, and multiplied
    by the weight that this output needs.

    Args:
        weighting: the weight w.
        times: the sampler of times on the path.
    """

    weighting: Weighting = field(default=ScoreMatching())
    times: TimeSampler = field(default=Uniform())

    def nodes(self, sde: SDE, draws: Draws, state: nn.Module | None = None) -> Node[Tensor]:
        return sde(self.times.sample(sde, draws))

    def __call__(
        self, denoiser: ModelLike, x0: Tensor, draws: Draws, state: nn.Module | None = None, **conditions: Tensor
    ) -> Tensor:
        """See ``Loss``.

        Raises:
            InputError: a weighting that needs a denoiser with ``sigma_data``.
        """
        model = as_model(denoiser)
        node = self.nodes(model.sde, draws, state)
        eps = draws.normal_like(x0)
        wide = node.like(x0)
        out = raw_output(model.raw, wide.alpha * x0 + wide.sigma * eps, node, conditions)
        error = (out - model.output.target(x0, eps, wide)).square().flatten(1).mean(1)
        # eps = c x + d out, so an error of the output is an error d times as large of eps
        factor: Any = model.output.read(1.0, 0.0, node).eps
        weight = torch.as_tensor(self.weighting.of_eps(model.sde, node, model.sigma_data) * factor**2)
        value: Tensor = weight.to(error) * error
        return value
