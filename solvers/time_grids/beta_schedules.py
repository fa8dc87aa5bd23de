"""Noise schedules: betas of DDPM's chains and sigmas of SMLD's, and the integral of a linear beta(t).

Betas and sigmas are float64 arrays (N,), from the least noise to the most.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, positive_integer

Array = NDArray[np.float64]
T = TypeVar("T")  # a float, an array or a tensor

# alpha of a node without any signal: the root of 2^-24, with which diffusers replaces alpha^2 = 0
FAINT = 2.0**-12
OFFSET = 0.008  # of the cosine schedule: Nichol and Dhariwal 2021, section 3.2
BETA_START, BETA_END = 1e-4, 0.02  # Ho et al. 2020, section 4, for 1000 steps
CAP = 0.999  # the largest beta of schedules that are defined by alpha: Nichol and Dhariwal 2021, section 3.2


def betas_of(kept: Array) -> Array:
    """The betas (N,) of ``kept`` = alpha^2 (N + 1,): beta_i = 1 - kept_{i+1} / kept_i, at most 0.999."""
    betas: Array = np.minimum(1 - kept[1:] / kept[:-1], CAP)
    return betas


def cosine(count: int, offset: float = OFFSET) -> Array:
    """The cosine schedule's alpha^2 (N + 1,) = cos^2((i / N + offset) / (1 + offset) pi / 2), not normalised to 1 at
    i = 0: Nichol and Dhariwal 2021, eq. 17."""
    kept: Array = np.cos((np.linspace(0, 1, count + 1) + offset) / (1 + offset) * math.pi / 2) ** 2
    return kept


def _scaled_linear(start: float, end: float, count: int) -> Array:
    for beta in (start, end):
        if not beta > 0:
            raise InputError(f"scaled_linear: betas must lie between 0 and 1, got {beta:g} at an end")
    return np.linspace(math.sqrt(start), math.sqrt(end), count) ** 2


def _sigmoid(u: Array) -> Array:
    value: Array = 1 / (1 + np.exp(-u))
    return value


def _sigmoid_alpha(start: float, end: float, count: int) -> Array:
    course = _sigmoid(np.linspace(-3, 3, count + 1))
    return betas_of((course[-1] - course) / (course[-1] - course[0]))


# (beta_start, beta_end, N) -> betas (N,), by the names in checkpoints; schedules defined by alpha ignore the ends
SCHEDULES: dict[str, Callable[[float, float, int], Array]] = {
    # Ho et al. 2020, arXiv:2006.11239, section 4
    "linear": lambda start, end, count: np.linspace(start, end, count),
    # Rombach et al. 2022, arXiv:2112.10752: linear in the root
    "scaled_linear": _scaled_linear,
    # Nichol and Dhariwal 2021, arXiv:2102.09672, eq. 17, with betas of at most 0.999
    "squaredcos_cap_v2": lambda start, end, count: betas_of(cosine(count)),
    # alpha^2 = exp(-12 i / N): diffusers' Heun and DPM2 classes
    "exp": lambda start, end, count: betas_of(np.exp(-12 * np.linspace(0, 1, count + 1))),
    # betas along a sigmoid from -6 to 6: Xu et al. 2022, arXiv:2203.02923
    "sigmoid": lambda start, end, count: start + (end - start) * _sigmoid(np.linspace(-6, 6, count)),
    # alpha^2 along a sigmoid from 3 to -3: Jabri et al. 2022, arXiv:2212.11972, appendix B
    "sigmoid_alpha": _sigmoid_alpha,
}


def betas(schedule: str, count: int, beta_start: float = BETA_START, beta_end: float = BETA_END) -> Array:
    """The betas (N,) of the schedule with a given name.

    Raises:
        InputError: the name is unknown, or the number of steps is not a positive integer.
    """
    if schedule not in SCHEDULES:
        raise InputError(f"no schedule {schedule!r} of betas; accepted: {', '.join(SCHEDULES)}")
    return SCHEDULES[schedule](beta_start, beta_end, positive_integer("num_train_timesteps", count))


def sigmas(sigma_min: float, sigma_max: float, count: int) -> Array:
    """SMLD's sigmas (N,), geometric from the least to the greatest: Song and Ermon 2019, arXiv:1907.05600, section 4.2.

    Raises:
        InputError: the two sigmas are not positive and increasing, or ``count`` is less than two.
    """
    if not 0 < sigma_min < sigma_max:
        raise InputError(f"sigmas need 0 < sigma_min < sigma_max, got {sigma_min:g} and {sigma_max:g}")
    if positive_integer("num_train_timesteps", count) < 2:
        raise InputError(f"num_train_timesteps must be at least 2 for a range of sigmas, got {count}")
    return np.geomspace(sigma_min, sigma_max, count)


def half_log_snr(betas: Array, zero_terminal_snr: bool = False) -> Array:
    """lam = log(alpha / sigma) (N,) at a chain's nodes, without cancellation for small beta.

    ``zero_terminal_snr`` first rescales the betas as Lin et al. 2023 do (arXiv:2305.08891, algorithm 1): it shifts and
    scales alpha so that the last alpha is 0 and the first remains. Since lam would then be -inf at the last node, that
    alpha is set to 2^-12, or to half of its neighbour if that is less.
    """
    log_square = np.cumsum(np.log1p(-betas))
    if zero_terminal_snr:
        alphas = np.exp(0.5 * log_square)
        alphas = (alphas - alphas[-1]) * (alphas[0] / (alphas[0] - alphas[-1]))
        alphas[-1] = min(FAINT, alphas[-2] / 2)
        log_square = 2 * np.log(alphas)
    lams: Array = 0.5 * (log_square - np.log(-np.expm1(log_square)))
    return lams


def integral(t: T, beta_min: float, slope: float) -> T:
    """The integral over [0, t] of beta(t) = beta_min + slope t, for numbers and tensors."""
    return t * (beta_min + 0.5 * slope * t)  # type: ignore


def time_of_integral(integral: Any, beta_min: float, slope: float) -> Any:
    """The time t for a given integral of beta over [0, t], a number or an array, without cancellation.

    The inverse of ``integral``.
    """
    return 2 * integral / (np.sqrt(beta_min**2 + 2 * slope * integral) + beta_min)
