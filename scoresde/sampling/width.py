"""A warning before samples that are far too wide or too narrow: the steps are too long for the method."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import solvers
from solvers import Grid, InputError, Node, Output, Prediction, Problem, Program, Rows, Solver
from solvers.program.analysis import widening
from solvers.program.trace import NoProgram
from solvers.wrappers.picard import Picard

from ..paths.base import SDE
from .cached_by_value import cached_by_value

LIMIT = 1.2  # the greatest deviation of samples over that of the data, without a warning
LEAST = 0.5  # the least, where a grid with as many steps is right, or the samples are noise that data were encoded to
QUANTILES, DRAWS = 16, 4096  # numbers in the sample that a solver without a program moves, without and with noise
PLANS = 64  # how many plans and programs are kept


class WrongWidth(UserWarning):
    """A plan whose samples would be much wider or narrower than the data; the message names a plan that is better."""


@dataclass(frozen=True)
class Entry:
    """A function that solves, and how its callers change the solver or the nodes.

    Attributes:
        name: distinguishes entries.
        solver: the words for another solver, with a place for its spec.
        nodes: the words for a grid and a number of steps, None if the number stays.
        place: the nodes that the function places for a grid and a number of steps; by default, those on the path
            from the end that is nearer to the data.
    """

    name: str
    solver: str = "solver={!r}"
    nodes: Callable[[Grid, int | None], str] = field(
        default=lambda rule, steps: f"grid={str(rule)!r}" + ("" if steps is None else f", steps={steps}"),
        compare=False,
    )
    place: Callable[[Grid, int], Sequence[Node]] | None = field(default=None, compare=False)


PLAN = Entry("plan")


def _traced(solver: Solver, nodes: Sequence[Node], sde: SDE, output: Output) -> Program | None:
    """The solver's program for a network with this output; None if it has none."""
    try:
        return solvers.trace(solver, nodes, sde, output)
    except NoProgram:
        return None


program_of = cached_by_value(PLANS)(_traced)


@cached_by_value(PLANS)
def warn_of_width(solver: Solver, nodes: Sequence[Node], sde: SDE, output: Output, entry: Entry) -> None:
    """Warns if a solver makes samples of Gaussian data more than ``LIMIT`` times too wide, or much too narrow.

    The data are N(0, sigma_data^2), sigma_data that of the output: every network that is nearly linear at high noise
    shows the same. A method of order two or more extrapolates its predictions over a step; where a step is much longer
    than those before it, or much longer than the data's scale, the result is dominated by the noise that is left.

    Too narrow is less than ``LEAST`` times the right deviation, if ``karras`` or ``logsnr`` would be right in as many
    steps. All methods of order one, and most others in up to three steps, make narrow samples on every grid (``ddpm``
    0.75 times in 20 steps, ``dpmpp_sde`` 0.79 times in 10): this is the usual price of few steps, and networks that
    were distilled to few steps do not pay it. Of all linear solvers on ten grids of VP, no plan of 10 or 20 steps is
    below ``LEAST``; on EDM a third is, on grids made for other paths. Noise that data were encoded to has no such
    excuse, so there ``LEAST`` holds for every plan.

    Not checked are adaptive solvers, which choose their steps by their error, and solvers that fail on these data.
    Equal calls warn once.
    """
    wide, deviation = _width(solver, nodes, sde, output, program_of), output.sigma_data
    if math.isnan(wide) or LEAST <= wide <= LIMIT:
        return
    encodes = nodes[-1].ratio > nodes[0].ratio
    alone = wide < LEAST and not encodes  # then only another grid with as many steps counts
    remedy, best = "", math.inf
    for words, other, places in _others(solver, nodes, sde, entry, (1,) if alone else (1, 2, 4, 8, 16)):
        if alone and other is not solver:
            continue
        other_wide = _width(other, places, sde, output)
        if abs(math.log(other_wide or math.nan)) < abs(math.log(best)):
            remedy, best = f"; with {words} it would be {other_wide:.3g} times", other_wide
        if 1 / LIMIT <= best <= LIMIT:
            break
    else:
        if alone:
            return
    kind = "wide" if wide > LIMIT else "narrow"
    made = f"encodes to noise that is too {kind}" if encodes else f"makes samples too {kind}"
    warnings.warn(
        f"{solver} {made} in these {len(nodes) - 1} steps: of data with deviation {deviation:g}, "
        f"{'its deviation' if encodes else 'theirs'} is {wide:.3g} times the right one{remedy}",
        WrongWidth,
        stacklevel=3,
    )


