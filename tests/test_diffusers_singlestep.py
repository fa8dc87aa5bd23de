"""Parity with diffusers' single-step DPM-Solver, whose stages are the grid's own nodes, and its Brownian ones.

Those that ask torchsde for noise get independent draws here, so torchsde is not needed.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from diffusers import DPMSolverSinglestepScheduler
from diffusers_oracle import (
    EXACT,
    FLOW,
    PREDICTIONS,
    SCALED,
    STEPS,
    TOLERANCE,
    VE,
    InOrder,
    network,
    parity,
    start,
)
from torch import Tensor

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

NAMES = {("dpmsolver", 2): "dpm_solver_2", ("dpmsolver", 3): "dpm_solver_3"} | {
    ("dpmsolver++", 2): "dpmpp_2s",
    ("dpmsolver++", 3): "dpmpp_3s",
}
VARIANTS = {"midpoint": "dpmsolver", "heun": "taylor"}


def spec(algorithm: str, order: int, kind: str, low: bool) -> str:
    if order == 1:
        return "dpm_solver_1"
    return f"{NAMES[algorithm, order]}(mode=grid, variant={VARIANTS[kind]}, lower_order_final={low})"


@pytest.mark.parametrize("kind", ["midpoint", "heun"])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("algorithm", ["dpmsolver", "dpmsolver++"])
def test_dpm_solver_to_the_least_sigma(algorithm: str, order: int, kind: str) -> None:
    for low, prediction, steps in product((False, True), PREDICTIONS, (*STEPS, 12)):
        scheduler = DPMSolverSinglestepScheduler(
            algorithm_type=algorithm,
            solver_order=order,
            solver_type=kind,
            lower_order_final=low,
            prediction_type=prediction,
            final_sigmas_type="sigma_min",
        )
        solver = spec(algorithm, order, kind, low)
        assert parity(scheduler, solver, steps) < TOLERANCE, (low, prediction, steps)
        assert parity(scheduler, solver, steps, exact=True) < EXACT, (low, prediction, steps)


@pytest.mark.parametrize("kind", ["midpoint", "heun"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_dpm_solver_to_zero(order: int, kind: str) -> None:
    solver = spec("dpmsolver++", order, kind, True)
    grids: tuple[dict[str, Any], ...] = ({}, {"use_karras_sigmas": True}, {"use_exponential_sigmas": True})
    for grid, prediction, steps in product(grids, PREDICTIONS, (*STEPS, 12)):
        flags = {"solver_order": order, "solver_type": kind, "prediction_type": prediction} | grid
        assert parity(DPMSolverSinglestepScheduler(**flags), solver, steps) < TOLERANCE, (flags, steps)
    flags = {"solver_order": order, "solver_type": kind, "prediction_type": "flow_prediction", "use_flow_sigmas": True}
    for steps in STEPS:
        assert parity(DPMSolverSinglestepScheduler(**flags), solver, steps, path=FLOW) < TOLERANCE, steps


def test_dpm_solver_sde_of_order_one() -> None:
    for grid, prediction, steps in product(({}, {"use_karras_sigmas": True}), PREDICTIONS, STEPS):
        scheduler = DPMSolverSinglestepScheduler(
            algorithm_type="sde-dpmsolver++", solver_order=1, prediction_type=prediction, **grid
        )
        assert parity(scheduler, "ddpm", steps) < TOLERANCE, (grid, prediction, steps)


@pytest.mark.parametrize(("order", "kind"), [(2, "midpoint"), (2, "heun"), (3, "midpoint")])
def test_dpm_solver_sde(order: int, kind: str) -> None:
    # order 3 by heun has a wrong sign: test_diffusers_differences.py
    solver = f"{NAMES['dpmsolver++', order]}(mode=grid, variant={VARIANTS[kind]}, eta=1)"
    grids: tuple[dict[str, Any], ...] = ({}, {"use_karras_sigmas": True})
    for grid, prediction, steps in product(grids, PREDICTIONS, (*STEPS, 12)):
        flags = {"solver_order": order, "solver_type": kind, "prediction_type": prediction} | grid
        scheduler = DPMSolverSinglestepScheduler(algorithm_type="sde-dpmsolver++", **flags)
        assert parity(scheduler, solver, steps) < TOLERANCE, (flags, steps)
        assert parity(scheduler, solver, steps, exact=True) < EXACT, (flags, steps)


@pytest.fixture
def brownian(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Any]:
    """Imports a scheduler that needs torchsde, which an empty module stands in for."""

    def load(module: str, name: str) -> Any:
        if "torchsde" not in sys.modules:
            monkeypatch.setitem(sys.modules, "torchsde", types.ModuleType("torchsde"))
        return getattr(importlib.import_module(f"diffusers.schedulers.{module}"), name)

    return load


class Sampler:
    """The draws in order, under the name that those schedulers call; it survives their resets."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.draws = InOrder(0, shape, torch.float64)

    def __call__(self, sigma: Any, following: Any) -> Tensor:
        return self.draws(sigma, following)


def with_sampler(cls: Any, **flags: Any) -> Any:
    """A scheduler whose steps find our sampler."""
    scheduler = cls(**flags)
    plain = scheduler.set_timesteps

    def set_timesteps(steps: int) -> None:
        plain(steps)
        scheduler.noise_sampler = Sampler(tuple(start().shape))

    scheduler.set_timesteps = set_timesteps
    return scheduler


def draws() -> InOrder:
    return InOrder(0, tuple(start().shape), torch.float64)


def test_dpmpp_sde_with_independent_draws(brownian: Callable[[str, str], Any]) -> None:
    cls = brownian("scheduling_dpmsolver_sde", "DPMSolverSDEScheduler")
    for grid, prediction in product(({}, {"use_karras_sigmas": True}), PREDICTIONS[:2]):
        scheduler = with_sampler(cls, num_train_timesteps=250, prediction_type=prediction, **grid)
        for steps in STEPS:
            value = parity(scheduler, "dpmpp_sde(noise=independent)", steps, path=SCALED, draws=draws())
            assert value < TOLERANCE, (grid, prediction, steps)


@pytest.mark.parametrize(
    ("flags", "solver"),
    [
        ({"solver_order": 1}, "ddpm"),
        ({}, "dpmpp_2m_sde"),
        ({"solver_type": "heun"}, "dpmpp_2m_sde(variant=heun)"),
    ],
    ids=["order 1", "midpoint", "heun"],
)
def test_cosine_dpm_solver(brownian: Callable[[str, str], Any], flags: dict[str, Any], solver: str) -> None:
    # Stable Audio's: sde-dpmsolver++ on EDM's levels, with preconditioning and the time 2 atan(sigma) / pi
    cls = brownian("scheduling_cosine_dpmsolver_multistep", "CosineDPMSolverMultistepScheduler")
    for schedule, prediction, steps in product(("exponential", "karras"), PREDICTIONS[:2], STEPS):
        scheduler = with_sampler(cls, sigma_schedule=schedule, prediction_type=prediction, **flags)
        low = "" if flags.get("solver_order") == 1 else f"lower_order_final={steps < 15}"
        spec = solver if not low else f"{solver[:-1]}, {low})" if solver.endswith(")") else f"{solver}({low})"
        net = network(prediction, 2.0)
        value = parity(scheduler, spec, steps, path=VE, data=1.0, net=net, draws=draws())
        assert value < TOLERANCE, (schedule, prediction, steps)
