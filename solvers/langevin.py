"""Correctors: Markov chain Monte Carlo steps within one noise level."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import InputError
from .types import Corrector, Node, Noise, Problem, correctors


def row_norm(x: Tensor) -> Tensor:
    """The norm of every sample of x (B, *), as (B, 1, ..., 1)."""
    norm: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return norm.view(-1, *(1,) * (x.ndim - 1))


@correctors.register("langevin", reference="Song et al. 2021, arXiv:2011.13456, algorithms 4 and 5")
@dataclass(frozen=True)
class Langevin(Corrector):
    """Unadjusted Langevin: x + step score + sqrt(2 step) z, step = 2 (snr |z| / |score|)^2.

    The norms are each sample's own, so that a sample does not depend on its neighbours. In high dimension the
    stationary variance exceeds the target's by the fraction snr^2, whatever the number of steps. In few dimensions
    |z| / |score| has heavy tails, and single samples are thrown far; this rule is for images rather than for points.
    """

    snr: float = 0.16

    def __post_init__(self) -> None:
        if not self.snr > 0:
            raise InputError(f"langevin: snr must be positive, got {self.snr:g}")

    @property
    def excess_variance(self) -> float:
        return self.snr**2

    def correct(self, problem: Problem, x: Tensor, node: Node, noise: Noise) -> Tensor:
        score = problem.predict(x, node).score(node)
        z = noise(node, node)
        tiny = torch.finfo(x.dtype).tiny
        size = 2 * (self.snr * row_norm(z) / row_norm(score).clamp_min(tiny)) ** 2
        return x + size * score + torch.sqrt(2 * size) * z
