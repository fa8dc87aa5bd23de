"""Parity with diffusers' multistep schedulers: LMS, PNDM, IPNDM, DPM-Solver, EDM DPM-Solver, DEIS.

Schedulers lower the order of their last steps below 15 steps; ``lower_order_final`` does it at any number.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    IPNDMScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
)
from diffusers_oracle import (
    EXACT,
    FLOW,
    PREDICTIONS,
    SCALED,
    STEPS,
    TOLERANCE,
    VE,
    VP,
    Model,
    angle,
    chain_parity,
    network,
    parity,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

SPACINGS: tuple[dict[str, Any], ...] = tuple({"timestep_spacing": s} for s in ("leading", "trailing", "linspace"))
TO_ZERO: tuple[dict[str, Any], ...] = (
    *SPACINGS,
    {"use_karras_sigmas": True},
    {"use_exponential_sigmas": True},
    {"use_beta_sigmas": True},
    {"use_lu_lambdas": True},
)
TO_LEAST: tuple[dict[str, Any], ...] = tuple({"final_sigmas_type": "sigma_min"} | grid for grid in SPACINGS)

# pndm and ipndm go to sigma = 0 at full order there, by Euler here: to compare the methods the last sigma is this
TINY = 1e-8


def lowered(solver: str, steps: int) -> str:
    """The spec with the orders of the last steps as the schedulers choose them."""
    option = f"lower_order_final={steps < 15}"
    return f"{solver[:-1]}, {option})" if solver.endswith(")") else f"{solver}({option})"


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_lms(order: int) -> None:
    for grid, prediction, steps in product(TO_ZERO[:4], PREDICTIONS, STEPS):
        scheduler = LMSDiscreteScheduler(prediction_type=prediction, **grid)
        value = parity(scheduler, f"lms(order={order})", steps, path=SCALED, order=order)
        assert value < TOLERANCE, (grid, prediction, steps)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(("skip", "solver"), [(True, "plms"), (False, "pndm")])
def test_pndm(skip: bool, solver: str, steps: int) -> None:
    # eps alone: it adds up outputs, which for v are not eps' multiples (test_diffusers_differences.py)
    grids = ({"timestep_spacing": "leading", "steps_offset": 1}, {"timestep_spacing": "trailing"})
    for grid, to_one in product(grids, (True, False)):
        scheduler = PNDMScheduler(skip_prk_steps=skip, set_alpha_to_one=to_one, **grid)
        last = float(scheduler.final_alpha_cumprod)
        assert chain_parity(scheduler, solver, steps, last, tiny=TINY) < TOLERANCE, (grid, to_one)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("end", [0.0, 0.02])
def test_ipndm(end: float, steps: int) -> None:
    # with noise levels of our choice: its own begin at alpha = 0, where its first step drops what the network says
    levels = np.sin(np.linspace(0.98, end, steps + 1) * np.pi / 2)
    scheduler = IPNDMScheduler(trained_betas=levels.tolist())
    scheduler.set_timesteps(steps)
    sigmas = [float(b) or TINY for b in scheduler.betas.double()]
    ratios = [b / math.sqrt(1 - b**2) for b in sigmas]
    nodes = tuple(angle(t, ratio) for t, ratio in zip([*scheduler.timesteps.tolist(), 0.0], ratios, strict=True))
    net = network("v_prediction", 2.0)
    problem = Model(VP, net, "v_prediction")
    assert parity(scheduler, "ipndm", steps, nodes=nodes, problem=problem, reading="v_prediction", net=net) < TOLERANCE


DPM = {
    "eps, order 1": ({"algorithm_type": "dpmsolver", "solver_order": 1}, "dpm_solver_1"),
    "eps, midpoint": ({"algorithm_type": "dpmsolver"}, "dpm_solver_2m"),
    "eps, heun": ({"algorithm_type": "dpmsolver", "solver_type": "heun"}, "dpm_solver_2m(variant=heun)"),
    "eps, order 3": (
        {"algorithm_type": "dpmsolver", "solver_order": 3},
        "dpm_solver_3m(variant=released, start=lower)",
    ),
    "x0, order 1": ({"solver_order": 1}, "dpm_solver_1"),
    "x0, midpoint": ({}, "dpmpp_2m"),
    "x0, heun": ({"solver_type": "heun"}, "dpmpp_2m(variant=heun)"),
    "x0, order 3": ({"solver_order": 3}, "dpmpp_3m(variant=released, start=lower)"),
    "eps, SDE, order 1": ({"algorithm_type": "sde-dpmsolver", "solver_order": 1}, "seeds_1(quantity=eps)"),
    "eps, SDE, midpoint": ({"algorithm_type": "sde-dpmsolver"}, "dpm_solver_2m(eta=1)"),
    "eps, SDE, heun": (
        {"algorithm_type": "sde-dpmsolver", "solver_type": "heun"},
        "dpm_solver_2m(eta=1, variant=heun)",
    ),
    "x0, SDE, order 1": ({"algorithm_type": "sde-dpmsolver++", "solver_order": 1}, "ddpm"),
    "x0, SDE, midpoint": ({"algorithm_type": "sde-dpmsolver++"}, "dpmpp_2m_sde"),
    "x0, SDE, heun": ({"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"}, "dpmpp_2m_sde(variant=heun)"),
    "x0, SDE, order 3": (
        {"algorithm_type": "sde-dpmsolver++", "solver_order": 3},
        "dpmpp_3m_sde(variant=flipped)",
    ),
}


def cases(name: str, grids: tuple[dict[str, Any], ...]) -> Iterator[tuple[dict[str, Any], int, str]]:
    """Flags, steps and our spec."""
    flags, solver = DPM[name]
    for grid, prediction, steps in product(grids, PREDICTIONS, STEPS):
        spec = solver if flags.get("solver_order") == 1 else lowered(solver, steps)
        yield flags | grid | {"prediction_type": prediction}, steps, spec


@pytest.mark.parametrize("name", DPM)
def test_dpm_solver_to_the_least_sigma(name: str) -> None:
    for flags, steps, solver in cases(name, TO_LEAST):
        value = parity(DPMSolverMultistepScheduler(**flags), solver, steps, draws=torch.float32)
        assert value < TOLERANCE, (flags, steps)


@pytest.mark.parametrize("name", [name for name in DPM if name.startswith("x0")])
def test_dpm_solver_to_zero(name: str) -> None:
    for flags, steps, solver in cases(name, TO_ZERO):
        value = parity(DPMSolverMultistepScheduler(**flags), solver, steps, draws=torch.float32)
        assert value < TOLERANCE, (flags, steps)


@pytest.mark.parametrize("name", [name for name in DPM if name.startswith("x0")])
def test_dpm_solver_on_flows(name: str) -> None:
    flags = DPM[name][0] | {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    for shift, steps in product((1.0, 3.0), STEPS):
        solver = DPM[name][1] if flags.get("solver_order") == 1 else lowered(DPM[name][1], steps)
        scheduler = DPMSolverMultistepScheduler(flow_shift=shift, **flags)
        assert parity(scheduler, solver, steps, path=FLOW, draws=torch.float32) < TOLERANCE, (shift, steps)


@pytest.mark.parametrize("name", [name for name in DPM if name.startswith("x0") and name != "x0, SDE, order 3"])
def test_edm_dpm_solver(name: str) -> None:
    # its third-order SDE has no formula
    for schedule, prediction, steps in product(("karras", "exponential"), PREDICTIONS[:2], STEPS):
        flags = DPM[name][0] | {"sigma_schedule": schedule, "prediction_type": prediction}
        solver = DPM[name][1] if flags.get("solver_order") == 1 else lowered(DPM[name][1], steps)
        for exact, bound in ((False, TOLERANCE), (True, EXACT)):
            scheduler = EDMDPMSolverMultistepScheduler(**flags)
            net = network(prediction, 1.0)
            value = parity(scheduler, solver, steps, path=VE, data=0.5, net=net, exact=exact)
            assert value < bound, (flags, steps, exact)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis(order: int) -> None:
    for grid, prediction, steps in product(SPACINGS, PREDICTIONS, STEPS):
        solver = lowered(f"deis(variant=logrho, order={order})", steps)
        scheduler = DEISMultistepScheduler(solver_order=order, prediction_type=prediction, **grid)
        assert parity(scheduler, solver, steps, exact=True) < EXACT, (grid, prediction, steps)
        if order < 3 or prediction == "epsilon":  # float32 loses the digits of the others' coefficients
            assert parity(scheduler, solver, steps) < TOLERANCE, (grid, prediction, steps)
