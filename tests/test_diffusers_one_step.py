"""Parity with diffusers' one-step schedulers: DDPM, DDIM, Euler, Heun, KDPM2 and their kin, flow matching, SDE-VE.

Each scheduler is set to the plain method: no clipping, no thresholding.
"""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
    ScoreSdeVeScheduler,
)
from diffusers_oracle import (
    FLOW,
    PREDICTIONS,
    SCALED,
    STEPS,
    TOLERANCE,
    VE,
    Chain,
    InOrder,
    Model,
    chain_nodes,
    chain_parity,
    difference,
    network,
    parity,
    run,
    sigma_nodes,
    start,
)
from torch import Tensor

from solvers import Node, correctors, make, solve

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

GRIDS: tuple[dict[str, Any], ...] = (
    {"timestep_spacing": "leading"},
    {"timestep_spacing": "leading", "steps_offset": 1},
    {"timestep_spacing": "trailing"},
    {"timestep_spacing": "linspace"},
)
LEVELS: tuple[dict[str, Any], ...] = (
    *GRIDS,
    {"use_karras_sigmas": True},
    {"use_exponential_sigmas": True},
    {"use_beta_sigmas": True},
)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(
    ("variance", "solver"),
    [
        ("fixed_small", "ddpm"),
        ("fixed_small_log", "ddpm"),
        ("fixed_large", "ddpm(variance=beta)"),
    ],
)
def test_ddpm(variance: str, solver: str, steps: int) -> None:
    for grid, prediction in product(GRIDS, PREDICTIONS):
        if variance == "fixed_large" and (grid["timestep_spacing"] == "trailing" or "steps_offset" in grid):
            continue  # adds noise to the final sample: see test_diffusers_differences.py
        scheduler = DDPMScheduler(variance_type=variance, prediction_type=prediction, clip_sample=False, **grid)
        assert chain_parity(scheduler, solver, steps, 1.0) < TOLERANCE, (grid, prediction)


def test_ddpm_with_the_variance_between_its_two_bounds() -> None:
    # a learned_range network says where log v lies: -1 at beta_tilde's, 1 at beta's; here -0.4, the weight 0.3
    scheduler = DDPMScheduler(variance_type="learned_range", clip_sample=False, timestep_spacing="leading")
    scheduler.set_timesteps(10)
    plain = network("epsilon")

    def net(x: Tensor, t: float) -> Tensor:
        out = plain(x, t)
        return torch.cat([out, torch.full_like(out, -0.4)], dim=1)

    x = start()
    nodes = chain_nodes(scheduler, scheduler.timesteps.tolist(), 1.0)
    theirs = run(scheduler, net, x)[-1]
    solver = make("ddpm(variance=interpolated, interpolation=0.3)")
    ours = solve(solver, Chain(scheduler, plain, "epsilon"), x, nodes, InOrder(0, x.shape, x.dtype)).x
    assert difference(ours, theirs) < TOLERANCE


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim(eta: float, steps: int) -> None:
    # not linspace: its step goes to t - T // N, which is not the grid's next point
    for grid, prediction, to_one in product(GRIDS[:3], PREDICTIONS, (True, False)):
        if grid == GRIDS[0] and not to_one:
            continue  # its last step, from alphas_cumprod[0] to itself, is none
        scheduler = DDIMScheduler(set_alpha_to_one=to_one, prediction_type=prediction, clip_sample=False, **grid)
        last = float(scheduler.final_alpha_cumprod)
        assert chain_parity(scheduler, f"ddim(eta={eta})", steps, last, eta=eta) < TOLERANCE, (grid, prediction, to_one)


@pytest.mark.parametrize(
    ("scheduler", "solver", "predictions", "times"),
    [
        (EulerDiscreteScheduler, "euler", PREDICTIONS, 1000),
        (HeunDiscreteScheduler, "heun", PREDICTIONS, 1000),
        (KDPM2DiscreteScheduler, "dpm_2", PREDICTIONS[:2], 250),  # slow to make of 1000 times
        (KDPM2AncestralDiscreteScheduler, "dpm_2_ancestral", PREDICTIONS[:2], 250),
    ],
)
def test_noise_level_schedulers(scheduler: Any, solver: str, predictions: tuple[str, ...], times: int) -> None:
    for grid, prediction in product(LEVELS, predictions):
        made = scheduler(num_train_timesteps=times, prediction_type=prediction, **grid)
        for steps in STEPS:
            assert parity(made, solver, steps, path=SCALED) < TOLERANCE, (grid, prediction, steps)


