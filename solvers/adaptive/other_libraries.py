"""Integrators of scipy and torchdiffeq, by name, on dx/dt = alpha' x0 + sigma' eps.

Adaptive methods choose their own steps, so one interval of the grid is enough. Fixed-step methods take an interval as
one step, or divide it by ``step_size``. A method whose steps depend on a norm of the state integrates each sample
alone, because a shared norm would couple the samples. (``rk45`` and the other solvers of ``embedded_pairs`` integrate
all samples at once, each with its own steps.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..libraries import library
from ..registry.ranges import AnyPositive, Choice, Count
from ..types.node import Node
from ..types.problem import Problem
from ..types.solver import Noise, Solver, Step, solvers


class Method(NamedTuple):
    """Properties of a method: its order, its evaluations per step (for implicit methods, the least number), whether it
    chooses its steps, and whether a norm over the state affects its result."""

    order: int
    evaluations: int
    adaptive: bool = True
    norm: bool = True


SCIPY = {
    "RK45": Method(5, 6),
    "RK23": Method(3, 3),
    "DOP853": Method(8, 12),
    "Radau": Method(5, 3),
    "BDF": Method(5, 1),
    "LSODA": Method(5, 1),
}
# the Adams methods start with a Runge-Kutta method: if they take a single step, it is that method's
TORCHDIFFEQ = {
    "dopri8": Method(8, 13),
    "dopri5": Method(5, 6),
    "bosh3": Method(3, 3),
    "fehlberg2": Method(2, 2),
    "adaptive_heun": Method(2, 2),
    "scipy_solver": Method(5, 1),
    "euler": Method(1, 1, adaptive=False, norm=False),
    "midpoint": Method(2, 2, adaptive=False, norm=False),
    "heun2": Method(2, 2, adaptive=False, norm=False),
    "heun3": Method(3, 3, adaptive=False, norm=False),
    "rk4": Method(4, 4, adaptive=False, norm=False),
    "explicit_adams": Method(4, 4, adaptive=False, norm=False),
    "implicit_adams": Method(4, 4, adaptive=False),
    "fixed_adams": Method(4, 4, adaptive=False),
}


class _Stopped(InputError):
    """The library fails to integrate one sample; any other error ends the whole solve."""


@dataclass(frozen=True)
class BlackBox(Solver):
    """A library's integrator with a relative and an absolute tolerance per component of the state.

    ``first_step`` is the length in t of the first step of an interval (at most the interval); with None, the library
    chooses it. ``max_step`` is the greatest length of a step in t; None means no limit but the interval.
    """

    rtol: AnyPositive = 1e-5
    atol: AnyPositive = 1e-5
    first_step: AnyPositive | None = None
    max_step: AnyPositive | None = None

    @property
    def name(self) -> str:
        """The name of the method."""
        raise NotImplementedError

    @property
    def methods(self) -> dict[str, Method]:
        """The library's methods, by name."""
        raise NotImplementedError

    @property
    def order(self) -> float:
        return float(self.methods[self.name].order)

    @property
    def adaptive(self) -> bool:
        return self.methods[self.name].adaptive

    @property
    def evaluations(self) -> int:
        return self.methods[self.name].evaluations

    def step(self, problem: Problem, x: Tensor, t: Node, s: Node, carry: Any, noise: Noise | None) -> Step:
        if not self.methods[self.name].norm:
            return Step(self.integrate(problem, x, t, s), carry)
        ends, failed = [], {}
        for i in range(x.shape[0]):
            row = slice(i, i + 1)
            if not bool(torch.isfinite(x[row]).all()):  # it failed before
                ends.append(torch.full_like(x[row], math.nan))
                continue
            try:
                ends.append(self.integrate(problem.select(row), x[row], t, s))
            except _Stopped as error:
                failed[i] = str(error)
                ends.append(torch.full_like(x[row], math.nan))
        return Step(torch.cat(ends), carry, failed=failed)

    def integrate(self, problem: Problem, x: Tensor, t: Node, s: Node) -> Tensor:
        """The states at s of samples x (n, *) at t."""
        raise NotImplementedError

    def first(self, t: Node, s: Node) -> float | None:
        """``first_step``, at most the length of the interval."""
        return None if self.first_step is None else min(self.first_step, abs(s.t - t.t))


def velocity(problem: Problem, x: Tensor, time: float, t: Node, s: Node) -> Tensor:
    """The probability-flow ODE's right-hand side at x (n, *); ``time`` is clamped to the interval, against rounding."""
    if not math.isfinite(time):
        raise _Stopped("the model's predictions are not finite")
    node = problem.node(min(max(time, min(t.t, s.t)), max(t.t, s.t)))
    return problem.predict(x, node).velocity(node)


def _place(problem: Problem, time: float) -> str:
    return f"t={time:.6g}, sigma / alpha = {problem.node(time).ratio:.4g}"


def _beyond(problem: Problem, time: float) -> _Stopped:
    return _Stopped(f"the model's predictions are not finite at {_place(problem, time)}")


