"""Methods that change the prediction of the model, and so run under every solver.

D is the model's x0, J its derivative by x, r = sigma / alpha, s the noise of the observation and res = y - A(D). Data
of variance v in every coordinate have the variance rho^2 = v r^2 / (v + r^2) given x_t. S = (sigma^2 / alpha) J is the
covariance of x0 given x_t, as the model knows it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from solvers import InputError, Node, Prediction
from solvers.registry.ranges import Count, Positive

from ..models.per_sample import column, row_sums, rows
from ..operators.base import Operator
from .base import Ask, DenoiserPosterior, posteriors
from .conjugate_gradients import conjugate_gradients

Number = float | Tensor


def spread(node: Node[Any], variance: float) -> Number:
    """rho^2 = v r^2 / (v + r^2), the variance of x0 given x_t, for data of variance v in every coordinate."""
    found: Number = variance * node.sigma**2 / (variance * node.alpha**2 + node.sigma**2)
    return found


def one_variance(covariance: Tensor) -> float | None:
    """v, where a covariance (d, d) is v I; else None."""
    v = float(covariance[0, 0])
    return v if torch.equal(covariance, v * torch.eye(len(covariance)).to(covariance)) else None


def solved(operator: Operator, shape: tuple[int, ...], res: Tensor, noise: Number, spread: Number) -> Tensor:
    """(noise I + spread A A^T)^-1 res (B, *m); on the image of A alone where noise is 0.

    Args:
        noise, spread: variances, numbers or one for each sample.

    Raises:
        InputError: no decomposition of A is known.
    """
    svd = operator.svd(shape)
    if svd is None:
        raise InputError(f"{operator} has no known singular values for samples {shape}; mmps needs none")
    z, values = svd.left(res), svd.values.to(res)
    noise, spread = column(noise, res), column(spread, res)
    head = z[:, : len(values)] / (noise + spread * values**2)
    tail = z[:, len(values) :]  # no sample has these: only noise
    tail = torch.where(noise > 0, tail / torch.where(noise > 0, noise, 1.0), 0.0)
    return svd.from_left(torch.cat([head, tail], 1))


@posteriors.register(
    "naive_dps",
    kind="denoiser",
    reference="Chung et al. 2023, arXiv:2209.14687, without its normalisation",
    formula="G = J^T A^T res / s^2",
)
@dataclass(frozen=True)
class NaiveDPS(DenoiserPosterior):
    """The likelihood at the model's x0, as if that were certain: G = scale J^T A^T res / s^2."""

    scale: Positive = 1.0

    nonlinear = True
    noise = "needed"
    differentiates = "model"

    def predict(self, ask: Ask) -> Prediction:
        mean = ask.operator(ask.found.x0)
        res = ask.y - (mean if ask.graph else mean.detach())
        g = ask.gradient(mean, res / ask.operator.sigma**2)
        return ask.moved(self.scale * ask.node.sigma**2 / ask.node.alpha * g)


@posteriors.register(
    "dps",
    kind="denoiser",
    reference="Chung et al. 2023, arXiv:2209.14687, algorithm 1",
    formula="G = (1000 scale / beta) J^T A^T res / |res|",
    note="the spread of its samples is not the posterior's: scale is to be tuned",
)
@dataclass(frozen=True)
class DPS(DenoiserPosterior):
    """Diffusion posterior sampling in the limit of many steps: G = (1000 scale / beta) J^T A^T res / |res|.

    The published method adds -scale grad_x |res| in each of 1000 steps of the VP path, in which the drift of the score
    is beta / 1000. As a term of the score this is the G above, which does not depend on the number of steps. On another
    path the correction of x0 is that of VP at the same r, where beta = sqrt(0.1^2 + 2 (20 - 0.1) log(1 + r^2)).
    """

    scale: Positive = 0.3

    keeps_prior = False  # its strength does not depend on the noise of y
    nonlinear = True
    noise = "any"
    differentiates = "model"

    def predict(self, ask: Ask) -> Prediction:
        mean = ask.operator(ask.found.x0)
        res = ask.y - (mean if ask.graph else mean.detach())
        square = row_sums(res.square())
        g = ask.gradient(mean, res / rows(torch.where(square > 0, square, 1.0).sqrt(), res))
        ratio = torch.as_tensor(ask.node.ratio, dtype=torch.float64)
        beta = (0.01 + 39.8 * torch.log1p(ratio**2)).sqrt().to(g)
        # (sigma^2 / alpha) grad_x is r^2 times the gradient by x / alpha, which no path changes
        return ask.moved(1000 * self.scale / beta * ask.node.sigma**2 / ask.node.alpha * g)


