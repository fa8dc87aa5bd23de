"""What likelihoods and bounds take: seeds, numbers, levels, priors."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

import solvers
from solvers import InputError, Solver
from solvers.adaptive.other_libraries import BlackBox, Scipy

from ..paths.base import SDE

OFF = 0.2  # of a bin: how far a level may lie from the lattice, for data that were once rounded to 16 bits


def seeds_of(seeds: Iterable[int] | None, count: int) -> list[int]:
    """One seed for each of ``count`` samples; 0, 1, ... by default.

    Raises:
        InputError: not a list of integers of at least 0, or another number of them.
    """
    if seeds is None:
        return list(range(count))
    if isinstance(seeds, str) or not isinstance(seeds, Iterable):
        raise InputError(f"seeds are a list of integers, one for each sample, got {seeds!r}")
    found = []
    for seed in seeds:
        try:
            number = -1 if isinstance(seed, bool) else operator.index(seed)
        except TypeError:
            number = -1
        if number < 0:
            raise InputError(f"seeds are integers of at least 0, got {seed!r}")
        found.append(number)
    if len(found) != count:
        raise InputError(f"{count} samples with {len(found)} seeds; give one seed for each sample")
    return found


def positive(name: str, value: Any) -> float:
    """A positive, finite number.

    Raises:
        InputError: anything else, booleans and strings included.
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
    """Refuses data (B, *) that are no levels ``bin_width`` apart, of each dimension from a lowest one of its own.

    Raises:
        InputError: two samples differ in a dimension by what is no multiple of the bin width.
    """
    steps = (x - x.amin(0, keepdim=True)).double() if x.device.type != "mps" else x - x.amin(0, keepdim=True)
    away = (steps / bin_width - (steps / bin_width).round()).abs()
    rounding = 2 * torch.finfo(x.dtype).eps * float(x.abs().max()) / bin_width
    if float(away.max()) > OFF + rounding:
        worst = float(steps.flatten()[away.argmax()])
        raise InputError(
            f"a dequantiser takes levels, bin_width={bin_width:g} apart, but x has values that differ by {worst:g}; "
            "data that are dequantised already take none"
        )


def prior_at(prior: Callable[[Tensor], Tensor] | None, sde: SDE, states: Tensor) -> Tensor:
    """The log-density (B,) of states (B, *), float64; by default the SDE's prior's.

    Raises:
        InputError: the prior gives something else than a number a state.
    """
    found = (prior or sde.prior().log_prob)(states)
    if not isinstance(found, Tensor) or found.shape != (len(states),):
        shown = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise InputError(f"the prior must give the log-density ({len(states)},) of each state, got {shown}")
    return found.to(states.device).double()


def check_end(what: str, prior: Callable[[Tensor], Tensor] | None, sde: SDE, t: float) -> None:
    """Refuses an end at which no prior is known.

    Raises:
        InputError: t is not the SDE's t_max, and no prior is given.
    """
    if prior is None and not math.isclose(t, sde.t_max, rel_tol=1e-9):
        raise InputError(f"{what} at t={t:g}, before t_max={sde.t_max:g}: give the prior there")


def deterministic(solver: str | Solver) -> Solver:
    """The solver of a name.

    Raises:
        InputError: it draws noise.
    """
    method = solvers.make(solvers.resolve(solver)[0] if isinstance(solver, str) else solver)
    if method.stochastic:
        raise InputError(f"{method} draws noise; a likelihood needs a deterministic solver")
    return method


def leaves_torch(solver: Solver) -> bool:
    """Whether a solver computes in another library, so that no gradient passes."""
    inner = [value for value in vars(solver).values() if isinstance(value, Solver)]
    own = isinstance(solver, Scipy) or (isinstance(solver, BlackBox) and solver.name == "scipy_solver")
    return own or any(leaves_torch(part) for part in inner)
