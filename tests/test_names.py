"""What people type: every label of other programs leads to the solver, the options and the grid that it means there."""

import logging
import math
import sys
from dataclasses import dataclass

import pytest
import torch

import scoresde
import solvers
from solvers import InputError, Solver, grids, names, resolve
from solvers.foreign.names import GRIDS, SOLVERS, SUFFIXES
from solvers.registry.normalise import normalise
from solvers.registry.spec import parse

pytestmark = pytest.mark.quick

CANONICAL = (  # noqa: SIM905
    "ddpm smld ddim euler_maruyama reverse_diffusion euler heun heunpp2 dpm_2 rk4 lms pndm plms ipndm ipndm_v deis "
    "rho_rk dpm_solver_1 dpm_solver_2 dpm_solver_3 dpm_solver_2m dpm_solver_3m dpm_fast dpm_adaptive dpmpp_2s dpmpp_3s "
    "dpmpp_2m dpmpp_3m uni_pc uni_pc_bh2 res_2s res_3s res_2m euler_ancestral dpm_2_ancestral dpmpp_2s_ancestral "
    "dpmpp_sde dpmpp_2m_sde dpmpp_3m_sde seeds_1 seeds_2 seeds_3 sa_solver er_sde gotta_go_fast rk45 dopri5 "
    "torchdiffeq scipy adams pc churn restart picard step_doubling afs gradient_estimation final decode sharpened "
    "psi"
).split()


def registered(spec):
    return parse(spec).name in names()


def check(spec):
    """A label's target is canonical, and makes a solver where it is registered."""
    assert parse(spec).name in CANONICAL
    if registered(spec):
        solvers.make(spec)


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("Heun", "heun"),
        ("DPM++ 2M", "dpmpp_2m"),
        ("dpm++2m", "dpmpp2m"),
        ("Euler a", "euler_ancestral"),
        ("sample_heun", "heun"),
        ("sample_dpmpp_2m_sde_gpu", "dpmpp_2m_sde"),
        (" HeunDiscreteScheduler ", "heundiscretescheduler"),
    ],
)
def test_labels_are_normalised(typed, name):
    assert normalise(typed) == name


# the tables


@pytest.mark.parametrize("label", SOLVERS)
def test_a_label_in_the_table_leads_to_a_canonical_solver(label):
    assert normalise(label) == label
    check(SOLVERS[label])
    if registered(SOLVERS[label]):
        assert solvers.make(label) == solvers.make(SOLVERS[label])


@pytest.mark.parametrize("label", GRIDS)
def test_a_grid_in_the_table_is_a_grid(label):
    assert normalise(label) == label
    assert grids.make(label) == grids.make(GRIDS[label])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_suffix_is_a_grid(suffix):
    solver, grid = resolve(f"heun_{suffix}")
    assert (solver, grids.make(grid)) == ("heun", grids.make(SUFFIXES[suffix]))
    assert grids.make(grid).nodes(scoresde.VP(), 8)[-1].clean  # what these programs call so goes to sigma = 0


# the schedulers that A1111 lists, as it shows them, and the grids that they are
SHOWN = {
    "Uniform": "uniform(end=zero)",
    "Karras": "karras",
    "Exponential": "logsnr(end=zero)",
    "Polyexponential": "polyexponential",
    "SGM Uniform": "sgm_uniform",
    "KL Optimal": "kl_optimal(end=t_min)",
    "Align Your Steps": "ays(keep_last=True)",
    "Simple": "trailing(rounding=up)",
    "Normal": "uniform(end=zero)",
    "DDIM": "leading(steps_offset=1)",
    "Beta": "beta",
}
# ComfyUI's names, and the same here
COMFYUI_GRIDS = {
    "kl_optimal": "kl_optimal",
    "ays": "ays",
    "karras": "karras",
    "beta": "beta",
    "normal": "uniform(end=zero)",
    "simple": "trailing(rounding=up)",
    "sgm_uniform": "sgm_uniform",
    "ddim_uniform": "leading(steps_offset=1)",
    "linear_quadratic": "linear_quadratic",
}


