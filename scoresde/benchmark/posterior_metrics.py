"""Scores of posterior draws against a known posterior.

The estimators have noise, and the distances an upward bias: report with each the value of exact draws in the same
numbers. No metric alone is enough: draws of one mode may have the right width and pass rank calibration.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from solvers import InputError, generator
from solvers.libraries import library

from ..models.targets import Empirical, GaussianMixture
from ..operators.base import Operator, check_shape
from .metrics import sliced_wasserstein

DIRECTIONS = 64  # of the sliced distance; fixed, so that all methods are compared along the same ones
_BINS = 10  # of ranks


class Assignment(NamedTuple):
    """The component of a mixture to which each sample belongs.

    Attributes:
        component: (N,), the one with the greatest w_k N(x; m_k, C_k).
        chi2: (N,), the squared Mahalanobis distance from it, divided by the number of dimensions: 1 on average for
            exact draws, less for draws that are too narrow.
    """

    component: Tensor
    chi2: Tensor


def sliced_w1(x: Tensor, y: Tensor) -> float:
    """Sliced 1-Wasserstein distance of two sets (N, *) and (M, *), over 64 fixed directions, in units of the data."""
    return sliced_wasserstein(x, y, projections=DIRECTIONS, seed=1, power=1)


def assign(mixture: GaussianMixture, x: Tensor) -> Assignment:
    """The components of a mixture to which samples x (N, *) belong.

    Raises:
        InputError: a covariance is singular, so that a sample has no distance.
    """
    if not (mixture.values > 0).all():
        raise InputError("samples belong to a component only if its covariance is not singular")
    log_joint, distance = mixture.component_terms(x.double())
    index = log_joint.argmax(1)
    return Assignment(index, distance.gather(1, index[:, None])[:, 0] / mixture.values.shape[1])


def nearest_rows(data: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The index (N,) of the row of data (M, *) that is nearest to each sample x (N, *), and its distance (N,)."""
    rows = data.flatten(1).double()
    distance = torch.cdist(x.flatten(1).double(), rows, compute_mode="donot_use_mm_for_euclid_dist")
    found = distance.min(1)
    return found.indices, found.values


def total_variation(index: Tensor, weights: Tensor) -> float:
    """Total variation, in [0, 1], between the shares of classes in samples and their weights.

    Args:
        index: the class of each sample (N,), such as a component, a row of the data or a label.
        weights: the exact probabilities of the classes (K,).
    """
    shares = torch.bincount(index, minlength=len(weights)).double() / len(index)
    return 0.5 * float((shares - weights.double()).abs().sum())


def class_weights(labels: Tensor, weights: Tensor) -> Tensor:
    """The probabilities (K,) of classes, from the labels (N,) of points and the weights (N,) of these."""
    return weights.new_zeros(int(labels.max()) + 1).index_add(0, labels, weights)


def log_density_gap(posterior: GaussianMixture, x: Tensor, truth: Tensor) -> float:
    """E[log p(truth)] - E[log p(x)] in nats under the posterior, of draws x (N, *) and exact ones (M, *).

    It is 0 for exact draws, positive for draws in unlikely places, and negative for draws that are too narrow.
    """
    return float(posterior.log_prob(truth.double()).mean() - posterior.log_prob(x.double()).mean())


def residual(operator: Operator, y: Tensor, x: Tensor) -> float:
    """The mean of |y - A(x)|^2 / (m sigma^2) over samples x (N, *), for observations y (N, *m) or one (1, *m).

    Raises:
        InputError: the operator has sigma = 0, or y has another shape.
    """
    if not operator.sigma > 0:
        raise InputError(f"{operator}: the residual is measured in units of the noise; give it a sigma above 0")
    check_shape(operator, y, tuple(x.shape[1:]))
    return float(((y - operator(x)) / operator.sigma).square().mean())


def effective_size(log_weights: Tensor) -> Tensor:
    """The effective sample size (sum w)^2 / sum w^2 (*) of log-weights (*, K): K of equal ones, 1 if one has all."""
    log_weights = log_weights.double()
    return torch.exp(2 * torch.logsumexp(log_weights, -1) - torch.logsumexp(2 * log_weights, -1))


