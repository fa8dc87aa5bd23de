"""Exact transport between two sets, and metrics that need the law of the data: weights of modes, log-density."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from solvers import InputError
from solvers.libraries import library

from ..models.targets import Empirical, GaussianMixture
from .sets import Features, prepared

_ITERATIONS = 10_000_000  # of the network simplex; it ends much earlier


def wasserstein(x: Tensor, y: Tensor, features: Features | None = None) -> float:
    """The 2-Wasserstein distance of two sets: the root of the least mean squared distance of a matching.

    Exact, by scipy's assignment for sets of one size, and by POT's network simplex otherwise. In units of the data. Its
    time grows with the cube of the number of samples.

    Args:
        x, y: (N, *) and (M, *).
        features: maps (N, *) to (N, k) first.

    Raises:
        InputError: see ``prepared``; sets of different sizes without POT.
    """
    x, y = prepared(x, y, features)
    cost = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square().numpy()
    if len(x) == len(y):
        rows, columns = library("scipy.optimize").linear_sum_assignment(cost)
        return float(cost[rows, columns].mean() ** 0.5)
    try:
        transport: Any = library("ot")
    except ImportError:
        raise InputError(
            f"the exact Wasserstein distance of {len(x)} and {len(y)} samples needs POT: pip install "
            "'scoresde[metrics]', or take sets of one size"
        ) from None
    return float(max(transport.emd2([], [], cost, numItermax=_ITERATIONS), 0.0) ** 0.5)


def mode_weights(centres: Tensor, weights: Sequence[float] | None = None) -> Callable[[Tensor, Tensor], float]:
    """A metric: the total variation between the weights of modes in x and in y, or in x and ``weights``.

    A sample belongs to the mode whose centre is nearest. The value is half the sum of |share - weight|, and is 0 if
    every mode has its weight.

    Args:
        centres: (K, *).
        weights: of the modes, in the order of the centres, normalised here; None for the shares of y.

    >>> metric = mode_weights(torch.tensor([[0.0], [1.0]]), [1, 1])
    >>> metric(torch.tensor([[0.1], [0.2], [0.1], [0.9]]), torch.zeros(2, 1))
    0.25

    Raises:
        InputError: not a weight for each centre, or a sample has another size than a centre.
    """
    modes = torch.as_tensor(centres).flatten(1).double()
    known = None if weights is None else torch.as_tensor(weights, dtype=torch.float64)
    if known is not None and (known.shape != (len(modes),) or not bool((known >= 0).all()) or float(known.sum()) <= 0):
        raise InputError(f"mode_weights needs a weight of at least 0 for each of {len(modes)} centres, got {weights}")

    def shares(x: Tensor) -> Tensor:
        if x.shape[1] != modes.shape[1]:
            raise InputError(f"the samples have {x.shape[1]} numbers, and the centres {modes.shape[1]}")
        return torch.bincount(torch.cdist(x, modes).argmin(1), minlength=len(modes)).double() / len(x)

    def metric(x: Tensor, y: Tensor) -> float:
        x, y = prepared(x, y)
        wanted = shares(y) if known is None else known / known.sum()
        return 0.5 * float((shares(x) - wanted).abs().sum())

    return metric


def log_density(target: GaussianMixture | Empirical) -> Callable[[Tensor, Tensor], float]:
    """A metric: |E_x log p - E_y log p| in nats, where p is the exact density of the data.

    Its limit for samples of p is 0; samples near the modes alone have a larger E log p than data.

    Raises:
        InputError: the target is a data set, which has no density.
    """
    if isinstance(target, Empirical):
        raise InputError("a data set has no density: log_density needs a mixture of Gaussians")

    def metric(x: Tensor, y: Tensor) -> float:
        x, y = (target.log_prob(part.reshape(len(part), *target.shape)) for part in prepared(x, y))
        return abs(float(x.mean() - y.mean()))

    return metric
