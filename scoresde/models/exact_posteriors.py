"""Exact posteriors p(x0 | y) of observations y = A(x0) + sigma n: the formulas behind ``targets``."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from solvers import InputError

from ..operators.base import Operator, check_shape, log_likelihood

_ROWS = 1024  # rows of a data set that are measured at once


class PosteriorMixture(NamedTuple):
    """The posterior of a mixture of Gaussians, and log w_k N(y; A m_k, A C_k A^T + sigma^2 I) of its components.

    Attributes:
        means: (K, d).
        covariances: (K, d, d).
        log_joint: (K,) in nats.
    """

    means: Tensor
    covariances: Tensor
    log_joint: Tensor


def observation(operator: Operator, y: Tensor, shape: tuple[int, ...]) -> Tensor:
    """One observation y (*m) as a batch of one, float64.

    Raises:
        InputError: y does not have the shape of one observation of samples of this shape, or is not finite.
    """
    row = torch.as_tensor(y).detach().cpu().double().unsqueeze(0)
    check_shape(operator, row, shape)
    if not torch.isfinite(row).all():
        raise InputError("the observation is not finite")
    return row


def of_mixture(
    log_weights: Tensor, means: Tensor, roots: Tensor, shape: tuple[int, ...], operator: Operator, y: Tensor
) -> PosteriorMixture:
    """The posterior of sum_k w_k N(m_k, R_k R_k^T) under a linear operator.

    With A R_k = P S Q^T, the gain is K_k = R_k Q S / (S^2 + sigma^2) P^T, the mean m_k + K_k (y - A m_k), and the
    covariance R_k Q sigma^2 / (S^2 + sigma^2) Q^T R_k^T: nothing cancels. At sigma = 0, a sum of the directions of y in
    which samples differ is left; y is projected on these.

    Args:
        log_weights: (K,), of weights with sum 1.
        means: (K, d).
        roots: R_k (K, d, d).
        shape: the shape of one sample.
        y: one observation (*m).

    Raises:
        InputError: the operator is not linear, y does not fit, or sigma = 0 and a component has no density there.
    """
    if not operator.linear:
        raise InputError(
            f"{operator} is not linear: the posterior of a mixture is then no mixture. That of a data set is exact: "
            "Empirical(mixture.sample(n)).posterior(operator, y)"
        )
    row, noise = observation(operator, y, shape), operator.sigma
    matrix = operator.matrix(shape)
    values = row.flatten(1)[0]
    if noise == 0:  # observe the directions in the range of A alone
        u, s, _ = torch.linalg.svd(matrix, full_matrices=False)
        u = u[:, s > max(matrix.shape) * torch.finfo(s.dtype).eps * s.max()]
        matrix, values = u.T @ matrix, u.T @ values
    m, d = matrix.shape
    p, s, qh = torch.linalg.svd(matrix @ roots, full_matrices=True)  # (K, m, m), (K, min), (K, d, d)
    count = s.shape[1]
    if noise == 0 and (count < m or not (s > max(m, d) * torch.finfo(s.dtype).eps * s[:, :1]).all()):
        raise InputError(f"{operator}: without noise a component of the mixture has no density of y; give it a sigma")
    residual = torch.einsum("kmn,km->kn", p, values - means @ matrix.T)  # in the basis P
    variances = torch.full((len(means), m), noise**2, dtype=s.dtype)
    variances[:, :count] += s**2
    log_joint = log_weights - 0.5 * (residual**2 / variances + torch.log(2 * math.pi * variances)).sum(1)
    rq = roots @ qh.mT
    shift = torch.einsum("kdi,ki->kd", rq[:, :, :count], s / variances[:, :count] * residual[:, :count])
    left = torch.ones(len(means), d, dtype=s.dtype)
    left[:, :count] = noise**2 / variances[:, :count]
    factor = rq * left.sqrt().unsqueeze(1)
    return PosteriorMixture(means + shift, factor @ factor.mT, log_joint)


def of_points(log_weights: Tensor, data: Tensor, operator: Operator, y: Tensor) -> Tensor:
    """log w_i N(y; A(x_i), sigma^2 I) (N,) in nats, float64, of weighted points x_i (N, *) under any operator.

    Raises:
        InputError: y does not fit, or the operator has sigma = 0.
    """
    row = observation(operator, y, tuple(data.shape[1:]))
    with torch.no_grad():
        parts = [log_likelihood(operator, row, data[i : i + _ROWS].double()) for i in range(0, len(data), _ROWS)]
    return log_weights + torch.cat(parts)
