"""The denoising error of a model on held-out samples, at each noise level."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from solvers import InputError, Node
from solvers.errors import positive_integer
from solvers.noise.draws import Draws
from solvers.types.answers import predicted

from ..data.rows import Batch
from ..models.model import Model
from ..sampling.batches import batches_of

BINS = 20


@dataclass(frozen=True)
class ErrorByNoise:
    """The mean squared error of eps for each dimension, in equal bins of the log signal-to-noise ratio.

    With lambda = log(alpha^2 / sigma^2), half the integral of the error over lambda, times the number of dimensions, is
    the diffusion term of the continuous-time bound in nats (Kingma et al. 2021, arXiv:2107.00630, eq. 15).

    Attributes:
        log_snr: the middles of the bins, 2 lam, ascending.
        error: the error at these levels.
        stderr: its standard error over the samples.
        trivial: the error of the predictor that knows only the mean and the variance of the data.
    """

    log_snr: list[float]
    error: list[float]
    stderr: list[float]
    trivial: list[float]


def error_by_noise(
    model: Model, batch: Batch, seed: int, bins: int = BINS, batch_size: int | None = None
) -> ErrorByNoise:
    """Measures the error of a model on samples x0 (B, *), each noised once at the middle of every bin.

    The noise is a function of the seed, the bin and the row. For data of variance s^2, the predictor that knows only
    mean and variance has the error 1 / (1 + (sigma / alpha)^2 / s^2) in eps.

    Args:
        batch: at least two samples, on the model's device.
        bins: how many levels between those of t_max and t_min.
        batch_size: how many samples are evaluated together, by default all.

    Raises:
        InputError: fewer than two samples, no bins, or a path that starts without noise.
    """
    if len(batch) < 2:
        raise InputError(f"the error on held-out data needs at least 2 samples, got {len(batch)}")
    sde, count = model.sde, positive_integer("bins", bins)
    low, high = sde(sde.t_max).lam, sde(sde.t_min).lam
    if not math.isfinite(high):
        raise InputError(f"{sde} starts at sigma = 0, where the log signal-to-noise ratio is infinite: raise its t_min")
    variance = float(batch.x.double().var(correction=0))
    found = ErrorByNoise([], [], [], [])
    for k in range(count):
        node = sde(sde.t_of_lam(low + (high - low) * (k + 0.5) / count))
        draws = Draws.of(seed, k, len(batch))
        parts = [
            _errors(model, batch.part(rows), node, draws.part(rows)) for rows in batches_of(len(batch), batch_size)
        ]
        errors = torch.cat(parts)
        found.log_snr.append(2 * node.lam)
        found.error.append(float(errors.mean()))
        found.stderr.append(float(errors.std()) / math.sqrt(len(errors)))
        found.trivial.append(1 / (1 + node.ratio**2 / variance) if variance > 0 else 0.0)
    return found


@torch.no_grad()
def _errors(model: Model, batch: Batch, node: Node, draws: Draws) -> Tensor:
    """The squared error of eps of each sample (B,), float64, a mean over its dimensions."""
    eps = draws.normal_like(batch.x)
    prediction = predicted(model.predict, node.alpha * batch.x + node.sigma * eps, node, dict(batch.conditions))
    errors: Tensor = (prediction.eps - eps).double().square().flatten(1).mean(1)
    return errors
