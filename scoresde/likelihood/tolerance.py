"""How many steps and probes a likelihood takes for a given total error.

With an exact trace the tolerance is the solver's: its tolerances become four times as tight, or its steps twice as
many, until ``solver_error`` is at most that in every sample. Else a quarter is the solver's, and there are as many
probes as keep their mean within the rest in 95 % of the samples.

The number of probes is Stein's in two stages (1945, Annals of Mathematical Statistics 16, p. 243): at least eight
probes of a trial have the spread s of f degrees of freedom, and the mean of m other ones errs by more than a with
the probability of Student's law beyond a sqrt(m) / s, which is averaged over the samples of the trial. As the
probes of the result are not those that their number was chosen by, its standard error is unbiased, and so is its
interval. Where m probes would be no cheaper than the exact trace, that is taken.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from scipy.stats import t as student
from torch import Tensor

import solvers
from solvers import InputError, Solver

from . import solver_error
from .divergence import Divergence, Exact, Hutchinson
from .result import LogProb

PILOT = 32  # samples on which steps and probes are chosen
PROBES = 8  # whose spread says how many there have to be
MISSES = 0.05  # share of the samples that may err by more
SOLVERS_PART = 0.25  # of a tolerance, where there are probes as well
TIGHTEST, MOST_STEPS = 1e-10, 4096

_TRIAL = 9  # label of the generator's stream

# (solver, steps, divergence, samples, whether of a trial's seeds, whether to keep the graph) -> a likelihood
Attempt = Callable[[Solver, int | None, Divergence, slice, bool, bool], LogProb]


def meet(
    attempt: Attempt, solver: Solver, divergence: Divergence, tolerance: float, count: int, d: int, graph: bool = False
) -> LogProb:
    """The likelihood of all samples with a total error of at most ``tolerance`` nats in 95 % of them.

    How steps and probes are chosen stands at the top of this module. What it cost (``nfe``, ``nfe_per_sample``,
    ``products``, ``seconds``) includes every trial.

    Args:
        graph: solve once more at the end, and keep the graph.

    Raises:
        InputError: the tolerance cannot be met.
    """
    began = time.perf_counter()
    spent, products = torch.zeros(count, dtype=torch.long), torch.zeros(count, dtype=torch.long)

    def run(k: int, rule: Divergence, rows: slice, trial: bool, graph: bool = False) -> LogProb:
        found = attempt(*setting(solver, k), rule, rows, trial, graph)
        assert found.nfe_per_sample is not None
        spent[rows] += found.nfe_per_sample.cpu()
        products[rows] += found.nfe_per_sample.cpu() * rule.products(d)
        return found

    def ladder(rule: Divergence, rows: slice, trial: bool, k: int) -> Iterator[tuple[int, LogProb, float]]:
        """The settings from the k-th on, what they find, and the largest of its errors."""
        coarse, middle = (run(j, rule, rows, trial) for j in (k - 2, k - 1))
        while True:
            found = run(k, rule, rows, trial)
            error = solver_error.bound(found.nats, middle.nats, coarse.nats)
            yield k, replace(found, solver_error=error), float(error.max())
            coarse, middle, k = middle, found, k + 1

    some, everything, k = slice(0, min(count, PILOT)), slice(0, count), 2
    rule, share = pilot(divergence, d), SOLVERS_PART * tolerance
    while not rule.exact(d):
        wanted: Divergence | None = None
        for step in ladder(rule, some, True, 2):
            k, found, error = step
            wanted = more(rule, found.stderr, tolerance - share, d)
            if error <= share or wanted is None or wanted.exact(d):
                break
        rule = Hutchinson(PROBES) if wanted is None else wanted
        if wanted is not None:
            break
    chosen = not rule.exact(d) or some == everything  # else the setting has yet to be found on a few
    share = tolerance if rule.exact(d) else share
    for rows in (everything,) if chosen else (some, everything):
        k, found = next((k, found) for k, found, error in ladder(rule, rows, False, k) if error <= share)
    if graph:
        found = replace(run(k, rule, everything, False, True), solver_error=found.solver_error)
    return replace(
        found,
        nfe=int(spent.max()),
        nfe_per_sample=spent,
        products=int(products.max()),
        seconds=time.perf_counter() - began,
    )


def setting(solver: Solver, k: int) -> tuple[Solver, int | None]:
    """The k-th of ever finer ones: tolerances of 4^-k / 10, or 5 2^k steps.

    Raises:
        InputError: that is more than makes sense.
    """
    if not solver.adaptive:
        steps: int = 5 * 2**k
        if steps > MOST_STEPS:
            raise InputError(f"{solver} does not meet the tolerance in {steps // 2} steps")
        return solver, steps
    method: Any = solver
    value = float(f"{0.1 / solver_error.LOOSER**k:.3g}")
    if value < TIGHTEST:
        raise InputError(f"{solver} does not meet the tolerance, down to tolerances of {TIGHTEST:g} of its own")
    return replace(method, rtol=value, atol=value), None


def pilot(divergence: Divergence, d: int) -> Divergence:
    """What a trial's spread is taken from: the divergence itself, of at least eight channels; the exact trace where
    that is no dearer."""
    if divergence.exact(d) or divergence.channels(d) >= PROBES:
        return divergence
    if d <= PROBES:
        return Exact()
    return replace(divergence, probes=PROBES) if isinstance(divergence, Hutchinson) else Hutchinson(PROBES)


def more(rule: Divergence, stderr: Tensor, allowed: float, d: int) -> Divergence | None:
    """The rule with as many probes as keep the error within ``allowed`` nats in all but 5 % of the samples, from the
    standard errors (B,) that it has in a trial; the exact trace where that is no dearer. None where more of the rule's
    probes cannot be told."""
    m = rule.channels(d)

    def misses(probes: int) -> float:
        sizes = (stderr * math.sqrt(m / probes)).detach().cpu().clamp(min=1e-300).numpy()
        return float((2 * student.sf(allowed / sizes, m - 1)).mean())

    if misses(m) <= MISSES:
        return rule
    if not isinstance(rule, Hutchinson):
        return None
    probes = m
    while probes < d and misses(probes) > MISSES:
        probes += max(1, probes // 16)
    return Exact() if probes >= d else replace(rule, probes=probes)


def in_nats(tolerance: float, bin_width: float | None, x: Tensor) -> float:
    """A tolerance in bits/dim where a bin width is known, else in nats, as nats of a sample of x (B, *)."""
    return tolerance if bin_width is None else tolerance * x[0].numel() * math.log(2)


def other_seeds(seeds: list[int]) -> list[int]:
    """Of each seed another, whose streams are independent of its own."""
    return [int(torch.randint(2**62, (), generator=solvers.generator(seed, _TRIAL))) for seed in seeds]


def solver_of(solver: str | Solver) -> Solver:
    """The solver of a name.

    Raises:
        InputError: it has a grid of its own, or is adaptive without tolerances.
    """
    method = solvers.make(solvers.resolve(solver)[0] if isinstance(solver, str) else solver)
    toleranced = "rtol" in solvers.solvers.info_of(method).options
    if method.nodes is not None or (method.adaptive and not toleranced):
        raise InputError(f"tolerance takes a solver whose steps or tolerances can be chosen, got {method}")
    return method
