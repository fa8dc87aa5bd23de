"""The choice of steps and probes that meets a given total error of a likelihood.

With an exact trace, the solver may use the whole tolerance. Its own tolerances are divided by four, or its steps are
doubled, until ``solver_error`` is at most the tolerance in every sample. Without an exact trace, the solver may use a
quarter of the tolerance. The number of probes is then chosen so that the error of their mean is within the rest in
95 % of the samples.

The number of probes follows Stein's two-stage method (1945, Annals of Mathematical Statistics 16, p. 243). A trial with
at least eight probes gives their spread s, with f degrees of freedom. The mean of m new probes then has an error of
more than a with the probability of Student's law beyond a sqrt(m) / s, averaged over the samples of the trial. The
probes of the result are independent of the trial that chose their number, so the standard error and the interval of the
result are unbiased. If m probes would cost as much as the exact trace, the exact trace replaces them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

import solvers
from solvers import InputError, Solver
from solvers.libraries import library

from ..models.counting import Count
from . import solver_error
from .divergence import Divergence, Exact, Hutchinson
from .result import LogProb, with_counts

PILOT = 32  # the number of samples on which steps and probes are chosen
PROBES = 8  # the least number of probes in a trial, whose spread determines how many are needed
MISSES = 0.05  # the share of the samples whose error may exceed the tolerance
SOLVERS_SHARE = 0.25  # the solver's share of the tolerance if there are probes as well
TIGHTEST, MOST_STEPS = 1e-10, 4096

LEAST = 1e-12  # the smallest tolerance
_TRIAL = 9  # label of the generator's stream


class Settings(NamedTuple):
    """What one evaluation of a likelihood uses.

    Attributes:
        solver, steps: the method and its number of steps; None for an adaptive solver.
        divergence: the estimator of the trace.
        rows: which samples.
        trial: use the seeds of a trial instead of those of the result.
        graph: keep the graph.
    """

    solver: Solver
    steps: int | None
    divergence: Divergence
    rows: slice
    trial: bool
    graph: bool


LikelihoodWith = Callable[[Settings], LogProb]


class Trials:
    """Evaluations of a likelihood at ever finer settings.

    Attributes:
        nfe: model evaluations (count,) of all evaluations so far.
        work: what the network did in them, over all samples.
    """

    def __init__(self, likelihood_with: LikelihoodWith, solver: Solver, count: int, d: int) -> None:
        self.likelihood_with, self.solver, self.d = likelihood_with, solver, d
        self.nfe, self.work = torch.zeros(count, dtype=torch.long), Count()

    def run(self, k: int, rule: Divergence, rows: slice, trial: bool, graph: bool = False) -> LogProb:
        """The likelihood of some samples at the k-th setting."""
        found = self.likelihood_with(Settings(*solver_setting(self.solver, k), rule, rows, trial, graph))
        assert found.nfe_per_sample is not None
        self.nfe[rows] += found.nfe_per_sample.cpu()
        samples = len(found.nats)
        self.work.add(Count(round(found.forwards * samples), round(found.vjps * samples), found.calls))
        return found

    def ladder(self, rule: Divergence, rows: slice, trial: bool, k: int) -> Iterator[tuple[int, LogProb, float]]:
        """Yields ever finer settings from the k-th on: (k, the likelihood, the largest solver error)."""
        coarse, middle = (self.run(j, rule, rows, trial) for j in (k - 2, k - 1))
        while True:
            found = self.run(k, rule, rows, trial)
            error = solver_error.bound(found.nats, middle.nats, coarse.nats)
            yield k, replace(found, solver_error=error), _largest(error)
            coarse, middle, k = middle, found, k + 1


def meet(
    likelihood_with: LikelihoodWith,
    solver: Solver,
    divergence: Divergence,
    tolerance: float,
    count: int,
    d: int,
    graph: bool = False,
) -> LogProb:
    """The likelihood of all samples with a total error of at most ``tolerance`` nats in 95 % of them.

    The top of this module describes how steps and probes are chosen. The reported cost (``nfe``, ``nfe_per_sample``,
    ``forwards``, ``vjps``, ``calls``, ``seconds``) includes every trial.

    Args:
        likelihood_with: computes a likelihood with given settings.
        solver: the solver whose steps or tolerances are chosen.
        divergence: the estimator of the trace to start from.
        count: the number of samples.
        d: the dimensions of a sample.
        graph: solve once more at the end and keep the graph.

    Raises:
        InputError: the tolerance cannot be met.
    """
    began, trials = time.perf_counter(), Trials(likelihood_with, solver, count, d)
    some, everything, k = slice(0, min(count, PILOT)), slice(0, count), 2
    rule, share = pilot(divergence, d), SOLVERS_SHARE * tolerance
    while not rule.exact(d):
        wanted: Divergence | None = None
        for step in trials.ladder(rule, some, True, 2):
            k, found, error = step
            wanted = more(rule, found.stderr, tolerance - share, d)
            if error <= share or wanted is None or wanted.exact(d):
                break
        rule = Hutchinson(PROBES) if wanted is None else wanted
        if wanted is not None:
            break
    chosen = not rule.exact(d) or some == everything  # otherwise first find the setting on a few samples
    share = tolerance if rule.exact(d) else share
    for rows in (everything,) if chosen else (some, everything):
        k, found = next((k, found) for k, found, error in trials.ladder(rule, rows, False, k) if error <= share)
    if graph:
        found = replace(trials.run(k, rule, everything, False, True), solver_error=found.solver_error)
    return replace(
        with_counts(found, trials.work),
        nfe=int(trials.nfe.max()),
        nfe_per_sample=trials.nfe,
        seconds=time.perf_counter() - began,
    )


def _largest(errors: Tensor) -> float:
    """The largest of errors (B,), apart from those of samples that failed."""
    return float(torch.where(errors.isnan(), 0.0, errors).max())


def solver_setting(solver: Solver, k: int) -> tuple[Solver, int | None]:
    """The k-th setting, each finer than the last: tolerances of 4^-k / 10, or 5 2^k steps.

    Raises:
        InputError: the setting exceeds the limits ``TIGHTEST`` or ``MOST_STEPS``.
    """
    if not solver.adaptive:
        steps: int = 5 * 2**k
        if steps > MOST_STEPS:
            raise InputError(f"{solver} does not meet the tolerance in {steps // 2} steps")
        return solver, steps
    method: Any = solver
    value = float(f"{0.1 / solver_error.LOOSER**k:.3g}")
    if value < TIGHTEST:
        raise InputError(f"{solver} does not meet the tolerance even with solver tolerances of {TIGHTEST:g}")
    return replace(method, rtol=value, atol=value), None


def pilot(divergence: Divergence, d: int) -> Divergence:
    """The estimator for a trial: the given one, with at least eight channels; the exact trace if it costs no more."""
    if divergence.exact(d) or divergence.channels(d) >= PROBES:
        return divergence
    if d <= PROBES:
        return Exact()
    return replace(divergence, probes=PROBES) if isinstance(divergence, Hutchinson) else Hutchinson(PROBES)


def more(rule: Divergence, stderr: Tensor, allowed: float, d: int) -> Divergence | None:
    """The rule with enough probes that its error is within ``allowed`` nats in all but 5 % of the samples.

    ``stderr`` contains the standard errors (B,) of the rule in a trial. The exact trace is returned if it costs no
    more. None is returned if the rule does not suffice and its number of probes cannot be predicted.
    """
    m = rule.channels(d)
    sizes = stderr[~stderr.isnan()].detach().cpu().double().clamp(min=1e-300).numpy()

    def misses(probes: int) -> float:
        if not len(sizes):  # all samples failed
            return 0.0
        # Student's law, as ``scipy.stats.t.sf`` has it behind many checks
        beyond = library("scipy.special").stdtr(m - 1, -allowed / (sizes * math.sqrt(m / probes)))
        return 2 * float(beyond.mean())

    if misses(m) <= MISSES:
        return rule
    if not isinstance(rule, Hutchinson):
        return None
    probes = m
    while probes < d and misses(probes) > MISSES:
        probes += max(1, probes // 16)
    return Exact() if probes >= d else replace(rule, probes=probes)


def in_nats(tolerance: float, bin_width: float | None, x: Tensor) -> float:
    """Converts a tolerance to nats per sample of x (B, *): from bits/dim if a bin width is known, else from nats.

    Raises:
        InputError: it is less than the sums of float64 can tell.
    """
    if tolerance < LEAST:
        raise InputError(f"tolerance must be at least {LEAST:g}, got {tolerance!r}")
    return tolerance if bin_width is None else tolerance * x[0].numel() * math.log(2)


def other_seeds(seeds: list[int]) -> list[int]:
    """For each seed, a second, independent seed."""
    return [int(torch.randint(2**62, (), generator=solvers.generator(seed, _TRIAL))) for seed in seeds]


def solver_of(solver: str | Solver) -> Solver:
    """The solver from its name or spec, checked for use with a tolerance.

    Raises:
        InputError: the solver has fixed nodes, or is adaptive without tolerances.
    """
    method = solvers.make(solvers.resolve(solver)[0] if isinstance(solver, str) else solver)
    toleranced = "rtol" in solvers.solvers.info_of(method).options
    if method.nodes is not None or (method.adaptive and not toleranced):
        raise InputError(f"tolerance needs a solver whose steps or tolerances can be chosen, got {method}")
    return method
