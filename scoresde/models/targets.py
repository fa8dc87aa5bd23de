"""Targets: data distributions whose score is known exactly at every node, as a perfect network would predict it.

The constructor of a mixture diagonalises the covariances once. An evaluation then rotates to the eigenbases and back,
without an inverse. Diagonal covariances need no rotation; isotropic ones need only the distances to the means and one
matrix product.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from solvers import InputError, Node, Prediction

from ..operators.base import Operator
from ..paths.base import SDE, as_sde
from . import exact_posteriors
from .discrete.empirical import DiscreteEmpirical as DiscreteEmpirical
from .per_sample import products

_CACHED = 2**15  # numbers of an intermediate result that stays in the processor's cache
P = ParamSpec("P")
R = TypeVar("R")


def _precise(method: Callable[P, R]) -> Callable[P, R]:
    """A method of (self, x, ...) that computes in the dtype of x also under the caller's autocast."""

    @functools.wraps(method)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        x = args[1] if len(args) > 1 else kwargs["x"]
        with torch.autocast(x.device.type, enabled=False):  # type: ignore[attr-defined]
            return method(*args, **kwargs)

    return run


@dataclass(frozen=True)
class Exact:
    """The exact denoiser of a target on an SDE."""

    target: GaussianMixture | Empirical
    sde: SDE

    def __post_init__(self) -> None:
        object.__setattr__(self, "sde", as_sde(self.sde))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return tuple(self.target.shape)

    def predict(self, x: Tensor, node: Node | Node[Tensor], **conditions: Tensor) -> Prediction:
        """The exact prediction (B, *): x0 = E[x0 | x_t = x] and the eps that belongs to it."""
        return self.target.predict(x, node)

    def log_prob(self, x: Tensor, node: Node) -> Tensor:
        """The log-density (B,) in nats of x_t at a node."""
        return self.target.log_prob(x, node)