class _Decomposed(DenoiserPosterior):
    """A method that needs the singular values of A."""

    def check(self, operator: Operator, shape: tuple[int, ...]) -> None:
        super().check(operator, shape)
        if operator.svd(shape) is None:
            name = posteriors.info_of(self).name
            raise InputError(f"{name} needs the singular values of {operator}, unknown for {shape}; mmps needs none")


@posteriors.register(
    "pigdm",
    kind="denoiser",
    reference="Song et al. 2023, Pseudoinverse-guided diffusion models, eq. 7 and 8",
    formula="G = J^T A^T (s^2 I + rho^2 A A^T)^-1 res",
)
@dataclass(frozen=True)
class PiGDM(_Decomposed):
    """A Gaussian of one variance for x0 given x_t: G = J^T A^T (s^2 I + rho^2 A A^T)^-1 res."""

    variance: Positive = 1.0

    exact_for = "Gaussian data of this variance in every direction, linear operators"
    differentiates = "model"

    def exact_version(self, covariance: Tensor, operator: Operator) -> PiGDM | None:
        return replace(self, variance=v) if (v := one_variance(covariance)) else None

    def predict(self, ask: Ask) -> Prediction:
        node, shape = ask.node, tuple(ask.x0.shape[1:])
        res, rho2 = ask.y - ask.operator(ask.x0), spread(node, self.variance)
        w = solved(ask.operator, shape, res, ask.operator.sigma**2, rho2)
        return ask.moved(node.sigma**2 / node.alpha * ask.vjp(ask.operator.adjoint(w, shape)))


@posteriors.register(
    "jfps",
    kind="denoiser",
    reference="the Jacobian-free form of Rozet et al. 2024, arXiv:2405.13712",
    formula="dx0 = rho^2 A^T (s^2 I + rho^2 A A^T)^-1 res",
)
@dataclass(frozen=True)
class JFPS(_Decomposed):
    """The mean of x0 given x_t and y for a Gaussian of one variance: dx0 = rho^2 A^T (s^2 I + rho^2 A A^T)^-1 res."""

    variance: Positive = 1.0

    exact_for = "Gaussian data of this variance in every direction, linear operators"
    noise = "needed"

    def exact_version(self, covariance: Tensor, operator: Operator) -> JFPS | None:
        return replace(self, variance=v) if (v := one_variance(covariance)) else None

    def predict(self, ask: Ask) -> Prediction:
        rho2, shape = spread(ask.node, self.variance), tuple(ask.x0.shape[1:])
        w = solved(ask.operator, shape, ask.y - ask.operator(ask.x0), ask.operator.sigma**2, rho2)
        return ask.moved(rho2 * ask.operator.adjoint(w, shape))


@posteriors.register(
    "tmpd",
    kind="denoiser",
    reference="Boys et al. 2023, arXiv:2310.06721",
    formula="G = J^T A^T diag(s^2 + A S A^T 1)^-1 res",
)
@dataclass(frozen=True)
class TMPD(DenoiserPosterior):
    """The spread that the model knows, by row sums: G = J^T A^T diag(s^2 + A S A^T 1)^-1 res.

    Negative row sums, which no variance has, count as 0, and a warning says so once in a solve.
    """

    exact_for = "Gaussian data and operators for which A S A^T is diagonal"
    noise = "needed"
    differentiates = "model"

    def exact_version(self, covariance: Tensor, operator: Operator) -> TMPD | None:
        matrix, eye = operator.matrix((len(covariance),)).to(covariance), torch.eye(len(covariance)).to(covariance)
        for r in (0.1, 1.0, 10.0):
            spread = matrix @ torch.linalg.inv(torch.linalg.inv(covariance) + eye / r**2) @ matrix.T
            if not torch.allclose(spread, spread.diagonal().diag(), rtol=0, atol=1e-12 * float(spread.abs().max())):
                return None
        return self

    def predict(self, ask: Ask) -> Prediction:
        node, operator, shape = ask.node, ask.operator, tuple(ask.x0.shape[1:])
        factor, res = node.sigma**2 / node.alpha, ask.y - operator(ask.x0)
        sums = operator(factor * ask.vjp(operator.adjoint(torch.ones_like(res), shape)))
        negative = sums < 0
        if bool(negative.any()):
            level = float(torch.as_tensor(node.ratio).max())
            ask.warn(
                "tmpd counts negative variances A S A^T 1 as 0",
                f"first {int(negative.sum())} of {sums.numel()}, at sigma / alpha = {level:.4g}",
            )
        w = res / (operator.sigma**2 + sums.clamp_min(0))
        return ask.moved(factor * ask.vjp(operator.adjoint(w, shape)))


