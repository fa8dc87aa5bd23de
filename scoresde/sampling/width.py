"""A warning before samples that are far too wide: a method of higher order in steps that are too long for it."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import solvers
from solvers import InputError, Node, Program, Solver
from solvers.program.analysis import widening
from solvers.program.trace import NoProgram

from ..paths.base import SDE

LIMIT = 1.2  # the greatest deviation of samples over that of the data, without a warning


class TooWide(UserWarning):
    """A plan whose samples would be much wider than the data; the message names a plan that is better."""


def warn_if_too_wide(program: Program, solver: Solver, nodes: Sequence[Node], sde: SDE) -> None:
    """Warns if a solver's program makes samples of Gaussian data more than ``LIMIT`` times too wide.

    The number is exact for data N(0, sigma_data^2), sigma_data that of the program's output: every network that is
    nearly linear at high noise shows it. A method of order two or more extrapolates its predictions over a step; where
    a step is much longer than those before it, or much longer than the data's scale, the result is dominated by the
    noise that is left.
    """
    deviation = program.output.sigma_data
    wide = widening(program, deviation)
    if wide <= LIMIT:
        return
    remedy, best = "", math.inf
    for words, other, places in _others(solver, nodes, sde):
        try:
            other_wide = widening(solvers.trace(other, places, sde, program.output), deviation)
        except (InputError, NoProgram):  # the solver does not go with the wrapper, or the nodes coincide
            continue
        if abs(math.log(other_wide)) < abs(math.log(best)):
            remedy, best = f"; with {words} it would be {other_wide:.3g} times", other_wide
        if 1 / LIMIT <= best <= LIMIT:
            break
    warnings.warn(
        f"{solver} makes samples too wide in these {len(nodes) - 1} steps: of data with deviation {deviation:g}, "
        f"theirs is {wide:.3g} times the right one{remedy}",
        TooWide,
        stacklevel=2,
    )


def _others(solver: Solver, nodes: Sequence[Node], sde: SDE) -> Iterator[tuple[str, Solver, Sequence[Node]]]:
    """Plans that may be better, in words and as a solver and its nodes, the least change first."""
    given: Any = solver  # a frozen dataclass, as every solver is
    count, last = len(nodes) - 1, "ddpm" if solver.stochastic else "ddim"
    if any(field.name == "lower_order_final" for field in dataclasses.fields(given)):
        lower = dataclasses.replace(given, lower_order_final=True)
        yield f"solver={str(lower)!r}", lower, nodes
    end, low = ("zero", None) if nodes[-1].clean else ("t_min", nodes[-1].t)
    grids = (("karras", 1), ("logsnr", 1), ("karras", 2), ("karras", 4), ("karras", 8), ("karras", 16))
    for name, more in grids if solver.nodes is None else ():
        rule = solvers.grids.make(f"{name}(end={end})")
        try:
            places = rule.nodes(sde, more * count, low)  # from t_max: ``leading`` itself begins lower
        except InputError:  # nodes coincide, or the solve goes from data to noise
            continue
        yield f"grid={str(rule)!r}" + (f", steps={more * count}" if more > 1 else ""), solver, places
    for spec in (f"final(solver={solver}, last={last}, steps=2)", "dpmpp_2m", last):
        try:
            yield f"solver={spec!r}", solvers.make(spec), nodes
        except InputError:
            continue
