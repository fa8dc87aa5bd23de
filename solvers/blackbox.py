"""Integrators of other libraries, by name, on dx/dt = alpha' x0 + sigma' eps.

They choose their own steps, so one interval of the grid is enough. Each sample is integrated on its own: a shared
error norm would make it depend on its neighbours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor
from torchdiffeq import odeint

from .errors import InputError
from .types import Node, Noise, Problem, Solver, Step, solvers


@dataclass(frozen=True)
class BlackBox(Solver):
    """An adaptive integrator with a relative and an absolute tolerance per component of the state.

    ``first_step`` is the length in t of the first step of an interval (at most the interval); None leaves it to the
    library.
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    first_step: float | None = None

    def __post_init__(self) -> None:
        for name in ("rtol", "atol"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be positive, got {getattr(self, name):g}")
        if self.first_step is not None and not self.first_step > 0:
            raise InputError(f"first_step must be positive, got {self.first_step:g}")

    def step(self, problem: Problem, x: Tensor, t: Node, s: Node, carry: Any, noise: Noise | None) -> Step:
        select = getattr(problem, "select", lambda rows: problem)
        rows = [slice(i, i + 1) for i in range(x.shape[0])]
        return Step(torch.cat([self.integrate(select(row), x[row], t.t, s.t) for row in rows]), carry)

    def integrate(self, problem: Problem, x: Tensor, t: float, s: float) -> Tensor:
        """One sample x (1, *) from t to s."""
        raise NotImplementedError

    def first(self, t: float, s: float) -> float | None:
        """``first_step`` within an interval."""
        return None if self.first_step is None else min(self.first_step, abs(s - t))


def velocity(problem: Problem, x: Tensor, t: float, within: tuple[float, float]) -> Tensor:
    """The probability-flow ODE's right-hand side at x (B, *); t is kept from rounding out of its interval."""
    if not math.isfinite(t):
        raise InputError("the model's predictions are not finite")
    node = problem.node(min(max(t, min(within)), max(within)))
    return problem.predict(x, node).velocity(node)


@solvers.register(
    "rk45",
    aliases=("ode",),
    kind="black box ODE",
    order=5,
    linear=False,
    adaptive=True,
    evaluations=6,
    reference="Dormand and Prince 1980, as scipy.integrate.RK45; Song et al. 2021, arXiv:2011.13456, appendix D.4",
    formula="an embedded 5(4) pair in t with error control",
)
@dataclass(frozen=True)
class RK45(BlackBox):
    """scipy's Dormand-Prince pair in float64, score_sde's black-box sampler."""

    def integrate(self, problem: Problem, x: Tensor, t: float, s: float) -> Tensor:
        def rhs(time: float, flat: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            state = torch.as_tensor(flat).to(x.device, x.dtype).view(x.shape)
            out: np.ndarray[Any, Any] = velocity(problem, state, float(time), (t, s)).flatten().double().cpu().numpy()
            return out

        start = x.detach().flatten().double().cpu().numpy()
        result = solve_ivp(
            rhs, (t, s), start, method="RK45", rtol=self.rtol, atol=self.atol, first_step=self.first(t, s)
        )
        if not result.success:
            raise InputError(f"{self} stopped at t={result.t[-1]:g}: {result.message}")
        return torch.as_tensor(result.y[:, -1]).to(x.device, x.dtype).view(x.shape)


@solvers.register(
    "dopri5",
    kind="black box ODE",
    order=5,
    linear=False,
    adaptive=True,
    evaluations=6,
    reference="Dormand and Prince 1980, as torchdiffeq's dopri5",
    formula="an embedded 5(4) pair in t with error control",
)
@dataclass(frozen=True)
class Dopri5(BlackBox):
    """torchdiffeq's Dormand-Prince pair, on the device and in the dtype of the state."""

    def integrate(self, problem: Problem, x: Tensor, t: float, s: float) -> Tensor:
        dtype = torch.float32 if x.device.type == "mps" else torch.float64  # MPS has no float64
        times = torch.tensor([t, s], dtype=dtype, device=x.device)
        # step_t: without it the last step overshoots s, where the path may not be defined, and is interpolated back
        options: dict[str, Any] = {"step_t": times[1:]}
        if (first := self.first(t, s)) is not None:
            options["first_step"] = first
        path: Tensor = odeint(
            lambda time, state: velocity(problem, state, float(time), (t, s)),
            x,
            times,
            method="dopri5",
            rtol=self.rtol,
            atol=self.atol,
            options=options,
        )
        return path[-1]
