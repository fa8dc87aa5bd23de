"""Losses that are variational bounds: of discrete chains, and of the reverse SDE in continuous time.

Denoising score matching at a chain's nodes is ``dsm(times=discrete)``.

The interior of a learned path is its shape between its two ends. The continuous-time bound does not depend on it (see
``continuous_bound``), so the interior is trained to minimise the variance of the estimate
L = 1/2 gamma'(t) |eps - eps_model|^2. The variance is E[L^2] - E[L]^2, and E[L] does not depend on the interior's
weights w, so its gradient is

    d E[L^2] / dw = E[2 L (dL/dgamma dgamma/dw + dL/dgamma' dgamma'/dw)].

Back-propagation of the bound delivers exactly dL/dgamma and dL/dgamma' to gamma_i and gamma'_i of sample i, since no
other sample's loss depends on them. Each of gamma_i and gamma'_i is therefore computed as a sum of two terms. The first
is its value as a function of the ends alone. The second is a zero that has the derivatives with respect to the
interior; its gradient is multiplied by 2 L_i in the backward pass. One backward pass then gives the network and the
ends the gradient of the bound, and the interior the gradient of E[L^2]. The paper's appendix on minimising the variance
derives the same product.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from solvers import InputError, Node, Prediction, Solver
from solvers.noise.draws import Draws
from solvers.one_step.ancestral import DDPM
from solvers.registry.ranges import Positive
from solvers.types.answers import predicted

from ..bounds.chain import chain_of, prior_term, step_terms
from ..bounds.continuous import diffusion, place_of, prior_kl, reconstruction, variable_of
from ..bounds.decoders import Decoder
from ..paths.base import SDE
from ..paths.chain import Chain, reverse_kernel
from ..paths.time_samplers import LowDiscrepancy, TimeSampler
from .losses import Loss, losses


def _needs(decoder: Decoder | None, name: str) -> Decoder:
    if decoder is None:
        raise InputError(f"{name} needs a decoder: gaussian for continuous data, discretised for levels")
    return decoder


class ChainLoss(Loss):
    """The base class of losses at a random node of a chain for each sample."""

    def nodes(self, sde: SDE, draws: Draws, state: nn.Module | None = None) -> Node[Tensor]:
        chain = chain_of(sde)
        return chain.steps(_indices(chain, draws))[0]


def _indices(chain: Chain, draws: Draws) -> Tensor:
    """The index of a node for each row (B,), each equally likely."""
    return (draws.uniform("times")[:, 0] * chain.count).long().clamp(max=chain.count - 1)


def _drawn(
    denoiser: Any, x0: Tensor, draws: Draws, conditions: dict[str, Tensor]
) -> tuple[Chain, Tensor, Tensor, Prediction]:
    """The chain, a random index for each sample (B,), the noise (B, *), and the model's prediction at x_i."""
    chain = chain_of(denoiser.sde)
    index, eps = _indices(chain, draws), draws.normal_like(x0)
    at, _ = chain.steps(index)
    wide = at.like(x0)
    return chain, index, eps, predicted(denoiser.predict, wide.alpha * x0 + wide.sigma * eps, at, conditions)


@losses.register("chain_bound", reference="Ho et al. 2020, arXiv:2006.11239, eq. 5")
@dataclass(frozen=True)
class ChainBound(ChainLoss):
    """An unbiased estimate of the chain's variational bound in bits/dim, from one random term per sample.

    The term is multiplied by the number of terms. In a run, the data decide the decoder if the config names none.

    Args:
        kernel: the ancestral solver that sets the variance of the reverse chain.
        decoder: the distribution of the data in the last step.
        prior: add L_N, which depends on the path alone.
    """

    kernel: Solver = field(default=DDPM(variance="beta"))
    decoder: Decoder | None = None
    prior: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        reverse_kernel(self.kernel)

    def __call__(
        self, denoiser: Any, x0: Tensor, draws: Draws, state: nn.Module | None = None, **conditions: Tensor
    ) -> Tensor:
        """See ``Loss``; bits/dim.

        Raises:
            InputError: no decoder.
        """
        chain, index, eps, prediction = _drawn(denoiser, x0, draws, conditions)
        nats = chain.count * step_terms(
            chain, index, x0, eps, prediction, reverse_kernel(self.kernel), _needs(self.decoder, "chain_bound")
        )
        if self.prior:
            nats = nats + prior_term(chain, x0)
        return (nats / (x0[0].numel() * math.log(2))).to(x0)


