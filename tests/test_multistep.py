"""Multistep methods: weights against the formulas of the papers, orders, starts, last steps, bad options.

The formulas are written out here as the papers print them and integrated by scipy, apart from the library's own sums.
"""

import math

import numpy as np
import pytest
import torch
from linear_response import coefficients, distance
from scipy.integrate import quad

import scoresde
import solvers
from solvers import InputError, Node
from solvers.conformance.convergence import measured_order
from solvers.conformance.problems import PATHS, RECTIFIED_FLOW, SUB_VP, VE, VP, Mixture
from solvers.multistep.er_sde import NOISE_SCALES
from solvers.one_step.coefficients import phi1, phi2, phi3

# uneven ratios, newest prediction at 1.1, going to 0.7
RATIOS = (0.7, 1.1, 1.9, 2.6, 4.0)


def on(path, ratio):
    return path(path.t_of_lam(-math.log(ratio)))


def step_of(spec, path=VP, count=None):
    """The coefficients of a step to RATIOS[0] with predictions at the next ``count`` ratios, newest first."""
    solver = solvers.make(spec)
    past = [on(path, ratio) for ratio in RATIOS[1 : 1 + (count or solver.depth)]]
    return solver.coefficients(Mixture(path), on(path, RATIOS[0]), past)


def lagrange(at, j, u):
    return math.prod((u - v) / (at[j] - v) for k, v in enumerate(at) if k != j)


def close(found, wanted, tolerance=1e-11):
    assert len(found) == len(wanted)
    assert np.allclose(found, wanted, rtol=tolerance, atol=tolerance)


def test_the_phi_functions_are_their_integrals():
    for h in (1e-9, 1e-3, 0.049, 0.051, 0.49, 0.51, 3.0, 20.0, -0.4):
        for k, phi in enumerate((phi1, phi2, phi3)):
            exact = quad(lambda u, h=h, k=k: math.exp(-h * (1 - u)) * u**k * h / math.factorial(k), 0, 1, epsabs=0)[0]
            assert phi(h) == pytest.approx(exact, rel=1e-13)


@pytest.mark.parametrize("spec", ["lms", "ipndm_v", "deis(variant=rhoab, order=4)"])
def test_lms_integrates_lagranges_polynomials_in_ratio(spec):
    s, *at = RATIOS
    wanted = [quad(lambda u, j=j: lagrange(at, j, u), at[0], s)[0] for j in range(4)]
    step = step_of(spec)
    assert step.keep == 1
    close(step.weights, wanted)


def test_ipndm_v_at_order_3_is_the_variable_step_formula():
    s, r0, r1, r2, _ = RATIOS
    h, h1, h2 = s - r0, r0 - r1, r1 - r2  # Hairer, Norsett and Wanner, III.5.15 with k = 3, by hand
    third = h * (2 * h + 3 * h1) / (6 * h2 * (h1 + h2))
    second = -(h / (2 * h1)) - third * (h1 + h2) / h1
    close(step_of("ipndm_v(order=3)").weights, [h * (1 - second - third), h * second, h * third])


@pytest.mark.parametrize("path", [VP, SUB_VP, RECTIFIED_FLOW], ids=str)
def test_deis_tab_integrates_polynomials_in_t(path):
    at = [on(path, ratio).t for ratio in RATIOS[1:4]]
    end = on(path, RATIOS[0]).t

    def slope(t):
        node = path(t)
        return (node.dsigma - node.f * node.sigma) / node.alpha  # d ratio / dt

    wanted = [quad(lambda t, j=j: slope(t) * lagrange(at, j, t), at[0], end, epsabs=1e-14)[0] for j in range(3)]
    close(step_of("deis", path).weights, wanted)


@pytest.mark.parametrize(
    ("spec", "weights"),
    [
        ("ipndm(order=2)", (1.5, -0.5)),
        ("ipndm(order=3)", (23 / 12, -16 / 12, 5 / 12)),
        ("ipndm", (55 / 24, -59 / 24, 37 / 24, -9 / 24)),
        ("plms", (55 / 24, -59 / 24, 37 / 24, -9 / 24)),
    ],
)
def test_pndms_weights_are_those_of_even_steps(spec, weights):
    close(step_of(spec).weights, [(RATIOS[0] - RATIOS[1]) * w for w in weights])


