"""Discrete chains as continuous paths.

A DDPM chain has betas beta_0 .. beta_{N-1} and alpha_i^2 = prod_{j <= i} (1 - beta_j). Its node i, counted from 0, sits
at t = (i + 1) / N: t = 1 / N is the first noisy node and t = 1 the last, so that the label ``index`` is i.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator
from scipy.optimize import brentq
from torch import Tensor

from solvers import InputError
from solvers.errors import positive_integer

from .sde import SDE, sdes

Array = NDArray[np.float64]

# alpha of a node without any signal: the root of 2^-24, the number that diffusers puts in the place of alpha^2 = 0
FAINT = 2.0**-12


def _cosine(start: float, end: float, count: int) -> Array:
    kept = np.cos((np.linspace(0, 1, count + 1) + 0.008) / 1.008 * math.pi / 2) ** 2
    betas: Array = np.minimum(1 - kept[1:] / kept[:-1], 0.999)
    return betas


# (beta_start, beta_end, N) -> betas (N,), by the names that checkpoints carry
SCHEDULES: dict[str, Callable[[float, float, int], Array]] = {
    # Ho et al. 2020, arXiv:2006.11239, section 4
    "linear": lambda start, end, count: np.linspace(start, end, count),
    # Rombach et al. 2022, arXiv:2112.10752: linear in the root
    "scaled_linear": lambda start, end, count: np.linspace(math.sqrt(start), math.sqrt(end), count) ** 2,
    # Nichol and Dhariwal 2021, arXiv:2102.09672, eq. 17, with betas of at most 0.999
    "squaredcos_cap_v2": _cosine,
    # betas on a sigmoid's course from -6 to 6: Xu et al. 2022, arXiv:2203.02923
    "sigmoid": lambda start, end, count: start + (end - start) / (1 + np.exp(-np.linspace(-6, 6, count))),
}


def half_log_snr(betas: Array, zero_terminal_snr: bool = False) -> Array:
    """lam = log(alpha / sigma) (N,) of a chain's nodes, without cancellation where beta is small.

    With ``zero_terminal_snr``, of the betas after the rescaling of Lin et al. 2023 (arXiv:2305.08891, algorithm 1):
    alpha is shifted and scaled so that the last is 0 and the first stays. lam would be -inf there; that alpha is set to
    2^-12, or to half of its neighbour where that is less.
    """
    log_square = np.cumsum(np.log1p(-betas))
    if zero_terminal_snr:
        alphas = np.exp(0.5 * log_square)
        alphas = (alphas - alphas[-1]) * (alphas[0] / (alphas[0] - alphas[-1]))
        alphas[-1] = min(FAINT, alphas[-2] / 2)
        log_square = 2 * np.log(alphas)
    lams: Array = 0.5 * (log_square - np.log(-np.expm1(log_square)))
    return lams


@sdes.register("ddpm_chain", reference="Ho et al. 2020, arXiv:2006.11239, eq. 4, at the nodes t = (i + 1) / N")
@dataclass(frozen=True)
class ChainSDE(SDE):
    """The path through a DDPM chain's nodes: alpha^2 = prod (1 - beta), sigma^2 = 1 - alpha^2 at t = (i + 1) / N.

    Between the nodes lam(t) is the monotone piecewise cubic through them (Fritsch and Butland 1984), which has a
    continuous derivative; alpha = sqrt(sigmoid(2 lam)), sigma = sqrt(sigmoid(-2 lam)), and t(lam) solves a cubic.

    Args:
        schedule: "linear", "scaled_linear", "squaredcos_cap_v2" or "sigmoid".
        beta_start, beta_end: the ends of the first two and the last.
        num_train_timesteps: N.
        betas: the chain's own betas, in the place of all of these.
        zero_terminal_snr: rescale the betas so that the last node holds no signal; see ``half_log_snr``.
        t_min, t_max: 1 / N and 1, and nothing else, or the labels would shift.

    >>> sde = ChainSDE("scaled_linear", beta_start=0.00085, beta_end=0.012)
    >>> round(sde(0.001).alpha ** 2, 12), round(sde(1.0).ratio, 4)
    (0.99915, 14.6146)

    Raises:
        InputError: an unknown schedule, fewer than three nodes, or betas that are not in (0, 1).
    """

    schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"] = "linear"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    num_train_timesteps: int = 1000
    betas: tuple[float, ...] = field(default=(), repr=False)
    zero_terminal_snr: bool = False
    t_min: float = field(default=1e-3, kw_only=True)
    t_max: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        if self.betas:
            object.__setattr__(self, "betas", tuple(map(float, self.betas)))
            object.__setattr__(self, "num_train_timesteps", len(self.betas))
        count = positive_integer("ddpm_chain: num_train_timesteps", self.num_train_timesteps)
        if count < 3:
            raise InputError(f"ddpm_chain: a path goes through at least three nodes, got {count}")
        own = {"t_min": 1 / count, "t_max": 1.0}
        for name, default in (("t_min", 1e-3), ("t_max", 1.0)):
            if getattr(self, name) not in (default, own[name]):
                raise InputError(
                    f"ddpm_chain: {name} is {own[name]:g} with {count} nodes, got {getattr(self, name):g}; "
                    f"a solve takes a part of the range with its own {name}"
                )
            object.__setattr__(self, name, own[name])
        betas = self.all_betas()
        if bad := [i for i, beta in enumerate(betas) if not 0 < beta < 1]:
            raise InputError(f"ddpm_chain: betas lie between 0 and 1, got {betas[bad[0]]:g} at node {bad[0]}")
        if not (np.diff(self.lams) < 0).all():
            raise InputError("ddpm_chain: two nodes have one noise level; the betas are too small or end at 1")

    def all_betas(self) -> Array:
        """beta_i (N,) before any rescaling."""
        if self.betas:
            return np.array(self.betas, dtype=np.float64)
        if self.schedule not in SCHEDULES:
            raise InputError(f"ddpm_chain: no schedule {self.schedule!r}; accepted: {', '.join(SCHEDULES)}")
        return SCHEDULES[self.schedule](self.beta_start, self.beta_end, self.num_train_timesteps)

    @cached_property
    def lams(self) -> Array:
        """lam (N,) at the nodes."""
        return half_log_snr(self.all_betas(), self.zero_terminal_snr)

    @cached_property
    def _cubics(self) -> Tensor:
        """The coefficients (4, N - 1) of lam in the distance from the node below, in steps; highest power first."""
        return torch.from_numpy(PchipInterpolator(np.arange(len(self.lams)), self.lams).c.copy())

    @cached_property
    def _moved(self) -> dict[Any, Tensor]:
        return {}

    def lam(self, t: Tensor) -> Tensor:
        """log(alpha / sigma) at t, in its dtype."""
        cubics = self._moved.setdefault((t.device, t.dtype), self._cubics.to(t.device, t.dtype))
        steps = self.num_train_timesteps * t - 1
        below = steps.detach().floor().clamp(0, cubics.shape[1] - 1)
        u = steps - below
        a, b, c, d = cubics[:, below.long()]
        lam: Tensor = ((a * u + b) * u + c) * u + d
        return lam

    def alpha(self, t: Tensor) -> Tensor:
        return torch.sigmoid(2 * self.lam(t)).sqrt()

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sigmoid(-2 * self.lam(t)).sqrt()

    def t_of_lam(self, lam: float) -> float:
        if not self.lams[-1] < lam < self.lams[0]:
            return self.t_max if lam <= self.lams[-1] else self.t_min
        below = int(np.searchsorted(-self.lams, -lam, side="right")) - 1
        a, b, c, d = self._cubics[:, below].tolist()
        d -= lam
        if d <= 0:  # the node itself, to rounding
            return (below + 1) / self.num_train_timesteps
        after = ((a + b) + c) + d
        u = 1.0 if after >= 0 else float(brentq(lambda u: ((a * u + b) * u + c) * u + d, 0, 1, xtol=1e-15, rtol=1e-14))
        return (below + 1 + u) / self.num_train_timesteps
