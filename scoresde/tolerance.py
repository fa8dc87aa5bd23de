"""How many steps and probes a likelihood takes for a given total error."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import solvers
from solvers import InputError, Solver

from .divergence import Divergence, Exact, Hutchinson
from .likelihood import LogProb

PILOT = 32  # samples on which steps and probes are chosen
TIGHTEST, MOST_STEPS = 1e-10, 4096

# (solver, steps, divergence, samples) -> a likelihood
Attempt = Callable[[Solver, int | None, Divergence, slice], LogProb]


def meet(attempt: Attempt, solver: Solver, divergence: Divergence, tolerance: float, count: int, d: int) -> LogProb:
    """The likelihood of all samples with a total error of at most ``tolerance`` nats.

    Half of the squared error is allowed to the solver, in every sample, and half to the probes, in the root mean square
    over the samples. Adaptive solvers get tighter tolerances, the others twice the steps, until two solves in a row
    agree: ``solver_error`` is twice their distance, and the finer one is returned. There are
    as many probes as the spread of the first few asks for, and the exact trace once that is no dearer. All this is
    chosen on a few samples and checked on all. What it cost (``nfe``, ``nfe_per_sample``, ``products``) includes every
    trial.

    Raises:
        InputError: the tolerance is not positive or cannot be met.
    """
    if not 0 < tolerance < math.inf:
        raise InputError(f"tolerance must be positive, got {tolerance!r}")
    share = tolerance / math.sqrt(2)
    steps = None if solver.adaptive else 10
    method: Any = replace(solver, rtol=1e-3, atol=1e-3) if solver.adaptive else solver  # type: ignore[type-var]
    if not isinstance(divergence, Exact) and divergence.channels(d) < 2:
        divergence = Hutchinson()
    spent, products = torch.zeros(count, dtype=torch.long), torch.zeros(count, dtype=torch.long)

    def run(rows: slice) -> LogProb:
        found = attempt(method, steps, divergence, rows)
        assert found.nfe_per_sample is not None
        spent[rows] += found.nfe_per_sample.cpu()
        products[rows] += found.nfe_per_sample.cpu() * divergence.products(d)
        return found

    rows, coarse = slice(0, min(count, PILOT)), None
    while True:
        if coarse is None:
            coarse = run(rows)
            wide = float(coarse.stderr.square().mean().sqrt()) / share
            if wide > 1:
                divergence, coarse = more(divergence, wide, d), None
                continue
        before = method, steps
        method, steps = finer(method, steps)
        fine = run(rows)
        gap = 2 * (fine.nats - coarse.nats).abs().detach()
        coarse = replace(fine, solver_error=gap)
        if float(gap.max()) > share:
            continue
        if rows.stop == count:
            return replace(coarse, nfe=int(spent.max()), nfe_per_sample=spent, products=int(products.max()))
        rows, coarse, (method, steps) = slice(0, count), None, before


def more(divergence: Divergence, wide: float, d: int) -> Divergence:
    """As many probes as make a standard error smaller by the factor ``wide``, and a tenth more; or the exact trace."""
    needed = math.ceil(1.1 * divergence.products(d) * wide**2)
    if needed >= d:
        return Exact()
    law = divergence.law if isinstance(divergence, Hutchinson) else "rademacher"
    return Hutchinson(needed, law)


def finer(solver: Solver, steps: int | None) -> tuple[Solver, int | None]:
    """Tolerances ten times as tight, or twice the steps.

    Raises:
        InputError: that is more than makes sense.
    """
    if steps is not None:
        if 2 * steps > MOST_STEPS:
            raise InputError(f"{solver} does not meet the tolerance in {steps} steps")
        return solver, 2 * steps
    method: Any = solver
    if method.rtol / 10 < TIGHTEST:
        raise InputError(f"{solver} does not meet the tolerance")
    rtol, atol = (
        float(f"{value / 10:.3g}") for value in (method.rtol, method.atol)
    )  # 1e-6, not 1.0000000000000002e-06
    return replace(method, rtol=rtol, atol=atol), None


def in_nats(tolerance: float, bin_width: float | None, x: Tensor) -> float:
    """A tolerance in bits/dim where a bin width is known, else in nats, as nats of a sample of x (B, *)."""
    return tolerance if bin_width is None else tolerance * x[0].numel() * math.log(2)


def solver_of(solver: str | Solver) -> Solver:
    """The solver of a name.

    Raises:
        InputError: it has a grid of its own, or is adaptive without tolerances.
    """
    method = solvers.make(solvers.resolve(solver)[0] if isinstance(solver, str) else solver)
    if method.nodes is not None or (method.adaptive and not hasattr(method, "rtol")):
        raise InputError(f"tolerance takes a solver whose steps or tolerances can be chosen, got {method}")
    return method
