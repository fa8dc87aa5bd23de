"""Weightings of denoising score matching: the weight of the model's error at each noise level.

With x = alpha x0 + sigma eps, let d_x0 and d_eps be the errors of a prediction; alpha d_x0 + sigma d_eps = 0. Every
weighting is therefore a weight of |d_eps|^2. With r = sigma / alpha and SNR = 1 / r^2, the weight of |d_x0|^2 is the
weight of |d_eps|^2 times SNR.

| output | its squared error, as a multiple of |d_eps|^2 |
| --- | --- |
| eps | 1 |
| x0 | r^2 |
| score | 1 / sigma^2 |
| v | ((alpha^2 + sigma^2) / alpha)^2, on VP (SNR + 1) r^2 |
| velocity | (sigma' - alpha' r)^2, on rectified flow (1 + r)^2 |
| edm | (r^2 + sigma_data^2) / sigma_data^2 |
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from solvers import InputError, Node, Registry
from solvers.registry.options import Options
from solvers.registry.ranges import Positive, Range

from ..paths.base import SDE

_GOLDEN = (math.sqrt(5) - 1) / 2


class Weighting(Options):
    """The weight of |d_eps|^2 as a function of a node. Each is a frozen dataclass; its fields are its options."""

    def of_eps(self, sde: SDE, node: Node[Tensor], sigma_data: float | None) -> Tensor:
        """The weights (B,) of |d_eps|^2 at nodes (B,), in the dtype of the nodes.

        Raises:
            InputError: the weighting needs ``sigma_data``, and the denoiser has none.
        """
        raise NotImplementedError

    def state(self) -> nn.Module | None:
        """What the weighting learns, as parameters; None if that is nothing."""
        return None

    def applied(self, weighted: Tensor, node: Node[Tensor], state: nn.Module | None) -> Tensor:
        """The loss (B,) of weighted errors (B,) at nodes (B,): these errors, unless the weighting learns."""
        return weighted

    def __str__(self) -> str:
        return weightings.format(self)


weightings: Registry[Weighting] = Registry("weighting", Weighting)


@weightings.register("dsm", aliases=("eps", "simple", "snr"), reference="Song et al. 2021, arXiv:2011.13456, eq. 7")
@dataclass(frozen=True)
class ScoreMatching(Weighting):
    """1: the plain error of eps, sigma^2 |score error|^2, SNR |d_x0|^2.

    It is L_simple (Ho et al. 2020, arXiv:2006.11239, eq. 14) and the SNR weighting of Salimans and Ho (2022,
    arXiv:2202.00512, section 4).
    """

    def of_eps(self, sde: SDE, node: Node[Tensor], sigma_data: float | None) -> Tensor:
        return torch.ones_like(node.t)


@weightings.register("uniform", aliases=("x0",), reference="Hang et al. 2023, arXiv:2303.09556, section 3.4")
@dataclass(frozen=True)
class UniformWeighting(Weighting):
    """r^2: the plain error of x0, |d_x0|^2."""

    def of_eps(self, sde: SDE, node: Node[Tensor], sigma_data: float | None) -> Tensor:
        return node.ratio**2


@weightings.register("v", reference="Salimans and Ho 2022, arXiv:2202.00512, section 4")
@dataclass(frozen=True)
class V(Weighting):
    """((alpha^2 + sigma^2) / alpha)^2: the plain error of v = alpha eps - sigma x0; on VP, (SNR + 1) |d_x0|^2."""

    def of_eps(self, sde: SDE, node: Node[Tensor], sigma_data: float | None) -> Tensor:
        return ((node.alpha**2 + node.sigma**2) / node.alpha) ** 2


@weightings.register("flow", aliases=("velocity",), reference="Lipman et al. 2023, arXiv:2210.02747, eq. 9")
@dataclass(frozen=True)
class Flow(Weighting):
    """(sigma' - alpha' r)^2: the plain error of the velocity alpha' x0 + sigma' eps, as in flow matching."""

    def of_eps(self, sde: SDE, node: Node[Tensor], sigma_data: float | None) -> Tensor:
        return (node.dsigma - node.dalpha * node.ratio) ** 2


@weightings.register("edm", reference="Karras et al. 2022, arXiv:2206.00364, table 1 and eq. 8")
@dataclass(frozen=True)
class EDMWeighting(Weighting):
    """(r^2 + sigma_data^2) / sigma_data^2: the plain error of EDM's raw network F.

    On |d_x0|^2 it is (r^2 + sigma_data^2) / (r sigma_data)^2.
    """

    def of_eps(self, sde: SDE, node: Node[Tensor], sigma_data: float | None) -> Tensor:
        sd = _known(sigma_data, "edm")
        return (node.ratio / sd) ** 2 + 1


class Uncertainty(nn.Module):
    """A learned function u of the noise level, at first 0: a linear layer on Fourier features of ln(r) / 4.

    The features are sqrt(2) cos(2 pi (f_k c + p_k)) (Karras et al. 2024, eq. 75). The frequencies f_k are quantiles of
    N(0, 1) and the phases p_k are spread evenly, so that no random numbers are needed. The published layer also
    normalises its weights.
    """

    frequencies: Tensor
    phases: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        places = torch.arange(channels, dtype=torch.float64)
        quantiles = torch.special.ndtri((places + 0.5) / channels)
        self.register_buffer("frequencies", quantiles.float(), persistent=False)
        self.register_buffer("phases", (places * _GOLDEN % 1).float(), persistent=False)
        self.linear = nn.Parameter(torch.zeros(channels))

    def forward(self, node: Node[Tensor]) -> Tensor:
        """The values u (B,) at nodes (B,), float32 on the device of the parameters."""
        label = (torch.log(node.ratio) / 4).to(self.linear)
        features = torch.cos(2 * math.pi * (label[:, None] * self.frequencies + self.phases))
        # no matrix product, which autocast would compute in 16 bits
        found: Tensor = (features * self.linear).sum(1) * math.sqrt(2 / len(self.linear))
        return found


@weightings.register("edm2", reference="Karras et al. 2024, arXiv:2312.02696, eq. 14, 15 and 21")
@dataclass(frozen=True)
class EDM2Weighting(EDMWeighting):
    """EDM's weighting of an error L, divided by a learned variance: L / exp(u) + u, with u a function of r.

    u learns log E[L] at each noise level (eq. 26), so that all levels have the same influence on the network.

    Args:
        channels: how many Fourier features u has.
    """

    channels: Annotated[int, Range(1, 10_000)] = 128

    def state(self) -> nn.Module | None:
        return Uncertainty(self.channels)

    def applied(self, weighted: Tensor, node: Node[Tensor], state: nn.Module | None) -> Tensor:
        if state is None:
            raise InputError("the weighting edm2 learns: pass state=loss.state(sde)")
        u = state(node)
        value: Tensor = weighted / u.exp() + u
        return value


@weightings.register("likelihood", reference="Song et al. 2021, arXiv:2101.09258, theorem 1")
@dataclass(frozen=True)
class Likelihood(Weighting):
    """g^2 / sigma^2: g^2 |score error|^2, with which the loss bounds the negative log-likelihood."""

    def of_eps(self, sde: SDE, node: Node[Tensor], sigma_data: float | None) -> Tensor:
        return _gamma_slope(node)


@weightings.register("vdm", reference="Kingma et al. 2021, arXiv:2107.00630, eq. 17")
@dataclass(frozen=True)
class VDM(Weighting):
    """(t_max - t_min) gamma' / 2 with gamma = -log SNR.

    At times that are uniform in t, the loss is the diffusion term of the variational bound in nats for each dimension.
    gamma' = g^2 / sigma^2, so the weighting is that of ``likelihood`` times a constant.
    """

    def of_eps(self, sde: SDE, node: Node[Tensor], sigma_data: float | None) -> Tensor:
        return 0.5 * (sde.t_max - sde.t_min) * _gamma_slope(node)


@weightings.register("min_snr", reference="Hang et al. 2023, arXiv:2303.09556, section 3.4")
@dataclass(frozen=True)
class MinSNR(Weighting):
    """min(SNR, gamma) / SNR = min(1, gamma r^2): min(SNR, gamma) |d_x0|^2; on VP, min(SNR, gamma) / (SNR + 1) on v."""

    gamma: Positive = 5.0

    def of_eps(self, sde: SDE, node: Node[Tensor], sigma_data: float | None) -> Tensor:
        return (self.gamma * node.ratio**2).clamp(max=1)


@weightings.register("p2", reference="Choi et al. 2022, arXiv:2204.00227, eq. 8")
@dataclass(frozen=True)
class P2(Weighting):
    """1 / (k + SNR)^gamma = (r^2 / (k r^2 + 1))^gamma, which gives little weight to low noise."""

    gamma: Positive = 1.0
    k: Positive = 1.0

    def of_eps(self, sde: SDE, node: Node[Tensor], sigma_data: float | None) -> Tensor:
        square = node.ratio**2
        return (square / (self.k * square + 1)) ** self.gamma


def _gamma_slope(node: Node[Tensor]) -> Tensor:
    """The derivative (B,) of gamma = -log SNR by t, which is g^2 / sigma^2; nothing cancels in the sum."""
    return 2 * (node.dsigma / node.sigma - node.dalpha / node.alpha)


def _known(sigma_data: float | None, name: str) -> float:
    if sigma_data is None:
        raise InputError(f"the weighting {name!r} needs a denoiser with sigma_data")
    return sigma_data
