"""Configs of diffusers' classes in a loop: our object's samples are those of the class itself."""

import inspect

import diffusers
import numpy as np
import pytest
import torch
from foreign_loops import CHAIN, denoiser, gap, loop, network, seeded, solved, start

import solvers
from scoresde import InputError
from scoresde.interop import DiffusersScheduler
from solvers.foreign import diffusers as labels

STABLE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
# the class's own flags that its solver depends on
KNOWN = labels.FLAGS | labels.MODEL_FLAGS
SIGMA_MIN = {"final_sigmas_type": "sigma_min"}
# diffusers keeps float32 sigmas; a label between two nodes is on a straight line there, on a cubic here; and some of
# its classes round the labels of the karras, exponential and beta levels. The ends alone make differences above 1e-2
TOLERANCE = 1e-3


def pair(name, steps, **config):
    """A class's scheduler and ours of its config and its solver, both with ``steps`` steps."""
    if name == "SASolverScheduler":  # draws at every step, even where its noise is 0; ours only where it is not
        config["tau_func"] = lambda t: 0.0
    theirs = getattr(diffusers, name)(**config)
    flags = {key: value for key, value in theirs.config.items() if key in KNOWN and value is not None}
    if name.startswith(("DPMSolverMultistep", "DEIS")):
        flags["lower_order_final"] = steps < 15  # as the class does
    spec = labels.read(name, ", ".join(f"{key}={value!r}" for key, value in flags.items()))[0]
    spec = spec[:-1] + ", eta=0)" if "tau_func" in config else spec
    ours = DiffusersScheduler(spec, theirs)
    theirs.set_timesteps(steps)
    ours.set_timesteps(steps)
    return theirs, ours


def alphas(scheduler):
    """alpha at a scheduler's first and last state, if it divides states by alpha, else 1."""
    if not type(scheduler).__name__.startswith(("Euler", "Heun", "KDPM2", "LMS")):
        return 1.0, 1.0
    return tuple((1 + sigma**2) ** -0.5 for sigma in (scheduler.sigmas[0].item(), scheduler.sigmas[-1].item()))


def difference(theirs, ours):
    """The relative difference of the results of two loops over one network from one state."""
    (first, last), x = alphas(theirs), (start() * ours.init_noise_sigma).float()  # some draw in float32 only
    answer = x / first
    given = {"generator": seeded(2)} if "generator" in inspect.signature(theirs.step).parameters else {}
    for t in theirs.timesteps:
        asked = theirs.scale_model_input(answer, t)
        answer = theirs.step(network(asked, t.expand(len(asked))), t, answer, **given).prev_sample
    return gap(loop(ours, x, seeded(2)), last * answer)


ENDS = [
    ("SASolverScheduler", {}),
    ("SASolverScheduler", {"use_karras_sigmas": True}),
    ("SASolverScheduler", {"use_exponential_sigmas": True}),
    ("SASolverScheduler", {"use_beta_sigmas": True}),
    ("DEISMultistepScheduler", {}),
    ("DEISMultistepScheduler", {"use_karras_sigmas": True}),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True, **SIGMA_MIN}),
    ("EulerDiscreteScheduler", {"timestep_spacing": "leading", **SIGMA_MIN}),
    ("DPMSolverMultistepScheduler", {"use_beta_sigmas": True, **SIGMA_MIN}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", **SIGMA_MIN}),
    ("DDIMScheduler", {"set_alpha_to_one": False, "clip_sample": False}),
    ("PNDMScheduler", {"skip_prk_steps": True}),
]


@pytest.mark.parametrize(("name", "flags"), ENDS, ids=str)
@pytest.mark.parametrize("steps", [10, 20])
def test_a_config_ends_where_its_class_ends(name, flags, steps):
    theirs, ours = pair(name, steps, **STABLE, **flags)
    assert len(ours.timesteps) == len(theirs.timesteps)
    assert difference(theirs, ours) < TOLERANCE


