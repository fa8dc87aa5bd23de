"""diffusers' classes with their flags: each leads to the solver, the options and the grid that it means there."""

import inspect

import diffusers
import pytest
import torch
from diffusers.schedulers.deprecated import scheduling_karras_ve, scheduling_sde_vp
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers
from diffusers_oracle import SCALED, TOLERANCE, VP, parity

import scoresde
import solvers
from solvers import InputError, grids, resolve
from solvers.foreign import diffusers as classes
from solvers.registry.spec import parse


def class_of(name):
    """diffusers' class, those that it keeps apart as deprecated included."""
    homes = (scheduling_karras_ve, scheduling_sde_vp, diffusers)
    return next(getattr(home, name) for home in homes if name in dir(home))


@pytest.mark.parametrize("name", classes.CLASSES)
def test_a_class_of_diffusers_has_a_counterpart(name):
    solvers.make(classes.CLASSES[name])
    assert classes.read(name, "") == (classes.CLASSES[name], None)


@pytest.mark.parametrize("key", [*classes.MULTISTEP, *classes.SINGLESTEP])
def test_an_algorithm_of_diffusers_has_a_counterpart(key):
    for table in (classes.MULTISTEP, classes.SINGLESTEP):
        if key in table:
            solvers.make(table[key])


def test_diffusers_classes_and_flags_are_all_known():
    assert {member.name for member in KarrasDiffusionSchedulers} <= classes.CLASSES.keys()
    for name in classes.CLASSES:
        flags = set(inspect.signature(class_of(name).__init__).parameters) - {"self"}
        if "kwargs" not in flags:  # as classes have whose own requirements are not installed
            assert flags <= classes.FLAGS | classes.REFUSED | classes.MODEL_FLAGS | classes.CHURN.keys(), name


@pytest.mark.parametrize("name", classes.CLASSES)
def test_a_whole_configuration_of_diffusers_resolves(name):
    given = inspect.signature(class_of(name).__init__).parameters
    if "kwargs" in given:  # as classes have whose own requirements are not installed
        pytest.skip(f"{name} is not installed")
    flags = {key: p.default for key, p in given.items() if p.default is not p.empty}
    flags.pop("clip_sample", None)  # on by default in some, and no part of a solver
    solver, grid = resolve(f"{name}({', '.join(f'{key}={value}' for key, value in flags.items())})")
    assert parse(solver).name == parse(classes.CLASSES[name]).name
    if grid is not None:
        assert len(solvers.grid(grid, scoresde.VP(), 10)) == 11


@pytest.mark.parametrize("name", classes.LOWERING)
def test_what_lowers_its_last_order_says_so(name):
    assert "lower_order_final" in solvers.info(name).options


