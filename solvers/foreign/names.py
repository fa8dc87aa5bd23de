"""Other programs' labels of solvers and grids, as data; ``resolve`` adds them to the registries.

Keys are normalised (``normalise``). Values are specs with options by name, so a label may stand for a name with
options. Registered names and aliases have priority over these labels.
"""

from __future__ import annotations

# A1111, ComfyUI, k-diffusion, diff-sampler, score_sde and the solvers' own code
SOLVERS: dict[str, str] = {
    # A1111 and its short forms, without the suffix that names a grid
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
    "tab_deis": "deis",
    "rhoab_deis": "deis(variant=rhoab)",
    "dpm_solverpp_2m": "dpmpp_2m",
    "dpm_solverpp_3m": "dpmpp_3m",
    "dpm_solverpp_2s": "dpmpp_2s",
    "dpm_solverpp_3s": "dpmpp_3s",
    "sde_dpm_solverpp_2m": "dpmpp_2m_sde",
    "sde_dpm_solverpp_3m": "dpmpp_3m_sde",
    "unipc_1": "uni_pc(order=1)",
    "unipc_2": "uni_pc(order=2)",
    "unipc_3": "uni_pc(order=3)",
    "dpm_solver_12": "dpm_adaptive(order=2)",
    "dpm_solver_23": "dpm_adaptive(order=3)",
    # DEIS' Runge-Kutta methods: names of the paper and of its code
    "rho_euler": "rho_rk(tableau=euler)",
    "rho_mid": "rho_rk(tableau=midpoint)",
    "rho_midpoint": "rho_rk(tableau=midpoint)",
    "rho_heun": "rho_rk(tableau=heun2)",
    "rho_kutta": "rho_rk(tableau=kutta3)",
    "rho_rk4": "rho_rk(tableau=rk4)",
    "1euler": "rho_rk(tableau=euler)",
    "2heun": "rho_rk(tableau=heun2)",
    "3kutta": "rho_rk(tableau=kutta3)",
    "3ral": "rho_rk(tableau=ralston3)",
    "3heun": "rho_rk(tableau=heun3)",
    "3vdh": "rho_rk(tableau=van_der_houwen3)",
    "3ssprk": "rho_rk(tableau=ssprk3)",
    "4rk": "rho_rk(tableau=rk4)",
    # ER-SDE's code: one method for VP and VE in x / alpha
    "er_sde_solver": "er_sde",
    "er_sde_solver_1": "er_sde(order=1)",
    "er_sde_solver_2": "er_sde(order=2)",
    "er_sde_solver_3": "er_sde(order=3)",
    "er_sde_1": "er_sde(order=1)",
    "er_sde_2": "er_sde(order=2)",
    "er_sde_3": "er_sde(order=3)",
    "vp_1_order": "er_sde(order=1, variant=published)",
    "vp_2_order": "er_sde(order=2, variant=published)",
    "vp_3_order": "er_sde(order=3, variant=published)",
    "vp_2_order_taylor": "er_sde(order=2, variant=published)",
    "vp_3_order_taylor": "er_sde(order=3, variant=published)",
    "ve_1_order": "er_sde(order=1, variant=published)",
    "ve_2_order": "er_sde(order=2, variant=published)",
    "ve_3_order": "er_sde(order=3, variant=published)",
    "ve_2_order_taylor": "er_sde(order=2, variant=published)",
    "ve_3_order_taylor": "er_sde(order=3, variant=published)",
    # RES4LYF's solvers of the ODE (eta=0). Its multistep methods begin with a step of two or more stages, and take such
    # steps wherever lam advances by 1 or more; here the start is Euler's, see docs/guide.md
    "multistep/res_2m": "res_2m",
    "multistep/dpmpp_2m": "dpmpp_2m",
    "multistep/deis_2m": "deis(variant=rhoab, order=2)",
    "multistep/deis_3m": "deis(variant=rhoab, order=3)",
    "exponential/ddim": "ddim",
    "exponential/res_2s": "res_2s",
    "exponential/res_2s_stable": "res_2s(c2=1.0)",
    "exponential/res_3s": "res_3s",
    "exponential/dpmpp_2s": "dpmpp_2s",
    "exponential/dpmpp_3s": "dpmpp_3s(r1=0.5, r2=1.0)",
    "linear/euler": "euler",
    "linear/ralston_2s": "rho_rk(tableau=ralston2)",
    "linear/ralston_3s": "rho_rk(tableau=ralston3)",
    "linear/midpoint_2s": "rho_rk(tableau=midpoint)",
    "linear/heun_2s": "rho_rk(tableau=heun2)",
    "linear/heun_3s": "rho_rk(tableau=heun3)",
    "linear/houwen_wray_3s": "rho_rk(tableau=van_der_houwen3)",
    "linear/kutta_3s": "rho_rk(tableau=kutta3)",
    "linear/ssprk3_3s": "rho_rk(tableau=ssprk3)",
    "linear/rk38_4s": "rho_rk(tableau=three_eighths)",
    "linear/rk4_4s": "rho_rk(tableau=rk4)",
    "res_2m_ode": "res_2m",
    "res_2s_ode": "res_2s",
    "res_3s_ode": "res_3s",
    "deis_2m_ode": "deis(variant=rhoab, order=2)",
    "deis_3m_ode": "deis(variant=rhoab, order=3)",
    # decoders of tokens, with the numbers of MaskGIT's code and of a public implementation of SUNDAE; a sample stops
    # after ten steps without a change, which have drawn 97 % of its tokens again (after one, most are not yet right)
    "maskgit": "decode(randomness=4.5)",
    "sundae": "sharpened(solver=decode(commit=all, remask=random, share=0.3, patience=10), temperature=0.8)",
    "p2": "decode(commit=linear, remask=planned)",
    # ReMDM's schedules with the numbers of its released scripts, without their top_p, for which there is ``sharpened``
    "remdm_cap": "psi(kappa=0.992, per=step, remask=cap)",
    "remdm_rescale": "psi(kappa=0.985, per=step, remask=rescale)",
    "remdm_conf": "psi(kappa=0, per=step, remask=rescale, tokens=confidence)",
    "remdm_loop": "psi(kappa=0.98, per=step, remask=cap, window=[0.55, 0.05], hold=0.9)",
    # azula's classes at its defaults; the eta of its DDIM is the square of eta here
    "ddpmsampler": "ddpm",
    "ddimsampler": "ddim",
    "eulersampler": "euler",
    "heunsampler": "heun",
    "lmssampler": "lms",
    "zabsampler": "lms(order=2)",
    "xeabsampler": "adams(order=2, quantity=x0, start=lower)",
    "zeabsampler": "adams(order=2, quantity=eps, start=lower)",
    "vabsampler": "adams(order=2, quantity=velocity, coordinate=flow, start=lower)",
    "reabsampler": "adams(order=2, quantity=v, start=lower)",  # azula's last line has sigma_t where this has sigma_s
    "itosampler": "seeds_1(quantity=eps)",
    "pcsampler": "pc(predictor=ddim, corrector=noise_renewal)",  # azula's class corrects before the step
    # diff-sampler
    "dpm": "dpm_2",
    # score_sde's predictors and methods
    "em": "euler_maruyama",
    "ancestral_sampling": "ddpm",
    "ode": "rk45",
    "predictor_corrector": "pc",
    "eulermaruyamapredictor": "euler_maruyama",
    "reversediffusionpredictor": "reverse_diffusion",
    "ancestralsamplingpredictor": "ddpm",  # on VP score_sde's variance is beta: ddpm(variance=beta)
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
    "lu_lambdas": "logsnr(end=zero)",
    "quad": "ddim_quad",
    "beta57": "beta(a=0.5, b=0.7, on=time)",
    "align_your_steps": "ays(keep_last=True)",
    "align_your_steps_11": "ays(keep_last=True)",
    "align_your_steps_gits": "gits(model=sd15, end=zero, keep_last=True)",
    # k-diffusion's functions
    "get_sigmas_karras": "karras",
    "get_sigmas_exponential": "logsnr(end=zero)",
    "get_sigmas_polyexponential": "polyexponential",
    "get_sigmas_vp": "vp",
    "get_sigmas_laplace": "laplace(end=t_min)",
}

