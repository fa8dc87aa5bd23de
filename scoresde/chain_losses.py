"""Losses of discrete chains beside denoising score matching at their nodes (``dsm(times=discrete)``)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from solvers import InputError, Prediction, Solver
from solvers.ancestral import DDPM
from solvers.ranges import Positive

from .bounds import chain_of, prior_term, step_terms
from .chains import Chain, reverse_kernel
from .decoders import Decoder
from .losses import Loss, losses, normal_like


def _needs(decoder: Decoder | None, name: str) -> Decoder:
    if decoder is None:
        raise InputError(f"{name} needs a decoder: gaussian for continuous data, discretised for levels")
    return decoder


def _drawn(
    denoiser: Any, x0: Tensor, generator: torch.Generator, conditions: dict[str, Tensor]
) -> tuple[Chain, Tensor, Tensor, Prediction]:
    """The chain, a random index each (B,), the noise (B, *), and what the model says of x_i."""
    chain = chain_of(denoiser.sde)
    index = torch.randint(chain.count, (len(x0),), generator=generator)
    eps = normal_like(x0, generator)
    at, _ = chain.steps(index)
    wide = at.like(x0)
    return chain, index, eps, denoiser.predict(wide.alpha * x0 + wide.sigma * eps, at, **conditions)


@losses.register("chain_bound", reference="Ho et al. 2020, arXiv:2006.11239, eq. 5")
@dataclass(frozen=True)
class ChainBound(Loss):
    """One term of the chain's variational bound each, at a random index, times their number: in bits/dim, unbiased.

    Args:
        kernel: the reverse chain's variance.
        decoder: of the last step; filled in from the data in a config.
        prior: add L_N, which depends on the path alone.
    """

    kernel: Solver = field(default=DDPM(variance="beta"))
    decoder: Decoder | None = None
    prior: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        reverse_kernel(self.kernel)

    def __call__(self, denoiser: Any, x0: Tensor, generator: torch.Generator, **conditions: Tensor) -> Tensor:
        """See ``Loss``; bits/dim.

        Raises:
            InputError: no decoder.
        """
        chain, index, eps, prediction = _drawn(denoiser, x0, generator, conditions)
        nats = chain.count * step_terms(
            chain, index, x0, eps, prediction, reverse_kernel(self.kernel), _needs(self.decoder, "chain_bound")
        )
        if self.prior:
            nats = nats + prior_term(chain, x0)
        return (nats / (x0[0].numel() * math.log(2))).to(x0)


@losses.register("hybrid", reference="Nichol and Dhariwal 2021, arXiv:2102.09672, eq. 16")
@dataclass(frozen=True)
class Hybrid(Loss):
    """L_simple + weight L_vlb of a model that learns its variance: the bound, in bits/dim, teaches the variance alone.

    Args:
        weight: of the bound; 0.001 in the paper.
        decoder: see ``ChainBound``.
    """

    weight: Positive = 1e-3
    decoder: Decoder | None = None

    def __call__(self, denoiser: Any, x0: Tensor, generator: torch.Generator, **conditions: Tensor) -> Tensor:
        """See ``Loss``.

        Raises:
            InputError: no decoder, or a model that does not learn its variance.
        """
        chain, index, eps, prediction = _drawn(denoiser, x0, generator, conditions)
        if prediction.nu is None:
            raise InputError("hybrid trains a model that learns its variance: Denoiser(learned_variance=True)")
        fixed = Prediction(prediction.x0.detach(), prediction.eps.detach(), prediction.nu)
        decoder = _needs(self.decoder, "hybrid")
        nats = chain.count * step_terms(chain, index, x0, eps, fixed, DDPM(variance="learned"), decoder)
        bits = (nats / (x0[0].numel() * math.log(2))).to(x0)
        simple: Tensor = (prediction.eps - eps).square().flatten(1).mean(1)
        return simple + self.weight * bits
