"""Grids in sigma / alpha: their laws, their ends on every path, published tables, and diffusers' numbers."""

import math

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_utils import AysSchedules
from scipy import stats

import scoresde
import solvers
from solvers import InputError, grid
from solvers.conformance.problems import PATHS
from solvers.time_grids.published import AYS_TABLES, GITS_TABLES

pytestmark = pytest.mark.quick

SDES = [scoresde.VP(), scoresde.VE(), scoresde.EDM(), scoresde.RectifiedFlow(), scoresde.SubVP(), scoresde.Cosine()]
each_path = pytest.mark.parametrize("path", [*SDES, *PATHS], ids=str)
LOW, HIGH = 0.0292, 14.6146  # Stable Diffusion's range
EDM = scoresde.EDM(t_min=LOW, t_max=HIGH)


def ratios(spec, path=EDM, steps=10):
    return [node.ratio for node in grid(spec, path, steps)]


def beta_quantiles(share):
    return stats.beta.ppf(share, 0.6, 0.6)


def vp_time(ratio, beta_d=19.9, beta_min=0.1):
    return (math.sqrt(beta_min**2 + 2 * beta_d * math.log1p(ratio**2)) - beta_min) / beta_d


# each rule has a coordinate in which its N levels have a known course from 1 to 0
COURSES = {
    "polyexponential": (math.log, lambda left: left),
    "polyexponential(rho=2)": (math.log, lambda left: left**2),
    "beta": (lambda r: r, beta_quantiles),
    "kl_optimal": (math.atan, lambda left: left),
    "kl_optimal(sigma_data=0.5)": (lambda r: math.atan(2 * r), lambda left: left),
    "vp": (vp_time, lambda left: left),
    "ve": (lambda r: math.log(r**2), lambda left: left),
    "karras": (lambda r: r ** (1 / 7), lambda left: left),
    "flow_shift": (lambda r: r / (3 + r), lambda left: left),
    "flow_shift(mu=0.7)": (lambda r: r / (math.exp(0.7) + r), lambda left: left),
    "flow_shift(shift=1)": (lambda r: r / (1 + r), lambda left: left),
}


# t(lam) is good to 1e-12 (tests/test_paths.py); the steepest coordinate here is atan at r = 14.6, whose inverse
# magnifies the rounding of an angle 200 times, and the rectified flow's t near 1, which magnifies it 100 times
@each_path
@pytest.mark.parametrize("spec", COURSES)
@pytest.mark.parametrize("end", ["zero", "t_min"])
def test_levels_follow_the_law(spec, path, end):
    coordinate, course = COURSES[spec]
    name, _, options = spec.partition("(")
    made = ratios(f"{name}(end={end}{', ' + options if options else ')'}", path, 9)
    assert len(made) == 10
    if end == "zero":
        assert made.pop() == 0
    low, high = path(path.t_min).ratio, path(path.t_max).ratio
    assert (made[0], made[-1]) == (high, low)  # the range's own, to the last bit
    first, last = coordinate(high), coordinate(low)
    left = [course(1 - i / (len(made) - 1)) for i in range(len(made))]
    assert [coordinate(r) for r in made] == pytest.approx([last + q * (first - last) for q in left], rel=1e-10)


@each_path
@pytest.mark.parametrize("name", sorted(set(solvers.grids.names()) - {"explicit", "file", "resampled", "quadratic"}))
@pytest.mark.parametrize("steps", [1, 2, 3, 20])
def test_every_grid_serves_every_path(name, path, steps):
    for end in ("zero", "t_min"):
        nodes = grid(f"{name}(end={end})", path, steps)  # checked: strictly ordered and finite
        assert len(nodes) == steps + 1
        assert (nodes[-1].sigma == 0) == (end == "zero")
        if end == "t_min":
            assert nodes[-1].t == path.t_min
        if name not in ("leading", "ddim_quad"):  # which do not start at the greatest noise
            assert nodes[0].t == pytest.approx(path.t_max, rel=1e-9)


