"""Methods that change the prediction of the model, and so run under every solver.

D is the model's x0, J its derivative by x, r = sigma / alpha, s the noise of the measurement and res = y - A(D). Data of
variance v in every coordinate have the variance rho^2 = v r^2 / (v + r^2) given x_t. S = (sigma^2 / alpha) J is the
covariance of x0 given x_t, as the model knows it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from solvers import InputError, Node, Prediction
from solvers.registry.ranges import Count, Positive

from ..operators.base import Operator
from .base import Ask, DenoiserPosterior, posteriors

Number = float | Tensor


def column(value: Number) -> Number:
    """A number, or one for each sample, as (B, 1)."""
    return value.reshape(-1, 1) if isinstance(value, Tensor) else value


def rows(value: Tensor, like: Tensor) -> Tensor:
    """Numbers (B,) that multiply ``like`` (B, *)."""
    return value.view(-1, *(1,) * (like.ndim - 1))


def spread(node: Node, variance: float) -> Number:
    """rho^2 = v r^2 / (v + r^2), the variance of x0 given x_t, for data of variance v in every coordinate."""
    return variance * node.sigma**2 / (variance * node.alpha**2 + node.sigma**2)


def solved(operator: Operator, shape: tuple[int, ...], res: Tensor, noise: Number, spread: Number) -> Tensor:
    """(noise I + spread A A^T)^-1 res (B, *m), on the image of A alone where noise is 0.

    Args:
        noise, spread: variances, numbers or one for each sample.

    Raises:
        InputError: no decomposition of A is known.
    """
    svd = operator.svd(shape)
    if svd is None:
        raise InputError(f"{operator} has no known singular values for samples {shape}; mmps needs none")
    z, values = svd.left(res), svd.values.to(res)
    noise, spread = column(noise), column(spread)
    head = z[:, : len(values)] / (noise + spread * values**2)
    tail = z[:, len(values) :]
    clean = noise <= 0 if isinstance(noise, Tensor) else torch.as_tensor(noise <= 0, device=res.device)
    tail = torch.where(clean, 0.0, tail / torch.where(clean, 1.0, noise))
    return svd.from_left(torch.cat([head, tail], 1))


def conjugate_gradients(product: Callable[[Tensor], Tensor], b: Tensor, iterations: int) -> Tensor:
    """``iterations`` steps of conjugate gradients for M x = b (B, *), each row on its own, from x = 0.

    A row that is solved stays as it is. A direction in which the model's M is not positive ends that row's search.
    """
    x, residual = torch.zeros_like(b), b
    direction, power = residual, residual.square().flatten(1).sum(1)
    first = power
    for _ in range(iterations):
        moved = product(direction)
        curvature = (direction * moved).flatten(1).sum(1)
        going = (power > 1e-30 * first) & (curvature > 0)
        length = torch.where(going, power / torch.where(going, curvature, 1.0), 0.0)
        x = x + rows(length, b) * direction
        residual = residual - rows(length, b) * moved
        last, power = power, residual.square().flatten(1).sum(1)
        turn = torch.where(going, power / torch.where(going, last, 1.0), 0.0)
        direction = residual + rows(turn, b) * direction
    return x


@posteriors.register("naive_dps", reference="Chung et al. 2023, arXiv:2209.14687, without its normalisation")
@dataclass(frozen=True)
class NaiveDPS(DenoiserPosterior):
    """The likelihood at the model's x0, as if that were certain: G = scale J^T A^T res / s^2."""

    scale: Positive = 1.0

    nonlinear: ClassVar[bool] = True
    noiseless: ClassVar[bool] = False
    gradients: ClassVar[bool] = True

    def predict(self, ask: Ask) -> Prediction:
        mean = ask.operator(ask.found.x0)
        g = ask.gradient(mean, (ask.y - mean) / ask.operator.sigma**2)
        return ask.shifted(self.scale * ask.node.sigma**2 / ask.node.alpha * g)


