"""What other programs call the solvers and grids that we have: data, read by ``names`` and the registry.

Keys are normalised (``names.normalise``); values are specs, options by name, so a label may stand for a name with
options. A registered name or alias goes before them.
"""

from __future__ import annotations

# A1111, ComfyUI, k-diffusion, diff-sampler, score_sde and the solvers' own code
SOLVERS: dict[str, str] = {
    # A1111 and its short forms, less the suffix that names a grid
    "dpm2": "dpm_2",
    "dpm2_ancestral": "dpm_2_ancestral",
    "dpm_ad": "dpm_adaptive",
    "unipc": "uni_pc",
    # ComfyUI
    "dpmpp_2m_sde_heun": "dpmpp_2m_sde(variant=heun)",
    "exp_heun_2_x0": "res_2s(c2=1.0)",
    "exp_heun_2_x0_sde": "seeds_2(r=1.0)",
    "res_multistep": "res_2m",
    "res_multistep_ancestral": "dpmpp_2m_sde(variant=heun)",
    "sa_solver_pece": "sa_solver(pece=True)",
    # the solvers' own code
    "dpmsolver": "dpm_solver_2m",
    "dpmsolverpp": "dpmpp_2m",
    "dpm_solverpp": "dpmpp_2m",
    "sde_dpmsolver": "dpm_solver_2m(eta=1.0)",
    "sde_dpmsolverpp": "dpmpp_2m_sde",
    "sde_dpm_solverpp": "dpmpp_2m_sde",
    "dpm_solver_fast": "dpm_fast",
    "dpmpp_2m_heun": "dpmpp_2m(variant=heun)",
    "bh1": "uni_pc",
    "bh2": "uni_pc_bh2",
    "unipc_bh1": "uni_pc",
    "unipc_bh2": "uni_pc_bh2",
    "t_ab": "deis",
    "deis_tab": "deis",
    "rho_ab": "deis(variant=rhoab)",
    "deis_rhoab": "deis(variant=rhoab)",
    # diff-sampler
    "dpm": "dpm_2",
    # score_sde's predictors and methods
    "em": "euler_maruyama",
    "ancestral_sampling": "ddpm",
    "ode": "rk45",
    "predictor_corrector": "pc",
    # EDM
    "edm": "heun",
    "edm_heun": "heun",
    "edm_stochastic_heun": "churn(solver=heun)",
    "edm_stochastic_euler": "churn(solver=euler)",
}

GRIDS: dict[str, str] = {
    "ka": "karras",
    "exp": "logsnr",
    "log_snr": "logsnr",
    "lu": "logsnr",
    "poly": "polyexponential",
    "polyexp": "polyexponential",
    "normal": "uniform(end=zero)",
    "simple": "trailing(rounding=up)",
    "ddim": "leading(steps_offset=1)",
    "ddim_uniform": "leading(steps_offset=1)",
    "sgmuniform": "sgm_uniform",
}

# grids that front ends append to a solver's label, as in "DPM++ 2M Karras" or k_dpmpp_2m_ka
SUFFIXES = (
    "karras",
    "ka",
    "exponential",
    "exp",
    "polyexponential",
    "beta",
    "normal",
    "simple",
    "uniform",
    "sgm_uniform",
    "ddim_uniform",
    "kl_optimal",
    "linear_quadratic",
    "align_your_steps",
    "ays",
    "gits",
)