@pytest.mark.parametrize("name", solvers.grids.names())
def test_a_card_says_what_it_is(name):
    info = solvers.grids.info(name)
    assert info.formula
    assert info.summary.endswith(".")
    assert info.reference or name in ("explicit", "file", "resampled")
    assert "end" in info.options


def test_a_power_of_one_is_log_snr_and_karras_tends_to_it():
    for path in (*SDES, *PATHS):
        log = ratios("logsnr(end=zero)", path)
        assert ratios("polyexponential(rho=1)", path) == pytest.approx(log, rel=1e-12)
        assert ratios("ve", path) == pytest.approx(log, rel=1e-12)
        # r^(1/rho) = 1 + log(r) / rho + O(rho^-2): the gap falls as 1 / rho
        gaps = [np.abs(np.log(ratios(f"karras(rho={rho})", path)[:-1]) - np.log(log[:-1])).max() for rho in (1e3, 1e4)]
        assert gaps[1] == pytest.approx(gaps[0] / 10, rel=0.05)
        assert gaps[1] < 1e-2


def test_vp_is_uniform_on_its_own_path_and_k_diffusions_elsewhere():
    vp = scoresde.VP(beta_min=0.1, beta_max=20.0)
    times = [node.t for node in grid("vp(end=t_min)", vp, 12)]
    assert times == pytest.approx([node.t for node in grid("uniform", vp, 12)], rel=1e-11)
    u = np.linspace(1, 1e-3, 10)  # k-diffusion, get_sigmas_vp(10)
    published = [*np.sqrt(np.exp(19.9 * u**2 / 2 + 0.1 * u) - 1), 0.0]
    for spec in ("vp", "vp(eps_s=0.001)"):  # refitting to the range finds 19.9 and 0.1 again
        made = ratios(spec, scoresde.EDM(t_min=published[-2], t_max=published[0]))
        assert made == pytest.approx(published, rel=1e-10)


def test_vp_refitted_to_a_range_is_edms():
    # Karras et al. 2022, table 1: sigma = sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1), t from 1 to 1e-3, to 0.002 and 80
    beta_d = 2 * (math.log1p(0.002**2) / 1e-3 - math.log1p(80.0**2)) / (1e-3 - 1)
    beta_min = math.log1p(80.0**2) - 0.5 * beta_d
    u = np.linspace(1, 1e-3, 18)
    published = [*np.sqrt(np.expm1(beta_d * u**2 / 2 + beta_min * u)), 0.0]
    assert ratios("vp(eps_s=0.001)", scoresde.EDM(), 18) == pytest.approx(published, rel=1e-9)


def test_iddpm_is_the_recursion_of_the_paper():
    count, c1, c2, u = 1000, 0.001, 0.008, 0.0
    kept = [math.sin(math.pi / 2 * j / (count * (c2 + 1))) ** 2 for j in range(count + 1)]
    levels = []
    for j in range(count, 0, -1):
        u = math.sqrt((u**2 + 1) / max(kept[j - 1] / kept[j], c1) - 1)
        levels.insert(0, u)
    levels = [u for u in levels if LOW <= u <= HIGH]
    wanted = [levels[round((len(levels) - 1) / 17 * i)] for i in range(18)]
    made = ratios("iddpm", EDM, 18)
    assert made[1:-2] == pytest.approx(wanted[1:-1], rel=1e-12)
    assert (made[0], made[-2], made[-1]) == (HIGH, LOW, 0)
    with pytest.raises(InputError, match=r"iddpm has \d+ levels in this range, too few for 2000"):
        grid("iddpm", EDM, 2000)


def test_beta_in_time_is_comfyuis_before_it_rounds():
    t = [node.t for node in grid("beta(on=time)", scoresde.VP(), 8)][:-1]
    quantiles = stats.beta.ppf(1 - np.linspace(0, 1, 8, endpoint=False), 0.6, 0.6)
    assert t == pytest.approx(list(0.001 + quantiles * 0.999), rel=1e-12)


