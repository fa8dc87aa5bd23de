"""Translates diffusers' scheduler classes and their flags to a solver, and to a grid if a flag names one.

A class of diffusers combines a solver, a grid and a chain. Flags of the chain or the network are ignored, because here
the SDE and the denoiser define these. A flag without a counterpart raises an error.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import InputError, positive_integer, unknown
from ..registry import spec as grammar
from ..time_grids.base import End
from ..time_grids.beta_schedules import betas, half_log_snr

# the spec of each class at diffusers' own defaults
CLASSES: dict[str, str] = {
    "CogVideoXDDIMScheduler": "ddim",
    "CosineDPMSolverMultistepScheduler": "dpmpp_2m_sde",
    "DDIMInverseScheduler": "ddim",
    "DDIMParallelScheduler": "ddim",
    "DDIMScheduler": "ddim",
    "DDPMParallelScheduler": "ddpm",
    "DDPMScheduler": "ddpm",
    "DDPMWuerstchenScheduler": "ddpm",
    "DEISMultistepScheduler": "deis(variant=logrho, order=2)",
    "DPMSolverMultistepInverseScheduler": "dpmpp_2m",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
    "DPMSolverSDEScheduler": "dpmpp_sde",
    "DPMSolverSinglestepScheduler": "dpmpp_2s(mode=grid)",
    "EDMDPMSolverMultistepScheduler": "dpmpp_2m",
    "EDMEulerScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler_ancestral",
    "EulerDiscreteScheduler": "euler",
    "FlowMatchEulerDiscreteScheduler": "euler",
    "FlowMatchHeunDiscreteScheduler": "heun(quantity=velocity)",
    "HeunDiscreteScheduler": "heun",
    "IPNDMScheduler": "ipndm",
    "KDPM2AncestralDiscreteScheduler": "dpm_2_ancestral",
    "KDPM2DiscreteScheduler": "dpm_2",
    "KarrasVeScheduler": "churn(s_churn=80.0, s_tmin=0.05, s_tmax=50.0, s_noise=1.007)",
    "LMSDiscreteScheduler": "lms",
    "PNDMScheduler": "pndm",
    "SASolverScheduler": "sa_solver(predictor_order=2, corrector_order=2, variant=few_steps, "
    "ratios=[0.721435, 25.8407], lower_order_final=True)",
    "ScoreSdeVeScheduler": "pc(corrector=langevin(snr=0.15))",
    "ScoreSdeVpScheduler": "euler_maruyama",
    "UnCLIPScheduler": "ddpm",
    "UniPCMultistepScheduler": "uni_pc_bh2(order=2, lower_order_final=True)",
}

# (algorithm_type, solver_order) of diffusers' DPM-Solver classes
MULTISTEP: dict[tuple[str, int], str] = {
    ("dpmsolver", 1): "ddim",
    ("dpmsolver", 2): "dpm_solver_2m",
    ("dpmsolver", 3): "dpm_solver_3m(variant=released, start=lower)",
    ("dpmsolver++", 1): "ddim",
    ("dpmsolver++", 2): "dpmpp_2m",
    ("dpmsolver++", 3): "dpmpp_3m(variant=released, start=lower)",
    ("sde-dpmsolver", 1): "seeds_1(quantity=eps)",
    ("sde-dpmsolver", 2): "dpm_solver_2m(eta=1.0)",
    ("sde-dpmsolver++", 1): "euler_ancestral",
    ("sde-dpmsolver++", 2): "dpmpp_2m_sde",
    ("sde-dpmsolver++", 3): "dpmpp_3m_sde(variant=flipped)",
}
SINGLESTEP: dict[tuple[str, int], str] = {
    ("dpmsolver", 1): "ddim",
    ("dpmsolver", 2): "dpm_solver_2(mode=grid)",
    ("dpmsolver", 3): "dpm_solver_3(mode=grid)",
    ("dpmsolver++", 1): "ddim",
    ("dpmsolver++", 2): "dpmpp_2s(mode=grid)",
    ("dpmsolver++", 3): "dpmpp_3s(mode=grid)",
    ("sde-dpmsolver++", 1): "euler_ancestral",
    ("sde-dpmsolver++", 2): "dpmpp_2s(mode=grid, eta=1.0)",
    ("sde-dpmsolver++", 3): "dpmpp_3s(mode=grid, eta=1.0)",
}

# flags of the model and its chain, not of the solver: here the SDE and the denoiser define these
MODEL_FLAGS = frozenset(
    (
        "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type",
        "variance_type", "interpolation_type", "timestep_type", "rescale_betas_zero_snr",
        "sigma_min", "sigma_max", "sigma_data", "lambda_min_clipped", "sample_max_value", "clip_sample_range",
        "dynamic_thresholding_ratio", "base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len",
        "sampling_eps", "noise_sampler_seed", "time_shift_type",
        "beta_min", "beta_max", "snr_shift_scale", "scaler", "s",
    )
)  # fmt: skip

FLAGS = frozenset(
    (
        "algorithm_type", "solver_order", "solver_type", "lower_order_final", "use_karras_sigmas",
        "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "use_flow_sigmas", "flow_shift", "shift",
        "shift_terminal", "rho", "sigma_schedule", "timestep_spacing", "steps_offset", "final_sigmas_type",
        "predict_x0", "predictor_order", "corrector_order", "skip_prk_steps", "snr", "correct_steps", "eta",
        "euler_at_final", "set_alpha_to_one", "disable_corrector",
    )
)  # fmt: skip
REFUSED = frozenset(
    (
        "thresholding", "clip_sample", "solver_p", "tau_func", "use_dynamic_shifting",
        "invert_sigmas", "stochastic_sampling",
    )
)  # fmt: skip
# KarrasVeScheduler's own flags, with their names in this library and their defaults
CHURN = {
    "s_churn": ("s_churn", 80.0), "s_min": ("s_tmin", 0.05), "s_max": ("s_tmax", 50.0), "s_noise": ("s_noise", 1.007),
}  # fmt: skip
# solvers with the option lower_order_final
LOWERING = (
    "dpmpp_2m", "dpmpp_3m", "dpmpp_2m_sde", "dpmpp_3m_sde", "dpm_solver_2m", "dpm_solver_3m", "dpmpp_2s", "dpmpp_3s",
    "dpm_solver_2", "dpm_solver_3", "uni_pc", "uni_pc_bh2", "deis", "sa_solver",
)  # fmt: skip
# classes that lower the order at the end by default; others do so below 15 steps, or never
ALWAYS_LOWERING = ("UniPC", "SASolver")
# classes that keep the points of linspace that lie between two of the network's steps
UNROUNDED = ("Euler", "Heun", "KDPM2", "LMS", "DPMSolverSDE")
# classes that omit the last of N + 1 points
SKIPPING = ("DPMSolverMultistep", "DPMSolverSinglestep", "UniPC", "DEIS", "SASolver")


def read(name: str, text: str) -> tuple[str, str | None]:
    """The specs of the solver and of the grid (None if no flag names one), from a class and the text of its flags.

    With fewer than 15 steps, the multistep DPM-Solver and DEIS classes lower the order of the last steps. The number of
    steps is not a flag, so the spec contains ``lower_order_final`` only if the text does; add it for such short solves.

    >>> read("DPMSolverMultistepScheduler", "algorithm_type=sde-dpmsolver++, use_karras_sigmas=True, solver_type=heun")
    ('dpmpp_2m_sde(variant=heun)', 'karras')

    Raises:
        InputError: the class has no such flag, or the flag has no counterpart here, or a value of another type.
    """
    flags = _flags(name, text)
    try:
        return _specs(name, flags)
    except InputError:
        raise
    except (TypeError, ValueError, LookupError, ArithmeticError) as error:  # a list where a number is due, and so on
        raise InputError(f"{name}({text}): {' '.join(str(error).split())}") from None


def _specs(name: str, flags: dict[str, Any]) -> tuple[str, str | None]:
    solver, options = _solver(name, flags)
    lower = flags.get("lower_order_final", name.startswith(ALWAYS_LOWERING))
    if lower and solver.partition("(")[0] in LOWERING:
        options["lower_order_final"] = True
    spec = _with(solver, options)
    if flags.get("euler_at_final"):
        spec = f"final(solver={spec}, last={MULTISTEP[_algorithm(name, flags), 1]})"
    return spec, _grid(name, flags)


def _flags(name: str, text: str) -> dict[str, Any]:
    flags: dict[str, Any] = {}
    accepted = FLAGS | REFUSED | MODEL_FLAGS | (CHURN.keys() if name.startswith("KarrasVe") else set())
    for part in grammar.split(text):
        key, separator, value = (p.strip() for p in part.partition("="))
        if not separator or key not in accepted:
            raise unknown(f"flag of {name}", key, accepted)
        try:
            flags[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            flags[key] = value  # a word without quotes, such as sde-dpmsolver++
        if key in REFUSED and flags[key]:
            raise InputError(f"{name}: {key}={value} has no counterpart here")
    return {key: value for key, value in flags.items() if value is not None}


def _algorithm(name: str, flags: dict[str, Any]) -> str:
    return str(flags.get("algorithm_type", "sde-dpmsolver++" if name.startswith("Cosine") else "dpmsolver++"))


def _solver(name: str, flags: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    spec = CLASSES[name]
    options: dict[str, Any] = {}
    if "DPMSolverMultistep" in name or "DPMSolverSinglestep" in name:
        table = SINGLESTEP if "Singlestep" in name else MULTISTEP
        kind = _algorithm(name, flags)
        order = flags.get("solver_order", 2)
        if (kind, order) not in table:
            known = ", ".join(f"{k} {o}" for k, o in table)
            raise InputError(f"{name}: algorithm_type={kind} of order {order} has no counterpart; accepted are {known}")
        spec = table[kind, order]
        if flags.get("solver_type") == "heun" and order > 1:
            if order == 3 and table is MULTISTEP:
                raise InputError(
                    f"{name}: algorithm_type={kind} of order 3 has no counterpart with solver_type=heun; "
                    "use solver_type=midpoint"
                )
            released = "flipped" if order == 3 and kind.startswith("sde") else "taylor"
            options["variant"] = released if table is SINGLESTEP else "heun"
    elif name.startswith("UniPC"):
        spec = "uni_pc" if flags.get("solver_type") == "bh1" else "uni_pc_bh2"
        options["order"] = flags.get("solver_order", 2)
        if flags.get("predict_x0") is False:
            options["quantity"] = "eps"
        if (disabled := flags.get("disable_corrector")) in ("all", "[all]", ["all"]):
            options["correct"] = False
        elif disabled:
            raise InputError(
                f"{name}: disable_corrector={disabled} has no counterpart: the corrector is on or, by [all], off"
            )
    elif name.startswith("DEIS"):
        spec, options = "deis", {"variant": "logrho", "order": flags.get("solver_order", 2)}
    elif name.startswith("SASolver"):
        spec, options = "sa_solver", {key: flags.get(key, 2) for key in ("predictor_order", "corrector_order")}
        in_eps = flags.get("algorithm_type") == "noise_prediction"
        options |= {"quantity": "eps"} if in_eps else {"variant": "few_steps"}
        options["ratios"] = _noisy_ratios(flags)
    elif name.startswith("PNDM") and flags.get("skip_prk_steps"):
        spec = "plms"
    elif name.startswith(("DDPM", "UnCLIP")) and "variance_type" in flags:
        kinds = {"fixed_small": "ddpm", "fixed_large": "ddpm(variance=beta)", "fixed_small_log": "ddpm"}
        if flags["variance_type"] not in kinds:
            raise InputError(
                f"{name}: variance_type={flags['variance_type']} has no counterpart; accepted are {', '.join(kinds)}"
            )
        spec = kinds[flags["variance_type"]]
    elif name.startswith("KarrasVe"):
        spec, options = "churn", {ours: float(flags.get(key, default)) for key, (ours, default) in CHURN.items()}
    elif name.startswith("ScoreSdeVe"):
        spec, options = "pc", {"corrector": f"langevin(snr={flags.get('snr', 0.15)})"}
        if "correct_steps" in flags:
            options["corrector_steps"] = flags["correct_steps"]
    if "eta" in flags and spec in ("ddim", "euler_ancestral"):
        options["eta"] = flags["eta"]
    return spec, options


def _noisy_ratios(flags: dict[str, Any]) -> list[float]:
    """sigma / alpha at the training times 199.5 and 800.5: SASolverScheduler draws noise for 200 <= t <= 800."""
    count = positive_integer("num_train_timesteps", flags.get("num_train_timesteps", 1000))
    given = {key: flags[key] for key in ("beta_start", "beta_end") if key in flags}
    chain = flags.get("trained_betas")
    if chain is None:
        chain = betas(flags.get("beta_schedule", "linear"), count, **given)
    ratios = np.exp(-half_log_snr(np.array(chain)))
    if flags.get("use_flow_sigmas"):
        ratios = np.arange(count) / (count - np.arange(count))
    ends = np.interp((199.5, 800.5), np.arange(len(ratios)), ratios, right=math.inf)
    return [float(f"{end:.6g}") for end in ends]


def ending(name: str, flags: Mapping[str, Any]) -> End:
    """Where a class's last step goes: to sigma = 0, or to the level of the network's step 0, if need be again.

    Classes that run from data to noise begin at that level.
    """
    if "Inverse" in name:
        return "t_min"
    to_least = not flags.get("set_alpha_to_one", not name.startswith("PNDM"))
    least = flags.get("final_sigmas_type", "zero") == "sigma_min" or name.startswith(("SASolver", "DEIS"))
    return "repeat" if to_least or least else "zero"


def _grid(name: str, flags: dict[str, Any]) -> str | None:
    end = ending(name, flags)
    options: dict[str, Any] = {} if end == "zero" else {"end": end}
    schedule = flags.get("sigma_schedule")
    if flags.get("use_karras_sigmas") or schedule == "karras" or ("rho" in flags and schedule is None):
        return _with("karras", {**options, **({"rho": flags["rho"]} if "rho" in flags else {})})
    if flags.get("use_exponential_sigmas") or flags.get("use_lu_lambdas") or schedule == "exponential":
        return _with("logsnr", {"end": end} if end != "t_min" else {})
    if flags.get("use_beta_sigmas"):
        return _with("beta", options)
    if flags.get("use_flow_sigmas") or (name.startswith("FlowMatch") and {"shift", "shift_terminal"} & flags.keys()):
        shift = {"shift": float(flags.get("shift", flags.get("flow_shift", 1.0)))}
        terminal = {"shift_terminal": flags["shift_terminal"]} if flags.get("shift_terminal") else {}
        return _with("flow_shift", {**options, **shift, **terminal})
    # a class that runs from data to noise rounds its steps in the opposite direction: its spacings have no grid here
    placed = {"timestep_spacing", "steps_offset", "final_sigmas_type"} & flags.keys()
    if "Inverse" in name or not (placed or flags.get("set_alpha_to_one") is False):
        return None
    leading = name.startswith(("DDIM", "CogVideoXDDIM", "DDPM", "PNDM"))  # the spacing at their defaults
    spacing = flags.get("timestep_spacing", "leading" if leading else "linspace")
    if spacing not in ("leading", "trailing", "linspace"):
        raise unknown(f"timestep_spacing of {name}", str(spacing), ("leading", "trailing", "linspace"))
    if spacing == "leading" and flags.get("steps_offset"):
        options["steps_offset"] = flags["steps_offset"]
    if spacing != "trailing" and name.startswith(SKIPPING):
        options["skip_last"] = True
    elif spacing == "linspace" and name.startswith(UNROUNDED):
        options["rounding"] = "none"
    if flags.get("num_train_timesteps", 1000) != 1000:
        options["num_train_timesteps"] = flags["num_train_timesteps"]
    return _with(spacing, options)


def _with(spec: str, options: dict[str, Any]) -> str:
    """The spec with further options."""
    name, _, inside = spec.rstrip(")").partition("(") if spec.endswith(")") else (spec, "", "")
    parts = [*filter(None, [inside]), *(f"{key}={value}" for key, value in options.items())]
    return f"{name}({', '.join(parts)})" if parts else name