@posteriors.register("dps", reference="Chung et al. 2023, arXiv:2209.14687, algorithm 1")
@dataclass(frozen=True)
class DPS(DenoiserPosterior):
    """Diffusion posterior sampling in the limit of many steps: G = (1000 scale / beta) J^T A^T res / |res|.

    The published method adds -scale grad_x |res| in each of 1000 steps of the VP path, in which the drift of the score
    is beta / 1000. As a term of the score this is the G above, which does not depend on the number of steps. On another
    path the correction of x0 is that of VP at the same r, where beta = sqrt(0.1^2 + 2 (20 - 0.1) log(1 + r^2)).
    """

    scale: Positive = 0.3

    nonlinear: ClassVar[bool] = True
    gradients: ClassVar[bool] = True

    def predict(self, ask: Ask) -> Prediction:
        mean = ask.operator(ask.found.x0)
        res = ask.y - mean
        norm = res.flatten(1).norm(dim=1)
        unit = res / rows(torch.where(norm > 0, norm, 1.0), res)
        g = ask.gradient(mean, unit)
        ratio = torch.as_tensor(ask.node.ratio, dtype=torch.float64)
        beta = (0.01 + 39.8 * torch.log1p(ratio**2)).sqrt().to(g)
        # (sigma^2 / alpha) grad_x on VP is r^2 grad_{x / alpha}
        return ask.shifted(1000 * self.scale / beta * ask.node.sigma**2 / ask.node.alpha * g)


@posteriors.register("pigdm", reference="Song et al. 2023, Pseudoinverse-guided diffusion models, eq. 7 and 8")
@dataclass(frozen=True)
class PiGDM(DenoiserPosterior):
    """A Gaussian of one variance for x0 given x_t: G = J^T A^T (s^2 I + rho^2 A A^T)^-1 res."""

    variance: Positive = 1.0

    gradients: ClassVar[bool] = True

    def predict(self, ask: Ask) -> Prediction:
        d, node = ask.found.x0, ask.node
        shape = tuple(d.shape[1:])
        w = solved(ask.operator, shape, ask.y - ask.operator(d), ask.operator.sigma**2, spread(node, self.variance))
        return ask.shifted(node.sigma**2 / node.alpha * ask.vjp(ask.operator.adjoint(w, shape)))


@posteriors.register("jfps", reference="the Jacobian-free form of arXiv:2405.13712")
@dataclass(frozen=True)
class JFPS(DenoiserPosterior):
    """The posterior of x0 under a Gaussian of one variance, without derivatives:
    dx0 = rho^2 A^T (s^2 I + rho^2 A A^T)^-1 res."""

    variance: Positive = 1.0

    noiseless: ClassVar[bool] = False

    def predict(self, ask: Ask) -> Prediction:
        d, rho2 = ask.found.x0, spread(ask.node, self.variance)
        shape = tuple(d.shape[1:])
        w = solved(ask.operator, shape, ask.y - ask.operator(d), ask.operator.sigma**2, rho2)
        return ask.shifted(rho2 * ask.operator.adjoint(w, shape))


@posteriors.register("tmpd", reference="Boys et al. 2023, arXiv:2310.06721")
@dataclass(frozen=True)
class TMPD(DenoiserPosterior):
    """The spread that the model knows, by row sums: G = J^T A^T diag(s^2 + A S A^T 1)^-1 res.

    Negative row sums, which no variance has, count as 0, and a warning says so.
    """

    noiseless: ClassVar[bool] = False
    gradients: ClassVar[bool] = True

    def predict(self, ask: Ask) -> Prediction:
        d, node, operator = ask.found.x0, ask.node, ask.operator
        shape, factor = tuple(d.shape[1:]), node.sigma**2 / node.alpha
        res = ask.y - operator(d)
        sums = operator(factor * ask.vjp(operator.adjoint(torch.ones_like(res), shape)))
        if bool((sums < 0).any()):
            warnings.warn(
                f"tmpd: {int((sums < 0).sum())} of {sums.numel()} variances A S A^T 1 are negative at "
                f"sigma/alpha={float(torch.as_tensor(node.ratio).max()):.3g} and count as 0",
                stacklevel=2,
            )
        w = res / (operator.sigma**2 + sums.clamp_min(0))
        return ask.shifted(factor * ask.vjp(operator.adjoint(w, shape)))