@pytest.mark.parametrize("steps", [2, 3, 12])
def test_laplace_has_the_quantiles_of_that_law(steps):
    quantiles = stats.laplace(0.2, 0.4).ppf(1 - np.arange(1, steps) / steps)
    levels = np.exp(np.clip(quantiles, math.log(LOW), math.log(HIGH)))
    assert ratios("laplace(mu=0.2, beta=0.4, end=t_min)", EDM, steps) == pytest.approx([HIGH, *levels, LOW], rel=1e-11)


def test_karras_exponential_blends_the_two():
    for end, steps, weights in (("zero", 11, np.arange(11, 0, -1) / 11), ("t_min", 10, np.arange(10, -1, -1) / 10)):
        karras, geometric = (np.array(ratios(f"{name}(end=t_min)", EDM, 10)) for name in ("karras", "logsnr"))
        found = ratios(f"karras_exponential(blend=0.3, end={end})", EDM, steps)[:11]
        assert found == pytest.approx(list(karras + 0.3 * weights * (geometric - karras)), rel=1e-9)


def tangent(count, slope, pivot, start, stop):
    """RES4LYF's arc, as its formula is written there."""
    value = [((2 / math.pi) * math.atan(-slope * (i - pivot)) + 1) / 2 for i in range(count)]
    return [(v - value[-1]) / (value[0] - value[-1]) * (start - stop) + stop for v in value]


@pytest.mark.parametrize("steps", [2, 9, 20])
def test_bong_tangent_is_res4lyfs(steps):
    count = steps + 2
    bend = int(count * 0.6)
    course = [
        *tangent(bend, 0.2 / (count / 40), bend, 1, 0.5)[:-1],
        *tangent(count - bend, 0.2 / (count / 40), 0, 0.5, 0),
    ]
    path = scoresde.RectifiedFlow(t_min=1e-9, t_max=1 - 1e-9)
    assert [node.t for node in grid("bong_tangent", path, steps)][:-1] == pytest.approx(course[:-1], abs=3e-9)


@pytest.mark.parametrize("table", [AYS_TABLES["sd15"], GITS_TABLES["sd15"]], ids=["ays", "gits"])
def test_a_table_may_keep_its_last_level_before_zero(table):
    name = "ays" if table is AYS_TABLES["sd15"] else "gits(model=sd15, end=zero)"
    path = scoresde.EDM(t_min=table[-1], t_max=table[0])
    for fit in ("rescale", "keep"):
        spec = f"{name.rstrip(')')}{', ' if '(' in name else '('}keep_last=True, fit={fit})"
        assert ratios(spec, path, 11) == pytest.approx([*table, 0], rel=1e-9)
        logs = np.interp(np.linspace(0, 10, 7), np.arange(11), np.log(table))
        assert ratios(spec, path, 7) == pytest.approx([*np.exp(logs), 0], rel=1e-9)


def mochi(steps, threshold, linear):
    """The schedule as Genmo wrote it, in 1 - u."""
    difference, rest = linear - threshold * steps, steps - linear
    a = difference / (linear * rest**2)
    b = threshold / linear - 2 * difference / rest**2
    line = [i * threshold / linear for i in range(linear)]
    return [*line, *(a * i**2 + b * i + a * linear**2 for i in range(linear, steps)), 1.0]