TO_LEAST = {"final_sigmas_type": "sigma_min"}
NOISY = "ratios=[0.721435, 25.8407]"  # between the times 199 and 200, and 800 and 801, of the default betas
DIFFUSERS = {
    "DPMSolverMultistepScheduler": ("dpmpp_2m", None),
    "DPMSolverMultistepScheduler(algorithm_type=sde-dpmsolver++, solver_order=2, use_karras_sigmas=True, "
    "solver_type=heun)": ("dpmpp_2m_sde(variant=heun)", "karras"),
    "DPMSolverMultistepScheduler(algorithm_type='dpmsolver', solver_order=3)": (
        "dpm_solver_3m(variant=released, start=lower)",
        None,
    ),
    "DPMSolverSinglestepScheduler(algorithm_type=sde-dpmsolver++, solver_order=3, solver_type=heun)": (
        "dpmpp_3s(mode=grid, eta=1.0, variant=flipped)",
        None,
    ),
    "DPMSolverMultistepScheduler(use_lu_lambdas=True)": ("dpmpp_2m", "logsnr(end=zero)"),
    "DPMSolverMultistepScheduler(use_exponential_sigmas=True, final_sigmas_type=sigma_min)": (
        "dpmpp_2m",
        "logsnr(end=repeat)",
    ),
    "DPMSolverMultistepScheduler(use_beta_sigmas=True, lower_order_final=True)": (
        "dpmpp_2m(lower_order_final=True)",
        "beta",
    ),
    "DPMSolverMultistepScheduler(use_flow_sigmas=True, flow_shift=3)": ("dpmpp_2m", "flow_shift(shift=3.0)"),
    "DPMSolverMultistepScheduler(timestep_spacing=leading, steps_offset=1)": (
        "dpmpp_2m",
        "leading(steps_offset=1, skip_last=True)",
    ),
    "DPMSolverMultistepScheduler(algorithm_type=sde-dpmsolver, solver_order=1)": ("seeds_1(quantity=eps)", None),
    "DPMSolverSinglestepScheduler(solver_order=3, solver_type=heun)": ("dpmpp_3s(mode=grid, variant=taylor)", None),
    "DPMSolverSinglestepScheduler(lower_order_final=True)": ("dpmpp_2s(mode=grid, lower_order_final=True)", None),
    "DPMSolverSinglestepScheduler(algorithm_type=dpmsolver, solver_order=3, lower_order_final=True)": (
        "dpm_solver_3(mode=grid, lower_order_final=True)",
        None,
    ),
    "DPMSolverSinglestepScheduler(algorithm_type=sde-dpmsolver++, solver_type=heun)": (
        "dpmpp_2s(mode=grid, eta=1.0, variant=taylor)",
        None,
    ),
    "DPMSolverSinglestepScheduler(algorithm_type=sde-dpmsolver++, solver_order=3)": (
        "dpmpp_3s(mode=grid, eta=1.0)",
        None,
    ),
    "EDMDPMSolverMultistepScheduler(rho=5)": ("dpmpp_2m", "karras(rho=5)"),
    "EDMEulerScheduler(rho=7.0, sigma_schedule=exponential)": ("euler", "logsnr(end=zero)"),
    "DEISMultistepScheduler(solver_order=3)": ("deis(variant=logrho, order=3)", None),
    "UniPCMultistepScheduler(solver_type=bh1, solver_order=3, predict_x0=False)": (
        "uni_pc(order=3, quantity=eps, lower_order_final=True)",
        None,
    ),
    "UniPCMultistepScheduler": ("uni_pc_bh2(order=2, lower_order_final=True)", None),
    "UniPCMultistepScheduler(lower_order_final=False)": ("uni_pc_bh2(order=2)", None),
    "SASolverScheduler(predictor_order=3, corrector_order=4)": (
        f"sa_solver(predictor_order=3, corrector_order=4, variant=few_steps, {NOISY}, lower_order_final=True)",
        None,
    ),
    "SASolverScheduler(algorithm_type=noise_prediction, lower_order_final=False, timestep_spacing=linspace)": (
        f"sa_solver(predictor_order=2, corrector_order=2, quantity=eps, {NOISY})",
        "linspace(end=repeat, skip_last=True)",
    ),
    "PNDMScheduler(skip_prk_steps=True)": ("plms", None),
    "DDPMScheduler(variance_type=fixed_large)": ("ddpm(variance=beta)", None),
    "DDIMScheduler(timestep_spacing=trailing, beta_schedule=scaled_linear)": ("ddim", "trailing"),
    "DDIMScheduler(set_alpha_to_one=False, steps_offset=1)": ("ddim", "leading(end=repeat, steps_offset=1)"),
    "DDIMScheduler(set_alpha_to_one=False)": ("ddim", "leading(end=repeat)"),
    "DDIMScheduler(set_alpha_to_one=True)": ("ddim", None),
    "PNDMScheduler(timestep_spacing=trailing)": ("pndm", "trailing(end=repeat)"),  # not to one is its default
    "PNDMScheduler(timestep_spacing=trailing, set_alpha_to_one=True)": ("pndm", "trailing"),
    "DPMSolverMultistepScheduler(euler_at_final=True)": ("final(solver=dpmpp_2m, last=ddim)", None),
    "DPMSolverMultistepScheduler(euler_at_final=True, algorithm_type=sde-dpmsolver++, final_sigmas_type=sigma_min, "
    "use_karras_sigmas=True)": ("final(solver=dpmpp_2m_sde, last=euler_ancestral)", "karras(end=repeat)"),
    "UniPCMultistepScheduler(disable_corrector=[])": ("uni_pc_bh2(order=2, lower_order_final=True)", None),
    "UniPCMultistepScheduler(disable_corrector=[all])": (
        "uni_pc_bh2(order=2, correct=False, lower_order_final=True)",
        None,
    ),
    "DDIMScheduler(steps_offset=1, clip_sample=False)": ("ddim", "leading(steps_offset=1)"),
    "EulerDiscreteScheduler(timestep_spacing=linspace, num_train_timesteps=100)": (
        "euler",
        "linspace(rounding=none, num_train_timesteps=100)",
    ),
    "FlowMatchHeunDiscreteScheduler": ("heun(quantity=velocity)", None),
    "FlowMatchEulerDiscreteScheduler(shift=3.0, shift_terminal=0.1)": (
        "euler",
        "flow_shift(shift=3.0, shift_terminal=0.1)",
    ),
    "KarrasVeScheduler": ("churn(s_churn=80.0, s_tmin=0.05, s_tmax=50.0, s_noise=1.007)", None),
    "KarrasVeScheduler(s_churn=40, s_max=10)": (
        "churn(s_churn=40.0, s_tmin=0.05, s_tmax=10.0, s_noise=1.007)",
        None,
    ),
    "DDIMInverseScheduler(timestep_spacing=leading)": ("ddim", None),
    "DPMSolverMultistepInverseScheduler(use_karras_sigmas=True)": ("dpmpp_2m", "karras(end=t_min)"),
    "CogVideoXDDIMScheduler(snr_shift_scale=1.0, timestep_spacing=trailing)": ("ddim", "trailing"),
    "UnCLIPScheduler(variance_type=fixed_small_log)": ("ddpm", None),
    "DDPMWuerstchenScheduler": ("ddpm", None),
    "ScoreSdeVpScheduler(beta_max=20)": ("euler_maruyama", None),
    "ScoreSdeVeScheduler(snr=0.2, correct_steps=2)": ("pc(corrector=langevin(snr=0.2), corrector_steps=2)", None),
}


