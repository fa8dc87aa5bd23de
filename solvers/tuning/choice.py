"""The solver and the grid with the least error at a number of model evaluations, found at a part of the full cost.

A full search solves every sample with every solver on every grid. Successive halving (Jamieson and Talwalkar 2016,
arXiv:1502.07943, algorithm 1), here a division by four, measures all of them on few samples, and the better quarter on
four times as many, until the last ones are measured on all. A few samples that start near a divide have most of the
error: a pilot of a few settings on all samples finds them, and they come first.

>>> import torch
>>> from solvers.conformance.problems import VP, Mixture
>>> from solvers.tuning import trajectory
>>> problem, x = Mixture(VP), torch.linspace(-2, 2, 256, dtype=torch.float64)[torch.randperm(256)].view(-1, 1)
>>> choice = choose(problem, 6, trajectory(problem, x, VP, "logsnr(end=zero)"), ["ddim", "dpmpp_2m", "ipndm"])
>>> choice.best.solver != "ddim", choice.best.nfe, choice.evaluations < 0.5 * choice.full
(True, 6, True)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..budget import evaluations, steps_of_nfe
from ..errors import InputError, positive_integer
from ..foreign.resolve import resolve
from ..noise.seeded import generator
from ..time_grids.base import grids
from ..types.node import Node
from ..types.problem import Problem, as_problem
from ..types.solver import Solver, solvers
from .grids import BUILT_IN, Trajectory

_DIVIDE = 4  # each round has so many times as many samples, and as few settings
_LAST = 4  # settings in the last round, at least
# settings that are measured on all samples, to find those with most of the error: good ones, which differ
PILOT = (
    ("gradient_estimation", "kl_optimal"), ("deis", "flow_shift(shift=1.0)"), ("ipndm", "quadratic(end=zero)"),
    ("uni_pc", "kl_optimal"), ("ipndm_v", "flow_shift"),
)  # fmt: skip
_RESAMPLES = 1000  # for the intervals


@dataclass(frozen=True)
class Setting:
    """A solver on a grid, with its error.

    Attributes:
        solver, grid: canonical specs.
        nfe: model evaluations of a sample, as counted.
        steps: steps of the grid, including one to sigma = 0.
        samples: how many samples it was measured on; if not all, those with most of the error.
        error: root-mean-square distance per coordinate to the exact solution, over these samples.
        interval: the ends of the error's 95 % interval, from resampled samples.
    """

    solver: str
    grid: str
    nfe: int
    steps: int
    samples: int
    error: float
    interval: tuple[float, float]

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.error:.4g} ({low:.4g} to {high:.4g})  {self.solver} on {self.grid}, {self.nfe} NFE"


@dataclass(frozen=True)
class Choice:
    """The outcome of ``choose``.

    Attributes:
        best: the setting with the least error on all samples.
        tied: the settings whose errors on the same samples are not clearly larger than the best one's; the best first.
        settings: all settings, those measured on most samples first, by error.
        evaluations: model evaluations that the search took, in all samples together.
        full: those that a search of every setting on every sample takes.
    """

    best: Setting
    tied: tuple[Setting, ...]
    settings: tuple[Setting, ...] = field(repr=False)
    evaluations: int
    full: int

    def __str__(self) -> str:
        lines = ["RMS error per coordinate (95 % interval)", *(f"  {setting}" for setting in self.tied)]
        spent = f"{self.evaluations:,} model evaluations, {self.evaluations / self.full:.0%} of a search in full"
        return "\n".join([*lines, spent])


class _Contestant:
    """A setting while it is searched for: its squared errors so far."""

    def __init__(self, solver: Solver, grid: str, nodes: tuple[Node, ...], nfe: int) -> None:
        self.solver, self.grid, self.nodes, self.nfe = solver, grid, nodes, nfe
        self.squares = torch.empty(0, dtype=torch.float64)

    def on(self, count: int) -> float:
        """The mean square error of the first ``count`` samples."""
        return float(self.squares[:count].mean())

    def measure(self, problem: Problem, reference: Trajectory, count: int) -> int:
        """Measures the first ``count`` samples; returns the model evaluations of those that were not yet measured."""
        new = slice(len(self.squares), count)
        if new.start >= count:
            return 0
        part = Trajectory(reference.schedule, reference.nodes, reference.states[:, new])
        self.squares = torch.cat([self.squares, part.errors(self.solver, problem.select(new), self.nodes).cpu()])
        return self.nfe * (new.stop - new.start)

    def setting(self) -> Setting:
        low, high = resampled(self.squares[None])[0].sqrt().quantile(torch.tensor([0.025, 0.975]).double()).tolist()
        return Setting(
            str(self.solver),
            self.grid,
            self.nfe,
            len(self.nodes) - 1,
            len(self.squares),
            math.sqrt(self.on(len(self.squares))),
            (low, high),
        )


def resampled(squares: Tensor) -> Tensor:
    """Means (C, R) of the rows of ``squares`` (C, N) over R resamples, which are the same for every row."""
    count = squares.shape[1]
    draws = torch.randint(count, (_RESAMPLES, count), generator=generator(0, 5))
    return torch.stack([row[draws].mean(1) for row in squares])


def choose(
    problem: Problem,
    nfe: int,
    reference: Trajectory,
    among: Sequence[str] | None = None,
    on: Sequence[str] | None = None,
    *,
    first: int = 24,
    show: Callable[[int, int, str], object] | None = None,
) -> Choice:
    """The solver and grid that come closest to the exact solution with at most ``nfe`` model evaluations.

    Only settings that spend the budget best are of interest, so each solver takes as many steps as it affords. Errors
    of a few samples that fall to another mode dominate a mean: take hundreds of samples.

    Args:
        problem: the path and the model, of the reference's samples.
        nfe: the budget of a sample.
        reference: the truth, see ``trajectory``.
        among: solvers' names or specs; a label such as "DPM++ 2M Karras" also names its grid. By default every
            deterministic solver that has a ``Program`` and fixed steps.
        on: grids' names or specs, for solvers whose label names none; by default ``BUILT_IN``.
        first: samples in the first round; with all of them, the search is full.
        show: called before each measurement with the number of those made, of all, and the setting.

    Raises:
        InputError: a solver draws noise, has no program or chooses its own steps; nfe is no positive integer, or too
            small for every solver; a name is unknown.
    """
    positive_integer("nfe", nfe)
    positive_integer("first", first)
    problem, total = as_problem(problem), reference.states.shape[1]
    left = _contestants(nfe, reference, among, on)
    sizes, counts = _rounds(len(left), total, first)
    pilot = _pilot(left) if len(sizes) > 1 else []
    full, spent, done, known = sum(c.nfe for c in left) * total, 0, 0, list[_Contestant]()

    def measure(contestants: Sequence[_Contestant], count: int) -> None:
        nonlocal spent, done
        for contestant in contestants:
            if show is not None:
                show(done, len(pilot) + sum(sizes), f"{contestant.solver} on {contestant.grid}")
            spent, done = spent + contestant.measure(problem, reference, count), done + 1

    if pilot:
        measure(pilot, total)
        problem, reference = _hardest_first(problem, reference, pilot)
    for k, (size, count) in enumerate(zip(sizes, counts, strict=True)):
        left = left[:size]
        measure(left, count)
        left.sort(key=lambda c: c.on(count))
        if k == 0:
            left = _different(left, count)
            known = left.copy()
    table = torch.stack([c.squares for c in left])
    behind = (resampled(table) - resampled(table[:1])).quantile(0.025, dim=1)
    tied = tuple(c.setting() for c, gap in zip(left, behind.tolist(), strict=True) if not gap > 0)
    known.sort(key=lambda c: (-len(c.squares), c.on(total)))
    return Choice(tied[0], tied, tuple(c.setting() for c in known), spent, full)


def _rounds(settings: int, samples: int, first: int) -> tuple[list[int], list[int]]:
    """The numbers of settings and of samples of each round."""
    sizes, counts = [settings], [min(first, samples)]
    while counts[-1] < samples:
        sizes.append(min(sizes[-1], max(_LAST, -(-sizes[-1] // _DIVIDE))))
        last = sizes[-1] <= _LAST
        counts.append(samples if last else min(samples, counts[-1] * _DIVIDE))
    return sizes, counts


def _pilot(contestants: Sequence[_Contestant]) -> list[_Contestant]:
    """One in 30 of the settings, at most five: of those in ``PILOT`` as far as they are there."""
    count = min(len(PILOT), len(contestants) // 30)
    known = [c for c in contestants if (str(c.solver), c.grid) in PILOT]
    return (known + [c for c in contestants[:: max(1, len(contestants) // 5)] if c not in known])[:count]


def _hardest_first(problem: Problem, reference: Trajectory, pilot: Sequence[_Contestant]) -> tuple[Problem, Trajectory]:
    """The same samples in another order: first those with the largest shares of the pilot's errors."""
    shares = torch.stack([c.squares / c.squares.mean().clamp_min(1e-300) for c in pilot]).sum(0)
    order = shares.argsort(descending=True, stable=True)
    for contestant in pilot:
        contestant.squares = contestant.squares[order]
    states = reference.states[:, order.to(reference.states.device)]
    return problem.select(order), Trajectory(reference.schedule, reference.nodes, states)