@pytest.mark.parametrize(("name", "grid"), [*SHOWN.items(), *COMFYUI_GRIDS.items()])
def test_a_grid_is_the_same_alone_and_in_a_solvers_label(name, grid):
    denoiser = scoresde.targets.Gaussian(torch.zeros(1), 0.25).denoiser(scoresde.VP())
    alone = scoresde.plan(denoiser, "DPM++ 2M", name, 8)
    together = scoresde.plan(denoiser, f"DPM++ 2M {name}", steps=8)
    assert alone.grid == together.grid == grid
    assert alone.nodes == together.nodes


def test_two_programs_share_a_name_and_the_spelling_tells_them_apart():
    assert str(grids.make("kl optimal")) == "kl_optimal(end=t_min)"
    assert str(grids.make("KL Optimal(sigma_data=0.5)")) == "kl_optimal(end=t_min, sigma_data=0.5)"
    assert str(grids.make("KL Optimal(end=zero)")) == "kl_optimal"
    assert str(grids.make("align_your_steps")) == "ays(keep_last=True)"  # A1111's alone
    assert str(grids.make("uniform")) == "uniform"  # a name of this library
    assert resolve("dpmpp_2m_kl_optimal") == ("dpmpp_2m", "kl_optimal")
    assert resolve("dpmpp_2m KL Optimal") == ("dpmpp_2m", "kl_optimal(end=t_min)")


# labels, each with the solver and the grid that it means