@posteriors.register("mmps", reference="Rozet et al. 2024, arXiv:2405.13712, algorithm 2")
@dataclass(frozen=True)
class MMPS(DenoiserPosterior):
    """The spread S that the model knows, by conjugate gradients: dx0 = S A^T (s^2 I + A S A^T)^-1 res.

    Exact for Gaussian data, with as many iterations as y has numbers. A nonlinear A is replaced by its derivative at D
    where ``linearise`` allows it.
    """

    iterations: Count = 5
    linearise: bool = False

    nonlinear: ClassVar[bool] = True
    noiseless: ClassVar[bool] = False
    gradients: ClassVar[bool] = True

    def check(self, operator: Operator, shape: tuple[int, ...]) -> None:
        super().check(operator, shape)
        if not operator.linear and not self.linearise:
            raise InputError(
                f"mmps: {operator} is not linear; mmps(linearise=True) uses its derivative at the model's x0"
            )

    def predict(self, ask: Ask) -> Prediction:
        d, node = ask.found.x0, ask.node
        forward, adjoint = derivative(ask.operator, d)
        factor = node.sigma**2 / node.alpha

        def product(v: Tensor) -> Tensor:
            return ask.operator.sigma**2 * v + forward(factor * ask.vjp(adjoint(v)))

        w = conjugate_gradients(product, ask.y - ask.operator(d), self.iterations)
        return ask.shifted(factor * ask.vjp(adjoint(w)))


@posteriors.register("diffpir", reference="Zhu et al. 2023, arXiv:2305.08995, eq. 13")
@dataclass(frozen=True)
class DiffPIR(DenoiserPosterior):
    """The minimum of |y - A x|^2 / s^2 + (lam / r^2) |x - D|^2: dx0 = A^T (A A^T + lam s^2 / r^2)^-1 res.

    The noise of a step is the solver's, not a fixed share of it.
    """

    lam: Positive = 8.0

    noiseless: ClassVar[bool] = False

    def predict(self, ask: Ask) -> Prediction:
        d, r2 = ask.found.x0, ask.node.ratio**2
        shape = tuple(d.shape[1:])
        w = solved(ask.operator, shape, ask.y - ask.operator(d), self.lam * ask.operator.sigma**2 / r2, 1.0)
        return ask.shifted(ask.operator.adjoint(w, shape))


@posteriors.register("ddnm", reference="Wang et al. 2023, arXiv:2212.00490, eq. 13")
@dataclass(frozen=True)
class DDNM(DenoiserPosterior):
    """The nearest x0 that y describes exactly, as if it had no noise: dx0 = A^+ res."""

    def predict(self, ask: Ask) -> Prediction:
        d = ask.found.x0
        return ask.shifted(ask.operator.pinv(ask.y - ask.operator(d), tuple(d.shape[1:])))


def derivative(operator: Operator, d: Tensor) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """A and A^T, of a linear operator; of others, the products with its derivative at d (B, *) and the transpose."""
    if operator.linear:
        shape = tuple(d.shape[1:])
        return operator, lambda v: operator.adjoint(v, shape)

    def forward(u: Tensor) -> Tensor:
        found: Tensor = torch.func.jvp(operator, (d,), (u,))[1]
        return found

    def adjoint(v: Tensor) -> Tensor:
        found: Tensor = torch.func.vjp(operator, d)[1](v)[0]
        return found

    return forward, adjoint
