"""One-step methods for the reverse chain and the reverse SDE.

They apply to any Gaussian path and use the transition kernel of the forward process,
q(x_t | x_s) = N(alpha_ts x_s, var_ts), alpha_ts = alpha_t / alpha_s, var_ts = sigma_t^2 - alpha_ts^2 sigma_s^2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Generic, Literal

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..registry.ranges import Fraction, NonNegative
from ..types.node import Node, T
from ..types.problem import Problem
from ..types.solver import Noise, Solver, Step, solvers


def forward_kernel(t: Node[T], s: Node[T]) -> tuple[T, T]:
    """The scale and variance (alpha_ts, var_ts) of q(x_t | x_s), where s is the less noisy node.

    The variance is alpha_t^2 (ratio_t^2 - ratio_s^2), factored so that nothing cancels for close nodes.
    """
    return t.alpha / s.alpha, t.alpha**2 * (t.ratio - s.ratio) * (t.ratio + s.ratio)


@dataclass(frozen=True, slots=True)
class Posterior(Generic[T]):
    """The posterior q(x_s | x_t, x0) = N(on_x x_t + on_x0 x0, variance); its variance is called beta_tilde."""

    on_x: T
    on_x0: T
    variance: T


def posterior(t: Node[T], s: Node[T]) -> Posterior[T]:
    """The posterior q(x_s | x_t, x0) of the forward process, for a node s less noisy than t on any Gaussian path.

    on_x = alpha_ts sigma_s^2 / sigma_t^2, on_x0 = alpha_s var_ts / sigma_t^2, variance = sigma_s^2 var_ts / sigma_t^2
    (Ho et al. 2020, arXiv:2006.11239, eq. 7; Kingma et al. 2021, arXiv:2107.00630, eq. 25).
    """
    alpha_ts, var_ts = forward_kernel(t, s)
    keep = (s.sigma / t.sigma) ** 2
    return Posterior(alpha_ts * keep, s.alpha * var_ts / t.sigma**2, keep * var_ts)


def split_variance(eta: float, fall: T) -> tuple[T, T]:
    """The fractions of the variance at s that a step draws afresh, eta^2 (1 - fall^2), and keeps.

    ``fall`` is ratio_s / ratio_t. The two fractions sum to one; each is computed separately, since the kept one is tiny
    for a long step.
    """
    return eta**2 * (1 - fall) * (1 + fall), (1 - eta) * (1 + eta) + (eta * fall) ** 2


@solvers.register(
    "ddpm",
    aliases=("ancestral", "ancestral_sampling"),
    kind="SDE",
    order=1,
    stochastic=True,
    native="x0",
    reference="Ho et al. 2020, arXiv:2006.11239, eq. 6-7, algorithm 2; optimal: Bao et al. 2022, arXiv:2201.06503",
    formula="x_s = (alpha_ts sigma_s^2 x + alpha_s var_ts x0) / sigma_t^2 + sqrt(v) z",
    equals=("ddim(eta=1)", "smld", "euler_ancestral", "seeds_1"),
)
@dataclass(frozen=True)
class DDPM(Solver):
    """Ancestral sampling: a draw from q(x_s | x_t, x0) with the predicted x0.

    x_s = (alpha_ts sigma_s^2 / sigma_t^2) x + (alpha_s var_ts / sigma_t^2) x0 + sqrt(v) z, where ``variance`` selects
    v. ``beta_tilde`` is the posterior's variance, v = sigma_s^2 var_ts / sigma_t^2; ``beta`` is v = var_ts.
    ``interpolated`` is v = beta^w beta_tilde^(1 - w) with w = ``interpolation``. ``learned`` has the same formula with
    a w in [0, 1] that the model predicts for each element (Nichol and Dhariwal 2021, arXiv:2102.09672, eq. 15).
    ``optimal`` adds to beta_tilde the effect of the variance of x0 given x,
    (alpha_s var_ts / sigma_t^2)^2 (sigma_t / alpha_t)^2 (1 - m), where m = E|eps|^2 / d is the mean power per dimension
    of the model's eps. ``eps_power`` lists pairs [lam, m] in order of lam; m is interpolated linearly in lam and
    constant beyond the ends.

    Raises InputError for interpolation outside [0, 1], for interpolation without variance=interpolated or eps_power
    without variance=optimal, for either variance without its option, and for pairs that are unordered, not finite, or
    with m below 0.
    """

    variance: Literal["beta_tilde", "beta", "interpolated", "learned", "optimal"] = "beta_tilde"
    interpolation: Fraction | None = None
    eps_power: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.variance == "interpolated") != (self.interpolation is not None):
            raise InputError(
                "ddpm: variance=interpolated requires interpolation in [0, 1]; no other variance accepts it"
            )
        if (self.variance == "optimal") != bool(self.eps_power):
            raise InputError("ddpm: variance=optimal requires eps_power=[[lam, m], ...]; no other variance accepts it")
        for pair in self.eps_power:
            if len(pair) != 2 or not all(map(math.isfinite, pair)) or pair[1] < 0:
                raise InputError(f"ddpm: eps_power takes pairs [lam, m] of finite numbers, m >= 0; got {list(pair)}")
        lams = [pair[0] for pair in self.eps_power]
        if any(before >= after for before, after in pairwise(lams)):
            raise InputError("ddpm: eps_power must be in order of increasing lam")

    @property
    def nonlinear(self) -> str:
        return "the model predicts the variance of the noise" if self.variance == "learned" else ""

    def variance_of(self, t: Any, s: Any, nu: Any = None, lowest: float = 0.0) -> Any:
        """The variance v of a step between two nodes of numbers or of tensors.

        ``nu`` is the model's w, for ``learned``. ``lowest`` replaces beta_tilde if s is the data, where it would be 0.

        Raises:
            InputError: the variance is ``learned``, but ``nu`` is None.
        """
        q, beta = posterior(t, s), forward_kernel(t, s)[1]
        w = self.interpolation
        if self.variance == "learned":
            if nu is None:
                raise InputError("ddpm(variance=learned) needs a model that learned its variance")
            w = nu
        if self.variance == "beta":
            return beta
        if self.variance == "optimal":
            lams, powers = zip(*self.eps_power, strict=True)
            where = t.lam.cpu() if isinstance(t.lam, Tensor) else t.lam
            power = np.interp(where, lams, powers)
            left = torch.as_tensor(power).to(t.lam) if isinstance(t.lam, Tensor) else float(power)
            return q.variance + (q.on_x0 * t.ratio) ** 2 * _positive(1 - left)
        tilde: Any = torch.where(s.sigma == 0, lowest, q.variance) if isinstance(s.sigma, Tensor) else q.variance
        if not isinstance(s.sigma, Tensor) and s.sigma == 0:
            tilde = lowest
        if isinstance(w, Tensor):  # not by powers of tensors, whose last bit depends on the batch size
            return torch.exp(w * _log(beta) + (1 - w) * _log(tilde))
        return tilde if w is None else beta**w * tilde ** (1 - w)

    def step(self, problem: Problem, x: Tensor, t: Node, s: Node, carry: Any, noise: Noise | None) -> Step:
        assert noise is not None
        prediction = problem.predict(x, t)
        q = posterior(t, s)
        v = self.variance_of(t, s, prediction.nu)
        return Step(q.on_x * x + q.on_x0 * prediction.x0 + v**0.5 * noise(t, s))


def _log(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.log()
    return math.log(value) if value > 0 else -math.inf


def _positive(value: Any) -> Any:
    return value.clamp_min(0) if isinstance(value, Tensor) else max(0.0, value)


@solvers.register(
    "smld",
    kind="SDE",
    order=1,
    stochastic=True,
    native="score",
    reference="Song et al. 2021, arXiv:2011.13456, appendix F, eq. 47",
    formula="x_s / alpha_s = x / alpha_t - g eps / ratio_t + ratio_s sqrt(g) z / ratio_t, g = ratio_t^2 - ratio_s^2",
    equals=("ddpm", "ddim(eta=1)", "euler_ancestral"),
)
@dataclass(frozen=True)
class SMLD(Solver):
    """Ancestral sampling of a chain of noise scales, score_sde's predictor for VE; here in x / alpha, for any path.

    x_s / alpha_s = x / alpha_t - (ratio_t^2 - ratio_s^2) eps / ratio_t + ratio_s sqrt(1 - ratio_s^2 / ratio_t^2) z.
    """

    def step(self, problem: Problem, x: Tensor, t: Node, s: Node, carry: Any, noise: Noise | None) -> Step:
        assert noise is not None
        eps = problem.predict(x, t).eps
        gap = (t.ratio - s.ratio) * (t.ratio + s.ratio)
        moved = (s.alpha / t.alpha) * x - (s.alpha * gap / t.ratio) * eps
        return Step(moved + (s.sigma * math.sqrt(gap) / t.ratio) * noise(t, s))


@solvers.register(
    "ddim",
    kind="ODE/SDE",
    order=1,
    reference="Song et al. 2021, arXiv:2010.02502, eq. 12 and 16",
    formula="x_s = alpha_s x0 + sqrt(sigma_s^2 - v) eps + sqrt(v) z",
    equals=("euler", "dpm_solver_1"),
    note="eta=1 is ddpm; gDDIM (arXiv:2206.05564), for matrix-valued diffusion, is DDIM on these isotropic paths",
)
@dataclass(frozen=True)
class DDIM(Solver):
    """DDIM: x_s = alpha_s x0 + sqrt(sigma_s^2 - v) eps + sqrt(v) z, v = eta^2 sigma_s^2 (1 - ratio_s^2 / ratio_t^2).

    eta = 0 is Euler's method in x / alpha against sigma / alpha; eta = 1 is ``ddpm``. As in the paper, the standard
    deviation of the noise is proportional to eta, and its variance to eta^2.
    """

    eta: Fraction = 0.0

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def step(self, problem: Problem, x: Tensor, t: Node, s: Node, carry: Any, noise: Noise | None) -> Step:
        x0, eps = (prediction := problem.predict(x, t)).x0, prediction.eps
        if self.eta == 0:
            return Step(s.alpha * x0 + s.sigma * eps)
        assert noise is not None
        fresh, kept = split_variance(self.eta, s.ratio / t.ratio)
        return Step(s.alpha * x0 + (s.sigma * math.sqrt(kept)) * eps + (s.sigma * math.sqrt(fresh)) * noise(t, s))


@solvers.register(
    "euler_maruyama",
    aliases=("em",),
    kind="SDE",
    order=1,
    stochastic=True,
    reference="Song et al. 2021, arXiv:2011.13456, appendix E; Kloeden and Platen 1992, section 10.2",
    formula="x_s = x + (f x - (1 + eta^2) / 2 g^2 score) (s - t) + eta g sqrt(t - s) z",
)
@dataclass(frozen=True)
class EulerMaruyama(Solver):
    """Euler-Maruyama on the reverse SDE with noise scaled by eta.

    x_s = x + (f x - (1 + eta^2) / 2 g^2 score) (s - t) + eta g sqrt(t - s) z, with f and g at t. eta = 1 is the reverse
    SDE; eta = 0 is Euler's method in t on the probability-flow ODE. Raises InputError for a negative or infinite eta.
    """

    eta: NonNegative = 1.0

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def step(self, problem: Problem, x: Tensor, t: Node, s: Node, carry: Any, noise: Noise | None) -> Step:
        eps = problem.predict(x, t).eps
        dt = s.t - t.t
        drift = (1 + t.f * dt) * x + (0.5 * (1 + self.eta**2) * t.g2 / t.sigma * dt) * eps  # score = -eps / sigma
        if self.eta == 0:
            return Step(drift)
        assert noise is not None
        return Step(drift + (self.eta * math.sqrt(t.g2 * abs(dt))) * noise(t, s))


@solvers.register(
    "reverse_diffusion",
    aliases=("reverse_diffusion_predictor",),
    kind="SDE",
    order=1,
    stochastic=True,
    reference="Song et al. 2021, arXiv:2011.13456, eq. 45-46",
    formula="x_s = (2 - alpha_ts) x + var_ts score + sqrt(var_ts) z",
)
@dataclass(frozen=True)
class ReverseDiffusion(Solver):
    """The reverse SDE, discretised like the forward chain: x_s = (2 - alpha_ts) x + var_ts score + sqrt(var_ts) z."""

    def step(self, problem: Problem, x: Tensor, t: Node, s: Node, carry: Any, noise: Noise | None) -> Step:
        assert noise is not None
        eps = problem.predict(x, t).eps
        alpha_ts, var_ts = forward_kernel(t, s)
        return Step((2 - alpha_ts) * x - (var_ts / t.sigma) * eps + math.sqrt(var_ts) * noise(t, s))
