"""Base class of solvers that choose their own steps, separately for every sample.

Inner steps cross an interval of the grid. Each sample has its own position, step length and controller history, all
Python floats. One model evaluation covers all samples that have not arrived yet, each at its own node. A sample that
has arrived does not change and costs nothing. So each sample is the same, to the last bit, alone and in any batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..registry.ranges import AnyPositive, Count
from ..types.node import Node, Prediction
from ..types.problem import Problem
from ..types.solver import Noise, Solver, Step

MEMORY = 8  # how many places (values of the clock) a sample's progress keeps
# a step shorter than this share of the clock's value is lost in rounding
UNDERFLOW = 1e-12


@dataclass
class Progress:
    """The progress of one sample across an interval.

    Attributes:
        node: the sample's position.
        h: the length of the next inner step, on the solver's clock.
        errors: the errors of the accepted inner steps that the controller remembers, the latest first.
        known: whether its slope at ``node`` is already evaluated.
        retried: whether the last inner step was rejected.
        lost: whether it was rejected because its error was not finite.
        places: the values of the clock where its slope is known, in this solve up to now, the latest last.
        order: the order of the next inner step, for methods of variable order.
        others: the error norms of the last inner step at other orders, see ``Attempt``.
        accepted, rejected: how many inner steps were.
        error: the sum of the error norms of the accepted inner steps.
        noise: the source of its noise, for stochastic solvers.
        failed: the reason why the sample was given up, or "".
    """

    node: Node
    h: float = math.nan
    errors: tuple[float, ...] = ()
    known: bool = False
    retried: bool = False
    lost: bool = False
    places: tuple[float, ...] = ()
    order: int = 0
    others: tuple[float, ...] = ()
    accepted: int = 0
    rejected: int = 0
    error: float = 0.0
    noise: Any = None
    failed: str = ""


class Attempt(NamedTuple):
    """The result of an inner step of n samples, each tensor (n, *).

    Attributes:
        x: the new state.
        error: the estimate of its error.
        compare: the state that the tolerance is relative to, along with that of the last accepted step.
        slope: the slopes to remember at the new state, for methods that evaluate the model there.
        measured: the error as the tolerance measures it, where that is not ``error`` itself.
        others: estimates of the error at other orders, for methods of variable order.
    """

    x: Tensor
    error: Tensor
    compare: Tensor
    slope: Tensor | None = None
    measured: Tensor | None = None
    others: tuple[Tensor, ...] = ()


class Carry(NamedTuple):
    """The carry of adaptive solvers, from the end of an interval to the next.

    Attributes:
        slope: the remembered slopes at the end of the interval.
        previous: the state there, as ``measured``, which the next tolerances compare with.
        samples: the progress of each sample.
        moved: whether a hook has replaced the state since; the slopes are then invalid.
    """

    slope: Tensor
    previous: Tensor
    samples: list[Progress]
    moved: bool = False


@dataclass(frozen=True)
class Adaptive(Solver):
    """A solver with per-sample inner steps; a subclass defines the step and how its error sets the next length.

    The error of a sample is the root mean square over its components of error / tolerance. ``first_step`` is the
    length of a solve's first inner step (``inf``: the whole interval); with None, the solver chooses it. ``max_step``
    is the greatest length of an inner step (None: the solver's own), ``max_steps`` the greatest number of inner steps
    of a sample in one interval.
    """

    rtol: AnyPositive = 1e-5
    atol: AnyPositive = 1e-5
    first_step: AnyPositive | None = None
    max_steps: Count = 10000
    max_step: AnyPositive | None = None

    ramps: ClassVar[bool] = False  # whether a solve begins at a low order
    reuses: ClassVar[bool] = False  # whether the last prediction of an inner step is the first of the next one
    smallest: ClassVar[float] = 0.2  # the least factor from one step's length to the next
    largest: ClassVar[float] = 10.0  # the greatest factor

    @property
    def longest(self) -> float:
        """The greatest length of an inner step."""
        return math.inf if self.max_step is None else self.max_step

    def clock(self, node: Node) -> float:
        """The variable in which the lengths of steps are measured, at a node."""
        return node.lam

    def lam_at(self, value: float) -> float:
        """lam at a value of the clock."""
        return value

    def nodes_at(self, problem: Problem, values: Sequence[float]) -> list[Node]:
        """The nodes at these values of the clock. Step lengths are coarse, so many values coincide."""
        places = list(dict.fromkeys(values))
        found = dict(zip(places, problem.nodes_of_lam([self.lam_at(value) for value in places]), strict=True))
        return [found[value] for value in values]

    def automatic(self, x: Tensor, slope: Tensor, t: Node, s: Node) -> list[float]:
        """The first step of every sample x (B, *) with its slope at t, where ``first_step`` is None."""
        raise NotImplementedError

    def slope(self, prediction: Prediction) -> Tensor:
        """The quantity of a prediction that the method integrates (n, *)."""
        return prediction.eps

    def measured(self, x: Tensor, node: Node) -> Tensor:
        """The quantity that tolerances are relative to, from a state x (B, *) at a node."""
        return x

    def remembered(self, slope: Tensor) -> Tensor:
        """The remembered slopes of samples of which only the present slope (n, *) is known."""
        return slope

    def ask(self, problem: Problem, x: Tensor, nodes: Sequence[Node], dtype: torch.dtype) -> Tensor:
        """The slope (n, *) at one node per sample. The model is evaluated in ``dtype``; the result has x's dtype."""
        return self.slope(problem.predict(x.to(dtype), Node.stack(nodes, x.ndim))).to(x.dtype)

    def noise_of(self, noise: Noise | None, i: int, count: int) -> Any:
        """The noise source of sample ``i`` of ``count``."""
        return None

    def tolerance(self, before: Tensor, after: Tensor) -> Tensor:
        """The greatest acceptable error of every component (n, *)."""
        return self.atol + self.rtol * torch.maximum(before.abs(), after.abs())

    def attempt(
        self,
        problem: Problem,
        x: Tensor,
        slope: Tensor,
        samples: Sequence[Progress],
        ends: Sequence[Node],
        dtype: torch.dtype,
    ) -> Attempt:
        """One inner step of samples x (n, *), from their remembered slopes, each to its own node of ``ends``; the model
        is evaluated in ``dtype``."""
        raise NotImplementedError

    def control(self, errors: tuple[float, ...], sample: Progress) -> tuple[bool, float]:
        """Whether to accept a sample's step, and the factor for the next length; ``errors`` has the latest first.

        Methods of variable order also set ``sample.order``, and ``sample.others`` has the error norms at other orders.
        """
        raise NotImplementedError

    def step(self, problem: Problem, x: Tensor, t: Node, s: Node, carry: Any, noise: Noise | None) -> Step:
        wide = torch.float32 if x.device.type == "mps" else torch.float64  # MPS has no float64
        state, count = x.to(wide), x.shape[0]
        if isinstance(carry, Carry) and not carry.moved:
            slope, previous, known = carry.slope, carry.previous, self.reuses
        else:
            slope, previous, known = self.remembered(torch.zeros_like(state)), self.measured(state, t), False
        samples = [Progress(t, noise=self.noise_of(noise, i, count), known=known) for i in range(count)]
        for i, sample in enumerate(samples):
            sample.h = min(math.inf if self.first_step is None else self.first_step, self.longest)
            if isinstance(carry, Carry):
                sample.h, sample.errors = carry.samples[i].h, carry.samples[i].errors
                sample.places, sample.order = (carry.samples[i].places, carry.samples[i].order) if known else ((), 0)
                sample.failed = carry.samples[i].failed
        active = [i for i in range(count) if not samples[i].failed]
        while active:
            if missing := [i for i in active if not samples[i].known]:
                nodes = [samples[i].node for i in missing]
                found = self.ask(_part(problem, missing, count), state[missing], nodes, x.dtype)
                slope = _put(slope, missing, self.remembered(found))
                for i in missing:
                    samples[i].places = (self.clock(samples[i].node),)
                if carry is None and self.first_step is None and not any(p.accepted + p.rejected for p in samples):
                    for i, values in zip(missing, found, strict=True):
                        self._check(samples[i], values)
                    active = [i for i in active if not samples[i].failed]
                    for i, h in zip(active, self.automatic(state[active], slope[active], t, s), strict=True):
                        samples[i].h = min(h, self.longest)
            active = [i for i in active if self._goes_on(samples[i], s)]
            if not active:
                break
            ends = self._ends(problem, samples, active, s)
            lengths = [abs(self.clock(end) - self.clock(samples[i].node)) for i, end in zip(active, ends, strict=True)]
            made = self.attempt(
                _part(problem, active, count), state[active], slope[active], [samples[i] for i in active], ends, x.dtype
            )
            measured = made.error if made.measured is None else made.measured
            tolerance = self.tolerance(previous[active], made.compare)
            norms, *others = (row_norms(error / tolerance) for error in (measured, *made.others))
            taken: list[int] = []
            for k, (i, norm, error) in enumerate(zip(active, norms, row_norms(made.error), strict=True)):
                if not math.isfinite(norm):
                    self._check(samples[i], slope[i])
                samples[i].others = tuple(other[k] for other in others)
                if self._settle(samples[i], norm, error, lengths[k], ends[k]):
                    taken.append(k)
            moved = [active[k] for k in taken]
            state, previous = _put(state, moved, made.x[taken]), _put(previous, moved, made.compare[taken])
            if made.slope is not None:
                slope = _put(slope, moved, made.slope[taken])
            active = [i for i in active if samples[i].node is not s and not samples[i].failed]
        failed = {i: sample.failed for i, sample in enumerate(samples) if sample.failed}
        state = _put(state, list(failed), state[list(failed)] * math.nan) if failed else state
        out = state.to(x.dtype)
        accepted = torch.tensor([sample.accepted for sample in samples])
        rejected = torch.tensor([sample.rejected for sample in samples])
        total = torch.tensor([sample.error for sample in samples], dtype=torch.float64)
        return Step(out, Carry(slope, previous, samples), total, accepted, rejected, failed)

    def replaced(self, carry: Any, x: Tensor) -> Any:
        return carry._replace(moved=True)

    def _goes_on(self, sample: Progress, s: Node) -> bool:
        """Whether a sample can take another inner step; if not, it is given up."""
        now = self.clock(sample.node)
        if 1.01 * sample.h >= abs(self.clock(s) - now):
            return True
        if sample.h <= UNDERFLOW * max(1.0, abs(now)):
            advice = "the model's predictions beyond it are not finite" if sample.lost else "increase rtol or atol"
            sample.failed = f"the step underflows at {_place(sample)}; {advice}"
        elif sample.accepted + sample.rejected >= self.max_steps:
            sample.failed = (
                f"max_steps={self.max_steps} inner steps end at {_place(sample)}, not yet at {s.lam:.6g}; "
                "increase max_steps, rtol or atol"
            )
        return not sample.failed

    def _ends(self, problem: Problem, samples: Sequence[Progress], active: Sequence[int], s: Node) -> list[Node]:
        """The end nodes of the next inner steps of some samples; a step that nearly reaches s is stretched to s."""
        goal, short = self.clock(s), {}
        for i in active:
            sample, now = samples[i], self.clock(samples[i].node)
            if 1.01 * sample.h >= abs(goal - now):
                continue
            short[i] = now + math.copysign(sample.h, goal - now)
        nodes = dict(zip(short, self.nodes_at(problem, list(short.values())), strict=True))
        return [nodes.get(i, s) for i in active]

    def _settle(self, sample: Progress, norm: float, error: float, length: float, end: Node) -> bool:
        """Accepts or rejects an inner step of a sample, and sets the length of its next one."""
        accept, factor = False, self.smallest
        if math.isfinite(norm):
            accept, factor = self.control((max(norm, 1e-10), *sample.errors), sample)
        if sample.noise is not None:
            sample.noise.settle(accept)
        sample.retried, sample.lost = not accept, not math.isfinite(norm)
        if not accept:
            sample.h, sample.known = coarse(factor * length), True
            sample.rejected += 1
            return False
        # the end of the interval may have cut this step short; that must not shorten the next
        h = factor * length if length >= 0.99 * sample.h else max(sample.h, factor * length)
        sample.h = min(coarse(h), self.longest)
        sample.node, sample.known, sample.places = end, self.reuses, (*sample.places, self.clock(end))[-MEMORY:]
        sample.errors = (max(norm, 1e-10), *sample.errors)[:2]
        sample.accepted += 1
        sample.error += error
        return True

    def _check(self, sample: Progress, slope: Tensor) -> None:
        """Gives up a sample whose slope is not finite."""
        if not bool(torch.isfinite(slope).all()):
            sample.failed = f"the model's predictions are not finite at {_place(sample)}"


def _place(sample: Progress) -> str:
    """The place of a sample, in words."""
    node = sample.node
    return f"lam={node.lam:.6g}, sigma / alpha = {node.ratio:.4g}, after {sample.accepted} inner steps"


def row_norms(values: Tensor) -> list[float]:
    """The root mean square of each row of (n, *). Each row is summed alone: a joint sum may round differently."""
    squares = (values * values).flatten(1)
    means = [row.mean() for row in squares]
    return [math.sqrt(v) for v in torch.stack(means).tolist()] if means else []


def coarse(h: float) -> float:
    """h, rounded down to five binary digits.

    A step length depends on an error estimate, which contains the rounding of the model's precision, device and batch
    size. Where the estimate nearly vanishes, the controller magnifies this rounding from step to step. Most coarse
    lengths are the same in spite of it.

    >>> coarse(0.1), coarse(math.inf)
    (0.09765625, inf)
    """
    fraction, exponent = math.frexp(h)
    # 1e-9: a multiple of 1/32 that is a little too small, from rounding in a difference, stays that multiple
    return h if math.isinf(h) else math.ldexp(math.floor(32 * fraction + 1e-9) / 32, exponent)


def column(numbers: Sequence[float], like: Tensor) -> Tensor:
    """One number per sample, as a tensor that multiplies (n, *)."""
    return torch.tensor(numbers, dtype=like.dtype, device=like.device).view(-1, *(1,) * (like.ndim - 1))


def pid(errors: tuple[float, ...], order: float, p: float, i: float, d: float) -> float:
    """The PID controller's factor for the step length, from the errors, latest first.

    Soederlind 2003, ACM TOMS 29(1), eq. 32: e_n^-(p + i + d) e_(n-1)^(p + 2 d) e_(n-2)^-d, each power over ``order``.
    A missing error is replaced by the one after it.
    """
    now, before, first = (*errors, *errors[-1:] * 2)[:3]
    powers = now ** -(p + i + d) * before ** (p + 2 * d) * first**-d
    return float(powers ** (1 / order))


def _part(problem: Problem, rows: Sequence[int], count: int) -> Problem:
    return problem if len(rows) == count else problem.select(torch.tensor(rows))


def _put(whole: Tensor, rows: Sequence[int], values: Tensor) -> Tensor:
    """``whole`` with some rows replaced, as a new tensor."""
    if len(rows) == len(whole):
        return values
    out = whole.clone()
    out[rows] = values
    return out
