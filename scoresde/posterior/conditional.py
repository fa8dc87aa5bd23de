"""Draws from N(x; centre, rho^2 I) p(y | x): exact for linear operators, by Langevin steps for others."""

from __future__ import annotations

import torch
from torch import Tensor

from solvers import InputError
from solvers.noise.seeded import SeededNoise

from ..models.evaluation import gradients, recordable
from ..models.per_sample import row_sums, rows
from ..operators.base import SVD, Operator, log_likelihood

WANTED = 0.574  # the share of accepted proposals at which Langevin steps of many dimensions move furthest


def conditional(
    operator: Operator,
    y: Tensor,
    centre: Tensor,
    rho: float,
    noise: SeededNoise,
    steps: int,
    start: Tensor | None = None,
) -> Tensor:
    """A draw (B, *) of x with the prior N(centre, rho^2 I), given observations y (B, *m) of it with sigma > 0.

    Args:
        centre: (B, *).
        steps: Langevin steps, where the operator is not linear or its singular values are not known.
        start: where these begin (B, *); by default at the centre.

    Raises:
        InputError: the operator has sigma = 0.
    """
    if not operator.sigma > 0:
        raise InputError(f"{operator}: draws given an observation need a sigma above 0")
    svd = operator.svd(tuple(centre.shape[1:])) if operator.linear else None
    if svd is not None:
        return gaussian(operator.sigma, svd, y, centre, rho, noise.draw())
    return langevin(operator, y, centre, rho, noise, steps, centre if start is None else start)


def gaussian(sigma: float, svd: SVD, y: Tensor, centre: Tensor, rho: float, z: Tensor) -> Tensor:
    """The draw (B, *) for a linear operator, from normal numbers z (B, *)."""
    s = svd.values.to(centre)
    k, total = len(s), sigma**2 + (s * rho) ** 2
    x = svd.right(centre)
    spread = torch.full_like(x[:1], rho)
    spread[:, :k] = rho * sigma / total.sqrt()
    x[:, :k] += (s * rho**2 / total) * (svd.left(y)[:, :k] - s * x[:, :k])
    return svd.from_right(x + spread * z.flatten(1))


def langevin(
    operator: Operator, y: Tensor, centre: Tensor, rho: float, noise: SeededNoise, steps: int, start: Tensor
) -> Tensor:
    """The state (B, *) after Metropolis-adjusted Langevin steps, which leave the conditional law as it is.

    Each sample has a step size of its own. In the first half of the steps it grows with each acceptance and shrinks
    with each rejection.
    """
    x = start
    value, slope = _density(operator, y, centre, rho, x)
    size = x.new_full((len(x),), 1 / (1 / rho**2 + 1 / operator.sigma**2))
    for i in range(steps):
        h = rows(size, x)
        z, other = noise.draw(), noise.draw().flatten(1)[:, 0]
        moved = x + h * slope + (2 * h).sqrt() * z
        there, back = _density(operator, y, centre, rho, moved)
        # log q(x | moved) - log q(moved | x)
        ways = 0.5 * row_sums(z.square()) - row_sums((x - moved - h * back).square()) / (4 * size)
        chance = torch.special.ndtr(other).log()  # of a uniform number
        taken = chance < there - value + ways
        x, slope = (torch.where(rows(taken, x), new, old) for new, old in ((moved, x), (back, slope)))
        value = torch.where(taken, there, value)
        if i < steps // 2:
            size = size * torch.where(taken, 1 + 0.2 * (1 - WANTED), 1 - 0.2 * WANTED)
    return x


def _density(operator: Operator, y: Tensor, centre: Tensor, rho: float, x: Tensor) -> tuple[Tensor, Tensor]:
    """The logarithm of N(x; centre, rho^2 I) p(y | x) up to a constant (B,), and its gradient (B, *)."""
    with gradients(True):
        leaf = recordable(x).detach().requires_grad_()
        likelihood = log_likelihood(operator, recordable(y), leaf)
        (slope,) = torch.autograd.grad(likelihood.sum(), leaf)
    away = x - centre
    return likelihood.detach() - row_sums(away.square()) / (2 * rho**2), slope - away / rho**2
