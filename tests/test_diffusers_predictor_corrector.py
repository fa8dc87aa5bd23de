"""Parity with diffusers' predictor-corrector multistep schedulers: UniPC and SA-Solver.

Both keep the type of the state, so that with float64 sigmas they agree with us to rounding.
"""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
from diffusers import SASolverScheduler, UniPCMultistepScheduler
from diffusers_oracle import EXACT, FLOW, PREDICTIONS, STEPS, TOLERANCE, parity

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

SPACINGS: tuple[dict[str, Any], ...] = tuple({"timestep_spacing": s} for s in ("leading", "trailing", "linspace"))
PAIRS = tuple(zip(SPACINGS, PREDICTIONS, strict=True))
TO_ZERO: tuple[dict[str, Any], ...] = (*SPACINGS, {"use_karras_sigmas": True}, {"use_exponential_sigmas": True})


@pytest.mark.parametrize("quantity", ["x0", "eps"])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_unipc_to_the_least_sigma(order: int, variant: str, quantity: str) -> None:
    for (grid, prediction), low, steps in product(PAIRS, (True, False), STEPS):
        scheduler = UniPCMultistepScheduler(
            solver_order=order,
            solver_type=variant,
            predict_x0=quantity == "x0",
            lower_order_final=low,
            final_sigmas_type="sigma_min",
            prediction_type=prediction,
            **grid,
        )
        solver = f"uni_pc(order={order}, variant={variant}, quantity={quantity}, lower_order_final={low})"
        assert parity(scheduler, solver, steps, exact=True) < EXACT, (grid, prediction, low, steps)
        if low and (order < 3 or quantity == "x0"):  # float32 loses the digits of the others' coefficients
            assert parity(scheduler, solver, steps) < TOLERANCE, (grid, prediction, low, steps)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_to_zero(order: int) -> None:
    # bh2 alone: with bh1 its last step is infinity times 0; the orders of the last steps fall, as by default
    solver = f"uni_pc_bh2(order={order}, lower_order_final=True)"
    for grid, prediction, steps in product(TO_ZERO, PREDICTIONS, STEPS):
        scheduler = UniPCMultistepScheduler(solver_order=order, prediction_type=prediction, **grid)
        assert parity(scheduler, solver, steps) < TOLERANCE, (grid, prediction, steps)
    for shift, steps in product((1.0, 3.0), STEPS):
        scheduler = UniPCMultistepScheduler(
            solver_order=order, prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
        )
        assert parity(scheduler, solver, steps, path=FLOW) < TOLERANCE, (shift, steps)


def test_unip_without_the_corrector() -> None:
    for order, steps in product((2, 3), STEPS):
        scheduler = UniPCMultistepScheduler(solver_order=order, disable_corrector=list(range(steps)))
        solver = f"uni_pc_bh2(order={order}, correct=False, lower_order_final=True)"
        assert parity(scheduler, solver, steps) < TOLERANCE, (order, steps)


# tau, and the times between which it holds
STRENGTHS = ((0.0, 0, 1000), (1.0, 0, 1000), (0.6, 0, 1000), (1.0, 200, 800))


def sa_solver(predictor: int, corrector: int, quantity: str, strength: tuple[float, int, int], **flags: Any) -> Any:
    """The scheduler, and the options of our solver."""
    tau, low, high = strength
    scheduler = SASolverScheduler(
        predictor_order=predictor,
        corrector_order=corrector,
        algorithm_type="data_prediction" if quantity == "x0" else "noise_prediction",
        tau_func=lambda t: tau if low <= t <= high else 0,
        **flags,
    )
    squares = scheduler.alphas_cumprod.double()
    ends = [0.0, math.inf]
    if low:
        ends = [((1 - squares[t]) / squares[t]).sqrt().item() for t in (low, high)]
        ends = [ends[0] * (1 - 1e-6), ends[1] * (1 + 1e-6)]  # the scheduler's are rounded to float32
    return scheduler, {
        "predictor_order": predictor,
        "corrector_order": corrector,
        "eta": tau,
        "ratios": tuple(ends),
        "quantity": quantity,
        "lower_order_final": flags.get("lower_order_final", True),
    }


def spec(options: dict[str, Any]) -> str:
    inside = ", ".join(f"{k}={list(v) if isinstance(v, tuple) else v}" for k, v in options.items())
    return f"sa_solver({inside})"


@pytest.mark.parametrize("strength", STRENGTHS, ids=str)
@pytest.mark.parametrize(("predictor", "corrector"), [(1, 1), (1, 2), (2, 2), (2, 3), (3, 3), (3, 4), (4, 4)])
def test_sa_solver_in_eps(predictor: int, corrector: int, strength: tuple[float, int, int]) -> None:
    # at corrector order 4 only without lower_order_final, which there lowers the last corrector as well
    for (grid, prediction), low, steps in product(PAIRS, (True, False), STEPS):
        if low and corrector == 4:
            continue
        flags = grid | {"prediction_type": prediction, "lower_order_final": low}
        scheduler, options = sa_solver(predictor, corrector, "eps", strength, **flags)
        assert parity(scheduler, spec(options), steps, exact=True) < EXACT, (grid, prediction, low, steps)


@pytest.mark.parametrize("strength", STRENGTHS, ids=str)
def test_sa_solver_in_x0(strength: tuple[float, int, int]) -> None:
    # orders 1 and 1; where two predictions meet, it weighs their difference otherwise: test_diffusers_differences.py
    for (grid, prediction), low, steps in product(PAIRS, (True, False), STEPS):
        flags = grid | {"prediction_type": prediction, "lower_order_final": low}
        scheduler, options = sa_solver(1, 1, "x0", strength, **flags)
        assert parity(scheduler, spec(options), steps, exact=True) < EXACT, (grid, prediction, low, steps)
        assert parity(scheduler, spec(options), steps) < TOLERANCE, (grid, prediction, low, steps)