class Calibration(NamedTuple):
    """Rank calibration of a posterior method: a necessary check, which weakly informative observations pass easily.

    Attributes:
        ranks: (n, V), how many of the L draws lie below the true sample, along V directions: uniform on 0 ... L.
        central: the fraction of ranks in the central 80 %.
        p_values: (V,), of a chi-square test of ten equal bins of ranks, one for each direction.
    """

    ranks: Tensor
    central: float
    p_values: Tensor


def calibration(truth: Tensor, draws: Tensor, directions: Tensor | None = None, seed: int = 0) -> Calibration:
    """Ranks of true samples among posterior draws: simulation-based calibration (Talts et al. 2018, arXiv:1804.06788).

    Args:
        truth: the samples (n, *) that were observed, drawn from the prior.
        draws: for each, L independent draws (n, L, *) from its posterior; L + 1 a multiple of ten.
        directions: (V, d); by default 16 fixed random ones.
        seed: of the ranks among equal numbers, which are uniform; and of the default directions.

    Raises:
        InputError: the shapes do not fit, or L + 1 is no multiple of ten.
    """
    if draws.ndim < 2 or draws.shape[:1] + draws.shape[2:] != truth.shape:
        raise InputError(f"draws must be (n, L, *) for truth (n, *), got {tuple(draws.shape)} and {tuple(truth.shape)}")
    count = draws.shape[1]
    if (count + 1) % _BINS:
        raise InputError(f"calibration needs a multiple of ten less one draws, such as 19, got {count}")
    true, drawn = truth.flatten(1).double(), draws.flatten(2).double()
    source = generator(seed)
    if directions is None:
        normal = torch.randn(16, true.shape[1], dtype=torch.float64, generator=source)
        directions = normal / normal.norm(dim=1, keepdim=True)
    at, among = (true @ directions.T).unsqueeze(1), drawn @ directions.T
    # a true sample that is a row of the data may be drawn itself: equal but for the rounding of the product
    near = 1e-12 * (1 + at.abs())
    equal = ((among - at).abs() <= near).sum(1)
    spread = torch.rand(equal.shape, dtype=torch.float64, generator=source)
    ranks = (among < at - near).sum(1) + (spread * (equal + 1)).long()
    width = (count + 1) // _BINS
    inside = (ranks >= width) & (ranks <= count - width)
    bins = [torch.bincount(column // width, minlength=_BINS) for column in ranks.T]
    test = library("scipy.stats").chisquare
    p_values = torch.tensor([float(test(column.numpy()).pvalue) for column in bins], dtype=torch.float64)
    return Calibration(ranks, float(inside.double().mean()), p_values)


def scores(
    posterior: GaussianMixture | Empirical, x: Tensor, truth: Tensor, labels: Tensor | None = None
) -> dict[str, float]:
    """The scores of draws x (N, *) from one posterior, with exact draws (M, *) to compare.

    Of a mixture: ``sw``, ``tv`` of its components, ``chi2``, ``dlogp``. Of a data set: ``sw``, ``tv`` of its rows,
    ``class_tv`` of their labels, ``rmse`` of the mean, ``off``, the mean distance from the nearest row. A draw that is
    not finite is counted in ``failed`` and replaced by 0; numbers are limited to 50 in size.

    Args:
        labels: of the rows of a data set.
    """
    failed = ~torch.isfinite(x).flatten(1).all(1)
    x = torch.where(failed.view(-1, *[1] * (x.ndim - 1)), torch.zeros_like(x), x).double().clamp(-50, 50)
    found = {"sw": sliced_w1(x, truth)}
    weights = posterior.log_weights.exp()
    if isinstance(posterior, GaussianMixture):
        index, chi2 = assign(posterior, x)
        found |= {"tv": total_variation(index, weights), "chi2": float(chi2.mean())}
        found["dlogp"] = log_density_gap(posterior, x, truth)
    else:
        index, distance = nearest_rows(posterior.data, x)
        found["tv"] = total_variation(index, weights)
        if labels is not None:
            found["class_tv"] = total_variation(labels[index], class_weights(labels, weights))
        mean = torch.einsum("n,nd->d", weights, posterior.data.flatten(1).double())
        found["rmse"] = math.sqrt(float((x.flatten(1).mean(0) - mean).square().mean()))
        found["off"] = float(distance.mean())
    return {**found, "failed": float(failed.sum())}