A1111 = {
    "DPM++ 2M": ("dpmpp_2m", None),
    "DPM++ SDE": ("dpmpp_sde", None),
    "DPM++ 2M SDE": ("dpmpp_2m_sde", None),
    "DPM++ 2M SDE Heun": ("dpmpp_2m_sde(variant=heun)", None),
    "DPM++ 2S a": ("dpmpp_2s_ancestral", None),
    "DPM++ 3M SDE": ("dpmpp_3m_sde", None),
    "Euler a": ("euler_ancestral", None),
    "Euler": ("euler", None),
    "LMS": ("lms", None),
    "Heun": ("heun", None),
    "DPM2": ("dpm_2", None),
    "DPM2 a": ("dpm_2_ancestral", None),
    "DPM fast": ("dpm_fast", None),
    "DPM adaptive": ("dpm_adaptive", None),
    "Restart": ("restart", None),
    "DDIM": ("ddim", None),
    "PLMS": ("plms", None),
    "UniPC": ("uni_pc", None),
    "DPM++ 2M Karras": ("dpmpp_2m", "karras"),
    "DPM++ SDE Karras": ("dpmpp_sde", "karras"),
    "DPM++ 2M SDE Karras": ("dpmpp_2m_sde", "karras"),
    "DPM++ 2M SDE Exponential": ("dpmpp_2m_sde", "logsnr(end=zero)"),
    "DPM++ 2M SDE Heun Karras": ("dpmpp_2m_sde(variant=heun)", "karras"),
    "DPM++ 2M SDE Heun Exponential": ("dpmpp_2m_sde(variant=heun)", "logsnr(end=zero)"),
    "DPM++ 3M SDE Karras": ("dpmpp_3m_sde", "karras"),
    "DPM++ 2S a Karras": ("dpmpp_2s_ancestral", "karras"),
    "DPM2 Karras": ("dpm_2", "karras"),
    "DPM2 a Karras": ("dpm_2_ancestral", "karras"),
    "LMS Karras": ("lms", "karras"),
    "Euler Exponential": ("euler", "logsnr(end=zero)"),
    "Euler Uniform": ("euler", "uniform(end=zero)"),
    "Euler GITS": ("euler", "gits(end=zero)"),
    "Euler a SGM Uniform": ("euler_ancestral", "sgm_uniform"),
    "Heun Align Your Steps": ("heun", "ays(keep_last=True)"),
    "Euler KL Optimal": ("euler", "kl_optimal(end=t_min)"),
    "DPM++ 2M DDIM": ("dpmpp_2m", "leading(steps_offset=1)"),
    "DPM++ 2M Karras Exponential": ("dpmpp_2m", "karras_exponential"),
    "DPM++ 2M Align Your Steps GITS": ("dpmpp_2m", "gits(model=sd15, end=zero, keep_last=True)"),
    "Euler Align Your Steps 11": ("euler", "ays(keep_last=True)"),
    "k_euler_a": ("euler_ancestral", None),
    "k_dpm_2": ("dpm_2", None),
    "k_dpm_2_a_ka": ("dpm_2_ancestral", "karras"),
    "k_dpm_ad": ("dpm_adaptive", None),
    "k_dpmpp_2m_ka": ("dpmpp_2m", "karras"),
    "k_dpmpp_2s_a_ka": ("dpmpp_2s_ancestral", "karras"),
    "k_dpmpp_2m_sde_exp": ("dpmpp_2m_sde", "logsnr(end=zero)"),
    "k_dpmpp_2m_sde_heun_ka": ("dpmpp_2m_sde(variant=heun)", "karras"),
}
COMFYUI = {
    name: (name, None)
    for name in (  # noqa: SIM905
        "euler euler_ancestral heun dpm_2 dpm_2_ancestral lms dpm_fast dpm_adaptive dpmpp_2s_ancestral dpmpp_sde "
        "dpmpp_2m dpmpp_2m_sde dpmpp_3m_sde ddpm ipndm ipndm_v deis er_sde seeds_2 seeds_3 sa_solver ddim uni_pc "
        "uni_pc_bh2"
    ).split()
} | {
    "dpmpp_sde_gpu": ("dpmpp_sde", None),
    "dpmpp_2m_sde_heun": ("dpmpp_2m_sde(variant=heun)", None),
    "dpmpp_2m_sde_heun_gpu": ("dpmpp_2m_sde(variant=heun)", None),
    "dpmpp_3m_sde_gpu": ("dpmpp_3m_sde", None),
    "exp_heun_2_x0": ("res_2s(c2=1.0)", None),
    "exp_heun_2_x0_sde": ("seeds_2(r=1.0)", None),
    "res_multistep": ("res_2m", None),
    "res_multistep_ancestral": ("dpmpp_2m_sde(variant=heun)", None),
    "sa_solver_pece": ("sa_solver(pece=True)", None),
    "heunpp2": ("heunpp2", None),
    "euler_beta57": ("euler", "beta(a=0.5, b=0.7, on=time)"),
    "res_2m bong_tangent": ("res_2m", "bong_tangent"),
    "euler_normal": ("euler", "uniform(end=zero)"),
    "euler_simple": ("euler", "trailing(rounding=up)"),
    "ddim_ddim_uniform": ("ddim", "leading(steps_offset=1)"),
}
OTHERS = {
    "sample_dpmpp_2m": ("dpmpp_2m", None),
    "sample_euler_ancestral": ("euler_ancestral", None),
    "sample_dpm_2_ancestral": ("dpm_2_ancestral", None),
    "dpmsolver++": ("dpmpp_2m", None),
    "DPM-Solver++": ("dpmpp_2m", None),
    "sde-dpmsolver++": ("dpmpp_2m_sde", None),
    "unipc": ("uni_pc", None),
    "bh1": ("uni_pc", None),
    "bh2": ("uni_pc_bh2", None),
    "em": ("euler_maruyama", None),
    "euler_maruyama": ("euler_maruyama", None),
    "reverse_diffusion": ("reverse_diffusion", None),
    "ancestral_sampling": ("ddpm", None),
    "ode": ("rk45", None),
    "Predictor-Corrector": ("pc", None),
    "dpm++2m": ("dpmpp_2m", None),
    "dpm++ 2m sde karras": ("dpmpp_2m_sde", "karras"),
    "EulerAncestral": ("euler_ancestral", None),
    "DPM++ 2M Karras(variant=heun)": ("dpmpp_2m(variant=heun)", "karras"),
    "dpmpp_2m_sde_heun(eta=0.5)": ("dpmpp_2m_sde(eta=0.5, variant=heun)", None),
    "dpmpp_2m_sde_heun(variant=midpoint)": ("dpmpp_2m_sde(variant=midpoint)", None),
    "DDPMSampler": ("ddpm", None),
    "DDIMSampler": ("ddim", None),
    "EulerSampler": ("euler", None),
    "HeunSampler": ("heun", None),
    "LMSSampler": ("lms", None),
    "zABSampler": ("lms(order=2)", None),
    "xEABSampler": ("adams(order=2, quantity=x0, start=lower)", None),
    "zEABSampler": ("adams(order=2, quantity=eps, start=lower)", None),
    "dpm_solver++_2m": ("dpmpp_2m", None),
    "DPM-Solver++(2M)": ("dpmpp_2m", None),
    "DPM-Solver++ (3M) Karras": ("dpmpp_3m", "karras"),
    "DPM-Solver++(2S)": ("dpmpp_2s", None),
    "DPM-Solver++(2M)(variant=heun)": ("dpmpp_2m(variant=heun)", None),
    "SDE-DPM-Solver++(2M)": ("dpmpp_2m_sde", None),
    "tAB-DEIS": ("deis", None),
    "rhoAB-DEIS": ("deis(variant=rhoab)", None),
    "UniPC-3": ("uni_pc(order=3)", None),
    "ER-SDE-Solver": ("er_sde", None),
    "ER-SDE-Solver-3": ("er_sde(order=3)", None),
    "multistep/res_2m": ("res_2m", None),
    "multistep/res_2m beta57": ("res_2m", "beta(a=0.5, b=0.7, on=time)"),
    "exponential/res_3s": ("res_3s", None),
    "linear/rk4_4s": ("rho_rk(tableau=rk4)", None),
    "res_2s_ode": ("res_2s", None),
    "dpm_solver_12": ("dpm_adaptive(order=2)", None),
    "dpm_solver_23": ("dpm_adaptive(order=3)", None),
    "er_sde_2": ("er_sde(order=2)", None),
    "vp_1_order": ("er_sde(order=1, variant=published)", None),
    "ve_3_order_taylor": ("er_sde(order=3, variant=published)", None),
    "rho_heun": ("rho_rk(tableau=heun2)", None),
    "3kutta": ("rho_rk(tableau=kutta3)", None),
    "4rk": ("rho_rk(tableau=rk4)", None),
    "EulerMaruyamaPredictor": ("euler_maruyama", None),
    "ReverseDiffusionPredictor": ("reverse_diffusion", None),
    "AncestralSamplingPredictor": ("ddpm", None),
    "package.module:Mine(eta=1)": ("package.module:Mine(eta=1)", None),
}