def test_dpmpp_2m_is_the_papers_algorithm_2():
    lams = [-math.log(ratio) for ratio in RATIOS]
    h, before = lams[0] - lams[1], lams[1] - lams[2]
    r = before / h
    for variant, share in (("midpoint", -math.expm1(-h) / (2 * r)), ("heun", (math.expm1(-h) / h + 1) / r)):
        close(step_of(f"dpmpp_2m(variant={variant})").weights, [-math.expm1(-h) + share, -share])


def test_dpmpp_3m_is_the_parabolas_integral_and_the_released_one_halves_its_bend():
    lams = [-math.log(ratio) for ratio in RATIOS]
    h, r0, r1 = lams[0] - lams[1], None, None
    r0, r1 = (lams[1] - lams[2]) / h, (lams[2] - lams[3]) / h
    at = lams[1:4]
    exact = [quad(lambda u, j=j: math.exp(u - lams[0]) * lagrange(at, j, u), at[0], lams[0])[0] for j in range(3)]
    close(step_of("dpmpp_3m").weights, exact)
    p1 = -math.expm1(-h)
    p2 = math.expm1(-h) / h + 1
    p3 = p2 / h - 0.5
    unit = np.eye(3)
    d10, d11 = (unit[0] - unit[1]) / r0, (unit[1] - unit[2]) / r1
    d1, d2 = d10 + r0 / (r0 + r1) * (d10 - d11), (d10 - d11) / (r0 + r1)
    close(step_of("dpmpp_3m(variant=released)").weights, p1 * unit[0] + p2 * d1 - p3 * d2)
    close(step_of("dpmpp_3m").weights, p1 * unit[0] + p2 * d1 - p3 * 2 * d2)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_sde_dpmpp_2m_has_the_papers_linear_part_and_noise(eta):
    s, t = RATIOS[0], RATIOS[1]
    h = math.log(t / s)
    step = step_of(f"dpmpp_2m_sde(eta={eta})")
    assert step.keep == pytest.approx(math.exp(-(1 + eta**2) * h), rel=1e-14)
    assert step.noise == pytest.approx(s * math.sqrt(1 - math.exp(-2 * eta**2 * h)), rel=1e-13)
    assert sum(step.weights) == pytest.approx(1 - step.keep, rel=1e-13)


def unipc(order, variant, corrector):
    """UniPC's update, eq. 5-8 of arXiv:2302.04867, with r_j, R and b as printed: weights over the differences."""
    lams = [-math.log(ratio) for ratio in RATIOS]
    h = lams[0] - lams[1]
    hh = -h
    scale = hh if variant == "bh1" else math.expm1(hh)
    rks = [(lams[1 + i] - lams[1]) / h for i in range(1, order)] + ([1.0] if corrector else [])
    count = len(rks)
    phi, factorial, b = math.expm1(hh) / hh - 1, 1, []
    for i in range(1, count + 1):
        b.append(phi * factorial / scale)
        factorial *= i + 1
        phi = phi / hh - 1 / factorial
    matrix = np.array([[r**i for r in rks] for i in range(count)])
    rho = np.full(count, 0.5) if count < 2 else np.linalg.solve(matrix, np.array(b))
    # x_s = ... - expm1(hh) m0 - B sum_j rho_j (m_j - m0) / r_j, newest first; the corrector's r = 1 goes in front
    weights = -scale * rho / np.array(rks) if count else np.zeros(0)
    old = weights[: order - 1]
    new = weights[order - 1 :]
    return [*new, -math.expm1(hh) - weights.sum(), *old]


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_unipc_is_the_papers_linear_system(order, variant):
    spec = f"uni_pc(order={order}, variant={variant})"
    close(step_of(spec).weights, unipc(order, variant, corrector=False), 1e-10)
    solver = solvers.make(spec)
    nodes = [on(VP, ratio) for ratio in RATIOS[: order + 1]]
    close(solver.corrector(Mixture(VP), nodes, order), unipc(order, variant, corrector=True), 1e-10)


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_sa_solver_integrates_with_the_papers_kernel(eta):
    lams = [-math.log(ratio) for ratio in RATIOS]
    at = lams[1:4]

    def kernel(u, j):  # eq. 14: (1 + tau^2) e^{-(1 + tau^2)(lam_s - u)} l_j(u), in x / alpha
        return (1 + eta**2) * math.exp(-(1 + eta**2) * (lams[0] - u)) * lagrange(at, j, u)

    wanted = [quad(kernel, at[0], lams[0], args=(j,))[0] for j in range(3)]
    step = step_of(f"sa_solver(eta={eta})")
    close(step.weights, wanted)
    assert step.noise == pytest.approx(
        RATIOS[0] * math.sqrt(1 - math.exp(-2 * eta**2 * (lams[0] - lams[1]))), abs=1e-14
    )