@pytest.mark.parametrize(("label", "parts"), DIFFUSERS.items())
def test_a_class_and_its_flags_mean(label, parts):
    solver, grid = parts
    assert resolve(label) == parts
    solvers.make(solver)
    if grid is None:
        assert solvers.make(label) == solvers.make(solver)
    else:
        grids.make(grid)


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("DEISMultistepScheduler", {}),
        ("DPMSolverMultistepScheduler", {}),
        ("DPMSolverMultistepScheduler", {"solver_type": "heun"}),
        ("DPMSolverMultistepScheduler", {"solver_order": 3}),
        ("DPMSolverMultistepScheduler", {"euler_at_final": True} | TO_LEAST),
        ("DPMSolverMultistepScheduler", {"euler_at_final": True, "algorithm_type": "sde-dpmsolver++"} | TO_LEAST),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver", "solver_order": 3} | TO_LEAST),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver", "solver_order": 1} | TO_LEAST),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver"} | TO_LEAST),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_order": 3}),
        ("DPMSolverSinglestepScheduler", {"solver_order": 3, "solver_type": "heun"}),
        ("DPMSolverSinglestepScheduler", {"lower_order_final": True} | TO_LEAST),
        ("DPMSolverSinglestepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
        ("DPMSolverSinglestepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_order": 3}),
        ("EulerAncestralDiscreteScheduler", {}),
        ("HeunDiscreteScheduler", {}),
        ("SASolverScheduler", {}),
        ("SASolverScheduler", {"algorithm_type": "noise_prediction", "timestep_spacing": "leading"}),
        ("SASolverScheduler", {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}),
        ("SASolverScheduler", {"beta_schedule": "squaredcos_cap_v2", "lower_order_final": False}),
        ("UniPCMultistepScheduler", {}),
        ("UniPCMultistepScheduler", {"solver_order": 3, "lower_order_final": False} | TO_LEAST),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_class_and_its_label_draw_the_same_samples(name, flags):
    solver, _ = resolve(f"{name}({', '.join(f'{key}={value}' for key, value in flags.items())})")
    path = SCALED if name.startswith(("Euler", "Heun")) else VP
    draws = torch.float32 if name.startswith("DPMSolverMultistep") else torch.float64
    # 26 steps: even, for groups of two, and from 15 on, where no multistep class lowers the order of its own accord
    assert parity(getattr(diffusers, name)(**flags), solver, 26, path=path, draws=draws) < TOLERANCE


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (
            "DPMSolverMultistepScheduler(solver_oder=2)",
            "no flag of DPMSolver.* 'solver_oder'; did you mean solver_order",
        ),
        ("DPMSolverMultistepScheduler(algorithm_type=sde-dpmsolver, solver_order=3)", "of order 3 has no counterpart"),
        ("DPMSolverSinglestepScheduler(algorithm_type=sde-dpmsolver)", "of order 2 has no counterpart"),
        (
            "DPMSolverMultistepScheduler(solver_order=3, solver_type=heun)",
            r"algorithm_type=dpmsolver\+\+ of order 3 has no counterpart with solver_type=heun",
        ),
        ("DPMSolverMultistepScheduler(thresholding=True)", "thresholding=True has no counterpart here"),
        (
            "UniPCMultistepScheduler(disable_corrector=[0, 1])",
            r"disable_corrector=\[0, 1\] has no counterpart: the corrector is on or, by \[all\], off",
        ),
        ("DDIMScheduler(timestep_spacing=middle)", "no timestep_spacing of DDIMScheduler 'middle'; accepted: leading"),
        ("EulerDiscreteScheduler(s_churn=40)", "no flag of EulerDiscreteScheduler 's_churn'"),
        ("UnCLIPScheduler(variance_type=learned_range)", "variance_type=learned_range has no counterpart"),
        (
            "DDPMScheduler(variance_type=learned)",
            "variance_type=learned has no counterpart; accepted are fixed_small, fixed_large",
        ),
    ],
)
def test_what_has_no_counterpart_is_told_in_one_line(label, message):
    with pytest.raises(InputError, match=message) as caught:
        resolve(label)
    assert "\n" not in str(caught.value)
