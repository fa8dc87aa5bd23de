"""A family of models for tuning one program for many, made by formulas from a seed: no data of anybody.

Five kinds of data: mixtures of isotropic and of anisotropic Gaussians in 1 to 64 dimensions; points on curves and
surfaces in more dimensions; separate points; and pictures of strokes and of filtered noise, 8x8 and 16x16. Points are
smoothed by a Gaussian, or not. Coordinates have means of their own, as pixels of pictures have. The root mean square of
all numbers is between 0.7 and 2: who uses such a program may not know it better.

The models of the data are exact. Half of them are wrong like networks: their eps has an error, a smooth function of the
scaled state, so that their x0 at high noise is far off; the truth is the ODE of such a model. Other models are networks
trained on the data, see learned_family.py.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

import scoresde
import solvers
from scoresde import targets
from solvers import Prediction, Problem, SeededNoise
from solvers.tuning.family import Case

PATH = scoresde.EDM()  # sigma / alpha from 80 to 0.002
NARROWEST, WIDEST = 0.7, 2.0  # root mean squares of data
KINDS = ("isotropic", "anisotropic", "manifold", "points", "pictures")


Target = targets.GaussianMixture | targets.Empirical


class Made(NamedTuple):
    """A target and what it is."""

    target: Target
    kind: str
    dimension: int
    components: int


class Draw:
    """Numbers from one seed."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=self.generator, dtype=torch.float64))

    def log_uniform(self, low: float, high: float) -> float:
        return math.exp(self.uniform(math.log(low), math.log(high)))

    def choice(self, options: tuple[Any, ...]) -> Any:
        return options[int(torch.randint(len(options), (), generator=self.generator))]


def _weights(draw: Draw, count: int) -> Tensor:
    return torch.softmax(draw.uniform(0.0, 1.0) * draw.normal(count), 0)


