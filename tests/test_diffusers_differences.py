"""Where diffusers' schedulers and our solvers differ, and that the difference is the one named, and no other.

Some are defects of theirs; some are choices that we do not offer, which a few lines here stand in for.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from diffusers import (
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EDMDPMSolverMultistepScheduler,
    IPNDMScheduler,
    PNDMScheduler,
    SASolverScheduler,
    UniPCMultistepScheduler,
)
from diffusers_oracle import (
    EXACT,
    PREDICTIONS,
    STEPS,
    TOLERANCE,
    Chain,
    Draws,
    chain_nodes,
    chain_parity,
    difference,
    network,
    parity,
    run,
    start,
)

from solvers import grid, make, resolve, solve
from solvers.conformance.convergence import terminal_variance
from solvers.conformance.problems import VP, GaussianData

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddpm_of_large_variance_adds_noise_to_the_data_unless_its_last_time_is_0(prediction: str) -> None:
    scheduler = DDPMScheduler(
        variance_type="fixed_large", timestep_spacing="trailing", prediction_type=prediction, clip_sample=False
    )
    scheduler.set_timesteps(10)
    times = scheduler.timesteps.tolist()
    nodes, net, x = chain_nodes(scheduler, times, 1.0), network(prediction), start()
    draws = Draws(0, x.shape, x.dtype, nodes)
    ours = solve(make("ddpm(variance=beta)"), Chain(scheduler, net, prediction), x, nodes, draws).x
    extra = (1 - float(scheduler.alphas_cumprod[times[-1]])) ** 0.5 * draws(nodes[-2], nodes[-1])
    assert difference(ours + extra, run(scheduler, net, x)[-1]) < TOLERANCE


@pytest.mark.parametrize(("skip", "solver"), [(True, "plms"), (False, "pndm")])
def test_pndm_adds_up_v_as_if_it_were_eps(skip: bool, solver: str) -> None:
    flags: dict[str, Any] = {"skip_prk_steps": skip, "timestep_spacing": "trailing"}
    scheduler = PNDMScheduler(prediction_type="v_prediction", **flags)
    last = float(scheduler.final_alpha_cumprod)
    assert chain_parity(scheduler, solver, 25, last) > 0.05
    # the same network as eps: what the method asks for
    scheduler = PNDMScheduler(**flags)
    scheduler.set_timesteps(25)
    problem = Chain(scheduler, network("v_prediction"), "v_prediction")
    nodes = chain_nodes(scheduler, [int(t) for t in scheduler._timesteps[::-1]], last)
    x = start()
    theirs = run(scheduler, lambda x, t: problem.predict(x.double(), problem.node(t)).eps, x)[-1]
    assert difference(solve(make(solver), problem, x, nodes).x, theirs) < TOLERANCE


@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_bh1_has_no_last_step_to_zero(order: int) -> None:
    scheduler = UniPCMultistepScheduler(solver_order=order, solver_type="bh1")
    assert parity(scheduler, f"uni_pc(order={order}, lower_order_final=True)", 10) == float("inf")


def test_ipndm_drops_what_the_network_says_at_pure_noise() -> None:
    scheduler, x = IPNDMScheduler(), start()
    scheduler.set_timesteps(10)
    for reading in ("v_prediction", "sample"):  # two networks, one state: beta x, where x0 = -v would add -alpha v
        first = run(scheduler, network(reading, 2.0), x)[0]
        scheduler.set_timesteps(10)
        assert difference(first, float(scheduler.betas[1]) * x) < TOLERANCE


@pytest.mark.parametrize(
    ("cls", "flags"),
    [
        (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min"}),
        (EDMDPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
    ],
)
def test_two_third_order_sdes_have_no_formula(cls: Any, flags: dict[str, str]) -> None:
    scheduler = cls(solver_order=3, **flags)
    scheduler.set_timesteps(10)
    with pytest.raises(UnboundLocalError):
        run(scheduler, network("epsilon"), start())


@pytest.mark.parametrize(("predictor", "corrector"), [(1, 2), (2, 1), (2, 2), (2, 3), (3, 3), (3, 4)])
@pytest.mark.parametrize("tau", [0.0, 0.6, 1.0])
def test_sa_solver_weighs_two_predictions_of_x0_as_unipc_bh1(tau: float, predictor: int, corrector: int) -> None:
    for prediction, low, steps in product(PREDICTIONS, (True, False), STEPS):
        scheduler = SASolverScheduler(
            predictor_order=predictor,
            corrector_order=corrector,
            tau_func=lambda t: tau,
            prediction_type=prediction,
            lower_order_final=low,
        )
        orders = f"predictor_order={predictor}, corrector_order={corrector}, eta={tau}, lower_order_final={low}"
        ours = f"sa_solver(variant=few_steps, {orders})"
        assert parity(scheduler, ours, steps, exact=True) < EXACT, (prediction, low, steps)


def test_third_order_single_step_sde_by_heun_has_a_wrong_sign_and_does_not_converge() -> None:
    # 1/2 is subtracted in phi3 = 1/2 - 1 / H + (1 - e^-H) / H^2, whose factor, of stages with noise apart, is O(h^1/2)
    flags = {"algorithm_type": "sde-dpmsolver++", "solver_order": 3, "solver_type": "heun"}
    solver, _ = resolve(f"DPMSolverSinglestepScheduler({', '.join(f'{key}={value}' for key, value in flags.items())})")
    assert make(solver) == make("dpmpp_3s(mode=grid, variant=flipped, eta=1)")
    assert make(solver).order == 0
    for prediction, steps in product(PREDICTIONS, (*STEPS, 12)):
        scheduler = DPMSolverSinglestepScheduler(**flags, prediction_type=prediction)
        assert parity(scheduler, solver, steps, exact=True) < EXACT, (prediction, steps)
    problem, errors = GaussianData(VP), []
    for steps in (160, 640):
        nodes = grid("logsnr", VP, steps)
        errors.append(terminal_variance(make(solver), problem, nodes) / problem.variance(nodes[-1]) - 1)
    assert min(errors) > 10  # no less on the finer grid; with the right sign 9% and 2%
