"""Checks of the inputs of likelihoods and bounds: seeds, numbers, levels, priors, solvers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import solvers
from solvers import InputError, Solver
from solvers.adaptive.other_libraries import BlackBox, Scipy
from solvers.types.answers import stopped

from ..io import inputs
from ..paths.base import SDE
from ..sampling.failures import lost, without

OFF = 0.2  # the largest distance of a level from the lattice, in bins; data may have been rounded to 16 bits


def seeds_of(seeds: inputs.Seeds | None, count: int) -> list[int]:
    """One seed for each of ``count`` samples; 0, 1, ... by default.

    Raises:
        InputError: the seeds are not ``count`` integers of at least 0.
    """
    found = list(range(count)) if seeds is None else inputs.seeds_of(seeds)
    if len(found) != count:
        raise InputError(f"got {len(found)} seeds for {count} samples; give one seed for each sample")
    return found


def positive(name: str, value: Any) -> float:
    """The value as a positive, finite number.

    Raises:
        InputError: the value is anything else, for example a boolean or a string.
    """
    try:
        number = None if isinstance(value, (bool, str)) else float(value)
    except (TypeError, ValueError, RuntimeError):
        number = None
    if number is None or number == math.inf:
        raise InputError(f"{name} must be a positive, finite number, got {value!r}")
    if not number > 0:
        raise InputError(f"{name} must be positive, got {value!r}")
    return number


def on_lattice(x: Tensor, bin_width: float) -> None:
    """Rejects data (B, *) that are not levels ``bin_width`` apart; each dimension may have its own lowest level.

    Raises:
        InputError: in some dimension two samples differ by a value that is not a multiple of the bin width.
    """
    steps = (x - x.amin(0, keepdim=True)).double() if x.device.type != "mps" else x - x.amin(0, keepdim=True)
    away = (steps / bin_width - (steps / bin_width).round()).abs()
    rounding = 2 * torch.finfo(x.dtype).eps * float(x.abs().max()) / bin_width
    if float(away.max()) > OFF + rounding:
        worst = float(steps.flatten()[away.argmax()])
        raise InputError(
            f"a dequantiser needs levels, bin_width={bin_width:g} apart, but x has values that differ by {worst:g}; "
            "for data that are already dequantised, leave out the dequantiser"
        )


def prior_at(prior: Callable[[Tensor], Tensor] | None, sde: SDE, states: Tensor) -> Tensor:
    """The log-density (B,) of states (B, *) under the prior, float64; by default the prior of the SDE.

    It is NaN for states that are not finite, which a prior may reject.

    Raises:
        InputError: the prior does not return one real number per state, or raises StopIteration.
    """
    bad = lost(states.detach())
    try:
        found = (prior or sde.prior().log_prob)(without(states, bad, 0.0))
    except StopIteration as error:
        raise stopped("the prior", error) from error
    if isinstance(found, Tensor) and (found.is_complex() or found.dtype == torch.bool):
        raise InputError(f"the prior must return the log-density of each state, got {found.dtype}")
    if not isinstance(found, Tensor) or found.shape != (len(states),):
        shown = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise InputError(f"the prior must return the log-density ({len(states)},) of each state, got {shown}")
    return without(found.to(states.device).double(), bad, math.nan)


def check_end(what: str, prior: Callable[[Tensor], Tensor] | None, sde: SDE, t: float) -> None:
    """Rejects an end of the solve at which no prior is known; ``what`` is the subject of the message.

    Raises:
        InputError: t is not the SDE's t_max, and no prior is given.
    """
    if prior is None and not math.isclose(t, sde.t_max, rel_tol=1e-9):
        raise InputError(f"{what} at t={t:g}, before t_max={sde.t_max:g}: give the prior at this t")


def deterministic(solver: str | Solver) -> Solver:
    """The solver from its name or spec, checked to be deterministic.

    Raises:
        InputError: the solver draws noise.
    """
    method = solvers.make(solvers.resolve(solver)[0] if isinstance(solver, str) else solver)
    if method.stochastic:
        raise InputError(f"{method} draws noise; a likelihood needs a deterministic solver")
    return method


def leaves_torch(solver: Solver) -> bool:
    """Whether a solver computes in a library other than torch, so that its result has no gradient."""
    inner = [value for value in vars(solver).values() if isinstance(value, Solver)]
    own = isinstance(solver, Scipy) or (isinstance(solver, BlackBox) and solver.name == "scipy_solver")
    return own or any(leaves_torch(part) for part in inner)
