"""Tables of other projects as tables of this library: what LD3, GITS, AMED, EPD and DyWeight publish, by kind.

All of them are numbers of a linear loop. The loop of each paper runs here on rows of coefficients instead of states.
``scoresde.import_solver`` reads the files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch

from ..errors import InputError, shown, unknown
from ..program.instructions import Evaluate
from ..program.program import Program
from ..program.trace import trace
from ..types.model_output import Output
from ..types.node import Node
from ..types.schedule import Schedule, as_schedule
from .grids import tunable
from .places import range_of
from .published_entries import KINDS, Entries, Numbers
from .table import Table

_IN_EPS = ("deis", "dpm_solver", "ipndm", "lms", "plms")  # the first letters of solvers whose formula is in eps
_Row = np.ndarray[tuple[int], np.dtype[np.float64]]


@dataclass(frozen=True, eq=False)
class PublishedTable:
    """A table of another project.

    Attributes:
        table: its numbers, which have the same meaning on every Gaussian path.
        kind: one of ``KINDS``.
        reference: the paper.
        parameters: how many numbers were fitted.
        settings: the facts that the numbers do not contain: the grid, a free first step, ...
        assumed: the names of those that nobody gave, whose values are defaults.
    """

    table: Table
    kind: str
    reference: str
    parameters: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    assumed: tuple[str, ...] = ()

    def program(self, schedule: Schedule, output: str | Output = "x0") -> tuple[Program, str]:
        """The program on a path, and a line on what is converted.

        Nodes are those of the same sigma / alpha, and states are divided by alpha. Most tables end a little above the
        data, at sigma = 0.002. If the path does not reach that, the outcome, which remains the same, counts as data.

        Raises:
            InputError: the path does not reach another noise level of the table, or the output is unknown.
        """
        path, table = as_schedule(schedule), self.table
        low, last = math.exp(range_of(path)[0]), float(table.ratios[-1])
        line = f"sigma / alpha from {table.begin:.6g} to {last:.4g}, on {path}"
        if 0 < last < low * (1 - 1e-9):
            table = replace(table, ratios=torch.cat([table.ratios[:-1], torch.zeros(1, dtype=torch.float64)]))
            line += f"; this path ends at {low:.4g}, so that the outcome counts as data"
        return table.program(path, output, f"{self.kind}, {table.nfe} NFE"), line


def published_table(
    kind: str,
    entries: Mapping[str, Any],
    *,
    solver: str | None = None,
    path: Schedule | None = None,
    quantity: Literal["x0", "eps"] | None = None,
) -> PublishedTable:
    """The table in the numbers of another project.

    The loops of AMED, EPD, DyWeight and GITS have alpha = 1 and sigma = t, for networks of every path.

    - ``gits``: ``t_steps``, the times of a solver's nodes.
    - ``ld3``: ``best_t_steps``, those times, and then as many time labels, which the network receives in their place.
    - ``amed``: ``r``, and optionally ``scale_dir`` and ``scale_time``, a number for each step. (AMED's network computes
      them from features of every sample; its weights are not a table.)
    - ``epd``: ``r_params``, ``weight_s``, ``scale_dir_params``, ``scale_time_params`` (steps, points), as in its
      predictor's state, or ``r``, ``weight``, ``scale_dir``, ``scale_time`` after the sigmoids and the softmax.
    - ``dyweight``: ``hybrid_weights`` (steps, steps) and optionally ``t_scale`` (steps, or one less after a free
      first step). Its released loop adds 1e-8 to t in one place; the paper, and this reader, do not.

    Args:
        entries: numbers and settings by name; names that the kind does not use are ignored. Settings: ``afs`` (a free
            first step), ``scale_dir`` and ``scale_time`` (the ranges of EPD's scales), ``fcn``, and the nodes: their
            times ``t_steps``, or ``schedule_type`` ("polynomial", "logsnr" or "time_uniform"), ``schedule_rho``,
            ``sigma_min`` and ``sigma_max``.
        solver: of ``ld3`` and ``gits``; by default "ipndm" for GITS.
        path: of ``ld3``: the path whose times the file contains; sigma = t by default.
        quantity: of ``ld3``: what the solver keeps of an evaluation at another label; by default what its formula has.

    >>> found = published_table("gits", {"t_steps": [80, 3.5, 0.5, 0.002]}, solver="ddim")
    >>> found.table.labels.tolist(), found.table.nfe, found.parameters
    ([80.0, 3.5, 0.5], 3, 2)

    Raises:
        InputError: no such kind; entries are missing, or have another shape or value than that kind has; the solver or
            the path does not suit the numbers.
    """
    if kind not in KINDS:
        raise unknown("kind of table", kind, KINDS)
    given = Entries(kind, entries)
    if kind in ("gits", "ld3"):
        return _nodes(given, solver, path, quantity)
    if solver is not None:
        raise InputError(f"a table of {kind} is a solver of its own: leave out the solver {solver!r}")
    return _dyweight(given) if kind == "dyweight" else _midpoints(given)


def _result(given: Entries, table: Table, parameters: int) -> PublishedTable:
    if not all(bool(torch.isfinite(v).all()) for v in (table.ratios, table.labels, table.start, table.weights)):
        raise InputError(f"the numbers of this table of {given.kind} make coefficients that are not finite")
    return PublishedTable(table, given.kind, KINDS[given.kind][1], parameters, dict(given.used), tuple(given.assumed))


class _Loop:
    """States of a loop with alpha = 1 and sigma = t, as rows of coefficients over the start and the predictions of x0.

    Attributes:
        start: the row of the start.
    """

    def __init__(self, begin: float, evaluations: int) -> None:
        self.begin, self.start = begin, np.eye(1, 1 + evaluations)[0]
        self.rows: list[_Row] = []
        self.levels: list[float] = []
        self.labels: list[float] = []

    def denoised(self, x: _Row, t: float, label: float) -> _Row:
        """The row of the model's x0 for the state x, which is at t, with the time label ``label``."""
        if not (label > 0 and t > 0):
            raise InputError(f"the table evaluates the model at the time {min(label, t):.4g}, which is not positive")
        self.rows.append(x)
        self.levels.append(t)
        self.labels.append(label)
        unit: _Row = np.eye(1, len(x), len(self.rows))[0]
        return unit

    def table(self, x: _Row, end: float) -> Table:
        rows = torch.from_numpy(np.array([*self.rows, x]))
        ratios, labels = (torch.tensor(v, dtype=torch.float64) for v in ([*self.levels, end], self.labels))
        return Table(self.begin, ratios, labels, rows[:, 0].clone(), rows[:, 1:].clone())


def _free_slope(x: _Row, t: float) -> _Row:
    """The slope of the first step without the model: of data of variance 1, for which x0 = x / (1 + t^2) is small."""
    return x / math.sqrt(1 + t * t)


def _dyweight(given: Entries) -> PublishedTable:
    """x_{i+1} = x_i + (t_{i+1} - T_i) sum_j w_ij d_j, T_{i+1} = T_i + (t_{i+1} - T_i) sum_j w_ij, T_0 = t_0.

    d_j = (x_j - D(x_j, s_j T_j)) / T_j; the weights of a row need not sum to 1.
    """
    if "dyweight_weights_raw" in given.entries:
        raise InputError(
            "this table of dyweight begins at t = 1 of a flow, where alpha = 0: a program begins before it"
        )
    weights = given.array(given.need("hybrid_weights"), None, None)
    steps = len(weights)
    if "mask" in given.entries and weights.shape[1] == steps:
        weights = weights * given.array("mask", steps, steps)
    if weights.shape[1] != steps or np.triu(weights, 1).any():
        raise InputError(f"hybrid_weights of a table of dyweight are lower triangular, and these are {weights.shape}")
    scales, free = None, None
    if given.entries.get("t_scale") is not None:
        scales = given.array("t_scale", None)
        if len(scales) not in (steps, steps - 1):
            raise InputError(
                f"t_scale of a table of dyweight has {steps} or {steps - 1} numbers, and this {len(scales)}"
            )
        free = len(scales) < steps
    if free is not None and given.entries.get("afs") is None:
        given.entries["afs"] = free  # a fact that the numbers contain
    free = given.flag("afs", None)
    if scales is not None and free != (len(scales) < steps):
        raise InputError(f"with afs={free} t_scale has {steps - free} numbers, and this one {len(scales)}")
    times = given.times(steps)
    labels = np.ones(steps) if scales is None else np.concatenate([np.ones(int(free)), scales])
    loop = _Loop(times[0], steps - free)
    x, t, slopes = loop.start, times[0], list[_Row]()
    for i, s in enumerate(times[1:]):
        if free and i == 0:
            slopes.append(_free_slope(x, t))
        else:
            slopes.append((x - loop.denoised(x, t, labels[i] * t)) / t)
        x = x + (s - t) * sum(w * d for w, d in zip(weights[i], slopes, strict=False))
        t = t + (s - t) * float(weights[i, : i + 1].sum())
    return _result(given, loop.table(x, times[-1]), int((weights != 0).sum()) + (0 if scales is None else len(scales)))


def _midpoints(given: Entries) -> PublishedTable:
    """AMED and EPD: x_{i+1} = x_i + (t_{i+1} - t_i) sum_k w_k c_k d(x_k, t_k), with midpoints on the slope d_i at x_i.

    x_k = x_i + (t_k - t_i) d_i, t_k = t_{i+1}^r_k t_i^(1 - r_k), d(x_k, t_k) = (x_k - D(x_k, a_k t_k)) / t_k; the model
    sees the label a_k t_k. AMED has one midpoint, of weight 1.
    """
    if "enc_layer0.weight" in given.entries or "fc_r.weight" in given.entries:
        raise InputError(
            "these are weights of AMED's network, which computes every sample's midpoints from its features: no table "
            "has them; average r, scale_dir and scale_time over samples, and write one number for each step"
        )
    student = given.word("sampler_stu", given.kind)
    if student != given.kind:
        raise InputError(f"this table belongs to {given.kind}'s plugin for {shown(student)}; accepted: {given.kind}")
    if given.kind == "epd" and "r_params" in given.entries:
        r, out, label, weight = _activated(given)
    else:
        flat = given.kind == "amed"
        r = given.array(given.need(*(("r",) if flat else ("r_params", "r"))), *((None,) if flat else (None, None)))
        found = {name: np.ones_like(r) for name in ("scale_dir", "scale_time", "weight")}
        for name in (n for n in (found if not flat else ("scale_dir", "scale_time")) if n in given.entries):
            found[name] = given.array(name, *r.shape)
        if not flat:
            given.need("weight")
        r, out, label, weight = (v.reshape(len(r), -1) for v in (r, *found.values()))
    steps, points = r.shape
    free, times = given.flag("afs", None), given.times(steps)
    loop = _Loop(times[0], steps * (points + 1) - free)
    x = loop.start
    for i, (t, s) in enumerate(pairwise(times)):
        slope = _free_slope(x, t) if free and i == 0 else (x - loop.denoised(x, t, t)) / t
        moved = x
        for k in range(points):
            middle = s ** r[i, k] * t ** (1 - r[i, k])
            state = x + (middle - t) * slope
            direction = (state - loop.denoised(state, middle, label[i, k] * middle)) / middle
            moved = moved + weight[i, k] * out[i, k] * (s - t) * direction
        x = moved
    fitted = sum(v.size for v in (r, out, label) if not (v == 1).all()) + (weight.size if points > 1 else 0)
    return _result(given, loop.table(x, times[-1]), fitted)


def _activated(given: Entries) -> tuple[Numbers, Numbers, Numbers, Numbers]:
    """r, the scales of direction and label, and the weights, from the numbers before the sigmoids and the softmax."""
    r = given.array("r_params", None, None)
    raw = given.array(given.need("weight_s"), *r.shape)
    weight = np.exp(raw - raw.max(1, keepdims=True))
    weight = weight / weight.sum(1, keepdims=True)
    scales = []
    for name in ("scale_dir", "scale_time"):
        width = given.number(name)
        if width:
            raw = given.array(given.need(f"{name}_params"), *r.shape)
            scales.append(2 * width / (1 + np.exp(-raw / 2)) + 1 - width)
        else:
            scales.append(np.ones_like(r))
    if given.flag("fcn", False):
        scales[0][-1] = 1.0
    return 1 / (1 + np.exp(-r)), scales[0], scales[1], weight


def _nodes(
    given: Entries, solver: str | None, path: Schedule | None, quantity: Literal["x0", "eps"] | None
) -> PublishedTable:
    """GITS and LD3: a solver on its nodes; LD3 gives the model other time labels, with the states as they are."""
    if given.kind == "gits":
        times = given.times(None)
        labels = times
    else:
        both = given.array(given.need("best_t_steps"), None)
        if len(both) % 2 or len(both) < 4:
            raise InputError(f"best_t_steps of ld3 has the times and as many labels, and this one {len(both)} numbers")
        times, labels = given.falling(both[: len(both) // 2].tolist()), both[len(both) // 2 :].tolist()
    if solver is None and given.kind == "ld3":
        raise InputError(
            "LD3's file has the nodes of a solver, and not its name: add the solver, such as uni_pc(order=3)"
        )
    method = tunable(solver or "ipndm")
    given.used["solver"] = str(method)
    path = _Levels() if path is None or given.kind == "gits" else as_schedule(path)
    nodes = path.nodes(times)
    kept = quantity or ("eps" if str(method).startswith(_IN_EPS) else "x0")
    if kept not in ("x0", "eps"):
        raise unknown("quantity", kept, ("x0", "eps"))
    program = trace(method, nodes, path, kept)
    if labels == times:
        return _result(given, Table.of(program), len(times) - 2)
    table, asked = Table.of(_relabelled(program, path, labels)), _asked(program)
    if all(node.alpha == 1 for node in nodes):  # no state is rescaled: each stays at its own level
        levels = torch.tensor([*(nodes[n].ratio for n in asked), nodes[-1].ratio], dtype=torch.float64)
        table = replace(table, ratios=levels)
    return _result(given, table, len(times) - 2 + len(set(asked)))


def _asked(program: Program) -> list[int]:
    """The nodes of a program's evaluations."""
    return [i.node for i in program.instructions if isinstance(i, Evaluate)]


def _relabelled(program: Program, path: Schedule, labels: Sequence[float]) -> Program:
    """The program with its evaluations at the times of the labels; states and coefficients remain the same."""
    nodes = program.nodes
    if max(_asked(program)) >= len(labels):
        raise InputError(f"{program.solver} evaluates the model between the nodes, where ld3 has no time label")
    moved = tuple(i._replace(node=len(nodes) + i.node) if isinstance(i, Evaluate) else i for i in program.instructions)
    return replace(program, nodes=nodes + tuple(path.nodes(list(labels))), instructions=moved)


class _Levels(Schedule):
    """alpha = 1 and sigma = t, for every t."""

    t_min, t_max = 0.0, math.inf

    def __call__(self, t: float) -> Node:
        return Node(t, 1.0, t, 0.0, 1.0)

    def t_of_lam(self, lam: float) -> float:
        return math.exp(-lam)