@pytest.mark.parametrize("name", sorted(NOISE_SCALES))
def test_er_sde_is_the_papers_proposition_with_exact_integrals(name):
    s, t, before, earlier, _ = RATIOS

    def phi(u):
        return float(NOISE_SCALES[name](np.array([u]))[0][0])

    keep = phi(s) / phi(t)
    first = s - t + phi(s) * quad(lambda u: 1 / phi(u), s, t)[0]
    second = (s - t) ** 2 / 2 + phi(s) * quad(lambda u: (u - t) / phi(u), s, t)[0]
    unit = np.eye(3)
    d1 = (unit[0] - unit[1]) / (t - before)
    d1_before = (unit[1] - unit[2]) / (before - earlier)
    d2 = (d1 - d1_before) / ((t - earlier) / 2)
    step = step_of(f"er_sde(noise_scale={name}, variant=published)")
    assert step.keep == pytest.approx(keep, rel=1e-13)
    close(step.weights, (1 - keep) * unit[0] + first * d1 + second * d2, 1e-9)
    assert step.noise == pytest.approx(math.sqrt(max(0, s**2 - (t * keep) ** 2)), abs=1e-14)
    # order 2 is the same in both variants
    close(step_of(f"er_sde(noise_scale={name}, order=2)").weights, (1 - keep) * unit[0][:2] + first * d1[:2], 1e-9)


@pytest.mark.parametrize("name", sorted(NOISE_SCALES))
def test_the_noise_scales_slopes_are_their_derivatives(name):
    phi, r = NOISE_SCALES[name], np.array([0.01, 0.4, 3.0, 50.0])
    step = 1e-6 * r
    numeric = (np.log(phi(r + step)[0]) - np.log(phi(r - step)[0])) / (2 * step)
    assert np.allclose(phi(r)[1], numeric, rtol=1e-7)


# orders: the claims of the papers, each with the start that it needs


@pytest.mark.parametrize(
    ("spec", "order"),
    [
        ("dpmpp_3m(start=runge_kutta)", 3),
        ("dpmpp_3m", 3),
        ("adams(order=4, start=runge_kutta)", 4),
        ("adams(order=4, quantity=eps, start=runge_kutta)", 4),
        ("lms(start=runge_kutta)", 4),
        ("lms(order=3, start=corrector)", 3),
        ("deis(start=runge_kutta)", 3),
        ("adams(quantity=v)", 3),
        ("adams(quantity=velocity, order=2)", 2),
        ("uni_pc(order=1)", 2),
        ("uni_pc(order=2)", 3),
        ("uni_pc(order=3, start=runge_kutta)", 4),
        ("uni_pc_bh2(order=3, start=runge_kutta)", 4),
        ("uni_pc(order=4, start=runge_kutta)", 4),
        ("uni_pc(order=2, quantity=eps)", 3),
        ("sa_solver(eta=0)", 3),
        ("er_sde(noise_scale=ode, order=2)", 2),
    ],
)
def test_a_method_of_order_p_reaches_order_p(spec, order):
    solver = solvers.make(spec)
    assert measured_order(solver, VP)[0] > order - 0.2
    assert solver.order <= order


