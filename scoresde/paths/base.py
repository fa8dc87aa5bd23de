"""The base class of Gaussian paths: x_t = alpha(t) x0 + sigma(t) eps.

The schedule is the SDE: dx = f x dt + g dw with f = d log alpha / dt and g^2 = d sigma^2 / dt - 2 f sigma^2 has these
marginals. The author of a path writes only ``alpha`` and ``sigma``; the base class derives everything else from them.
Both accept tensors of any float dtype and use ``expm1`` where 1 - exp(-x) would cancel. The inverse t(lam) is computed
in float64, in closed form where one exists. ``t_min`` and ``t_max`` limit training, sampling and likelihood.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, overload

import torch
from torch import Tensor

from solvers import InputError, Node, Prediction, Registry, Schedule
from solvers.libraries import library
from solvers.registry.options import Options

from .chain import Chain, embed

_ROUNDS, _NEAR = 200, 4e-16  # of Newton's method: the most rounds, and the relative changes that end them


class ModelLike(Protocol):
    """Any object that may be passed as a denoiser: it has an SDE, and a prediction at its nodes."""

    @property
    def sde(self) -> SDE:
        """The path that the model was trained on."""

    def predict(self, x: Tensor, node: Node | Node[Tensor], **conditions: Tensor) -> Prediction:
        """The prediction x0 and eps (B, *) at x (B, *)."""


@dataclass(frozen=True)
class Prior:
    """The law N(0, std^2 I) at t_max, where sampling starts and a likelihood ends."""

    std: float

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density in nats (B,) of x (B, *)."""
        z = x.flatten(1) / self.std
        return -0.5 * (z**2).sum(1) - z.shape[1] * (0.5 * math.log(2 * math.pi) + math.log(self.std))