@losses.register("hybrid", reference="Nichol and Dhariwal 2021, arXiv:2102.09672, eq. 16")
@dataclass(frozen=True)
class Hybrid(ChainLoss):
    """L_simple + weight L_vlb, for a model that learns its variance; the bound L_vlb trains the variance alone.

    Args:
        weight: the factor of the bound, which is in bits/dim; 0.001 in the paper.
        decoder: see ``ChainBound``.
    """

    weight: Positive = 1e-3
    decoder: Decoder | None = None

    def __call__(
        self, denoiser: Any, x0: Tensor, draws: Draws, state: nn.Module | None = None, **conditions: Tensor
    ) -> Tensor:
        """See ``Loss``.

        Raises:
            InputError: no decoder, or a model that does not learn its variance.
        """
        chain, index, eps, prediction = _drawn(denoiser, x0, draws, conditions)
        if prediction.nu is None:
            raise InputError("hybrid needs a model that learns its variance: Denoiser(learned_variance=True)")
        fixed = Prediction(prediction.x0.detach(), prediction.eps.detach(), prediction.nu)
        decoder = _needs(self.decoder, "hybrid")
        nats = chain.count * step_terms(chain, index, x0, eps, fixed, DDPM(variance="learned"), decoder)
        bits = (nats / (x0[0].numel() * math.log(2))).to(x0)
        simple: Tensor = (prediction.eps - eps).square().flatten(1).mean(1)
        return simple + self.weight * bits


@losses.register("continuous_bound", reference="Kingma et al. 2021, arXiv:2107.00630, eq. 11-17")
@dataclass(frozen=True)
class ContinuousBound(Loss):
    """An unbiased estimate of the continuous-time variational bound in bits/dim, from one time per sample.

    On a ``LearnedVP`` it trains the ends of gamma through the bound and the interior through E[L^2] of the diffusion
    term L, also in bits/dim; see the module's docstring. Networks that mix the samples of a batch (batch
    normalisation) make that last gradient approximate.

    Args:
        decoder: the distribution of x0 given the state at t_min: levels or discretised for discrete data, gaussian for
            continuous data. In a run, the data decide it if the config names none.
        times: low_discrepancy, uniform or logsnr. With logsnr, which spreads the times over lam, the loss does not
            depend on the interior and does not train it.

    Raises:
        InputError: a different time sampler.
    """

    decoder: Decoder | None = None
    times: TimeSampler = field(default=LowDiscrepancy())

    def __post_init__(self) -> None:
        super().__post_init__()
        variable_of(self.times)

    def nodes(self, sde: SDE, draws: Draws, state: nn.Module | None = None) -> Node[Tensor]:
        return sde(self.times.sample(sde, draws))

    def __call__(
        self, denoiser: Any, x0: Tensor, draws: Draws, state: nn.Module | None = None, **conditions: Tensor
    ) -> Tensor:
        """See ``Loss``; bits/dim.

        Raises:
            InputError: no decoder.
        """
        if self.decoder is None:
            raise InputError("continuous_bound needs a decoder: levels(bin_width=...) for discrete data, else gaussian")
        sde = denoiser.sde
        place = place_of(sde, self.times.sample(sde, draws), variable_of(self.times))
        eps, noise = draws.normal_like(x0), draws.normal_like(x0, "decoder")
        bits = x0[0].numel() * math.log(2)
        between = diffusion(denoiser, x0, place, eps, conditions) / bits
        for inner in place.interior:
            inner.register_hook(_scaled(2 * between.detach()))  # type: ignore[no-untyped-call]
        ends = prior_kl(x0, place.last, sde.prior().std) + reconstruction(x0, place.first, noise, self.decoder)
        return (between + ends / bits).to(x0.dtype)


def _scaled(factor: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda gradient: factor.to(gradient) * gradient
