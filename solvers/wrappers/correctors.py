"""Correctors: Markov chain Monte Carlo steps within one noise level, used by ``pc``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..registry.ranges import AnyPositive, Inside, Positive, Share
from ..types.node import Node
from ..types.problem import NoDensity, Problem
from ..types.solver import Corrector, Noise, correctors


def row_norm(x: Tensor) -> Tensor:
    """The Euclidean norm of each sample of x (B, *), as (B, 1, ..., 1)."""
    norm: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return norm.view(-1, *(1,) * (x.ndim - 1))


def in_float64(x: Tensor) -> Tensor:
    """x in float64, on its own device; on the CPU if that device has no float64."""
    return (x.cpu() if x.device.type == "mps" else x).double()


@correctors.register(
    "langevin",
    nonlinear="Langevin's step is set by the norms of score and noise",
    reference="Song et al. 2021, arXiv:2011.13456, algorithms 4 and 5",
)
@dataclass(frozen=True)
class Langevin(Corrector):
    """Unadjusted Langevin: x + step score + sqrt(2 step) z, step = 2 (snr |z| / |score|)^2.

    The norms are computed per sample, so a sample does not depend on the rest of its batch. In high dimension the
    stationary variance exceeds the target's by the fraction snr^2, for any number of steps. In few dimensions
    |z| / |score| has heavy tails and moves single samples far away: use this rule for images, not for points. A sample
    whose score is zero does not move, because the rule then defines no step.
    """

    snr: AnyPositive = 0.16

    def limit_variance(self, variance: Any, node: Node) -> Any:
        return (1 + self.snr**2) * variance

    def correct(self, problem: Problem, x: Tensor, node: Node, noise: Noise) -> Tensor:
        score = problem.predict(x, node).score(node)
        z = noise(node, node)
        norm = row_norm(score)
        least = torch.finfo(x.dtype).tiny ** 0.25  # below, the step size may overflow
        size = 2 * (self.snr * row_norm(z) / norm.clamp_min(least)) ** 2
        size = torch.where(norm < least, torch.zeros_like(size), size)
        return x + size * score + torch.sqrt(2 * size) * z


@correctors.register(
    "annealed_langevin", aliases=("ald",), reference="Song and Ermon 2019, arXiv:1907.05600, algorithm 1"
)
@dataclass(frozen=True)
class AnnealedLangevin(Corrector):
    """Unadjusted Langevin with a step set by the noise level: x + step score + sqrt(2 step) z, step = 2 (snr sigma)^2.

    It is linear in x and z. If the target is Gaussian with variance V at the level, the stationary variance is
    V / (1 - step / (2 V)). The excess is at most the fraction snr^2 / (1 - snr^2), and small where the data's variance
    is larger than the noise's. (The released code of arXiv:2011.13456 has one more factor, that of its discrete chain's
    last step, which is 1 up to the step's size.)
    """

    snr: Inside = 0.16

    def limit_variance(self, variance: Any, node: Node) -> Any:
        return variance / (1 - (self.snr * node.sigma) ** 2 / variance)

    def correct(self, problem: Problem, x: Tensor, node: Node, noise: Noise) -> Tensor:
        # step score = -2 snr^2 sigma eps
        eps = problem.predict(x, node).eps
        return x - (2 * self.snr**2 * node.sigma) * eps + (2 * self.snr * node.sigma) * noise(node, node)


@correctors.register(
    "noise_renewal", reference="Rozet 2024, azula, PCSampler; the step of Song et al. 2021, arXiv:2010.02502, eq. 12"
)
@dataclass(frozen=True)
class NoiseRenewal(Corrector):
    """Replaces a share ``delta`` of the noise: x' = alpha x0 + sigma (sqrt(1 - delta) eps + sqrt(delta) z).

    It is linear in x and z. If the target is Gaussian with variance V at the level, of which the share q = sigma^2 / V
    is noise, the stationary variance is delta sigma^2 / (1 - (1 - (1 - sqrt(1 - delta)) q)^2). This is too small by
    about the fraction delta (1 - q) / 4. Raises InputError unless 0 < delta <= 1.
    """

    delta: Share = 0.01

    @property
    def _kept(self) -> float:
        return math.sqrt(1 - self.delta)

    def limit_variance(self, variance: Any, node: Node) -> Any:
        # x' = gain x + sigma sqrt(delta) z with gain = 1 - lost; 1 - gain^2 = lost (2 - lost), without cancellation
        lost = self.delta / (1 + self._kept) * node.sigma**2 / variance
        return self.delta * node.sigma**2 / (lost * (2 - lost))

    def correct(self, problem: Problem, x: Tensor, node: Node, noise: Noise) -> Tensor:
        prediction = problem.predict(x, node)
        kept = node.alpha * prediction.x0 + (node.sigma * self._kept) * prediction.eps
        return kept + (node.sigma * math.sqrt(self.delta)) * noise(node, node)


@correctors.register(
    "mala",
    aliases=("metropolis_langevin",),
    nonlinear="a proposal is accepted or not",
    evaluations=2,
    reference="Roberts and Tweedie 1996, Bernoulli 2(4), section 1.4.2; Roberts and Rosenthal 1998 for the scaling",
)
@dataclass(frozen=True)
class MALA(Corrector):
    """Metropolis-adjusted Langevin: each proposal is accepted or rejected, so the stationary law is the target's.

    The proposal is x' = x + h score + sqrt(2 h) z with h = step sigma^2 / d^(1/3), d the number of components of a
    sample. It is accepted with probability min(1, p(x') q(x | x') / (p(x) q(x' | x))); otherwise the sample stays. The
    stationary law is exact for any step. The problem must have ``log_prob(x, node)``, the log-density (B,) of x_t at a
    node. The uniform number of each decision comes from the sample's own noise.
    """

    step: Positive = 0.5

    def correct(self, problem: Problem, x: Tensor, node: Node, noise: Noise) -> Tensor:
        size = self.step * node.sigma**2 / x[0].numel() ** (1 / 3) if len(x) else 1.0

        def mean(x: Tensor) -> Tensor:
            return x + size * problem.predict(x, node).score(node)

        def log_kernel(x: Tensor, mean: Tensor) -> Tensor:
            gaps: Tensor = (in_float64(x - mean) ** 2).flatten(1).sum(1)
            return gaps / (-4 * size)

        there = mean(x)
        proposal = there + math.sqrt(2 * size) * noise(node, node)
        try:
            gain = in_float64(problem.log_prob(proposal, node)) - in_float64(problem.log_prob(x, node))
        except NoDensity as error:
            raise InputError(f"mala needs the target's density: {error}; langevin needs the score only") from None
        gain = gain + log_kernel(x, mean(proposal)) - log_kernel(proposal, there)
        # log of a uniform number, from the first component of a normal draw from the sample's noise
        accepted = torch.special.log_ndtr(in_float64(noise(node, node).flatten(1)[:, 0])) < gain
        return torch.where(accepted.to(x.device).view(-1, *(1,) * (x.ndim - 1)), proposal, x)
