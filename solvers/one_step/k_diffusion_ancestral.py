"""k-diffusion's ancestral steps: a deterministic step below the next noise level, then fresh noise up to that level."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from ..registry.ranges import Fraction, NonNegative
from ..types.node import Node, Prediction
from ..types.problem import Problem
from ..types.solver import Noise, Solver, Step, solvers
from .ancestral import split_variance
from .dpm_solver import DPMpp2S
from .runge_kutta import DPM2, Euler


class OneStep(Protocol):
    """A deterministic one-step method that starts from a given prediction."""

    def advance(self, problem: Problem, x: Tensor, t: Node, s: Node, first: Prediction) -> Tensor:
        """The state (B, *) at s."""


@dataclass(frozen=True)
class Ancestral(Solver):
    """A deterministic step to ``ratio_down``, then noise; a subclass provides the deterministic method.

    With ratio_up^2 = eta^2 ratio_s^2 (1 - ratio_s^2 / ratio_t^2) and ratio_down^2 = ratio_s^2 - ratio_up^2:
    x_s / alpha_s = x_down / alpha_down + s_noise ratio_up z. The exact flow followed by the noise carries the exact law
    at t to the exact law at s. Therefore the order of the law is that of the deterministic method. eta = 0 is that
    method. Raises InputError for eta outside [0, 1] or s_noise below 0.
    """

    eta: Fraction = 1.0
    s_noise: NonNegative = 1.0

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def inner(self) -> OneStep:
        """The deterministic method; it must not evaluate the model at the end of its step."""
        raise NotImplementedError

    def step(self, problem: Problem, x: Tensor, t: Node, s: Node, carry: Any, noise: Noise | None) -> Step:
        first = problem.predict(x, t)
        if self.eta == 0:
            return Step(self.inner().advance(problem, x, t, s, first))
        assert noise is not None
        fresh, kept = split_variance(self.eta, s.ratio / t.ratio)
        # in x / alpha the step does not need the time of ratio_down, which may be below the last node
        down = Node(math.nan, 1.0, s.ratio * math.sqrt(kept))
        moved = s.alpha * self.inner().advance(problem, x, t, down, first)
        return Step(moved + (self.s_noise * s.sigma * math.sqrt(fresh)) * noise(t, s))


@solvers.register(
    "euler_ancestral",
    kind="SDE",
    order=1,
    stochastic=True,
    reference="Crowson 2022, k-diffusion, sample_euler_ancestral; Song et al. 2021, arXiv:2010.02502, eq. 12 and 16",
    formula="x_s / alpha_s = x / alpha_t + (ratio_down - ratio_t) eps + s_noise ratio_up z",
    equals=("ddim(eta=1)", "ddpm", "smld"),
    note="equals ddim(eta) for every eta",
)
@dataclass(frozen=True)
class EulerAncestral(Ancestral):
    """Euler ancestral: Euler's method to ratio_down, then noise; the same method as DDIM(eta)."""

    def inner(self) -> OneStep:
        return Euler()


@solvers.register(
    "dpm_2_ancestral",
    aliases=("dpm2_ancestral",),
    kind="SDE",
    order=2,
    stochastic=True,
    evaluations=2,
    reference="Crowson 2022, k-diffusion, sample_dpm_2_ancestral",
    formula="x_s / alpha_s = x / alpha_t + (ratio_down - ratio_t) eps_m + s_noise ratio_up z, eps_m as in dpm_2",
)
@dataclass(frozen=True)
class DPM2Ancestral(Ancestral):
    """DPM2 ancestral: ``dpm_2`` to ratio_down, then noise."""

    def inner(self) -> OneStep:
        return DPM2()


@solvers.register(
    "dpmpp_2s_ancestral",
    aliases=("dpm++2s_ancestral",),
    kind="SDE",
    order=2,
    stochastic=True,
    evaluations=2,
    native="x0",
    reference="Crowson 2022, k-diffusion, sample_dpmpp_2s_ancestral; Lu et al. 2022, arXiv:2211.01095, algorithm 1",
    formula="x_s / alpha_s = (ratio_down / ratio_t) x / alpha_t + phi1(h) x0_m + s_noise ratio_up z",
)
@dataclass(frozen=True)
class DPMpp2SAncestral(Ancestral):
    """DPM++ 2S ancestral: ``dpmpp_2s`` to ratio_down, then noise."""

    def inner(self) -> OneStep:
        return DPMpp2S()