@pytest.mark.parametrize("solver", ["heun", "dpmpp_3m", "deis(variant=logrho)", "adams(order=4)", "dpmpp_2m_sde"])
def test_a_repeated_level_moves_the_state_only_by_a_corrector(solver):
    def end(spec, grid, steps):
        return solved(denoiser(), spec, solvers.grid(grid, CHAIN, steps), start(), seeded())

    # noise of variance 2e-9 sigma^2, sigma = 0.01
    assert gap(end(solver, "karras(end=repeat)", 12), end(solver, "karras(end=t_min)", 11)) < 1e-6
    corrected = end("uni_pc", "karras(end=repeat)", 12)
    assert bool(corrected.isfinite().all())
    assert 1e-3 < gap(corrected, end("uni_pc", "karras(end=t_min)", 11)) < 0.1


def test_edms_levels_end_where_its_class_ends():
    theirs, ours = pair("EDMEulerScheduler", 10, **SIGMA_MIN)
    assert ours.sigmas.tolist() == pytest.approx(theirs.sigmas.tolist(), rel=1e-5)
    assert difference(theirs, ours) < TOLERANCE
    # theirs calls a network whose output has the other sign v_prediction
    assert difference(*pair("EDMEulerScheduler", 10, prediction_type="v_prediction")) < TOLERANCE
    saved = DiffusersScheduler.from_config(pair("EDMEulerScheduler", 10, prediction_type="v_prediction")[1].config)
    assert (saved.config.prediction_type, saved._reading.sign) == ("v_prediction", -1)


UNROUNDED = [
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
]


@pytest.mark.parametrize("name", UNROUNDED)
def test_linspace_is_rounded_only_where_the_class_rounds(name):
    theirs, ours = pair(name, 8, **STABLE, timestep_spacing="linspace")  # 999 / 7 is no whole number
    if name != "KDPM2DiscreteScheduler":  # its stages lie between two nodes
        assert ours.timesteps.tolist() == pytest.approx(theirs.timesteps.tolist(), abs=1e-3)
    assert difference(theirs, ours) < TOLERANCE


def test_lists_keep_the_configs_end():
    labelled = [900, 500, 100, 7]
    theirs = diffusers.EulerDiscreteScheduler(**STABLE, **SIGMA_MIN)
    ours = DiffusersScheduler("euler", theirs)
    theirs.set_timesteps(timesteps=labelled)
    ours.set_timesteps(timesteps=labelled)
    assert ours.sigmas.tolist() == pytest.approx(theirs.sigmas.tolist(), rel=1e-4)
    assert difference(theirs, ours) < TOLERANCE
    # the list of a scheduler's own sigmas contains the end, once or twice
    for spacing in ("leading", "linspace"):
        theirs, ours = pair("EulerDiscreteScheduler", 10, **STABLE, **SIGMA_MIN, timestep_spacing=spacing)
        levels = ours.sigmas
        ours.set_timesteps(sigmas=theirs.sigmas)
        assert ours.sigmas.tolist() == pytest.approx(levels.tolist(), rel=1e-4)
    deis = DiffusersScheduler("ddim", diffusers.DEISMultistepScheduler(use_flow_sigmas=True, flow_shift=3.0))
    deis.set_timesteps(8)
    theirs = diffusers.DEISMultistepScheduler(use_flow_sigmas=True, flow_shift=3.0)
    theirs.set_timesteps(8)
    assert deis.sigmas[1:].tolist() == pytest.approx(theirs.sigmas[1:].tolist(), rel=1e-5)


@pytest.mark.parametrize("solver", ["euler", "heun(quantity=velocity)", "dpmpp_2m", "adams(quantity=velocity)"])
def test_a_flow_begins_at_noise_where_the_method_is_finite_there(solver):
    ours = DiffusersScheduler(solver, diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0))
    ours.set_timesteps(10)
    assert ours.timesteps[0] == 1000
    assert ours.sigmas[0].item() == pytest.approx(1, abs=2e-6)
    # straight paths from noise to one point: exact from sigma = 1, off by the share of x0 that starts later leave out
    point, eps = torch.full((2, 3), 1.7, dtype=torch.float64), start((2, 3))
    x = eps
    for t in ours.timesteps:
        x = ours.step((x - point) / max(t.item() / 1000, 1e-9), t, x).prev_sample
    assert gap(x, point) < 1e-5  # 1 stands for 1 - 1e-6