@pytest.mark.parametrize(("label", "parts"), [*A1111.items(), *COMFYUI.items(), *OTHERS.items()])
def test_a_label_means(label, parts):
    solver, grid = parts
    if grid is not None:
        grids.make(grid)
    if ":" not in label and not registered(solver):
        check(solver)
        pytest.skip(f"{solver} is not registered")
    assert resolve(label) == parts
    assert resolve(label) == parts
    if ":" not in label:
        check(solver)
        if grid is None:
            assert solvers.make(label) == solvers.make(solver)


def test_labels_stand_in_options_too():
    nested = solvers.make("pc(predictor=euler_a)")
    assert nested == solvers.make("pc(predictor='Euler a')") == solvers.make("pc(predictor=euler_ancestral)")
    assert solvers.make("pc(predictor=dpmpp_2m_sde_heun)") == solvers.make("pc(predictor=dpmpp_2m_sde(variant=heun))")
    assert solvers.info("dpmpp_2m_sde_heun").name == "dpmpp_2m_sde"
    assert solvers.make("sa_solver_pece(1)") == solvers.make("sa_solver(predictor_order=1, pece=True)")
    assert grids.make("simple(num_train_timesteps=10)") == grids.make("trailing(rounding=up, num_train_timesteps=10)")


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("DPM++ 2M Karass", "no solver 'DPM.. 2M Karass'; did you mean dpmpp_2m"),
        ("huen karras", "no solver 'huen'; did you mean heun"),
        ("DDIM CFG++", "the solver 'DDIM CFG..' needs classifier-free guidance"),
        ("euler_cfg_pp", "the solver 'euler_cfg_pp' needs classifier-free guidance"),
        ("dpmpp_2m_cfg_pp", "the solver 'dpmpp_2m_cfg_pp' needs classifier-free guidance"),
        ("LCM Karras", "the solver 'LCM Karras' needs classifier-free guidance"),
        ("lcm", "the solver 'lcm' needs classifier-free guidance"),
    ],
)
def test_an_unknown_label_is_told_with_its_nearest(label, message):
    with pytest.raises(InputError, match=message) as caught:
        resolve(label)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["dpmpp_2m(", "DPM++ 2M(eta=)", "heun(1)(2)", "ddim(eta='"])