@solvers.register(
    "scipy",
    aliases=("solve_ivp",),
    kind="black box ODE",
    order=5,
    nonlinear="another library takes the steps",
    adaptive=True,
    evaluations=6,
    reference="scipy.integrate.solve_ivp; RK45: Dormand and Prince 1980, J. Comput. Appl. Math. 6(1)",
    formula="scipy's method of that name, in t, each sample alone",
    note="Radau, BDF and LSODA estimate the Jacobian by differences, an evaluation per component; all are counted",
)
@dataclass(frozen=True)
class Scipy(BlackBox):
    """scipy's solve_ivp in float64 on the CPU: RK45, RK23, DOP853, Radau, BDF, LSODA."""

    method: Annotated[str, Choice(SCIPY)] = "RK45"

    @property
    def name(self) -> str:
        return self.method

    @property
    def methods(self) -> dict[str, Method]:
        return SCIPY

    def integrate(self, problem: Problem, x: Tensor, t: Node, s: Node) -> Tensor:
        def rhs(time: float, flat: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            state = torch.as_tensor(flat).to(x.dtype).to(x.device).view(x.shape)
            out: np.ndarray[Any, Any] = velocity(problem, state, float(time), t, s).flatten().cpu().double().numpy()
            if not np.isfinite(out).all():
                raise _beyond(problem, float(time))
            return out

        start = x.detach().flatten().cpu().double().numpy()
        limits = {"first_step": self.first(t, s), "max_step": math.inf if self.max_step is None else self.max_step}
        result = library("scipy.integrate").solve_ivp(
            rhs, (t.t, s.t), start, method=self.method, rtol=self.rtol, atol=self.atol, **limits
        )
        if not result.success:
            raise _Stopped(f"stopped at {_place(problem, float(result.t[-1]))}: {result.message}")
        return torch.as_tensor(result.y[:, -1]).to(x.dtype).to(x.device).view(x.shape)


class _TorchDiffEq(BlackBox):
    """torchdiffeq's odeint, on the device and in the dtype of the state."""

    @property
    def methods(self) -> dict[str, Method]:
        return TORCHDIFFEQ

    def options(self) -> dict[str, Any]:
        """The options that are passed to the method."""
        return {}

    def integrate(self, problem: Problem, x: Tensor, t: Node, s: Node) -> Tensor:
        odeint = library("torchdiffeq").odeint
        dtype = torch.float32 if x.device.type == "mps" else torch.float64  # MPS has no float64
        times = torch.tensor([t.t, s.t], dtype=dtype, device=x.device)
        options = self.options()
        if self.max_step is not None:
            options["max_step"] = self.max_step
        if self.adaptive and self.name != "scipy_solver":
            # without step_t the last step ends beyond s, where the path may not be defined, and is interpolated back
            options["step_t"] = times[1:]
            if (first := self.first(t, s)) is not None:
                options["first_step"] = first

        def rhs(time: Tensor, state: Tensor) -> Tensor:
            found = velocity(problem, state, float(time), t, s)
            reached[0] = min(max(float(time), min(t.t, s.t)), max(t.t, s.t))
            if self.methods[self.name].norm and not bool(torch.isfinite(found).all()):
                raise _beyond(problem, reached[0])
            return found

        reached = [t.t]
        try:
            path: Tensor = odeint(rhs, x, times, method=self.name, rtol=self.rtol, atol=self.atol, options=options)
        except AssertionError as error:  # torchdiffeq's: an underflow, a state that is not finite, too many steps
            line = str(error).partition("\n")[0].partition("tensor")[0]
            raise _Stopped(
                f"stopped at {_place(problem, reached[0])}: {line or 'torchdiffeq rejects its input'}"
            ) from error
        return path[-1].to(x.dtype)


@solvers.register(
    "torchdiffeq",
    aliases=("odeint",),
    kind="black box ODE",
    order=5,
    nonlinear="another library takes the steps",
    adaptive=True,
    evaluations=6,
    reference="Chen et al. 2018, arXiv:1806.07366; torchdiffeq 0.2.5",
    formula="torchdiffeq's method of that name, in t, each sample alone",
    note="the Adams methods need step_size: their history spans one interval, and with a single step they are rk4",
)
@dataclass(frozen=True)
class TorchDiffEq(_TorchDiffEq):
    """torchdiffeq's methods by name.

    Adaptive: dopri8, dopri5, bosh3, fehlberg2, adaptive_heun, scipy_solver (scipy's LSODA). Fixed-step: euler,
    midpoint, heun2, heun3, rk4, explicit_adams, implicit_adams, fixed_adams. A fixed-step method crosses an interval in
    one step, or in steps of length ``step_size`` in t.
    """

    method: Annotated[str, Choice(TORCHDIFFEQ)] = "dopri5"
    step_size: AnyPositive | None = None
    max_num_steps: Count | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        fits = {
            "step_size": (not self.adaptive, "fixed-step"),
            "max_num_steps": (self._controlled, "adaptive"),
            "first_step": (self._controlled, "adaptive"),
            "max_step": (self.adaptive, "adaptive"),
        }
        for option, (fit, kind) in fits.items():
            if getattr(self, option) is not None and not fit:
                raise InputError(f"torchdiffeq: {option} is an option of {kind} methods, not of {self.method}")

    @property
    def _controlled(self) -> bool:
        return self.adaptive and self.method != "scipy_solver"

    @property
    def name(self) -> str:
        return self.method

    def options(self) -> dict[str, Any]:
        given = {name: getattr(self, name) for name in ("step_size", "max_num_steps")}
        return {name: value for name, value in given.items() if value is not None}


@solvers.register(
    "dopri5",
    kind="black box ODE",
    order=5,
    nonlinear="another library takes the steps",
    adaptive=True,
    evaluations=6,
    reference="Dormand and Prince 1980, as torchdiffeq's dopri5",
    formula="an embedded 5(4) pair in t with error control",
    equals=("torchdiffeq(method=dopri5)",),
)
@dataclass(frozen=True)
class Dopri5(_TorchDiffEq):
    """torchdiffeq's Dormand-Prince pair, on the device and in the dtype of the state."""

    @property
    def name(self) -> str:
        return "dopri5"
