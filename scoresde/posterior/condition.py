"""``condition``: a denoiser of p(x0 | y), by the methods that are denoisers.

>>> import scoresde, torch
>>> prior = scoresde.targets.Gaussian(torch.zeros(2), torch.tensor([4.0, 1.0])).denoiser(scoresde.VP())
>>> seen = scoresde.operators.Inpaint(torch.tensor([True, False]), sigma=1.0)
>>> posterior = condition(prior, seen, torch.tensor([2.0]), "mmps")
>>> posterior.predict(torch.zeros(1, 2), prior.sde(prior.sde.t_max)).x0.round(decimals=2)  # y = 2 leaves the mean 1.6
tensor([[1.6000, 0.0000]])
"""

from __future__ import annotations

from collections.abc import Sequence

from solvers import InputError

from ..io.inputs import Array
from ..operators.base import Operator, operators
from ..paths.base import ModelLike
from .base import Conditioned, DenoiserPosterior, Posterior, posteriors


def condition(
    denoiser: ModelLike,
    operator: str | Operator,
    y: Array,
    posterior: str | Posterior = "mmps",
    *,
    shape: Sequence[int] | int | None = None,
    ode_density: bool = False,
) -> Conditioned:
    """A denoiser of p(x0 | y): ``sample`` and ``encode`` take it, with any solver.

    Args:
        operator: how y was observed, a name or spec such as "inpaint(mask=mask.npy, sigma=0.05)"; sigma is the noise
            in the units of the data.
        y: one observation (*m) for all samples, or one for each sample (B, *m).
        posterior: a method or spec, see ``posterior.names()``.
        shape: the shape of one sample; by default the model's.
        ode_density: let ``log_prob`` compute the density of the method's own ODE, which is that of p(x0 | y) only for
            data for which the method is exact.

    Raises:
        InputError: the method is no denoiser, or does not take the operator; the observation is not what the operator
            makes of samples.
    """
    method = posteriors.make(posterior)
    if not isinstance(method, DenoiserPosterior):
        raise InputError(f"{method} is no denoiser, it moves the samples itself: use scoresde.restore with it")
    return Conditioned(denoiser, operators.make(operator), y, method, shape, ode_density)
