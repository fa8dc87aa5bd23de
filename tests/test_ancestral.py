"""Ancestral sampling: one method under many names, its variances, and steps to less noise with fresh noise on top."""

import math

import pytest
import torch
from linear_response import coefficients, distance

import solvers
from solvers import InputError, grid, make
from solvers.conformance.convergence import measured_order, terminal_variance
from solvers.conformance.problems import PATHS, VE, VP, GaussianData

pytestmark = pytest.mark.quick

PAIRS = [
    *((name, other) for name in ("ddpm", "ddim", "smld", "euler_ancestral") for other in solvers.info(name).equals),
    ("euler_ancestral(eta=0.4)", "ddim(eta=0.4)"),
    ("euler_ancestral(eta=0)", "euler"),
    ("dpm_2_ancestral(eta=0)", "dpm_2"),
    ("dpmpp_2s_ancestral(eta=0)", "dpmpp_2s"),
    ("ddpm(variance=interpolated, interpolation=0)", "ddpm"),
    ("ddpm(variance=interpolated, interpolation=1)", "ddpm(variance=beta)"),
]


@pytest.mark.parametrize("schedule", PATHS, ids=str)
@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_equal_methods_have_equal_numbers(one, other, schedule):
    assert distance(make(one), make(other), grid("karras(rho=3)", schedule, 6), schedule) < 1e-12


def test_interpolated_variance_is_linear_in_the_logarithms():
    nodes = grid("logsnr", VP, 1)
    specs = ("ddpm", "ddpm(variance=beta)", "ddpm(variance=interpolated, interpolation=0.25)")
    small, large, between = (float(coefficients(make(spec), nodes)[0][-1]) for spec in specs)
    assert between == pytest.approx(large**0.25 * small**0.75, rel=1e-14)
    assert small < between < large


def optimal(problem, nodes):
    """The spec of Analytic-DPM with the exact m = E eps^2 = sigma^2 / Var x of Gaussian data."""
    table = sorted([node.lam, node.sigma**2 / problem.variance(node)] for node in nodes)
    return f"ddpm(variance=optimal, eps_power={table})"


@pytest.mark.parametrize("schedule", PATHS, ids=str)
@pytest.mark.parametrize("steps", [1, 2, 5, 40])
def test_optimal_variance_is_exact_on_gaussian_data(schedule, steps):
    """x0 given x is Gaussian there, so the chain draws from q(x_s | x_t) itself, however long the steps."""
    problem, nodes = GaussianData(schedule), grid("logsnr", schedule, steps)
    solver = make(optimal(problem, nodes))
    assert terminal_variance(solver, problem, nodes) == pytest.approx(problem.variance(nodes[-1]), rel=1e-10)
    if steps < 40:  # the fixed choices are off by a good part of the variance
        wrong = terminal_variance(make("ddpm"), problem, nodes) / problem.variance(nodes[-1])
        assert abs(wrong - 1) > 0.05


def test_the_table_of_powers_is_interpolated_and_held():
    nodes = grid("logsnr", VP, 1)
    t, s = nodes
    small = float(coefficients(make("ddpm"), nodes)[0][-1]) ** 2
    gap = t.alpha**2 * (t.ratio**2 - s.ratio**2)

    def added(table):
        solver = make(f"ddpm(variance=optimal, eps_power={table})")
        return float(coefficients(solver, nodes)[0][-1]) ** 2 - small

    whole = (s.alpha * gap / t.sigma**2 * t.ratio) ** 2
    assert added([[t.lam - 1, 0.2], [t.lam + 3, 0.6]]) == pytest.approx(0.7 * whole, rel=1e-12)  # m = 0.3
    assert added([[t.lam + 1, 0.2]]) == pytest.approx(0.8 * whole, rel=1e-12)
    assert added([[t.lam, 1.3]]) == pytest.approx(0, abs=1e-15)  # an estimate above 1 adds nothing


def test_the_spec_of_a_table_goes_round():
    solver = make("ddpm(variance=optimal, eps_power=[[-1, 0.9], [2.5, 0.1]])")
    assert solver.eps_power == ((-1.0, 0.9), (2.5, 0.1))
    assert make(str(solver)) == solver


def by_hand(name, eta, s_noise, y, ratio, after, z, denoised):
    """k-diffusion's ancestral steps on numbers, in x / alpha against ratio, as its papers' formulas say."""
    up = eta * math.sqrt(after**2 * (ratio**2 - after**2) / ratio**2)
    down = math.sqrt(after**2 - up**2)
    middle = math.sqrt(ratio * down)
    slope = (y - denoised(y, ratio)) / ratio
    if name == "dpm_2_ancestral":
        half = y + (middle - ratio) * slope
        moved = y + (down - ratio) * (half - denoised(half, middle)) / middle
    else:
        half = middle / ratio * y + (1 - middle / ratio) * denoised(y, ratio)
        moved = down / ratio * y + (1 - down / ratio) * denoised(half, middle)
    return moved + s_noise * up * z


