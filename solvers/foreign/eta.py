"""Converts eta, the strength of the noise, between the conventions of this library and others.

Here eta scales the noise's standard deviation in the family of reverse SDEs with the same marginals:

    dx = [f x - (1 + eta^2) / 2 g^2 score] dt + eta g dw

eta = 0 is the probability-flow ODE and eta = 1 the reverse SDE. Over a step of length h = lam_s - lam_t in which x0 is
constant, the noise has the variance sigma_s^2 (1 - exp(-2 eta^2 h)). Each convention expresses this variance by a
number of its own. All agree at 0 and at 1, and differ in between.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import InputError, unknown
from ..registry.normalise import normalise
from ..types.node import Node


@dataclass(frozen=True)
class Convention:
    """The relation between a convention's number and eta over a step of length h in lam; h = 0 is the limit of fine
    grids.

    Attributes:
        users: the programs and solvers that use the number.
        variance: the noise's variance over sigma_s^2, or its limit, as text.
        of_eta, to_eta: functions (number, h) -> number, from eta and to eta.
    """

    users: str
    variance: str
    of_eta: Callable[[float, float], float]
    to_eta: Callable[[float, float], float]
    reference: str = ""


def _per_step(eta: float, h: float) -> float:
    return eta if h == 0 else math.sqrt(math.expm1(-2 * eta**2 * h) / math.expm1(-2 * h))


def _from_per_step(value: float, h: float) -> float:
    if h == 0:
        return value
    kept = 1 + value**2 * math.expm1(-2 * h)
    if kept <= 0:
        raise InputError(f"a per-step eta of {value:g} asks for more noise than a step of {h:g} in lam can contain")
    return math.sqrt(-math.log1p(value**2 * math.expm1(-2 * h)) / (2 * h))


CONVENTIONS: dict[str, Convention] = {
    "sde": Convention(
        "this library",
        "1 - exp(-2 eta^2 h)",
        lambda eta, h: eta,
        lambda value, h: value,
        "Zhang and Chen 2023, arXiv:2204.13902, section 2",
    ),
    "ddim": Convention(
        "DDIM, and the ancestral samplers of k-diffusion; here ddim(eta)",
        "eta^2 (1 - exp(-2 h))",
        _per_step,
        _from_per_step,
        "Song et al. 2021, arXiv:2010.02502, eq. 16",
    ),
    "dpmpp_2m_sde": Convention(
        "k-diffusion's dpmpp_2m_sde, dpmpp_3m_sde",
        "1 - exp(-2 eta h)",
        lambda eta, h: eta**2,
        lambda value, h: math.sqrt(value),
    ),
    "sa_solver": Convention(
        "SA-Solver's tau",
        "1 - exp(-2 tau^2 h)",
        lambda eta, h: eta,
        lambda value, h: value,
        "Xue et al. 2023, arXiv:2309.05019",
    ),
    "azula_ddim": Convention(
        "azula's DDIMSampler",
        "eta (1 - exp(-2 h))",
        lambda eta, h: _per_step(eta, h) ** 2,
        lambda value, h: _from_per_step(math.sqrt(value), h),
    ),
    "azula_ito": Convention("azula's ItoSampler", "2 eta^2 h + O(h^2)", lambda eta, h: eta, lambda value, h: value),
}
_ALIASES = {"ours": "sde", "ancestral": "ddim", "euler_ancestral": "ddim", "tau": "sa_solver"}
_ALIASES |= {"dpmpp_3m_sde": "dpmpp_2m_sde"}


def convention(name: str) -> Convention:
    """The convention of that name.

    Raises:
        InputError: no such convention; the message contains the nearest match.
    """
    key = normalise(name)
    key = _ALIASES.get(key, key)
    if key not in CONVENTIONS:
        raise unknown("eta convention", name, {*CONVENTIONS, *_ALIASES})
    return CONVENTIONS[key]


def convert_eta(value: float, source: str, target: str = "sde", t: Node | None = None, s: Node | None = None) -> float:
    """Converts eta between conventions: the number in ``target`` for the same noise as ``value`` in ``source``.

    The conventions are the keys of ``CONVENTIONS``. In some of them the number depends on the step: pass its nodes t
    and s for the exact number, or neither for the limit of fine grids.

    >>> convert_eta(0.25, "dpmpp_2m_sde"), convert_eta(0.5, "sde", "azula_ddim")
    (0.5, 0.25)

    Raises:
        InputError: an unknown convention, a value that is not a number of at least 0, one node without the other, nodes
            that do not run from noise to data, or more noise than the step can contain.
    """
    to_eta, of_eta = convention(source).to_eta, convention(target).of_eta
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise InputError(f"eta must be a number of at least 0, got {value!r}")
    if (t is None) != (s is None):
        raise InputError("give both nodes of the step, or neither")
    h = 0.0 if t is None or s is None else s.lam - t.lam
    if not 0 <= h < math.inf or (h == 0 and t is not None):
        raise InputError(f"a step from noise to data at sigma > 0 is needed, got one of {h:g} in lam")
    return of_eta(to_eta(float(value), h), h)