@pytest.mark.parametrize(("steps", "options"), [(2, ""), (9, ""), (20, ""), (20, "(linear_steps=6)")])
def test_linear_quadratic_is_mochis(steps, options):
    path = scoresde.RectifiedFlow()
    course = mochi(steps, 0.025, 6 if options else steps // 2)
    times = [node.t for node in grid(f"linear_quadratic{options}", path, steps)]
    assert times[:-1] == pytest.approx([0.999 * (1 - c) for c in course[:-1]], rel=1e-12)


def test_flow_shift_multiplies_the_ratio():
    path = scoresde.RectifiedFlow(t_min=1e-3, t_max=0.999)
    plain = [node.t for node in grid("flow_shift(shift=1)", path, 10)][:-1]
    assert plain == pytest.approx(list(np.linspace(0.999, 1e-3, 10)), rel=1e-11)
    assert ratios("flow_shift(tokens=256)", path) == ratios("flow_shift(mu=0.5)", path)
    assert ratios("flow_shift(tokens=4096)", path) == pytest.approx(ratios("flow_shift(mu=1.15)", path), rel=1e-12)
    last = [node.t for node in grid("flow_shift(shift_terminal=0.1)", path, 10)][-2]
    assert last == pytest.approx(0.1, rel=1e-12)
    assert len(grid("flow_shift(shift_terminal=0.1)", path, 1)) == 2  # where others divide by zero


# tables


@pytest.mark.parametrize(
    ("name", "model", "table"),
    [("ays", m, t) for m, t in AYS_TABLES.items()] + [("gits", m, t) for m, t in GITS_TABLES.items()],
)
def test_a_table_is_reproduced_at_its_own_length(name, model, table):
    path = scoresde.EDM(t_min=table[-1], t_max=table[0])
    assert ratios(f"{name}(model={model}, end=t_min)", path, len(table) - 1) == pytest.approx(list(table), rel=1e-12)
    to_zero = ratios(f"{name}(model={model}, end=zero)", path, len(table) - 1)
    assert to_zero == pytest.approx([*table[:-1], 0], rel=1e-12)
    wide = scoresde.EDM(t_min=1e-3, t_max=1000.0)
    kept = ratios(f"{name}(model={model}, end=t_min, fit=keep)", wide, len(table) - 1)
    assert kept == pytest.approx(list(table), rel=1e-12)
    logs = np.log(table)
    for steps in (1, 3, 7, 40):  # log-linear between the table's own points, and so as monotone as they are
        made = ratios(f"{name}(model={model}, end=t_min)", path, steps)
        places = np.linspace(0, len(table) - 1, steps + 1)
        assert np.log(made) == pytest.approx(np.interp(places, range(len(table)), logs), rel=1e-11, abs=1e-12)
        assert all(np.diff(made) < 0)


def test_a_table_is_stretched_onto_the_range_in_log_ratio():
    made = np.log(ratios("ays(end=t_min)", scoresde.VP()))
    table = np.log(AYS_TABLES["sd15"])
    assert (made - made[0]) / (made[-1] - made[0]) == pytest.approx((table - table[0]) / (table[-1] - table[0]))


def test_the_tables_are_the_published_ones():
    for key, name in (("sd15", "StableDiffusion"), ("sdxl", "StableDiffusionXL"), ("svd", "StableDiffusionVideo")):
        assert (*AYS_TABLES[key][:-1], 0.0) == tuple(AysSchedules[f"{name}Sigmas"])
    teacher = (80 ** (1 / 7) + np.arange(61) / 60 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    nodes = teacher[[0, 19, 27, 33, 39, 45, 60]]  # GITS picks nodes of Karras' grid, printed to four decimals
    assert GITS_TABLES["cifar10"] == pytest.approx(nodes, abs=5e-5)


def test_a_table_of_ones_own():
    made = ratios("resampled(table=[10, 1, 0.1], fit=keep)", EDM, 4)
    assert made == pytest.approx([10, math.sqrt(10), 1, math.sqrt(0.1), 0], rel=1e-12)


# diffusers keeps its sigmas in float32


@pytest.fixture(scope="module")
def chain():
    """Stable Diffusion's chain as diffusers has it, and a path over its range of noise levels."""
    options = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    kept = DPMSolverMultistepScheduler(**options).alphas_cumprod.double()
    levels = torch.sqrt((1 - kept) / kept)
    return options, scoresde.EDM(t_min=float(levels[0]), t_max=float(levels[-1]))


@pytest.mark.parametrize(
    ("flag", "spec"),
    [
        ("use_karras_sigmas", "karras"),
        ("use_exponential_sigmas", "polyexponential"),
        ("use_exponential_sigmas", "logsnr(end=zero)"),
        ("use_lu_lambdas", "logsnr(end=zero)"),
        ("use_beta_sigmas", "beta"),
    ],
)
@pytest.mark.parametrize("steps", [2, 9, 20])
def test_levels_are_diffusers(flag, spec, steps, chain):
    options, path = chain
    scheduler = DPMSolverMultistepScheduler(**options, **{flag: True}, final_sigmas_type="zero")
    scheduler.set_timesteps(steps)
    assert ratios(spec, path, steps) == pytest.approx(scheduler.sigmas.tolist(), rel=1e-5)


def test_levels_to_sigma_min_are_diffusers(chain):
    options, path = chain
    scheduler = EulerDiscreteScheduler(**options, use_karras_sigmas=True, final_sigmas_type="sigma_min")
    scheduler.set_timesteps(11)
    assert ratios("karras(end=t_min)", path, 10) == pytest.approx(scheduler.sigmas.tolist()[:-1], rel=1e-5)
    assert ratios("karras(end=repeat)", path, 11) == pytest.approx(scheduler.sigmas.tolist(), rel=1e-5)


@pytest.mark.parametrize(
    ("flags", "mu", "spec"),
    [
        ({"shift": 1.0}, None, "flow_shift(shift=1)"),
        ({"shift": 3.0}, None, "flow_shift(shift=3)"),
        ({"use_dynamic_shifting": True}, 0.8, "flow_shift(mu=0.8)"),
        ({"use_dynamic_shifting": True, "shift_terminal": 0.1}, 0.8, "flow_shift(mu=0.8, shift_terminal=0.1)"),
    ],
)
def test_shifted_times_are_diffusers(flags, mu, spec):
    scheduler = FlowMatchEulerDiscreteScheduler(**flags)
    scheduler.set_timesteps(10, mu=mu)
    free = FlowMatchEulerDiscreteScheduler(**{**flags, "shift_terminal": None})
    free.set_timesteps(10, mu=mu)
    # diffusers starts at sigma = 1, pure noise, and shifts its last level twice
    path = scoresde.RectifiedFlow(t_min=float(free.sigmas[-2]), t_max=1 - 1e-13)
    times = [node.t if node.sigma else 0.0 for node in grid(spec, path, 10)]
    assert times == pytest.approx(scheduler.sigmas.tolist(), rel=1e-5)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("polyexponential(rho=0)", "polyexponential: rho must be positive, got 0"),
        ("beta(a=0)", "beta: a must be positive"),
        ("kl_optimal(sigma_data=-1)", "kl_optimal: sigma_data must be positive"),
        ("vp(beta_d=0)", "vp: beta_d must be positive"),
        ("vp(eps_s=2)", r"vp: eps_s must lie in \(0, 1\), got 2"),
        ("linear_quadratic(threshold_noise=1)", r"threshold_noise must lie in \(0, 1\)"),
        ("linear_quadratic(linear_steps=10)", "linear_steps=10 must be less than the number of steps, 10"),
        ("linear_quadratic(linear_steps=0)", "linear_steps must be a positive integer, got 0"),
        ("flow_shift(shift=0)", "flow_shift: shift must be positive"),
        ("flow_shift(mu=1, tokens=256)", "takes mu or tokens, not both"),
        ("flow_shift(shift_terminal=0.001)", "shift_terminal=0.001 is not in"),
        ("ays(model=sd16)", "no model of ays 'sd16'; did you mean sd15"),
        ("gits(model=imagenet)", "no model of gits 'imagenet'; accepted: cifar10, sd15, sdxl"),
        ("ays(fit=keep, model=svd)", r"its levels \[.*\] exceed \[.*\]; use fit=rescale"),
        ("resampled", "table needs at least two noise levels"),
        ("resampled(table=[1, 2])", "greatest first"),
        ("iddpm(num_train_timesteps=0)", "num_train_timesteps must be a positive integer"),
    ],
)
def test_a_bad_grid_is_refused_in_one_line(spec, message):
    with pytest.raises(InputError, match=message) as caught:
        grid(spec, EDM, 10)
    assert "\n" not in str(caught.value)


def test_powers_of_negative_times_are_refused():
    with pytest.raises(InputError, match=r"ends at t=-2\.99"):
        grid("quadratic", PATHS[2], 3)


def test_a_refit_that_turns_back_is_refused():
    with pytest.raises(InputError, match=r"(out of order|coincide)"):
        grid("vp(eps_s=0.001)", scoresde.EDM(t_min=0.1, t_max=3.0), 10)