# A1111's names of grids, as it shows them, where its grid differs from the one of that name here or in ComfyUI. So
# written, with capitals or spaces, they mean A1111's, alone or at the end of a solver's label
TITLES: dict[str, str] = {
    "KL Optimal": "kl_optimal(end=t_min)",  # ComfyUI's appends sigma = 0
    "Uniform": "uniform(end=zero)",
    "Exponential": "logsnr(end=zero)",
}

# grids that front ends append to a solver's label, as in "DPM++ 2M Karras" or k_dpmpp_2m_ka, and the same grids here.
# Their functions append sigma = 0, so a grid that ends at t_min by default here gets end=zero
SUFFIXES: dict[str, str] = {
    "karras": "karras",
    "ka": "karras",
    "exponential": "logsnr(end=zero)",
    "exp": "logsnr(end=zero)",
    "polyexponential": "polyexponential",
    "beta": "beta",
    "normal": "uniform(end=zero)",
    "simple": "trailing(rounding=up)",
    "uniform": "uniform(end=zero)",
    "sgm_uniform": "sgm_uniform",
    "ddim_uniform": "leading(steps_offset=1)",
    "kl_optimal": "kl_optimal",
    "ddim": "leading(steps_offset=1)",
    "karras_exponential": "karras_exponential",
    "beta57": "beta(a=0.5, b=0.7, on=time)",
    "bong_tangent": "bong_tangent",
    "laplace": "laplace",
    "linear_quadratic": "linear_quadratic",
    "align_your_steps": "ays(keep_last=True)",
    "align_your_steps_11": "ays(keep_last=True)",
    "align_your_steps_gits": "gits(model=sd15, end=zero, keep_last=True)",
    "ays": "ays",
    "gits": "gits(end=zero)",
}

# names, normalised, of solvers that are defined by classifier-free guidance
GUIDED = r"(^|_)(lcm|lcmscheduler|cfg_?pp)($|_)"