@dataclass(frozen=True)
class SDE(Options, Schedule):
    """A Gaussian path on [t_min, t_max]. Each path is a frozen dataclass; its fields are its options."""

    t_min: float = field(default=0.0, kw_only=True)
    t_max: float = field(default=1.0, kw_only=True)

    def alpha(self, t: Tensor) -> Tensor:
        """The scale of the data at t."""
        raise NotImplementedError

    def sigma(self, t: Tensor) -> Tensor:
        """The standard deviation of the noise at t."""
        raise NotImplementedError

    @overload
    def __call__(self, t: float) -> Node: ...
    @overload
    def __call__(self, t: Tensor) -> Node[Tensor]: ...
    def __call__(self, t: float | Tensor) -> Node | Node[Tensor]:
        """The node at a time: for a float, computed in float64; for a tensor (B,), in the dtype of the tensor.

        Raises:
            InputError: a float t is outside [t_min, t_max], or alpha or sigma is not usable there.
        """
        if isinstance(t, Tensor):
            return self._node(t)
        if not self.t_min <= t <= self.t_max:
            raise InputError(f"t={t:g} is outside [{self.t_min:g}, {self.t_max:g}], where {self} is defined")
        node = self._node(torch.tensor(t, dtype=torch.float64))
        alpha, sigma, dalpha, dsigma = (v.item() for v in (node.alpha, node.sigma, node.dalpha, node.dsigma))
        if not (0 < alpha < math.inf and 0 <= sigma < math.inf):
            raise InputError(f"{self} has alpha={alpha:g} and sigma={sigma:g} at t={t:g}; narrow its range of t")
        return Node(float(t), alpha, sigma, dalpha, dsigma)

    def nodes(self, times: Sequence[float]) -> list[Node]:
        """The nodes at many times: the same as ``self(t)`` for each t, in one evaluation of the schedule.

        Raises:
            InputError: see ``__call__``.
        """
        node = self._node(torch.tensor(list(times), dtype=torch.float64))
        numbers = zip(*(v.tolist() for v in (node.alpha, node.sigma, node.dalpha, node.dsigma)), strict=True)
        made = [Node(float(t), *values) for t, values in zip(times, numbers, strict=True)]
        for each in made:
            if not (self.t_min <= each.t <= self.t_max and 0 < each.alpha < math.inf and 0 <= each.sigma < math.inf):
                self(each.t)  # raises the error that names the fault
        return made

    def _node(self, t: Tensor) -> Node[Tensor]:
        with torch.no_grad():
            alpha, sigma = self.alpha(t), self.sigma(t)
            return Node(t, alpha + 0 * t, sigma + 0 * t, *self.derivatives(t, alpha, sigma))

    def derivatives(self, t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """The time derivatives of alpha and sigma at t (B,); by autograd, unless a path has a closed form."""
        with torch.enable_grad():
            time = t.detach().requires_grad_()
            dalpha, dsigma = (
                torch.autograd.grad(v.sum(), time)[0] if v.requires_grad else torch.zeros_like(t)
                for v in (self.alpha(time), self.sigma(time))
            )
        return dalpha, dsigma

    def __init_subclass__(cls, **options: Any) -> None:
        """A path with its own alpha or sigma does not inherit the closed form of another path's derivatives."""
        super().__init_subclass__(**options)
        if {"alpha", "sigma", "integral"} & vars(cls).keys() and "derivatives" not in vars(cls):
            cls.derivatives = SDE.derivatives  # type: ignore[method-assign]

    def t_of_lam(self, lam: float) -> float:
        """The time in [t_min, t_max] where log(alpha / sigma) = lam, by root finding unless a path has a closed form.

        A lam beyond the ends of the range returns the nearer end.
        """
        low, high = self(self.t_max).lam, self(self.t_min).lam
        if not low < lam < high:
            return self.t_max if lam <= low else self.t_min
        root = library("scipy.optimize").brentq
        return float(root(lambda t: self(t).lam - lam, self.t_min, self.t_max, xtol=1e-15, rtol=1e-14))

    def times_of_lams(self, lam: Tensor) -> Tensor:
        """The times (n,) where log(alpha / sigma) = lam (n,), float64 on the CPU, all at once; see ``t_of_lam``.

        By Newton's method between brackets, unless a path has a closed form: to within rounding of t.
        """
        start, end = (torch.full_like(lam, t, dtype=torch.float64) for t in (self.t_min, self.t_max))
        low, high = self(start).lam, self(end).lam
        wanted = lam.double().cpu().minimum(low).maximum(high)
        share = (wanted - low) / (high - low)
        t = start + share * (end - start)
        for _ in range(_ROUNDS):
            node = self(t)
            above = node.lam - wanted  # lam falls with t
            start, end = torch.where(above >= 0, t, start), torch.where(above <= 0, t, end)
            slope = node.dalpha / node.alpha - node.dsigma / node.sigma
            new = t - above / slope
            new = torch.where((new >= start) & (new <= end), new, 0.5 * (start + end))
            # lam itself has rounding errors: where it is steep in t, t ends first, where it is flat, lam
            near = ((new - t).abs() <= _NEAR * t.abs()) | (above.abs() <= 4 * _NEAR * (1 + wanted.abs()))
            t = new
            if bool(near.all()):
                break
        return t.clamp(self.t_min, self.t_max)

    def prior(self) -> Prior:
        """The prior N(0, (alpha^2 + sigma^2) I), with the second moment that unit data have at t_max."""
        node = self(self.t_max)
        return Prior(math.hypot(node.alpha, node.sigma))

    def chain(self, count: int, embedding: Literal["exact", "song", "ho"] = "exact") -> Chain:
        """A chain of ``count`` nodes for this path; index i corresponds to t = (i + 1) / count t_max.

        The embedding defines the nodes:

        - ``exact``: the nodes of the path itself; on VP, beta_i = 1 - exp(-int beta).
        - ``song``: beta_i = beta(t_i) / count (Song et al. 2021, arXiv:2011.13456, appendix B); on VE, a geometric
          sequence from sigma(t_min) to sigma(t_max).
        - ``ho``: betas on a line from beta(0) / count to beta(t_max) / count; on VP, the betas of Ho et al. 2020.

        The last two differ from the path by O(1 / count).

        Raises:
            InputError: the embedding is unknown, this path does not have it, or it needs more nodes (some beta_i >= 1).
        """
        return embed(self, count, embedding)

    def drift(self, x: Tensor, t: float) -> Tensor:
        """The drift f(t) x of the forward SDE dx = f x dt + g dw, for x (B, *)."""
        return self(t).f * x

    def diffusion(self, t: float) -> float:
        """The diffusion g(t) of the forward SDE."""
        return math.sqrt(self(t).g2)

    def reverse(self, denoiser: ModelLike, probability_flow: bool = False) -> ReverseSDE:
        """The reverse-time SDE of a denoiser, or the probability-flow ODE with the same marginals."""
        return ReverseSDE(self, denoiser, probability_flow)

    def __str__(self) -> str:
        return sdes.format(self)


@dataclass(frozen=True)
class ReverseSDE:
    """The SDE dx = (f x - g^2 score) dt + g dw, run backwards in time; or the probability-flow ODE.

    The ODE has half of g^2 in its drift and no dw.
    """

    sde: SDE
    denoiser: ModelLike
    probability_flow: bool = False

    def drift(self, x: Tensor, t: float) -> Tensor:
        """The drift at x (B, *), from one evaluation of the denoiser."""
        node = self.sde(t)
        share = 0.5 if self.probability_flow else 1.0
        return node.f * x - (share * node.g2) * self.denoiser.predict(x, node).score(node)

    def diffusion(self, t: float) -> float:
        """The diffusion g(t), or 0 for the probability-flow ODE."""
        return 0.0 if self.probability_flow else self.sde.diffusion(t)


sdes: Registry[SDE] = Registry("SDE", SDE)
make_sde = sdes.make


def as_sde(given: Any) -> SDE:
    """The path that is given as an object or as a spec such as "vp(beta_max=10)".

    Raises:
        InputError: it is neither; for a class the message shows how to make an object.
    """
    if isinstance(given, type):
        raise InputError(f"sde must be a path, got the class {given.__name__}: write {given.__name__}()")
    if not isinstance(given, (SDE, str)):
        raise InputError(f"sde must be a path such as scoresde.VP(), or its name, got {type(given).__name__}")
    return make_sde(given)
