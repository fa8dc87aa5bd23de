"""The mean square of a model's eps at each noise level, estimated on data; some solvers need it as an option."""

from __future__ import annotations

import math

import torch

import solvers
from solvers.errors import positive_integer
from solvers.types.answers import predicted
from solvers.types.schedule import as_schedule

from ..io.inputs import Array
from ..models.evaluation import evaluation
from ..models.model import as_model
from ..paths.base import ModelLike
from .batches import batch_of, batches_of
from .failures import failures_of, listed


def eps_power(
    denoiser: ModelLike, x0: Array, levels: int = 20, *, seed: int = 0, batch_size: int | None = None
) -> tuple[tuple[float, float], ...]:
    """Estimates the power E|eps|^2 / d of the model's eps at noised data; returns pairs (lam, power).

    The solver ``ddpm(variance=optimal, eps_power=...)`` takes these pairs: 1 - power is the share of the variance of
    the posterior of x0 that the model leaves (Bao et al. 2022, arXiv:2201.06503, eq. 8-9). The cost is one evaluation
    per sample and level.

    Args:
        denoiser: the model.
        x0: data (B, *).
        levels: the number of values of lam, equally spaced over the range of the SDE.
        seed: the seed of the noise, which is drawn again at every level.
        batch_size: the number of samples to evaluate at once; it changes the result only by rounding.

    >>> import scoresde
    >>> target = scoresde.targets.Gaussian(torch.zeros(2), 0.25)
    >>> data = target.sample(256, torch.Generator().manual_seed(0))
    >>> table = eps_power(target.denoiser(scoresde.VP()), data, levels=10)
    >>> spec = f"ddpm(variance=optimal, eps_power={[list(pair) for pair in table]})"
    >>> scoresde.sample(target.denoiser(scoresde.VP()), (2,), range(4), spec, steps=5).nfe
    5

    Raises:
        InputError: x0 is not a batch of finite floats, levels is not an integer of at least 2, or the model's
            prediction for a sample is not finite; the message names the samples and the level.
    """
    denoiser, (x0, _) = as_model(denoiser), batch_of("x0", x0)
    if positive_integer("levels", levels) < 2:
        raise solvers.InputError(f"levels must be at least 2, got {levels}")
    sde = denoiser.sde
    first, last = sde(sde.t_max).lam, sde(sde.t_min).lam
    generator, pairs = solvers.generator(seed), []
    with evaluation(denoiser), torch.no_grad():
        for k in range(levels):
            node = as_schedule(sde).node_of_lam(first + (last - first) * k / (levels - 1))
            noise = torch.randn(x0.shape, generator=generator, dtype=torch.float64).to(x0)
            x = node.alpha * x0 + node.sigma * noise
            squares = torch.cat(
                [
                    predicted(denoiser.predict, x[rows], node).eps.double().square().flatten(1).sum(1)
                    for rows in batches_of(len(x0), batch_size)
                ]
            )
            if failures := failures_of(~torch.isfinite(squares), 0):
                where = f"at sigma / alpha = {node.ratio:.4g} the model's prediction"
                raise solvers.InputError(f"{where} of {len(failures)} of {len(x0)} samples: {listed(failures)}")
            pairs.append((node.lam, float(squares.mean()) / math.prod(x0.shape[1:])))
    return tuple(pairs)