def _different(sorted_ones: list[_Contestant], count: int) -> list[_Contestant]:
    """Those whose errors differ: many solvers are the same program (``euler`` and ``ddim``), rounded otherwise."""
    kept: list[_Contestant] = []
    for one in sorted_ones:
        if not kept or not torch.allclose(one.squares[:count], kept[-1].squares[:count], rtol=1e-6, atol=0.0):
            kept.append(one)
    return kept


def _contestants(
    nfe: int, reference: Trajectory, given: Sequence[str] | None, rules: Sequence[str] | None
) -> list[_Contestant]:
    """Every solver on every grid, with as many steps as the budget affords."""
    found: dict[tuple[Solver, tuple[Node, ...]], _Contestant] = {}
    reasons: list[str] = []
    for spec in given if given is not None else _searchable():
        name, named = resolve(spec)
        method = solvers.make(name)
        if method.stochastic or method.adaptive or not method.linear:
            why = (
                "draws noise" if method.stochastic else "chooses its own steps" if method.adaptive else "has no program"
            )
            raise InputError(f"{method} {why}: only deterministic solvers with a program and fixed steps are compared")
        for rule in [own] if (own := named or method.own_grid) else rules or BUILT_IN:
            try:
                ending = reference.rule(rule)
                steps = steps_of_nfe(method, ending, reference.schedule, nfe, *reference.range)
                nodes = ending.nodes(reference.schedule, steps, *reference.range)
                cost = evaluations(method, reference.schedule, nodes)
            except InputError as reason:
                grids.make(rule)
                reasons.append(str(reason))
                continue
            found.setdefault((method, nodes), _Contestant(method, str(ending), nodes, cost))
    if not found:
        raise InputError(reasons[0] if reasons else "choose needs at least one solver and one grid")
    return list(found.values())


def _searchable() -> list[str]:
    """The names of all deterministic solvers that have a program and fixed steps."""
    known = ((name, solvers.make(name)) for name in solvers.names("gaussian") if solvers.info(name).linear)
    return [name for name, method in known if not method.stochastic and not method.adaptive]
