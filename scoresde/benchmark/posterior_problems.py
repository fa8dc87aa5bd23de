"""Inverse problems whose posteriors are known exactly: mixtures in eight dimensions, and digits as a data set.

Each is a function of its seeds alone. A problem has several observations of samples from its prior, so posterior draws
are calibrated against the true samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean

import torch
from torch import Tensor

from solvers import InputError
from solvers.errors import unknown
from solvers.libraries import library

from ..models.targets import Empirical, GaussianMixture
from ..operators.base import Operator, measure, times
from ..operators.linear import Downsample, Inpaint, Matrix
from ..operators.nonlinear import Custom, Quantise
from .posterior_metrics import residual, scores


@dataclass(frozen=True, eq=False)
class PosteriorProblem:
    """Observations of samples from a known prior, with their exact posteriors.

    Attributes:
        name: what the tables call it.
        prior: the distribution of x.
        operator: how samples are observed.
        x: the true samples (n, *).
        y: their observations (n, *m).
        labels: of the rows of a data set (N,), if they have some.
    """

    name: str
    prior: GaussianMixture | Empirical
    operator: Operator
    x: Tensor
    y: Tensor
    labels: Tensor | None = None

    @cached_property
    def posteriors(self) -> Sequence[GaussianMixture | Empirical]:
        """The exact posterior of each observation."""
        return [self.prior.posterior(self.operator, y) for y in self.y]

    def draws(self, count: int, source: torch.Generator) -> Tensor:
        """Exact posterior draws (n, count, *), float64, of all observations."""
        return torch.stack([posterior.sample(count, source).double() for posterior in self.posteriors])

    def scores(self, x: Tensor, truth: Tensor) -> dict[str, float]:
        """The scores of draws x (n, S, *) against exact ones (n, T, *), means over the observations; see ``each``."""
        rows = self.each(x, truth)
        return {name: fmean(row[name] for row in rows) for name in rows[0]}

    def each(self, x: Tensor, truth: Tensor) -> list[dict[str, float]]:
        """The scores of draws x (n, S, *) against exact ones (n, T, *), of each observation.

        See ``posterior_metrics.scores``; also ``resid``, |y - A(x)|^2 / (m sigma^2).

        Raises:
            InputError: the draws do not fit the observations.
        """
        if x.ndim < 3 or len(x) != len(self.y) or x.shape[2:] != self.x.shape[1:]:
            raise InputError(
                f"{self.name}: draws must be ({len(self.y)}, S, *) with samples of shape {tuple(self.x.shape[1:])}, "
                f"got {tuple(x.shape)}"
            )
        return [
            {**scores(posterior, own, exact, self.labels), "resid": residual(self.operator, y[None], own.double())}
            for posterior, own, exact, y in zip(self.posteriors, x, truth, self.y, strict=True)
        ]


def _source(seed: int) -> torch.Generator:
    """torch's own generator of a seed, which published numbers of these problems come from."""
    return torch.Generator().manual_seed(seed)


def mixture_problem(m: int, sigma: float, observations: int = 8, seed: int = 0) -> PosteriorProblem:
    """P(m, sigma): 25 narrow components in eight dimensions, observed by an m x 8 matrix.

    The means are 0.7 (i, j), i and j in -2 ... 2, repeated four times; the deviation is 0.1, the weights are random. A
    has the singular values 1 to 0.3 and random singular vectors.

    Raises:
        InputError: m is not one of 1 to 8.
    """
    d = 8
    if not 1 <= m <= d:
        raise InputError(f"m must be one of 1 to {d}, got {m}")
    source = _source(seed)
    line = torch.arange(-2, 3, dtype=torch.float64)
    means = 0.7 * torch.cartesian_prod(line, line).repeat(1, d // 2)
    weights = torch.rand(len(means), dtype=torch.float64, generator=source) + 0.1
    right = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=source)).Q[:m]
    left = torch.linalg.qr(torch.randn(m, m, dtype=torch.float64, generator=source)).Q
    values = torch.linspace(1.0, 0.3, m, dtype=torch.float64)
    prior = GaussianMixture(means, 0.1**2, weights)
    operator = Matrix((left * values) @ right, sigma=sigma)
    source = _source(7 + seed)
    x = prior.sample(observations, source)
    return PosteriorProblem(f"P({m}, {sigma:g})", prior, operator, x, measure(operator, x, source))


def _inpaint() -> Operator:
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[:4] = True
    return Inpaint(mask, sigma=0.6)


def _vectors(count: int) -> Tensor:
    """Random orthonormal vectors (count, 64)."""
    drawn = torch.randn(64, 64, dtype=torch.float64, generator=_source(3))
    basis: Tensor = torch.linalg.qr(drawn).Q
    return basis[:count].contiguous()


def _phase() -> Operator:
    vectors = _vectors(24)
    return Custom(lambda x: times(vectors, x.flatten(1)).abs(), sigma=0.3)


def _tanh() -> Operator:
    vectors = _vectors(8)
    return Custom(lambda x: torch.tanh(4 * times(vectors, x.flatten(1))), sigma=0.3)


DIGITS: dict[str, Callable[[], Operator]] = {
    "inpaint": _inpaint,  # the top half
    "block_means": lambda: Downsample(4, sigma=0.1),
    "phase": _phase,  # magnitudes along 24 random directions
    "tanh": _tanh,  # saturated products with 8 of them
    "quantise": lambda: Quantise(2, sigma=1.5),  # black or white; it has no gradient
}


def digits_problem(kind: str, observations: int = 10, seed: int = 1) -> PosteriorProblem:
    """1500 digits of scikit-learn's, (1, 8, 8) in [-1, 1], as a data set, observed in one of five ways.

    Args:
        kind: ``inpaint`` (top half seen, sigma 0.6), ``block_means`` (of 4 x 4, sigma 0.1), ``phase`` (|F x| of 24
            random orthonormal vectors, sigma 0.3), ``tanh`` (tanh(4 F x) of eight, sigma 0.3), ``quantise`` (pixels are
            black or white, sigma 1.5).

    Raises:
        InputError: the kind is unknown, or scikit-learn is not installed.
    """
    if kind not in DIGITS:
        raise unknown("digits problem", kind, DIGITS)
    images, labels = library("sklearn.datasets").load_digits(return_X_y=True)
    data = torch.from_numpy(images[:1500] / 8 - 1).double().view(-1, 1, 8, 8)
    operator, source = DIGITS[kind](), _source(seed)
    x = data[torch.randperm(len(data), generator=source)[:observations]]
    y = measure(operator, x, source)
    return PosteriorProblem(f"digits, {kind}", Empirical(data), operator, x, y, torch.from_numpy(labels[:1500]).long())