def test_the_released_3m_is_of_order_two_and_the_right_one_of_order_three():
    released, _ = measured_order(solvers.make("dpmpp_3m(variant=released, start=runge_kutta)"), VP)
    exact, _ = measured_order(solvers.make("dpmpp_3m(start=runge_kutta)"), VP)
    assert released < 2.3
    assert exact > 2.8


def test_an_euler_start_caps_the_order_at_two():
    # errors of opposite sign cancel on the way down; far enough down the first step's is what remains
    solver, path = solvers.make("adams(order=3, start=lower)"), VE
    nodes = [solvers.grid("logsnr", path, n) for n in (640, 1280)]
    from solvers.conformance.convergence import path_error

    errors = [path_error(solver, path, grid)[1] for grid in nodes]
    assert 1.7 < math.log2(errors[0] / errors[1]) < 2.2


@pytest.mark.parametrize("order", [2, 3, 4])
def test_ipndm_has_its_order_where_the_ratios_are_even(order):
    solver = solvers.make(f"adams(order={order}, quantity=eps, coordinate=ratio, start=lower)")
    fixed = solvers.make(f"ipndm(order={order})")
    ratios = tuple(np.linspace(8, 0.5, 13))
    nodes = solvers.grid(f"explicit(ratios=[{', '.join(map(str, ratios))}])", VE)
    assert distance(fixed, solver, nodes, VE) < 1e-12


@pytest.mark.parametrize(
    ("spec", "order"),
    [
        ("dpmpp_2m_sde", 2),
        ("dpmpp_2m_sde(variant=heun, eta=0.5)", 2),
        ("dpm_solver_2m(eta=1)", 2),
        ("dpmpp_3m_sde", 2),
        ("sa_solver(predictor_order=2, corrector_order=2)", 2),
        ("sa_solver(predictor_order=1, corrector_order=0)", 1),
        ("er_sde(order=2)", 2),
        ("er_sde(order=1)", 1),
        ("er_sde(variant=published)", 2),
    ],
)
def test_weak_orders(spec, order):
    assert measured_order(solvers.make(spec), VP)[0] > order - 0.1


def test_the_flipped_sign_costs_an_order():
    assert measured_order(solvers.make("dpmpp_3m_sde(variant=flipped)"), VP)[0] < 1.1


# starts and last steps


@pytest.mark.parametrize(
    ("spec", "extra"),
    [
        ("lms", 0),
        ("lms(start=corrector)", 0),
        ("lms(start=runge_kutta)", 4),
        ("dpmpp_3m", 0),
        ("dpmpp_3m(start=runge_kutta)", 1),
        ("uni_pc(start=runge_kutta)", 2),
        ("plms", 1),
        ("pndm", 9),
    ],
)
def test_a_start_costs_what_its_docstring_says(spec, extra):
    solver = solvers.make(spec)
    assert solvers.startup(solver, VP) == extra
    assert solvers.evaluations(solver, VP, solvers.grid("logsnr", VP, 10)) == 10 + extra


def test_lower_orders_at_the_end_are_those_of_the_steps_that_remain():
    nodes = solvers.grid("quadratic", VP, 6)
    _, asked = coefficients(solvers.make("lms(lower_order_final=True)"), nodes, VP)
    whole, asked_whole = coefficients(solvers.make("lms"), nodes, VP)
    # the first three steps are alike; the last is Euler's from the state before
    for k in range(4):
        assert torch.equal(asked[k][1], asked_whole[k][1])
    final, _ = coefficients(solvers.make("lms(lower_order_final=True)"), nodes, VP)
    t, s = nodes[-2], nodes[-1]
    eps = torch.eye(len(final), dtype=torch.float64)[6]
    assert torch.allclose(final, s.alpha / t.alpha * asked[5][1] + s.alpha * (s.ratio - t.ratio) * eps, atol=1e-13)
    assert not torch.allclose(final, whole)


