"""One-step methods of the reverse chain and the reverse SDE.

All are written for any Gaussian path, with the transition kernel of the forward process
q(x_t | x_s) = N(alpha_ts x_s, var_ts), alpha_ts = alpha_t / alpha_s, var_ts = sigma_t^2 - alpha_ts^2 sigma_s^2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from .errors import InputError
from .types import Node, Noise, Problem, Solver, Step, solvers


def forward_kernel(t: Node, s: Node) -> tuple[float, float]:
    """(alpha_ts, var_ts) of q(x_t | x_s), s the less noisy of the two.

    The variance is alpha_t^2 (ratio_t^2 - ratio_s^2), factored so that close nodes do not cancel.
    """
    return t.alpha / s.alpha, t.alpha**2 * (t.ratio - s.ratio) * (t.ratio + s.ratio)


@solvers.register(
    "ddpm",
    aliases=(
        "ancestral",
        "ancestral_sampling",
        "DDPMScheduler",
        "euler_ancestral",
        "EulerAncestralDiscreteScheduler",
    ),
    kind="SDE",
    order=1,
    stochastic=True,
    reference="Ho et al. 2020, arXiv:2006.11239, eq. 6-7 and algorithm 2",
    formula="x_s = (alpha_ts sigma_s^2 x + alpha_s var_ts x0) / sigma_t^2 + sqrt(v) z",
)
@dataclass(frozen=True)
class DDPM(Solver):
    """Ancestral sampling: a draw from q(x_s | x_t, x0) with x0 predicted.

    x_s = (alpha_ts sigma_s^2 / sigma_t^2) x + (alpha_s var_ts / sigma_t^2) x0 + sqrt(v) z, with
    v = sigma_s^2 var_ts / sigma_t^2 (``beta_tilde``, the posterior's variance) or v = var_ts (``beta``).
    """

    variance: Literal["beta_tilde", "beta"] = "beta_tilde"

    def step(self, problem: Problem, x: Tensor, t: Node, s: Node, carry: Any, noise: Noise | None) -> Step:
        assert noise is not None
        x0 = problem.predict(x, t).x0
        alpha_ts, var_ts = forward_kernel(t, s)
        keep = (s.sigma / t.sigma) ** 2
        v = keep * var_ts if self.variance == "beta_tilde" else var_ts
        return Step((alpha_ts * keep) * x + (s.alpha * var_ts / t.sigma**2) * x0 + math.sqrt(v) * noise(t, s))


@solvers.register(
    "ddim",
    aliases=("DDIMScheduler",),
    kind="ODE/SDE",
    order=1,
    reference="Song et al. 2021, arXiv:2010.02502, eq. 12 and 16",
    formula="x_s = alpha_s x0 + sqrt(sigma_s^2 - v) eps + sqrt(v) z",
)
@dataclass(frozen=True)
class DDIM(Solver):
    """DDIM: x_s = alpha_s x0 + sqrt(sigma_s^2 - v) eps + sqrt(v) z, v = eta^2 sigma_s^2 (1 - ratio_s^2 / ratio_t^2).

    eta = 0 is Euler's method in x / alpha against sigma / alpha; eta = 1 is ``ddpm``. (The linear coefficient of eta
    is the standard deviation's, as in the paper: the noise's variance goes with eta^2.)
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise InputError(f"ddim: eta must lie in [0, 1], got {self.eta:g}")

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def step(self, problem: Problem, x: Tensor, t: Node, s: Node, carry: Any, noise: Noise | None) -> Step:
        x0, eps = (prediction := problem.predict(x, t)).x0, prediction.eps
        if self.eta == 0:
            return Step(s.alpha * x0 + s.sigma * eps)
        assert noise is not None
        fresh = self.eta**2 * (1 - s.ratio / t.ratio) * (1 + s.ratio / t.ratio)
        kept = s.sigma * math.sqrt(1 - fresh)
        return Step(s.alpha * x0 + kept * eps + (s.sigma * math.sqrt(fresh)) * noise(t, s))


@solvers.register(
    "euler_maruyama",
    aliases=("em",),
    kind="SDE",
    order=1,
    stochastic=True,
    reference="Song et al. 2021, arXiv:2011.13456, appendix E; Kloeden and Platen 1992, section 10.2",
    formula="x_s = x + (f x - g^2 score) (s - t) + g sqrt(t - s) z",
)
@dataclass(frozen=True)
class EulerMaruyama(Solver):
    """Euler-Maruyama on the reverse SDE: x_s = x + (f x - g^2 score) (s - t) + g sqrt(t - s) z, f and g at t."""

    def step(self, problem: Problem, x: Tensor, t: Node, s: Node, carry: Any, noise: Noise | None) -> Step:
        assert noise is not None
        eps = problem.predict(x, t).eps
        dt = s.t - t.t
        drift = (1 + t.f * dt) * x + (t.g2 / t.sigma * dt) * eps  # score = -eps / sigma
        return Step(drift + math.sqrt(t.g2 * abs(dt)) * noise(t, s))


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
    """The reverse SDE discretised like the forward chain: x_s = (2 - alpha_ts) x + var_ts score + sqrt(var_ts) z."""

    def step(self, problem: Problem, x: Tensor, t: Node, s: Node, carry: Any, noise: Noise | None) -> Step:
        assert noise is not None
        eps = problem.predict(x, t).eps
        alpha_ts, var_ts = forward_kernel(t, s)
        return Step((2 - alpha_ts) * x - (var_ts / t.sigma) * eps + math.sqrt(var_ts) * noise(t, s))
