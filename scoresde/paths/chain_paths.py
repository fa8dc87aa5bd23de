"""Continuous paths through the nodes of discrete chains: exact at the nodes, monotone and smooth between them.

Node i of N, counted from 0, is at t = (i + 1) / N. Between the nodes, lam(t) = log(alpha / sigma) is the monotone
piecewise cubic through them (Fritsch and Butland 1984); its derivative is continuous. t(lam) is the root of a cubic.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from solvers import InputError
from solvers.errors import positive_integer
from solvers.libraries import library
from solvers.registry.ranges import Choice
from solvers.time_grids import beta_schedules
from solvers.time_grids.beta_schedules import Array

from .base import SDE, sdes


class NodesSDE(SDE):
    """The base class of paths through nodes. A subclass defines the fields, lam at the nodes, alpha and sigma."""

    num_train_timesteps: int

    def _place(self, count: int) -> None:
        """Sets N, t_min = 1 / N and t_max = 1.

        Raises:
            InputError: there are fewer than three nodes, or t_min or t_max was given a different value.
        """
        name = sdes.info_of(self).name
        if count != 0:  # an empty list
            positive_integer(f"{name}: num_train_timesteps", count)
        object.__setattr__(self, "num_train_timesteps", count)
        if count < 3:
            raise InputError(f"{name}: a path needs at least three nodes, got {count}")
        own = {"t_min": 1 / count, "t_max": 1.0}
        for end, default in (("t_min", 1e-3), ("t_max", 1.0)):
            if getattr(self, end) not in (default, own[end]):
                raise InputError(
                    f"{name}: {end} is {own[end]:g} with {count} nodes, got {getattr(self, end):g}; "
                    f"to use a part of the range, pass {end} to the solve"
                )
            object.__setattr__(self, end, own[end])

    @property
    def lams(self) -> Array:
        """The values lam (N,) at the nodes."""
        raise NotImplementedError

    @cached_property
    def _cubics(self) -> Tensor:
        """The coefficients (4, N - 1) of lam as cubics, highest power first.

        The variable of each cubic is the distance from the node below, in steps.
        """
        interpolate = library("scipy.interpolate").PchipInterpolator
        return torch.from_numpy(interpolate(np.arange(len(self.lams)), self.lams).c.copy())

    @cached_property
    def _moved(self) -> dict[Any, Tensor]:
        return {}

    def lam(self, t: Tensor) -> Tensor:
        """The value log(alpha / sigma) at t, in the dtype of t."""
        cubics = self._moved.setdefault((t.device, t.dtype), self._cubics.to(t.device, t.dtype))
        steps = self.num_train_timesteps * t - 1
        below = steps.detach().floor().clamp(0, cubics.shape[1] - 1)
        u = steps - below
        a, b, c, d = cubics[:, below.long()]
        lam: Tensor = ((a * u + b) * u + c) * u + d
        return lam

    def t_of_lam(self, lam: float) -> float:
        if not self.lams[-1] < lam < self.lams[0]:
            return self.t_max if lam <= self.lams[-1] else self.t_min
        below = int(np.searchsorted(-self.lams, -lam, side="right")) - 1
        a, b, c, d = self._cubics[:, below].tolist()
        d -= lam
        if d <= 0:  # the node itself, to rounding
            return (below + 1) / self.num_train_timesteps
        after = ((a + b) + c) + d
        root = library("scipy.optimize").brentq
        u = 1.0 if after >= 0 else float(root(lambda u: ((a * u + b) * u + c) * u + d, 0, 1, xtol=1e-15, rtol=1e-14))
        return (below + 1 + u) / self.num_train_timesteps


@sdes.register("ddpm_chain", reference="Ho et al. 2020, arXiv:2006.11239, eq. 4, at the nodes t = (i + 1) / N")
@dataclass(frozen=True)
class ChainSDE(NodesSDE):
    """The path through a DDPM chain's nodes: alpha^2 = prod (1 - beta), sigma^2 = 1 - alpha^2 at t = (i + 1) / N.

    Between the nodes, alpha = sqrt(sigmoid(2 lam)) and sigma = sqrt(sigmoid(-2 lam)).

    Args:
        schedule: "linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid" (of beta) or "sigmoid_alpha" (of alpha^2).
        beta_start, beta_end: the ends of "linear", "scaled_linear" and "sigmoid".
        num_train_timesteps: N.
        betas: custom betas, instead of all of the above.
        zero_terminal_snr: rescale the betas so that the last node has no signal; see ``beta_schedules.half_log_snr``.
        t_min, t_max: always 1 / N and 1; other values would shift the time labels.

    >>> sde = ChainSDE("scaled_linear", beta_start=0.00085, beta_end=0.012)
    >>> round(sde(0.001).alpha ** 2, 12), round(sde(1.0).ratio, 4)
    (0.99915, 14.6146)

    Raises:
        InputError: the schedule is unknown, there are fewer than three nodes, or a beta is not in (0, 1).
    """

    schedule: Annotated[str, Choice(beta_schedules.SCHEDULES)] = "linear"
    beta_start: float = beta_schedules.BETA_START
    beta_end: float = beta_schedules.BETA_END
    num_train_timesteps: int = 1000
    betas: tuple[float, ...] | None = field(default=None, repr=False)
    zero_terminal_snr: bool = False
    t_min: float = field(default=1e-3, kw_only=True)
    t_max: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.betas is not None:
            object.__setattr__(self, "betas", tuple(map(float, self.betas)))
        self._place(self.num_train_timesteps if self.betas is None else len(self.betas))
        betas = self.all_betas()
        if bad := [i for i, beta in enumerate(betas) if not 0 < beta < 1]:
            raise InputError(f"ddpm_chain: betas must lie between 0 and 1, got {betas[bad[0]]:g} at node {bad[0]}")
        if not (np.diff(self.lams) < 0).all():
            raise InputError("ddpm_chain: two nodes have the same noise level; the betas are too small or end at 1")

    def all_betas(self) -> Array:
        """The betas beta_i (N,) before any rescaling."""
        if self.betas is not None:
            return np.array(self.betas, dtype=np.float64)
        return beta_schedules.betas(self.schedule, self.num_train_timesteps, self.beta_start, self.beta_end)

    @cached_property
    def lams(self) -> Array:
        """The values lam (N,) at the nodes."""
        return beta_schedules.half_log_snr(self.all_betas(), self.zero_terminal_snr)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.sigmoid(2 * self.lam(t)).sqrt()

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sigmoid(-2 * self.lam(t)).sqrt()


@sdes.register("smld_chain", reference="Song and Ermon 2019, arXiv:1907.05600, eq. 5, at the nodes t = (i + 1) / N")
@dataclass(frozen=True)
class SMLDChainSDE(NodesSDE):
    """The path through an SMLD chain's noise scales: alpha = 1, sigma = sigma_i at t = (i + 1) / N.

    Between the nodes, log sigma is interpolated.

    Args:
        sigma_min, sigma_max: the ends of the geometric sigmas.
        num_train_timesteps: N.
        sigmas: custom sigmas in increasing order, instead of all of the above.
        t_min, t_max: always 1 / N and 1; other values would shift the time labels.

    >>> round(SMLDChainSDE(0.01, 50.0, 232)(1.0).sigma, 9)
    50.0

    Raises:
        InputError: there are fewer than three nodes, or the sigmas are not positive and increasing.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    num_train_timesteps: int = 1000
    sigmas: tuple[float, ...] | None = field(default=None, repr=False)
    t_min: float = field(default=1e-3, kw_only=True)
    t_max: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sigmas is not None:
            object.__setattr__(self, "sigmas", tuple(map(float, self.sigmas)))
        self._place(self.num_train_timesteps if self.sigmas is None else len(self.sigmas))
        levels = self.all_sigmas()
        if bad := np.flatnonzero(~(np.isfinite(levels) & (levels > 0))).tolist():
            raise InputError(f"smld_chain: sigmas must be finite and above 0, got {levels[bad[0]]:g} at node {bad[0]}")
        if bad := np.flatnonzero(~(np.diff(levels) > 0)).tolist():
            i = bad[0]
            raise InputError(
                f"smld_chain: sigmas must increase with the node, got {levels[i]:g} at node {i} and {levels[i + 1]:g} "
                f"at node {i + 1}"
                + (
                    "; for networks trained with the greatest sigma first, reverse the list"
                    if levels[0] > levels[-1]
                    else ""
                )
            )

    def all_sigmas(self) -> Array:
        """The noise scales sigma_i (N,)."""
        if self.sigmas is not None:
            return np.array(self.sigmas, dtype=np.float64)
        return beta_schedules.sigmas(self.sigma_min, self.sigma_max, self.num_train_timesteps)

    @cached_property
    def lams(self) -> Array:
        """The values lam (N,) at the nodes."""
        lams: Array = -np.log(self.all_sigmas())
        return lams

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.exp(-self.lam(t))