@pytest.mark.parametrize("steps", STEPS)
def test_euler_ancestral(steps: int) -> None:
    for grid, prediction, solver in product(GRIDS, PREDICTIONS[:2], ("euler_ancestral", "ddim(eta=1)", "ddpm")):
        made = EulerAncestralDiscreteScheduler(prediction_type=prediction, **grid)
        assert parity(made, solver, steps, path=SCALED) < TOLERANCE, (grid, prediction, solver)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(
    "options",
    [
        {"final_sigmas_type": "sigma_min"},
        {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"},
        {"timestep_type": "continuous", "prediction_type": "v_prediction", "use_karras_sigmas": True},
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    ],
)
def test_euler_on_other_grids(options: dict[str, Any], steps: int) -> None:
    scheduler = EulerDiscreteScheduler(**{"timestep_spacing": "trailing"} | options)
    rate = 1.0 if "timestep_type" in options else 0.003
    reading = scheduler.config.prediction_type
    assert parity(scheduler, "euler", steps, path=SCALED, net=network(reading, rate)) < TOLERANCE


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("schedule", ["karras", "exponential"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_edm_euler(prediction: str, schedule: str, steps: int) -> None:
    scheduler = EDMEulerScheduler(sigma_schedule=schedule, prediction_type=prediction)
    assert parity(scheduler, "euler", steps, path=VE, data=0.5, net=network(prediction, 1.0)) < TOLERANCE


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_match_euler(shift: float, steps: int) -> None:
    # from 0.99: at sigma = 1, where alpha = 0, x / alpha has no value and our nodes refuse it
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=list(np.linspace(0.99, 0.01, steps)))
    nodes = sigma_nodes(scheduler, FLOW)
    assert parity(scheduler, "euler", steps, nodes=nodes, path=FLOW, reading="flow_prediction") < TOLERANCE


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_match_heun(shift: float, steps: int) -> None:
    scheduler = FlowMatchHeunDiscreteScheduler(shift=shift)
    scheduler.sigma_max = 0.99
    scheduler.set_timesteps(steps)
    nodes, reading = sigma_nodes(scheduler, FLOW), "flow_prediction"
    assert parity(scheduler, "heun(quantity=velocity)", steps, nodes=nodes, path=FLOW, reading=reading) < TOLERANCE
    assert difference(*(heun_on(nodes, quantity) for quantity in ("eps", "velocity"))) > 10 * TOLERANCE


def heun_on(nodes: tuple[Node, ...], quantity: str) -> Tensor:
    problem = Model(FLOW, network("flow_prediction"), "flow_prediction")
    return solve(make(f"heun(quantity={quantity})"), problem, start(), nodes).x


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("corrections", [1, 2])
def test_score_sde_ve(corrections: int, steps: int) -> None:
    # one sample, since its Langevin step is set by norms over the batch; in float32, the type of half of its draws
    scheduler = ScoreSdeVeScheduler(sigma_max=50.0, snr=0.15)
    scheduler.set_timesteps(steps)
    scheduler.set_sigmas(steps)
    net = network("score", 0.05)

    def score(x: Tensor, sigma: float) -> Tensor:
        return -net(x.double() / math.hypot(1, sigma), sigma) / math.hypot(1, sigma)

    x = (50 * start((1, 6))).float()
    generator = torch.Generator().manual_seed(0)
    theirs, out = x, None
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas.tolist(), strict=True):
        for _ in range(corrections):
            theirs = scheduler.step_correct(score(theirs, sigma).float(), theirs, generator=generator).prev_sample
        out = scheduler.step_pred(score(theirs, sigma).float(), t, theirs, generator=generator)
        theirs = out.prev_sample
    assert out is not None
    levels = [*scheduler.discrete_sigmas.double().flip(0).tolist(), 0.0]
    nodes = tuple(Node(t, 1.0, sigma) for t, sigma in zip([*scheduler.sigmas.tolist(), 0.0], levels, strict=True))
    problem, draws = Model(VE, score, "score"), InOrder(0, x.shape, torch.float32)
    solver = make(f"pc(predictor=reverse_diffusion, corrector=langevin(snr=0.15), corrector_steps={corrections})")
    ours = x.double()
    for _ in range(corrections):  # it corrects before each predictor step, we after: the first is extra
        ours = correctors.make("langevin(snr=0.15)").correct(problem, ours, nodes[0], draws)
    ours = solve(solver, problem, ours, nodes, draws).x
    assert difference(ours, out.prev_sample_mean.double()) < TOLERANCE