@pytest.mark.parametrize("schedule", PATHS, ids=str)
@pytest.mark.parametrize("name", ["dpm_2_ancestral", "dpmpp_2s_ancestral"])
@pytest.mark.parametrize(("eta", "s_noise"), [(1.0, 1.0), (0.6, 1.1)])
def test_two_stage_ancestral_steps_by_hand(name, eta, s_noise, schedule):
    problem = GaussianData(schedule)
    t, s = grid("logsnr", schedule, 3)[1:3]
    x = 0.8 * t.alpha * torch.ones(1, 1, dtype=torch.float64)
    solver = make(f"{name}(eta={eta}, s_noise={s_noise})")
    found = solver.step(problem, x, t, s, None, lambda t, s: torch.full((1, 1), 0.3, dtype=torch.float64)).x
    expected = by_hand(name, eta, s_noise, 0.8, t.ratio, s.ratio, 0.3, lambda y, r: problem.v / (problem.v + r**2) * y)
    assert float(found) / s.alpha == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ["euler_ancestral", "dpm_2_ancestral", "dpmpp_2s_ancestral"])
@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_weak_order_is_the_deterministic_method_s(name, eta):
    solver = make(f"{name}(eta={eta})")
    assert measured_order(solver, VE)[0] == pytest.approx(solver.order, abs=0.1)
    assert solver.order == (1 if name == "euler_ancestral" else 2)


@pytest.mark.parametrize("s_noise", [0.0, 1.5])
def test_s_noise_scales_the_noise(s_noise):
    nodes = grid("logsnr", VP, 1)
    for name in ("euler_ancestral", "dpm_2_ancestral", "dpmpp_2s_ancestral"):
        plain, scaled = (coefficients(make(spec), nodes)[0] for spec in (name, f"{name}(s_noise={s_noise})"))
        assert torch.equal(plain[:-1], scaled[:-1])
        assert float(scaled[-1]) == pytest.approx(s_noise * float(plain[-1]), rel=1e-14)


def test_names_that_people_type():
    typed = {
        "Euler a": "euler_ancestral",
        "DPM2 a": "dpm_2_ancestral",
        "DPM++ 2S a": "dpmpp_2s_ancestral",
        "sample_dpm_2_ancestral": "dpm_2_ancestral",
        "ancestral_sampling": "ddpm",
    }
    assert {label: str(make(label)) for label in typed} == typed
    assert solvers.info("EulerAncestralDiscreteScheduler").name == "euler_ancestral"
    assert solvers.info("KDPM2AncestralDiscreteScheduler").name == "dpm_2_ancestral"
    assert solvers.info("DDPMScheduler").name == "ddpm"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("ddpm(variance=interpolated, interpolation=1.5)", "must lie in [0, 1], got 1.5"),
        ("ddpm(variance=interpolated)", "variance=interpolated requires interpolation"),
        ("ddpm(variance=beta, interpolation=0.5)", "variance=interpolated requires interpolation"),
        ("ddpm(variance=gamma)", "option 'variance' of ddpm"),
        ("ddpm(variance=optimal)", "variance=optimal requires eps_power"),
        ("ddpm(eps_power=[[0, 1]])", "variance=optimal requires eps_power"),
        ("ddpm(variance=optimal, eps_power=[[1, 0.5], [0, 0.7]])", "in order of increasing lam"),
        ("ddpm(variance=optimal, eps_power=[[1, 0.5], [1, 0.7]])", "in order of increasing lam"),
        ("ddpm(variance=optimal, eps_power=[[1, -0.5]])", "m >= 0"),
        ("ddpm(variance=optimal, eps_power=[[1, 0.5, 2]])", "pairs [lam, m]"),
        ("ddpm(variance=optimal, eps_power=[[inf, 0.5]])", "finite"),
        ("ddpm(variance=optimal, eps_power=[1, 2])", "'eps_power'"),
        ("euler_ancestral(eta=1.2)", "euler_ancestral: eta must lie in [0, 1]"),
        ("dpm_2_ancestral(s_noise=-1)", "dpm_2_ancestral: s_noise must be at least 0"),
        ("dpmpp_2s_ancestral(r=0.5)", "no option of dpmpp_2s_ancestral 'r'"),
    ],
)
def test_bad_options_are_one_line(spec, message):
    with pytest.raises(InputError) as error:
        make(spec)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