def test_sa_solver_draws_noise_only_within_its_ratios():
    nodes = solvers.grid("logsnr", VP, 8)
    inside = sum(0.3 <= node.ratio <= 3 for node in nodes[:-1])
    final, asked = coefficients(solvers.make("sa_solver(ratios=[0.3, 3])"), nodes, VP)
    assert len(final) == 1 + len(asked) + inside


def test_pece_asks_twice_at_every_node_but_the_first():
    solver = solvers.make("sa_solver(pece=True)")
    assert solvers.evaluations(solver, VP, solvers.grid("logsnr", VP, 10)) == 19


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_every_quantity_gives_the_same_limit(path):
    nodes = solvers.grid("logsnr", path, 160)
    x = nodes[0].sigma * torch.tensor([[-1.3], [0.4], [2.0]], dtype=torch.float64)
    ends = [
        solvers.solve(solvers.make(f"adams(quantity={q})"), Mixture(path), x, nodes).x
        for q in ("x0", "eps", "v", "velocity")
    ]
    for end in ends[1:]:
        assert float((end - ends[0]).abs().max()) < 1e-4


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("lms(order=7)", "lms: order must be one of 1 to 6, got 7"),
        ("ipndm(order=5)", "ipndm: order must be one of 1 to 4, got 5"),
        ("uni_pc(order=0)", "uni_pc: order must be one of 1 to 4, got 0"),
        ("uni_pc(variant=bh3)", "bh3"),
        ("er_sde(order=4)", "er_sde: order must be one of 1 to 3, got 4"),
        ("sa_solver(eta=-1)", "sa_solver: eta must be at least 0, got -1"),
        ("sa_solver(ratios=[1])", "sa_solver: ratios are the least and the greatest"),
        ("dpmpp_2m_sde(eta=-0.5)", "dpmpp_2m_sde: eta must be at least 0, got -0.5"),
        ("dpmpp_3m(variant=right)", "right"),
        ("dpmpp_2m(order=3)", "order"),
    ],
)
def test_a_bad_option_is_one_clear_line(spec, message):
    with pytest.raises(InputError, match=message.replace("[", r"\[")) as raised:
        solvers.make(spec)
    assert "\n" not in str(raised.value)


def test_a_step_needs_no_state_on_the_solver():
    solver = solvers.make("uni_pc")
    nodes = solvers.grid("logsnr", VP, 6)
    x = torch.ones(2, 1, dtype=torch.float64)
    first = solvers.solve(solver, Mixture(VP), x, nodes).x
    solvers.solve(solver, Mixture(VP), 3 * x, nodes[:3])
    assert torch.equal(solvers.solve(solver, Mixture(VP), x, nodes).x, first)
    assert isinstance(nodes[0], Node)


@pytest.mark.parametrize(
    "spec", ["er_sde(s_noise=0)", "dpmpp_2m_sde(s_noise=0)", "sa_solver", "dpm_solver_2m(eta=0.1)", "er_sde(order=1)"]
)
def test_without_its_noise_an_sde_is_not_the_ode_and_cannot_encode(spec):
    nodes = solvers.grid("logsnr", VP, 4)[::-1]
    with pytest.raises(InputError, match="cannot encode"):
        solvers.solve(solvers.make(spec), Mixture(VP), torch.ones(1, 1, dtype=torch.float64), nodes)


LOOSE = {"gotta_go_fast": "gotta_go_fast(rtol=0.05, atol=0.05)"}  # a fraction of the steps of its default


@pytest.mark.parametrize("name", solvers.names("gaussian"))
def test_long_steps_over_wide_ranges_stay_finite(name):
    # six more orders of magnitude than conformance's paths: what a step keeps of the noise is lost to rounding there
    if solvers.info(name).kind == "black box ODE":
        return  # in t, one sample at a time: their own control
    target = scoresde.targets.GaussianMixture(torch.tensor([[-1.0, 0.2], [1.0, 0.4]]), 0.05)
    denoiser = target.denoiser(scoresde.EDM(t_min=1e-5, t_max=1e4))
    for grid in ("logsnr", "karras"):
        result = scoresde.sample(denoiser, (2,), range(2), LOOSE.get(name, name), grid, 2, dtype=torch.float64)
        assert bool(torch.isfinite(result.x).all())