def _others(
    solver: Solver, nodes: Sequence[Node], sde: SDE, entry: Entry, factors: Sequence[int]
) -> Iterator[tuple[str, Solver, Sequence[Node]]]:
    """Plans that may be better, in words and as a solver and its nodes, the least change first."""
    given: Any = solver  # a frozen dataclass, as every solver is
    count, last = len(nodes) - 1, "ddpm" if solver.stochastic else "ddim"
    place = entry.place or (lambda rule, steps: _placed(rule, steps, nodes, sde))
    if any(f.name == "lower_order_final" for f in dataclasses.fields(given)):
        lower = dataclasses.replace(given, lower_order_final=True)
        yield entry.solver.format(str(lower)), lower, nodes
    for more in factors if solver.nodes is None else ():
        for name in ("karras", "logsnr") if more == 1 else ("karras",):
            rule = solvers.grids.make(f"{name}(end={'zero' if nodes[-1].clean else 't_min'})")
            try:
                places = place(rule, more * count)
            except InputError:  # nodes coincide
                continue
            yield entry.nodes(rule, more * count if more > 1 else None), solver, places
    for spec in (f"final(solver={solver}, last={last}, steps=2)", "dpmpp_2m", last):
        try:
            yield entry.solver.format(spec), solvers.make(spec), nodes
        except InputError:
            continue


def _placed(rule: Grid, steps: int, nodes: Sequence[Node], sde: SDE) -> Sequence[Node]:
    """The nodes of a grid, in the direction of ``nodes`` and to their cleanest node."""
    encodes = nodes[-1].ratio > nodes[0].ratio
    low = None if nodes[-1].clean else nodes[0 if encodes else -1].t
    places = rule.nodes(sde, steps, low)  # from t_max: ``leading`` itself begins lower
    return places[::-1] if encodes else places


def _width(
    solver: Solver, nodes: Sequence[Node], sde: SDE, output: Output, trace: Callable[..., Program | None] = _traced
) -> float:
    """The deviation of samples over the right one, for data N(0, sigma_data^2): exact for a linear solver, otherwise
    that of one sample of independent numbers; NaN if it is not known."""
    if isinstance(solver, Picard) and solver.sweeps is None:  # it computes the steps of its solver
        solver = solver.solver
    if solver.adaptive:
        return math.nan
    try:
        program = trace(solver, nodes, sde, output)
    except InputError:  # the solver does not go with the wrapper, or the nodes coincide
        return math.nan
    if program is not None:
        return widening(program, output.sigma_data)
    return _sampled_width(solver, nodes, _Gaussian(sde, output.sigma_data))


def _sampled_width(solver: Solver, nodes: Sequence[Node], problem: _Gaussian) -> float:
    """The same, from one sample of many numbers, because the steps of some solvers depend on a sample's norm."""
    count = DRAWS if solver.stochastic else QUANTILES
    generator = torch.Generator().manual_seed(0)

    def noise(t: Node, s: Node) -> Tensor:
        return torch.randn((1, count), generator=generator, dtype=torch.float64)

    z = torch.special.ndtri((torch.randperm(count, generator=generator).double() + 0.5) / count).view(1, -1)
    start = problem.deviation(nodes[0]) * z / z.std(unbiased=False)
    try:
        with torch.no_grad():
            end = solvers.solve(solver, problem, start, nodes, noise, strict=False).x
    except Exception:  # a user's solver may need a problem of its own; if not, the solve itself will show the fault
        return math.nan
    return float(end.std(unbiased=False)) / problem.deviation(nodes[-1])


@dataclass(frozen=True)
class _Gaussian(Problem):
    """Data of independent numbers with law N(0, width^2), and their exact predictions."""

    path: SDE
    width: float

    def deviation(self, node: Node) -> float:
        """The deviation of x_t."""
        return math.hypot(node.alpha * self.width, node.sigma)

    def predict(self, x: Tensor, node: Any) -> Prediction:
        node = node.like(x)
        share = x / ((node.alpha * self.width) ** 2 + node.sigma**2)
        return Prediction((node.alpha * self.width**2) * share, node.sigma * share, torch.full_like(x, 0.5))

    def log_prob(self, x: Tensor, node: Node) -> Tensor:
        scale = self.deviation(node)
        return (-0.5 * (x / scale) ** 2 - math.log(scale * math.sqrt(2 * math.pi))).flatten(1).sum(1)

    def select(self, rows: Rows) -> _Gaussian:
        return self