def _columns(node: Node | Node[Tensor], like: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma as (B or 1, 1) in the dtype of ``like``."""
    numbers = (
        torch.as_tensor(v, dtype=like.dtype, device=like.device).reshape(-1, 1) for v in (node.alpha, node.sigma)
    )
    alpha, sigma = numbers
    return alpha, sigma


def _log_weights(weights: Tensor | Sequence[float] | None, count: int) -> Tensor:
    """The logarithms (count,) of weights with sum 1, float64."""
    weight = torch.ones(count, dtype=torch.float64)
    if weights is not None:
        weight = torch.as_tensor(weights, dtype=torch.float64)
    if weight.shape != (count,) or not (weight >= 0).all() or not 0 < weight.sum() < math.inf:
        raise InputError(f"weights must be {count} numbers of at least 0")
    return (weight / weight.sum()).log()


class GaussianMixture:
    """The mixture of Gaussians sum_k w_k N(m_k, C_k) over samples of any shape.

    Args:
        means: (K, *).
        covariances: one variance, variances (K,), diagonals (K, d), or matrices (K, d, d); d is the size of a sample.
        weights: (K,), normalised to sum 1; by default equal.

    Raises:
        InputError: the shapes do not fit, a covariance is not positive semi-definite, or a weight is below 0.
    """

    def __init__(
        self, means: Tensor, covariances: Tensor | float, weights: Tensor | Sequence[float] | None = None
    ) -> None:
        means = torch.as_tensor(means, dtype=torch.float64)
        if not torch.isfinite(means).all():
            raise InputError("a mean is not finite")
        self.shape = means.shape[1:]
        self.means = means.flatten(1)
        count, d = self.means.shape
        try:
            covariance = torch.as_tensor(covariances, dtype=torch.float64)
        except (TypeError, ValueError):
            raise InputError(f"covariances must be numbers, got {covariances!r:.60}") from None
        self.vectors: Tensor | None = None  # the eigenbases (K, d, d); None if the covariances are diagonal
        self.isotropic = covariance.shape in ((), (count,))
        if self.isotropic:
            covariance = covariance.reshape(-1, 1).expand(count, d)
        if covariance.shape == (count, d):
            self.values = covariance.clone()
        elif covariance.shape == (count, d, d):
            if not torch.allclose(covariance, covariance.mT):
                raise InputError("a covariance is not symmetric")
            self.values, self.vectors = torch.linalg.eigh(covariance)
        else:
            raise InputError(f"covariances of shape {tuple(covariance.shape)} do not fit {count} means of size {d}")
        if not (self.values >= -1e-9 * self.values.abs().max()).all():
            raise InputError("a covariance is not positive semi-definite")
        self.values = self.values.clamp_min(0)
        self.log_weights = _log_weights(weights, count)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.means)} of shape {tuple(self.shape)})"

    def denoiser(self, sde: SDE) -> Exact:
        """The exact denoiser on an SDE."""
        return Exact(self, sde)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draws n independent samples (n, *), float64."""
        k = torch.multinomial(self.log_weights.exp(), n, replacement=True, generator=generator)
        z = torch.randn(n, self.means.shape[1], dtype=torch.float64, generator=generator)
        spread = self.values[k].sqrt() * z
        if self.vectors is not None:
            spread = torch.einsum("bij,bj->bi", self.vectors[k], spread)
        return (self.means[k] + spread).view(n, *self.shape)

    def posterior(self, operator: Operator, y: Tensor) -> GaussianMixture:
        """The exact p(x0 | y) for one observation y (*m) of a linear operator: a mixture again.

        Raises:
            InputError: the operator is not linear, y does not fit, or sigma = 0 where a component has no density of y.
        """
        found = self._posterior(operator, y)
        means = found.means.view(len(self.means), *self.shape)
        return GaussianMixture(means, found.covariances, torch.softmax(found.log_joint, 0))

    def log_evidence(self, operator: Operator, y: Tensor) -> float:
        """log p(y) in nats of one observation y (*m) of a linear operator; without noise, of the range of A alone.

        Raises:
            InputError: as in ``posterior``.
        """
        return float(torch.logsumexp(self._posterior(operator, y).log_joint, 0))

    @_precise
    def component_terms(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """log w_k N(x; m_k, C_k) in nats, and (x - m_k)^T C_k^-1 (x - m_k), each (B, K), at x (B, *)."""
        flat = self._flat(x)
        joint, y = self._joint(flat, *_columns(Node(0.0, 1.0, 0.0), flat))
        return joint, (y**2 / self.values.to(x)).sum(2)

    def _posterior(self, operator: Operator, y: Tensor) -> exact_posteriors.PosteriorMixture:
        roots = torch.diag_embed(self.values.sqrt())
        roots = roots if self.vectors is None else self.vectors @ roots
        return exact_posteriors.of_mixture(self.log_weights, self.means, roots, tuple(self.shape), operator, y)

    @_precise
    def log_prob(self, x: Tensor, node: Node | Node[Tensor] | None = None) -> Tensor:
        """The log-density (B,) in nats at x (B, *): of the data without a node, of x_t at a node."""
        alpha, sigma = _columns(node or Node(0.0, 1.0, 0.0), x)
        flat = self._flat(x)
        joint = self._isotropic_joint(flat, alpha, sigma) if self.isotropic else self._joint(flat, alpha, sigma)[0]
        return torch.logsumexp(joint, 1)

    @_precise
    def predict(self, x: Tensor, node: Node | Node[Tensor]) -> Prediction:
        """The prediction E[x0 | x_t = x] and eps = -sigma grad log p_t(x), each computed without cancellation."""
        alpha, sigma = _columns(node, x)
        if self.isotropic:
            return self._isotropic_predict(x, alpha, sigma)
        joint, y = self._joint(self._flat(x), alpha, sigma)
        share = torch.softmax(joint, 1).unsqueeze(2)  # (B, K, 1)
        values = self.values.to(x).unsqueeze(0)
        scaled = y / ((alpha**2).unsqueeze(2) * values + (sigma**2).unsqueeze(2))  # (B, K, d), in the eigenbases
        posterior = self.means.to(x) + self._rotate(alpha.unsqueeze(2) * values * scaled)
        eps = sigma.unsqueeze(2) * self._rotate(scaled)
        return Prediction((share * posterior).sum(1).view(x.shape), (share * eps).sum(1).view(x.shape))

    def _isotropic_predict(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Prediction:
        """The prediction with C_k = c_k I, from the distances to the means and one matrix product.

        With v_k = alpha^2 c_k + sigma^2 and shares w_k, x0 = (sum_k w_k alpha c_k / v_k) x + sum_k w_k sigma^2 / v_k
        m_k, and eps = sigma sum_k w_k / v_k (x - alpha m_k).
        """
        flat, means = self._flat(x), self.means.to(x)
        share = torch.softmax(self._isotropic_joint(flat, alpha, sigma), 1)  # (B, K)
        variances = self.values[:, 0].to(x)
        over = share / (alpha**2 * variances + sigma**2)
        centre = products(over, means)
        x0 = alpha * (over * variances).sum(1, keepdim=True) * flat + sigma**2 * centre
        eps = sigma * (over.sum(1, keepdim=True) * flat - alpha * centre)
        return Prediction(x0.view(x.shape), eps.view(x.shape))

    def _isotropic_joint(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The terms log w_k N(x; alpha m_k, (alpha^2 c_k + sigma^2) I) (B, K)."""
        var = alpha**2 * self.values[:, 0].to(x) + sigma**2
        centres = alpha.unsqueeze(2) * self.means.to(x)  # (B or 1, K, d)
        rows = max(1, _CACHED // self.means.numel())
        centres = centres.expand(len(x), -1, -1)
        # not expanded: |x|^2 - 2 x m + |m|^2 would cancel
        distance = torch.cat(
            [(x[i : i + rows, None] - centres[i : i + rows]).square().sum(2) for i in range(0, max(len(x), 1), rows)]
        )
        return self.log_weights.to(x) - 0.5 * (distance / var + x.shape[1] * torch.log(2 * math.pi * var))

    def _flat(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        if flat.shape[1] != self.means.shape[1]:
            raise InputError(f"the target has {self.means.shape[1]} dimensions, x has {flat.shape[1]}")
        return flat

    def _joint(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """The terms log w_k N(x; alpha m_k, alpha^2 C_k + sigma^2 I) (B, K), and x - alpha m_k in the eigenbases.

        The second result is (B, K, d).
        """
        y = x.unsqueeze(1) - alpha.unsqueeze(2) * self.means.to(x)
        if self.vectors is not None:
            y = products(y, self.vectors.to(x))
        var = (alpha**2).unsqueeze(2) * self.values.to(x) + (sigma**2).unsqueeze(2)
        log_normal = -0.5 * (y**2 / var + torch.log(2 * math.pi * var)).sum(2)
        return self.log_weights.to(x) + log_normal, y

    def _rotate(self, z: Tensor) -> Tensor:
        """Rotates z (B, K, d) from the eigenbases back to the axes of the data."""
        return z if self.vectors is None else products(z, self.vectors.to(z).mT)


class Gaussian(GaussianMixture):
    """The Gaussian N(mean, covariance): mean (*); covariance a variance, a diagonal (d,) or a matrix (d, d)."""

    def __init__(self, mean: Tensor, covariance: Tensor | float = 1.0) -> None:
        spread = torch.as_tensor(covariance, dtype=torch.float64)
        super().__init__(torch.as_tensor(mean).unsqueeze(0), spread.unsqueeze(0) if spread.ndim else spread)


class Empirical:
    """The empirical distribution of a data set: a point mass at each row.

    Args:
        data: (N, *).
        weights: of the rows (N,), normalised to sum 1; by default equal.
        chunk: the number of rows of x that are compared with the data at once.

    Raises:
        InputError: the data are empty or not finite, or a weight is below 0.
    """

    def __init__(self, data: Tensor, weights: Tensor | Sequence[float] | None = None, chunk: int = 256) -> None:
        self.data = torch.as_tensor(data)
        self.shape, self.chunk = self.data.shape[1:], chunk
        if not len(self.data):
            raise InputError("the data set is empty")
        if not torch.isfinite(self.data).all():
            raise InputError("the data set contains numbers that are not finite")
        self.weighted = weights is not None
        self.log_weights = _log_weights(weights, len(self.data))  # (N,), float64

    def __repr__(self) -> str:
        return f"Empirical({len(self.data)} rows of shape {tuple(self.shape)})"

    def denoiser(self, sde: SDE) -> Exact:
        """The exact denoiser on an SDE."""
        return Exact(self, sde)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draws n rows of the data (n, *) with replacement, each with its weight."""
        if self.weighted:
            return self.data[torch.multinomial(self.log_weights.exp(), n, replacement=True, generator=generator)]
        return self.data[torch.randint(len(self.data), (n,), generator=generator)]

    def posterior(self, operator: Operator, y: Tensor) -> Empirical:
        """The exact p(x0 | y) for one observation y (*m) of any operator: the same rows with other weights.

        Raises:
            InputError: y does not fit, or the operator has sigma = 0.
        """
        joint = exact_posteriors.of_points(self.log_weights, self.data, operator, y)
        return Empirical(self.data, torch.softmax(joint, 0), self.chunk)

    def log_evidence(self, operator: Operator, y: Tensor) -> float:
        """log p(y) in nats of one observation y (*m) of any operator.

        Raises:
            InputError: as in ``posterior``.
        """
        return float(torch.logsumexp(exact_posteriors.of_points(self.log_weights, self.data, operator, y), 0))

    @_precise
    def log_prob(self, x: Tensor, node: Node | Node[Tensor] | None = None) -> Tensor:
        """The log-density (B,) in nats of x_t at a node.

        Raises:
            InputError: there is no node or its sigma is 0, where point masses have no density.
        """
        if node is None or not bool(torch.as_tensor(node.sigma > 0).all()):
            raise InputError("a data set has a density only at a node with sigma > 0")
        flat = x.flatten(1)
        alpha, sigma = _columns(node, flat)
        log_normal = self._exponents(flat, alpha, sigma)
        d = flat.shape[1]
        norm = d * (0.5 * math.log(2 * math.pi) + torch.log(sigma[:, 0]))
        return torch.logsumexp(log_normal, 1) - norm

    @_precise
    def predict(self, x: Tensor, node: Node | Node[Tensor]) -> Prediction:
        """The prediction E[x0 | x_t = x], a weighted mean of the data, and eps = (x - alpha x0) / sigma."""
        flat = x.flatten(1)
        alpha, sigma = _columns(node, flat)
        data = self.data.flatten(1).to(flat)
        parts = []
        for i in range(0, len(flat), self.chunk):
            rows = slice(i, i + self.chunk)
            a, s = (v[rows] if len(v) > 1 else v for v in (alpha, sigma))
            parts.append(products(torch.softmax(self._exponents(flat[rows], a, s), 1), data))
        x0 = torch.cat(parts)
        return Prediction(x0.view(x.shape), ((flat - alpha * x0) / sigma).view(x.shape))

    def _exponents(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The exponents log w_i - |x - alpha x_i|^2 / (2 sigma^2), (B, N)."""
        data = self.data.flatten(1).to(x)
        if x.shape[1] != data.shape[1]:
            raise InputError(f"the data set has {data.shape[1]} dimensions, x has {x.shape[1]}")
        distance = torch.cdist(x / alpha, data, compute_mode="donot_use_mm_for_euclid_dist")
        return self.log_weights.to(x) - 0.5 * (distance * alpha / sigma) ** 2
