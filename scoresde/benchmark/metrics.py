"""Distances between two sets of samples, each with an interval.

A set is a tensor (N, *); its samples are flattened to vectors of d numbers and compared in float64. ``features`` maps
samples to other vectors first (a classifier's activations, say). All are *estimators*. ``frechet``,
``sliced_wasserstein`` and ``wasserstein`` have an upward bias that falls with the number of samples, so compare only
values from the same numbers of samples. ``mmd`` is unbiased, and may be negative.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from statistics import stdev

import numpy as np
import torch
from torch import Tensor

import solvers
from solvers import InputError
from solvers.errors import positive_integer, unknown
from solvers.libraries import library

from .known_laws import wasserstein
from .neighbours import classifier, coverage, density, precision, recall, tested
from .sets import Features, prepared
from .token_metrics import TOKEN_METRICS, invalid, wilson

Metric = Callable[[Tensor, Tensor], float]

LIKE_FID, ENOUGH = ("frechet", "mmd"), 10_000  # what looks like an FID or a KID, and how many samples these need
_BLOCK = 4096  # rows of a kernel matrix that are in memory at the same time


class FewSamples(UserWarning):
    """A distance of features from too few samples to be compared with a published one."""


@dataclass(frozen=True)
class Estimate:
    """An estimated number and the ends of its confidence interval.

    Attributes:
        value, low, high: the number, and the ends of the interval.
        again: the number again from parts of the samples, which have the same places in every set of N samples. The
            spread of the differences of two estimates is therefore that of paired samples. Empty if it is not known.
    """

    value: float
    low: float
    high: float
    again: tuple[float, ...] = field(default=(), repr=False, compare=False)


def frechet(x: Tensor, y: Tensor, features: Features | None = None) -> float:
    """Frechet distance between the two normal distributions with the sets' means and covariances.

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1^{1/2} C2 C1^{1/2})^{1/2}), Heusel et al. 2017, arXiv:1706.08500, eq. 6: the FID, if
    the features are Inception's. In squared units of the data. The covariances (with N - 1) may be singular.

    Args:
        x, y: (N, *) and (M, *).
        features: maps (N, *) to (N, k) first.

    Raises:
        InputError: fewer than two samples, samples that are not finite, or sets with samples of different sizes.
    """
    x, y = prepared(x, y, features)
    a, b = _centred(x), _centred(y)
    # With C1 = A'A and C2 = B'B the last trace is the sum of the singular values of A B'. Triangular factors replace
    # A and B, and no covariance is formed: its square root would lose half of the digits.
    r, s = torch.linalg.qr(a, mode="r").R, torch.linalg.qr(b, mode="r").R
    shift = (x.mean(0) - y.mean(0)).square().sum()
    overlap = torch.linalg.svdvals(r @ s.T).sum()
    return max(float(shift + r.square().sum() + s.square().sum() - 2 * overlap), 0.0)


def sliced_wasserstein(
    x: Tensor, y: Tensor, features: Features | None = None, projections: int = 256, seed: int = 0, power: int = 2
) -> float:
    """Sliced 2-Wasserstein distance: the root mean square, over directions, of the 1-D distances of the projections.

    Bonneel et al. 2015, section 3. In units of the data. Each 1-D distance is exact for any N and M: the quantile
    functions are steps, and the integral of their squared difference is a sum over the merged steps. With ``power=1``
    it is the sliced 1-Wasserstein distance, the mean of the 1-D distances.

    Args:
        x, y: (N, *) and (M, *).
        features: maps (N, *) to (N, k) first.
        projections: how many directions, uniform on the sphere.
        seed: the seed of the directions, which depend on it and on d alone.
        power: 2 or 1, the power of the distance that is integrated.

    Raises:
        InputError: as in ``frechet``; also a number of projections that is not a positive integer.
    """
    positive_integer("projections", projections)
    x, y = prepared(x, y, features)
    directions = _directions(projections, x.shape[1], seed)
    p, q = _sorted(directions @ x.T), _sorted(directions @ y.T)
    n, m = len(x), len(y)
    if n == m:
        return float((p - q).abs().pow(power).mean().pow(1 / power))
    # steps end at i / n and at j / m: in units of 1 / (n m) these are integers, without rounding errors
    ends = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).sort().values
    widths = ends.diff(prepend=ends.new_zeros(1)).to(x) / (n * m)
    last = ends - 1
    return float(((p[:, last // m] - q[:, last // n]).abs().pow(power) @ widths).mean().pow(1 / power))


@lru_cache(maxsize=4)  # an interval takes the same ones for each of its halves
def _directions(projections: int, d: int, seed: int) -> Tensor:
    """Directions (projections, d), uniform on the sphere."""
    normal = torch.randn(projections, d, dtype=torch.float64, generator=solvers.generator(seed, 0))
    directions: Tensor = normal / normal.norm(dim=1, keepdim=True)
    return directions


def _sorted(rows: Tensor) -> Tensor:
    """The rows of a matrix, sorted; NumPy sorts float64 three to ten times as fast as torch."""
    return torch.from_numpy(np.sort(rows.numpy(), axis=1))


def mmd(x: Tensor, y: Tensor, features: Features | None = None) -> float:
    """Squared maximum mean discrepancy with the kernel (<a, b> / d + 1)^3, unbiased.

    The estimator is Gretton et al. 2012, eq. 3. The kernel is that of the KID (Binkowski et al. 2018,
    arXiv:1801.01401), which is this number on Inception features.

    Args:
        x, y: (N, *) and (M, *).
        features: maps (N, *) to (N, k) first.

    Raises:
        InputError: as in ``frechet``.
    """
    x, y = prepared(x, y, features)
    return _mean_of_pairs(x) + _mean_of_pairs(y) - 2 * _kernel_sum(x, y) / (len(x) * len(y))


DISTANCES: dict[str, Callable[..., float]] = {  # of numbers
    "sliced_wasserstein": sliced_wasserstein,
    "frechet": frechet,
    "mmd": mmd,
}
NEIGHBOURS: dict[str, Callable[..., float]] = {  # by nearest neighbours
    "precision": precision,
    "recall": recall,
    "density": density,
    "coverage": coverage,
}
METRICS: dict[str, Callable[..., float]] = {
    **DISTANCES,
    "wasserstein": wasserstein,
    **NEIGHBOURS,
    "classifier": classifier,
    **TOKEN_METRICS,
}
HIGHER = frozenset(NEIGHBOURS)  # metrics of which a larger value is better
SIGNED = frozenset({"mmd"})  # metrics whose estimates may be negative


def bootstrap(
    metric: Metric,
    x: Tensor,
    y: Tensor,
    repeats: int = 50,
    seed: int = 0,
    level: float = 0.95,
    floor: float = -math.inf,
) -> Estimate:
    """A metric of two sets, with an interval for its expectation at these numbers of samples.

    The interval is the value plus or minus a Student quantile times the standard deviation of the metric over random
    halves of x and of y, drawn without replacement. Halves vary about the whole set as the whole set varies about the
    population (the delete-half jackknife: Shao and Wu 1989, section 2), so nothing is rescaled. A half contains no
    sample twice; the repeated samples of the usual bootstrap act as extra distance between x and y. The halves supply
    only the spread, because their values are more biased than the value of the whole sets. Where x and y have the same
    distribution and the distance is quadratic in their difference, the standard deviation is up to sqrt(3) too large,
    and the interval is too wide. The interval does not include the bias of the estimator, see the top of this module.

    Args:
        metric: ``metric(x, y)``, for instance one of ``METRICS``.
        x, y: (N, *) and (M, *).
        repeats: how many pairs of halves.
        seed: the seed of the halves.
        level: the probability that the interval contains the expectation.
        floor: a lower bound of the metric's values; the interval is cut off there.

    Raises:
        InputError: fewer than four samples in a set, fewer than two repeats, a level outside (0, 1).
    """
    if min(len(x), len(y)) < 4:
        raise InputError(f"an interval needs at least four samples in each set, got {len(x)} and {len(y)}")
    if positive_integer("repeats", repeats) < 2:
        raise InputError("repeats must be at least 2")
    if not 0 < level < 1:
        raise InputError(f"level must lie between 0 and 1, got {level!r}")
    generator = solvers.generator(seed, 1)
    values = [metric(_half(x, generator), _half(y, generator)) for _ in range(repeats)]
    reach = float(library("scipy.stats").t.ppf(0.5 + level / 2, repeats - 1)) * stdev(values)
    value = metric(x, y)
    return Estimate(value, max(value - reach, floor), value + reach, tuple(values))


Metrics = Sequence[str] | Mapping[str, Metric]


def compare(
    x: Tensor,
    y: Tensor,
    metrics: Metrics = ("sliced_wasserstein", "frechet", "mmd"),
    features: Features | None = None,
    repeats: int = 50,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Estimate]:
    """Several metrics of samples x (N, *) and a reference y (M, *), by name, with ``bootstrap``'s intervals.

    The share of invalid samples and the accuracy of the classifier are shares of independent draws, right or wrong, and
    have Wilson's interval.

    Args:
        metrics: names; or metrics of your own by name, such as ``{"modes": known_laws.mode_weights(centres)}``.

    >>> x = torch.arange(20.0).view(10, 2)
    >>> round(compare(x, x + 1, metrics=["frechet"])["frechet"].value, 9)
    2.0

    Raises:
        InputError: an unknown metric; see also the metrics and ``bootstrap``.
    """
    chosen = by_name(metrics)
    warn_of_few(list(chosen), features, len(x), len(y))
    x, y = prepared(x, y, features)

    def estimate(name: str, metric: Metric) -> Estimate:
        if metric in (invalid, classifier):
            share = metric(x, y)
            return Estimate(share, *wilson(share, len(x) if metric is invalid else tested(len(x), len(y)), level))
        return bootstrap(metric, x, y, repeats, seed, level, -math.inf if name in SIGNED else 0.0)

    return {name: estimate(name, metric) for name, metric in chosen.items()}


def by_name(metrics: Metrics) -> dict[str, Metric]:
    """Metrics by name.

    Raises:
        InputError: an unknown name; the message contains the nearest matches. A metric of your own has the name of one
            of the library's, or a name that is not an identifier.
    """
    if not isinstance(metrics, Mapping):
        check_names(metrics)
        return {name: METRICS[name] for name in metrics}
    for name in metrics:
        if name in METRICS or name == "error" or not name.isidentifier():
            raise InputError(f"a metric of your own needs a free name of letters and digits, got {name!r}")
    return dict(metrics)


def check_names(metrics: Sequence[str]) -> None:
    """Checks that every name is the name of a metric.

    Raises:
        InputError: an unknown name; the message contains the nearest matches.
    """
    for name in metrics:
        if name not in METRICS:
            raise unknown("metric", name, METRICS)


def _half(x: Tensor, generator: torch.Generator) -> Tensor:
    rows = torch.randperm(len(x), generator=generator)[: len(x) // 2]
    return x[rows.to(x.device)]


def few_samples(metrics: Sequence[str], features: Features | None, n: int, m: int) -> str:
    """A caution if a distance of features that looks like a published FID or KID is of few samples; else ""."""
    names = [name for name in metrics if name in LIKE_FID]
    if features is None or not names or min(n, m) >= ENOUGH:
        return ""
    return (
        f"{', '.join(names)} of features, from {n} samples and {m} real ones: a published FID or KID uses 50,000, "
        f"and below {ENOUGH:,} the bias is large; compare only rows with the same numbers of samples"
    )


def warn_of_few(metrics: Sequence[str], features: Features | None, n: int, m: int) -> None:
    """Warns with the caution of ``few_samples``, if there is one."""
    if caution := few_samples(metrics, features, n, m):
        warnings.warn(caution, FewSamples, stacklevel=3)


def _centred(x: Tensor) -> Tensor:
    """The matrix A (N, d) for which A'A is the covariance of x."""
    return (x - x.mean(0)) / math.sqrt(len(x) - 1)


def _kernel_sum(a: Tensor, b: Tensor) -> float:
    """The sum over all pairs of (<a, b> / d + 1)^3."""
    blocks = (a[i : i + _BLOCK] for i in range(0, len(a), _BLOCK))
    return sum(float((block @ b.T / a.shape[1] + 1).pow(3).sum()) for block in blocks)


def _mean_of_pairs(a: Tensor) -> float:
    """The mean of the kernel over pairs of different rows."""
    own = float((a.square().mean(1) + 1).pow(3).sum())
    return (_kernel_sum(a, a) - own) / (len(a) * (len(a) - 1))