def test_a_spec_that_cannot_be_read_is_told_as_it_was_typed(text):
    with pytest.raises(InputError) as caught:
        solvers.make(text)
    assert text in str(caught.value)
    assert "'_(" not in str(caught.value)


@pytest.mark.parametrize(
    ("label", "grid"),
    [
        ("get_sigmas_karras", "karras"),
        ("get_sigmas_exponential", "logsnr(end=zero)"),
        ("get_sigmas_polyexponential", "polyexponential"),
        ("get_sigmas_vp", "vp"),
        ("lu_lambdas", "logsnr(end=zero)"),
        ("quad", "ddim_quad"),
    ],
)
def test_a_grid_of_other_programs_means(label, grid):
    assert grids.make(label) == grids.make(grid)


def test_a_solver_alone_is_not_asked_for_its_grid():
    with pytest.raises(InputError, match=r"is a solver and a grid: give dpmpp_2m and karras"):
        solvers.make("DPM++ 2M Karras")


def test_a_registered_name_is_never_taken_apart(registry):
    def mine():
        return dataclass(frozen=True)(type("Mine", (Solver,), {"__annotations__": {"eta": float}, "eta": 0.5}))

    solvers.register("mine_karras", aliases=("My Beta",), order=1)(mine())
    assert resolve("mine_karras") == ("mine_karras", None)
    assert resolve("Mine Karras(eta=1)") == ("mine_karras(eta=1)", None)
    assert resolve("my beta") == ("mine_karras", None)
    assert resolve("mine_karras karras") == ("mine_karras", "karras")
    solvers.register("dpm2_ancestral_of_mine", aliases=("res_multistep_ancestral",), order=1)(mine())
    assert resolve("res_multistep_ancestral") == ("dpm2_ancestral_of_mine", None)  # before the labels of other programs


def test_a_label_is_logged_once_and_a_name_is_not(caplog, monkeypatch):
    monkeypatch.setattr(sys.modules["solvers.foreign.resolve"], "_told", set())
    caplog.set_level(logging.INFO, logger="solvers")
    for name in ("DPM++ 2M SDE Karras", "DPM++ 2M SDE Karras", "em", "heun", "heun(end=1)".partition("(")[0]):
        resolve(name)
    assert [record.getMessage() for record in caplog.records] == [
        "DPM++ 2M SDE Karras -> solver=dpmpp_2m_sde grid=karras",
        "em -> solver=euler_maruyama",
    ]


def test_another_spelling_is_logged_once_and_an_alias_is_not(caplog, monkeypatch):
    monkeypatch.setattr(solvers.solvers, "_told", set())
    caplog.set_level(logging.INFO, logger="solvers")
    for name in ("DPM++ 2M", "DPM++ 2M", "em", "heun"):
        solvers.info(name)
    assert [record.getMessage() for record in caplog.records] == ["'DPM++ 2M' -> dpmpp_2m"]


def test_a_label_with_a_grid_is_sampled_on_it():
    denoiser = scoresde.targets.Gaussian(torch.zeros(1), 0.25).denoiser(scoresde.VP())
    for label, solver, grid in [
        ("DPM++ 2M Karras", "dpmpp_2m", "karras"),
        ("Heun exponential", "heun", "logsnr(end=zero)"),
        ("EulerDiscreteScheduler(timestep_spacing=trailing)", "euler", "trailing"),
        ("dpmpp_2m_sde_heun simple", "dpmpp_2m_sde(variant=heun)", "trailing(rounding=up)"),
    ]:
        result = scoresde.sample(denoiser, (1,), [0], solver=label, steps=3)
        assert (result.solver, result.grid) == (solver, grid)
        assert math.isfinite(float(result.x.sum()))
    result = scoresde.sample(denoiser, (1,), [0], solver="DPM++ 2M Karras", grid="uniform", steps=3)
    assert result.grid == "uniform"  # what is said outright holds
