"""Solvers of discrete states with one evaluation a step, from the rates out of each token, frozen at its start."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import InputError
from ..types.process import Clock, Process, ProcessNode
from ..types.solver import Step, solvers
from .base import DiscreteSolver, Moves, Product, evaluated, pure_noise

Kernel = Literal["hold", "euler", "reject"]
"""How a token moves at constant rates: once at most, after an exponential time (hold); with the probability of first
order (euler); where exactly one of its Poisson clocks rings (reject)."""
_MOVES = 12  # expected moves of a token in one step of tau-leaping, to which rates are cut
_LARGEST = 64  # moves whose sum the circle of its law holds; more have a probability of 1e-25 at most
_ELEMENTS = 1 << 24  # of the largest tensor that is made at once


def moved(rates: Tensor, x: Tensor, duration: float, kernel: Kernel = "hold") -> Tensor:
    """The law (B, *, S) of a token after a duration at constant rates (B, *, S) out of x (B, *).

    With ``hold`` the rates may be negative, as those of an extrapolation are: the result is then no law, and its sum is
    still one.
    """
    total = rates.sum(-1, keepdim=True)
    if kernel == "hold":
        some = total != 0
        share = torch.where(some, -torch.expm1(-duration * total) / torch.where(some, total, 1.0), duration)
    elif kernel == "euler":
        share = (1 / total.clamp_min(1e-300)).clamp_max(duration)
    else:
        share = duration * torch.exp(-duration * total)
    away = (rates * share).scatter(-1, x[..., None], 0.0)
    return away.scatter(-1, x[..., None], 1 - away.sum(-1, keepdim=True))


class FromRates(DiscreteSolver):
    """The base class of solvers that move tokens at rates; a subclass has the option ``clock``, and ``stages``."""

    clock: Clock

    def moves(self, problem: Any, x: Tensor, t: ProcessNode, s: ProcessNode, carry: Any) -> Moves:
        process, found = problem.path, evaluated(problem, x, t)
        if pure_noise(process, t, self.clock):
            x = yield Product(process.posterior(found.x0, x, t, s), x)
            return Step(x, carry)
        made: Step = yield from self.stages(problem, x, process.rates(found, x, t, self.clock), t, s)
        return made._replace(carry=carry)

    def stages(self, problem: Any, x: Tensor, first: Tensor, t: ProcessNode, s: ProcessNode) -> Moves:
        """The laws of a step from x (B, *) at t to s, with the rates ``first`` (B, *, S) out of x at t."""
        raise NotImplementedError


@dataclass(frozen=True)
class FrozenRates(FromRates):
    """The base class of solvers whose tokens move at the rates of the step's start.

    Args:
        clock: the clock of a step. On the natural clock of a process with a mask, the rates do not depend on the time.
    """

    clock: Clock = "natural"

    def law(self, rates: Tensor, x: Tensor, duration: float) -> Tensor:
        """The law (B, *, S) of each token after a duration at constant rates (B, *, S) out of x (B, *)."""
        raise NotImplementedError

    def stages(self, problem: Any, x: Tensor, first: Tensor, t: ProcessNode, s: ProcessNode) -> Moves:
        x = yield Product(self.law(first, x, problem.path.elapsed(t, s, self.clock)), x)
        return Step(x)


@solvers.register(
    "tau_hold",
    kind="rates",
    order=1,
    native="rates",
    reference="Gillespie 2001, J. Chem. Phys. 115, 1716; Gat et al. 2024, arXiv:2407.15595",
    formula="stays with probability exp(-h sum_y r(y)), else y ~ r(y)",
    note="on the natural clock of a process with a mask it equals tweedie",
)
@dataclass(frozen=True)
class TauHold(FrozenRates):
    """The rates out of each token are frozen at t, and at most one move of each token is made.

    A token stays with the probability that its frozen rates leave it unmoved, so that this is a law for every step
    length.
    """

    def law(self, rates: Tensor, x: Tensor, duration: float) -> Tensor:
        return moved(rates, x, duration)


@solvers.register(
    "tau_euler",
    kind="rates",
    order=1,
    native="rates",
    reference="Lou et al. 2023, arXiv:2310.16834, eq. 17",
    formula="moves to y with probability h r(y)",
    note="where h sum_y r(y) exceeds one, the token moves surely, to y ~ r(y)",
    shared=("euler",),
)
@dataclass(frozen=True)
class TauEuler(FrozenRates):
    """The rates out of each token are frozen at t, and it moves with the probabilities of first order."""

    def law(self, rates: Tensor, x: Tensor, duration: float) -> Tensor:
        return moved(rates, x, duration, "euler")


@solvers.register(
    "tau_reject",
    kind="rates",
    order=1,
    native="rates",
    reference="Campbell et al. 2022, arXiv:2205.14987, section 4.3",
    formula="moves to y with probability h r(y) exp(-h sum_y r(y))",
    note="the largest error of the methods of frozen rates",
)
@dataclass(frozen=True)
class TauReject(FrozenRates):
    """The rates out of each token are frozen at t; a token for which several moves are drawn stays where it is."""

    def law(self, rates: Tensor, x: Tensor, duration: float) -> Tensor:
        return moved(rates, x, duration, "reject")


@solvers.register(
    "tau_leaping",
    kind="rates",
    order=1,
    native="rates",
    reference="Campbell et al. 2022, arXiv:2205.14987, algorithm 1",
    formula="x_s = clamp(x + sum_y n(y) (y - x)), n(y) ~ Poisson(h r(y))",
    note="for ordered values only, such as levels of grey",
)
@dataclass(frozen=True)
class TauLeaping(FrozenRates):
    """Every move of each token happens a Poisson number of times, and their sum is clamped to the range of values.

    The law of the sum is computed by a Fourier transform. Rates at which a token would be expected to move more than 12
    times in one step are cut to 12.
    """

    def check(self, process: Process) -> None:
        if not process.ordinal:
            raise InputError(
                f"tau_leaping adds differences of tokens, which mean nothing on {process}: use tau_hold or tweedie"
            )

    def law(self, rates: Tensor, x: Tensor, duration: float) -> Tensor:
        intensity = duration * rates
        intensity = intensity * (_MOVES / intensity.sum(-1, keepdim=True).clamp_min(_MOVES))
        size = 2 ** math.ceil(math.log2(2 * _LARGEST * (rates.shape[-1] - 1)))
        flat, tokens, count = intensity.flatten(0, x.ndim - 1), x.flatten(), max(1, _ELEMENTS // size)
        parts = [slice(i, i + count) for i in range(0, len(tokens), count)]
        return torch.cat([_clamped_sums(flat[part], tokens[part], size) for part in parts]).view_as(rates)


def _clamped_sums(intensity: Tensor, x: Tensor, size: int) -> Tensor:
    """The law (n, S) of clamp(x + sum_y n(y) (y - x)), n(y) ~ Poisson(intensity (n, S)), by a circle of ``size``."""
    values = intensity.shape[-1]
    # the intensity of each difference; negative differences stand at the end of the circle
    places = (torch.arange(values, device=x.device) - x[:, None]) % size
    circle = intensity.new_zeros(len(x), size).scatter_(-1, places, intensity)
    transform = torch.fft.rfft(circle)
    law = torch.fft.irfft(torch.exp(transform - transform[:, :1].real), n=size).clamp_min(0)
    law = law / law.sum(-1, keepdim=True)
    difference = torch.arange(size, device=x.device)
    difference = torch.where(difference < size // 2, difference, difference - size)
    ends = (x[:, None] + difference).clamp(0, values - 1)
    return intensity.new_zeros(len(x), values).scatter_add_(-1, ends, law)
