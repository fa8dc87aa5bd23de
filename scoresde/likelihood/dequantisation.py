"""Discrete data as continuous ones: noise u of a known law q around a level k, so that

log P(k) >= E_q[log p(x_k + u) - log q(u)], and, of K draws, log P(k) >= E log mean_j p(x_k + u_j) / q(u_j), which rises
to log P(k) with K (Burda et al. 2016, arXiv:1509.00519, theorem 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from solvers import InputError, Node, Registry, generator
from solvers.registry.options import Options

_STREAM = 3  # of the generators of the draws


class Dequantiser(Options):
    """A law of the noise around a level; a frozen dataclass whose fields are its options."""

    def spread(self, x: Tensor, u: Tensor, bin_width: float, node: Node) -> tuple[Tensor, Tensor]:
        """Noise (B, *) around levels x (B, *) and its log-density (B,) in nats, from uniform numbers u (B, *) in
        [0, 1), float64 on the CPU. Both results are float64 where the device has it, whatever the dtype of x.

        Args:
            bin_width: the distance between levels.
            node: where the likelihood's solve begins, which sees the data with noise of ratio = sigma / alpha.
        """
        raise NotImplementedError

    @property
    def network(self) -> nn.Module | None:
        """The trained network that says the law; None where there is none."""
        return None

    def __str__(self) -> str:
        return dequantisers.format(self)


dequantisers: Registry[Dequantiser] = Registry("dequantiser", Dequantiser)


@dequantisers.register("uniform", reference="Theis et al. 2016, arXiv:1511.01844, section 3.1")
@dataclass(frozen=True)
class UniformNoise(Dequantiser):
    """Uniform over the bin."""

    def spread(self, x: Tensor, u: Tensor, bin_width: float, node: Node) -> tuple[Tensor, Tensor]:
        d = u[0].numel()
        return bin_width * (u - 0.5), torch.full((len(u),), -d * math.log(bin_width), dtype=torch.float64)


@dequantisers.register("truncated_normal", reference="Zheng et al. 2023, arXiv:2305.03935, section 4.3")
@dataclass(frozen=True)
class TruncatedNormal(Dequantiser):
    """Normal with the path's own noise level at its start, cut off at the bin's edges.

    u = ratio e with e ~ N(0, 1) in [-tau, tau], tau = bin_width / (2 ratio). The point that is scored is then a state
    of the path itself, and nothing is lost to truncation at t_min. For models that were trained on levels.
    """

    def spread(self, x: Tensor, u: Tensor, bin_width: float, node: Node) -> tuple[Tensor, Tensor]:
        if not node.ratio > 0:
            raise InputError("truncated_normal takes a path that begins with noise, sigma(t_min) > 0")
        tau = bin_width / (2 * node.ratio)
        below = 0.5 * math.erfc(tau / math.sqrt(2))
        e = torch.special.ndtri(below + (1 - 2 * below) * u).clamp(-tau, tau)
        norm = math.log(math.sqrt(2 * math.pi) * node.ratio * math.erf(tau / math.sqrt(2)))
        return node.ratio * e, (-0.5 * e**2 - norm).flatten(1).sum(1)


def uniforms(shape: tuple[int, ...], seeds: list[int], draw: int = 0) -> Tensor:
    """u (B, *) in [0, 1), float64, row i from seed i alone; another for every ``draw``."""
    streams = (_STREAM,) if draw == 0 else (_STREAM, draw)
    rows = [torch.rand(shape, generator=generator(seed, *streams), dtype=torch.float64) for seed in seeds]
    return torch.stack(rows)