def _scaled(means: Tensor, variances: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Means (K, d) and variances (K, d) of data with mean 0 and deviation 1 over all coordinates."""
    means = means - (weights[:, None] * means).sum(0)
    total = float((weights[:, None] * (means.square() + variances)).sum(0).mean())
    return means / math.sqrt(total), variances / total


def _mixture(draw: Draw, d: int, isotropic: bool) -> targets.GaussianMixture:
    count = int(draw.log_uniform(2, 48))
    means, weights = draw.normal(count, d), _weights(draw, count)
    if isotropic:
        low = draw.log_uniform(0.02, 0.6)
        deviations = low + draw.uniform(0.0, 0.6) * torch.rand(count, 1, generator=draw.generator, dtype=torch.float64)
        variances = deviations.square().expand(count, d)
    else:
        low, high = draw.log_uniform(0.005, 0.2), draw.log_uniform(0.2, 1.5)
        spectrum = torch.logspace(math.log10(low), math.log10(high), d, dtype=torch.float64)
        variances = (spectrum * (0.3 * draw.normal(count, d)).exp()).square()
        means = means * spectrum ** draw.uniform(0.0, 1.0)
    means, variances = _scaled(means, variances, weights)
    return targets.GaussianMixture(means, variances[:, 0] if isotropic else variances, weights)


def _of_points(draw: Draw, points: Tensor) -> Target:
    """The points (N, d), smoothed or not, standardised."""
    points = points - points.mean(0)
    points = points / points.square().mean().sqrt()
    width = draw.choice((0.0, 0.0, 0.02, 0.05, 0.1, 0.2))
    if width == 0.0:
        return targets.Empirical(points)
    scale = math.sqrt(1 + width**2)
    return targets.GaussianMixture(points / scale, (width / scale) ** 2)


def _manifold(draw: Draw, d: int) -> Tensor:
    """Points on the image of a line or a square under smooth random waves."""
    inner, count = draw.choice((1, 1, 2)), draw.choice((100, 200, 400))
    at = torch.rand(count, inner, generator=draw.generator, dtype=torch.float64)
    waves = 12
    phase = 2 * math.pi * (at @ (draw.uniform(0.5, 2.0) * draw.normal(inner, waves)) + draw.normal(waves))
    return torch.sin(phase) @ draw.normal(waves, d)


def _strokes(draw: Draw, count: int, side: int) -> Tensor:
    """Pictures of one or two smooth strokes, nearly black and white."""
    axis = torch.linspace(-1, 1, side, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).view(1, 1, side * side, 2)
    shapes = draw.normal(draw.choice((3, 6, 12)), 2, 4, 2) * torch.tensor([0.5, 0.7, 0.35, 0.2]).view(4, 1)
    which = torch.randint(len(shapes), (count,), generator=draw.generator)
    control = shapes[which] + draw.uniform(0.05, 0.25) * draw.normal(count, 2, 4, 2)
    t = torch.linspace(0, 1, 24, dtype=torch.float64)
    basis = torch.stack(
        [torch.ones_like(t), torch.cos(math.pi * t), torch.cos(2 * math.pi * t), torch.cos(3 * math.pi * t)]
    )
    line = torch.einsum("kt,nskc->nstc", basis, control).flatten(1, 2)  # (count, 48, 2)
    distance = torch.stack([(grid[0] - one[:, None]).square().sum(-1).min(0).values for one in line])  # (count, side^2)
    return torch.tanh(3 - distance / draw.uniform(0.01, 0.04))


def _filtered(draw: Draw, count: int, side: int) -> Tensor:
    """Pictures of noise whose spectrum falls like a power of the frequency, as that of photographs does."""
    frequency = torch.fft.fftfreq(side, dtype=torch.float64)
    radius = (frequency[:, None].square() + frequency.square()).sqrt().clamp_min(0.5 / side)
    filtered = torch.fft.ifft2(torch.fft.fft2(draw.normal(count, side, side)) * radius ** -draw.uniform(0.7, 2.0)).real
    filtered = filtered / filtered.std()
    return torch.tanh(draw.uniform(0.2, 2.0) * filtered).flatten(1)


def member(seed: int) -> Made:
    """The target of a seed."""
    draw = Draw(seed)
    kind = draw.choice(KINDS)
    side = draw.choice((8, 8, 16))
    d = side**2 if kind == "pictures" else draw.choice((1, 2, 2, 4, 8, 16, 32, 64))
    if kind in ("isotropic", "anisotropic"):
        target: Target = _mixture(draw, d, kind == "isotropic")
    else:
        d = max(2, d)
        if kind == "pictures":
            points = draw.choice((_strokes, _filtered))(draw, draw.choice((100, 200, 400)), side)
        elif kind == "manifold":
            points = _manifold(draw, d)
        else:
            points = draw.normal(draw.choice((10, 30, 100, 300)), d)
        target = _of_points(draw, points)
    offset = draw.uniform(0.0, 1.5) * draw.normal(d)
    scale = draw.log_uniform(NARROWEST, WIDEST) / math.sqrt(1 + float(offset.square().mean()))
    if isinstance(target, targets.Empirical):
        return Made(targets.Empirical(scale * (target.data + offset)), kind, d, len(target.data))
    values = target.values[:, 0] if target.isotropic else target.values
    weights = target.log_weights.exp()
    moved = targets.GaussianMixture(scale * (target.means + offset), scale**2 * values, weights)
    return Made(moved, kind, d, len(weights))


class Fault(NamedTuple):
    """An error of eps (B, d): size sin(z inwards + phase) outwards, with z = x / sqrt(1 + sigma^2)."""

    size: float
    inwards: Tensor
    phase: Tensor
    outwards: Tensor

    def __call__(self, x: Tensor, r: Tensor) -> Tensor:
        z = x / (1 + r**2).sqrt()
        return self.size * (torch.sin(z @ self.inwards + self.phase) @ self.outwards)


def fault(seed: int) -> Fault | None:
    """The error of the eps of a seed's model; None for half of the seeds."""
    draw, d = Draw(seed + 500_000), member(seed).dimension
    if draw.uniform(0.0, 1.0) < 0.5:
        return None
    waves = 16
    inwards, outwards = draw.normal(d, waves) / math.sqrt(d), draw.normal(waves, d) * math.sqrt(2 / waves)
    return Fault(draw.log_uniform(0.003, 0.06), inwards, 2 * math.pi * draw.normal(waves), outwards)


class Fast(Problem):
    """The exact model of a target on ``PATH``, by matrix products: a tuning differentiates it thousands of times.

    It is that of ``target.denoiser(PATH)`` up to rounding, except that a row of a product may depend on the batch; with
    an error of eps it is another model.
    """

    def __init__(self, target: Target, fault: Fault | None = None) -> None:
        self.fault = fault
        if isinstance(target, targets.Empirical):
            self.means = target.data.flatten(1)
            self.variances = torch.zeros(len(self.means), 1, dtype=torch.float64)
        else:
            self.means = target.means
            self.variances = target.values[:, :1] if target.isotropic else target.values
        self.log_weights = target.log_weights

    @property
    def path(self) -> scoresde.EDM:
        return PATH

    def predict(self, x: Tensor, node: Any) -> Prediction:
        """E[x0 | x] (B, d): sum_k w_k (m_k + C_k (C_k + r^2)^-1 (x - m_k)), with r = sigma."""
        r = torch.as_tensor(node.sigma, dtype=x.dtype).reshape(-1)[0]  # a solve has one noise level at a time
        total = (self.variances + r**2).expand_as(self.means)
        scaled = self.means / total
        squares = x.square() @ (1 / total).T - 2 * x @ scaled.T + (self.means * scaled).sum(1)
        weights = torch.softmax(self.log_weights - 0.5 * (squares + total.log().sum(1)), 1)
        x0 = x * (1 - weights @ (r**2 / total)) + weights @ (r**2 * scaled)
        if self.fault is not None:
            x0 = x0 - r * self.fault(x, r)
        return Prediction(x0, (x - x0) / r)


def problem(seed: int) -> Fast:
    """The problem of a seed."""
    return Fast(member(seed).target, fault(seed))


def case(seed: int, samples: int, steps: int = 64) -> Case:
    """The problem of a seed and the exact solutions from some starts."""
    made, dimension = problem(seed), member(seed).dimension
    starts = SeededNoise(range(1000 * seed, 1000 * seed + samples), (dimension,), torch.float64).initial()
    first = PATH(PATH.t_max)
    x = math.hypot(first.alpha, first.sigma) * starts
    return Case(made, solvers.trajectory(made, x, PATH, "logsnr(end=zero)", steps))