@posteriors.register(
    "mmps",
    kind="denoiser",
    reference="Rozet et al. 2024, arXiv:2405.13712, algorithm 2",
    formula="dx0 = S A^T (s^2 I + A S A^T)^-1 res",
)
@dataclass(frozen=True)
class MMPS(DenoiserPosterior):
    """The spread S that the model knows, by conjugate gradients: dx0 = S A^T (s^2 I + A S A^T)^-1 res.

    Exact for Gaussian data, with as many iterations as y has numbers. A network's S may be negative in some directions;
    there the iterations end. A nonlinear A is replaced by its derivative at D where ``linearise`` allows it.
    """

    iterations: Count = 5
    linearise: bool = False

    exact_for = "Gaussian data, linear operators, with as many iterations as y has numbers"
    nonlinear = True
    noise = "needed"
    differentiates = "model"

    def check(self, operator: Operator, shape: tuple[int, ...]) -> None:
        super().check(operator, shape)
        if not operator.linear and not self.linearise:
            raise InputError(
                f"mmps: {operator} is not linear; mmps(linearise=True) uses its derivative at the model's x0"
            )

    def exact_version(self, covariance: Tensor, operator: Operator) -> MMPS | None:
        return replace(self, iterations=math.prod(operator.shape((len(covariance),))))

    def predict(self, ask: Ask) -> Prediction:
        forward, adjoint = derivative(ask)
        factor, noise = ask.node.sigma**2 / ask.node.alpha, ask.operator.sigma**2

        def product(v: Tensor) -> Tensor:
            return noise * v + forward(factor * ask.vjp(adjoint(v)))

        mean = ask.operator(ask.x0)
        # a covariance S is not negative; that of a network may be, most of all where sigma / alpha is large
        w = conjugate_gradients(product, ask.y - (mean if ask.graph else mean.detach()), self.iterations, noise)
        return ask.moved(factor * ask.vjp(adjoint(w)))


@posteriors.register(
    "diffpir",
    kind="denoiser",
    reference="Zhu et al. 2023, arXiv:2305.08995, eq. 13",
    formula="dx0 = A^T (A A^T + lam s^2 / r^2)^-1 res",
)
@dataclass(frozen=True)
class DiffPIR(_Decomposed):
    """The minimum of |y - A x|^2 / s^2 + (lam / r^2) |x - D|^2: dx0 = A^T (A A^T + lam s^2 / r^2)^-1 res.

    The noise of a step is the solver's, not a fixed share of it.
    """

    lam: Positive = 8.0

    noise = "needed"

    def predict(self, ask: Ask) -> Prediction:
        shape, share = tuple(ask.x0.shape[1:]), self.lam * ask.operator.sigma**2 / ask.node.ratio**2
        w = solved(ask.operator, shape, ask.y - ask.operator(ask.x0), share, 1.0)
        return ask.moved(ask.operator.adjoint(w, shape))


@posteriors.register(
    "ddnm", kind="denoiser", reference="Wang et al. 2023, arXiv:2212.00490, eq. 13", formula="dx0 = A^+ res"
)
@dataclass(frozen=True)
class DDNM(_Decomposed):
    """The nearest x0 that y describes exactly, as if it had no noise: dx0 = A^+ res.

    The noise of a step is the solver's, not a fixed share of it.
    """

    noise = "ignored"

    def predict(self, ask: Ask) -> Prediction:
        return ask.moved(ask.operator.pinv(ask.y - ask.operator(ask.x0), tuple(ask.x0.shape[1:])))


def derivative(ask: Ask) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """A and A^T, of a linear operator; of others, the products with its derivative at D (B, *) and the transpose."""
    operator, shape = ask.operator, tuple(ask.x0.shape[1:])
    if operator.linear:
        return operator, lambda v: operator.adjoint(v, shape)
    at = ask.x0 if ask.graph else ask.x0.requires_grad_()
    mean = operator(at)
    if not mean.requires_grad:
        raise InputError(f"{operator} has no gradient: it detaches its result")

    def adjoint(v: Tensor) -> Tensor:
        (found,) = torch.autograd.grad(mean, at, v, retain_graph=True, create_graph=ask.graph)
        return found.clone(memory_format=torch.contiguous_format)

    seed = torch.zeros_like(mean, requires_grad=True)  # A'(D)^T seed is linear in it, so its derivative is A'(D)
    (turned,) = torch.autograd.grad(mean, at, seed, create_graph=True)

    def forward(u: Tensor) -> Tensor:
        (found,) = torch.autograd.grad(turned, seed, u, retain_graph=True, create_graph=ask.graph)
        return found.clone(memory_format=torch.contiguous_format)

    return forward, adjoint
