"""Dequantisation: adds noise u of a known law q to discrete levels, so that a density bounds their probability.

For a level k at x_k,

    log P(k) >= E_q[log p(x_k + u) - log q(u)],

and, with K draws, log P(k) >= E log mean_j p(x_k + u_j) / q(u_j), which increases to log P(k) with K (Burda et al.
2016, arXiv:1509.00519, theorem 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from solvers import InputError, Node, Registry, generator
from solvers.registry.options import Options

_STREAM = 3  # label of the generator's stream


class Dequantiser(Options):
    """A law of the noise around a level. Each law has options; most are frozen dataclasses with these as fields."""

    def spread(self, x: Tensor, u: Tensor, bin_width: float, node: Node) -> tuple[Tensor, Tensor]:
        """Computes noise (B, *) around levels x (B, *) and the log-density (B,) of that noise in nats.

        Both results are float64 if the device has it, for any dtype of x.

        Args:
            u: uniform numbers (B, *) in [0, 1), float64 on the CPU.
            bin_width: the distance between levels.
            node: the node where the solve of the likelihood begins; its noise level is ratio = sigma / alpha.
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
    """Normal noise of the path's level at t_min, truncated at the edges of the bin.

    u = ratio e with e ~ N(0, 1) in [-tau, tau], tau = bin_width / (2 ratio). The evaluated point is then a state of the
    path at t_min, so ending the path at t_min instead of 0 costs nothing. For models that were trained on levels.
    """

    def spread(self, x: Tensor, u: Tensor, bin_width: float, node: Node) -> tuple[Tensor, Tensor]:
        if not node.ratio > 0:
            raise InputError("truncated_normal needs a path with noise at its start, sigma(t_min) > 0")
        tau = bin_width / (2 * node.ratio)
        below = 0.5 * math.erfc(tau / math.sqrt(2))
        e = torch.special.ndtri(below + (1 - 2 * below) * u).clamp(-tau, tau)
        norm = math.log(math.sqrt(2 * math.pi) * node.ratio * math.erf(tau / math.sqrt(2)))
        return node.ratio * e, (-0.5 * e**2 - norm).flatten(1).sum(1)


def uniforms(shape: tuple[int, ...], seeds: list[int], draw: int = 0) -> Tensor:
    """Draws u (B, *) in [0, 1), float64; row i depends only on seed i and on ``draw``."""
    streams = (_STREAM,) if draw == 0 else (_STREAM, draw)
    rows = [torch.rand(shape, generator=generator(seed, *streams), dtype=torch.float64) for seed in seeds]
    return torch.stack(rows)