@pytest.mark.parametrize(
    ("name", "solver"),
    [("FlowMatchEulerDiscreteScheduler", "euler"), ("FlowMatchHeunDiscreteScheduler", "heun(quantity=velocity)")],
)
def test_a_flow_is_that_of_its_class(name, solver):
    theirs = getattr(diffusers, name)(shift=3.0)
    ours = DiffusersScheduler(solver, theirs)
    sigmas = None
    if "Heun" in name:  # its class shifts its levels twice, ours once
        theirs.set_timesteps(10)
        sigmas = [s / (3 - 2 * s) for s in dict.fromkeys(theirs.sigmas.tolist()[:-1])]
    else:
        theirs.set_timesteps(10)
    ours.set_timesteps(None if sigmas else 10, sigmas=sigmas)
    x = start()
    answer = x
    for t in theirs.timesteps:
        answer = theirs.step(network(answer, t.expand(len(answer))), t, answer).prev_sample
    assert gap(loop(ours, x), answer) < 1e-5  # float32 levels


def test_what_training_scripts_read():
    for theirs in (diffusers.DDPMScheduler(), diffusers.EulerDiscreteScheduler(**STABLE)):
        ours = DiffusersScheduler("dpmpp_2m", theirs)
        assert torch.allclose(ours.betas, theirs.betas, rtol=1e-6)
        assert torch.allclose(ours.alphas_cumprod, theirs.alphas_cumprod, rtol=1e-5)
        x0, eps, at = start((3, 2)), start((3, 2)).flip(0), torch.tensor([3, 500, 999])
        v = diffusers.DDPMScheduler(**{k: theirs.config[k] for k in STABLE}).get_velocity(x0, eps, at)
        assert gap(ours.get_velocity(x0, eps, at), v) < 1e-4  # 1 - alpha^2 at label 3 keeps 4 digits in float32
        assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    assert ours.sigmas.tolist() == pytest.approx(theirs.sigmas.tolist(), rel=1e-4)
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    ours = DiffusersScheduler("euler", theirs)
    assert ours.timesteps.tolist() == pytest.approx(theirs.timesteps.tolist(), rel=1e-6)
    assert ours.sigmas[:-1].tolist() == pytest.approx(theirs.sigmas.tolist(), rel=2e-6)
    assert "alphas_cumprod" not in dir(ours) or not hasattr(ours, "alphas_cumprod")  # no chain


def test_without_set_timesteps_the_timesteps_are_all_of_the_networks():
    theirs = diffusers.DDPMScheduler(num_train_timesteps=40, beta_end=0.3, clip_sample=False)
    ours = DiffusersScheduler("ddpm", theirs)
    x = start()
    answer, generator = x, seeded()
    for t in theirs.timesteps:
        answer = theirs.step(network(answer, t.expand(2)), t, answer, generator=generator).prev_sample
    assert gap(loop(ours, x, seeded()), answer) < TOLERANCE
    assert ours.num_inference_steps == 40


@pytest.mark.parametrize("ratio", [0.5, 0.9])
def test_thresholding(ratio):
    flags = {"thresholding": True, "dynamic_thresholding_ratio": ratio, "sample_max_value": 1.4}
    theirs, ours = pair("DPMSolverMultistepScheduler", 20, **STABLE, **flags)
    free = pair("DPMSolverMultistepScheduler", 20, **STABLE)[1]
    assert difference(theirs, ours) < TOLERANCE
    assert gap(loop(ours, 3 * start()), loop(free, 3 * start())) > 0.1


def test_lists_of_numpy_and_bad_lists():
    ours = DiffusersScheduler("euler", diffusers.EulerDiscreteScheduler(**STABLE, **SIGMA_MIN))
    ours.set_timesteps(sigmas=np.array([10.0, 1.0]))
    assert ours.sigmas.tolist() == pytest.approx([10, 1, 0.02916], rel=1e-3)
    with pytest.raises(InputError, match="sigmas must be a list of finite numbers"):
        ours.set_timesteps(sigmas=[0.0])
