"""Single-step solvers against closed forms: equalities of their numbers, orders, the noise of a step, grid mode."""

import math

import pytest
import torch
from linear_response import distance

import solvers
from solvers import InputError, Prediction, evaluations, grid, make, solve
from solvers.conformance.convergence import measured_order
from solvers.conformance.problems import PATHS, VE, VP, GaussianData, Mixture
from solvers.one_step.exponential_runge_kutta import lagrange_weights, orders

NAMES = ["dpm_solver_1", "dpm_solver_2", "dpmpp_3s", "res_2s", "dpmpp_sde", "euler", "heun", "rk4", "rho_rk", "dpm_2"]
PAIRS = [(name, other) for name in NAMES for other in solvers.info(name).equals] + [
    ("seeds_1(eta=0, quantity=eps)", "dpm_solver_1"),
    ("seeds_1", "ddpm"),
    ("seeds_2(eta=0, quantity=eps)", "dpm_solver_2"),
    ("seeds_3(eta=0, quantity=eps)", "dpm_solver_3"),
    ("seeds_3(eta=0)", "dpmpp_3s"),
    ("dpmpp_sde(eta=0, r=0.3)", "dpmpp_2s(r1=0.3)"),
    ("dpmpp_sde(eta=0.4, r=0.3, s_noise=1.1)", "seeds_2(eta=0.4, r=0.3, s_noise=1.1)"),
    ("dpm_2(r=0.7)", "dpm_solver_2(r1=0.7)"),
    ("res_2s(c2=0.3)", "dpmpp_2s(r1=0.3, variant=taylor)"),
    ("rho_rk(tableau=euler)", "euler"),
    ("dpmpp_3s(mode=grid, eta=0)", "dpmpp_3s(mode=grid)"),
]


@pytest.mark.parametrize("schedule", PATHS, ids=str)
@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_equal_methods_have_equal_numbers(one, other, schedule):
    # rounding in lam and in products of coefficients of order one
    assert distance(make(one), make(other), grid("karras(rho=3)", schedule, 6), schedule) < 1e-12


def test_the_distance_tells_methods_apart():
    nodes = grid("logsnr", VP, 5)
    for one, other in (
        ("seeds_1(quantity=eps)", "ddpm"),
        ("dpm_solver_2", "dpmpp_2s"),
        ("dpmpp_2s", "res_2s"),
        ("heun", "heun(quantity=velocity)"),
    ):
        assert distance(make(one), make(other), nodes) > 1e-3
    assert distance(make("heun"), make("euler"), nodes) == math.inf


class Polynomial:
    """A model that answers x0 (or eps) = a quadratic of lam, whatever the state."""

    def __init__(self, kind, schedule):
        self.kind, self.schedule = kind, schedule
        self.node, self.node_of_lam = Mixture(schedule).node, Mixture(schedule).node_of_lam

    def predict(self, x, node):
        value = torch.full_like(x, 0.4 - 0.7 * node.lam + 0.3 * node.lam**2)
        if self.kind == "x0":
            return Prediction(value, (x - node.alpha * value) / node.sigma)
        return Prediction((x - node.sigma * value) / node.alpha, value)


def quadratic_integral(rate, a, b):
    """The integral of e^(-rate (b - u)) (0.4 - 0.7 u + 0.3 u^2) over [a, b], by the antiderivative."""

    def primitive(u):
        value, slope, bend = 0.4 - 0.7 * u + 0.3 * u**2, -0.7 + 0.6 * u, 0.6
        return math.exp(-rate * (b - u)) * (value / rate - slope / rate**2 + bend / rate**3)

    return primitive(b) - primitive(a)


@pytest.mark.parametrize("spec", ["dpmpp_3s(variant=taylor)", "dpmpp_3s(r1=0.2, r2=0.9, variant=taylor)"])
def test_taylor_weights_integrate_a_parabola_of_x0_exactly(spec):
    nodes = grid("logsnr", VP, 1)
    t, s = nodes
    x = torch.ones(1, 1, dtype=torch.float64)
    found = float(solve(make(spec), Polynomial("x0", VP), x, nodes).x) / s.alpha
    expected = s.ratio / t.ratio / t.alpha + quadratic_integral(1, t.lam, s.lam)
    assert found == pytest.approx(expected, rel=1e-12)  # one step over a factor 200 of noise


def test_taylor_weights_integrate_a_parabola_of_eps_exactly():
    nodes = grid("logsnr", VP, 1)
    t, s = nodes
    x = torch.ones(1, 1, dtype=torch.float64)
    found = float(solve(make("dpm_solver_3(variant=taylor)"), Polynomial("eps", VP), x, nodes).x) / s.alpha
    expected = 1 / t.alpha - s.ratio * quadratic_integral(-1, t.lam, s.lam)  # ratio = ratio_s e^(lam_s - lam)
    assert found == pytest.approx(expected, rel=1e-12)


ORDERS = {
    "dpm_solver_1": 1,
    "dpm_solver_2": 2,
    "dpm_solver_2(variant=taylor)": 2,
    "dpm_solver_3": 3,
    "dpm_solver_3(variant=taylor)": 3,
    "dpm_solver_3(variant=taylor, r1=0.4, r2=0.8)": 2,  # the parabola, but stage 1 is of second order
    "dpm_solver_3(r2=0.9)": 2,
    "dpmpp_2s": 2,
    "dpmpp_2s(r1=1.0)": 2,
    "dpmpp_3s": 3,
    "dpmpp_3s(variant=taylor)": 3,
    "res_2s": 2,
    "res_3s": 3,
    "res_3s(c2=0.4, c3=0.8)": 3,
    "rk4": 4,
    "dpm_2": 2,
}


@pytest.mark.parametrize("spec", ORDERS)
def test_order_on_a_scalar_linear_problem(spec):
    """On N(0, v) data the flow from t to s multiplies x by sqrt(var_s / var_t)."""
    problem, solver = GaussianData(VP), make(spec)
    errors = []
    for steps in (80, 160):
        nodes = grid("logsnr", VP, steps)
        exact = math.sqrt(problem.variance(nodes[-1]) / problem.variance(nodes[0]))
        errors.append(abs(float(solve(solver, problem, torch.ones(1, 1, dtype=torch.float64), nodes).x) / exact - 1))
    # within 0.2 of the order: the next term of the error is a few hundredths of the first at these steps
    assert math.log2(errors[0] / errors[1]) == pytest.approx(ORDERS[spec], abs=0.2)
    assert solver.order == ORDERS[spec]


@pytest.mark.parametrize(
    ("spec", "order"),
    [
        ("dpmpp_sde", 2),
        ("dpmpp_sde(variant=taylor)", 2),
        ("dpmpp_sde(eta=0.5)", 2),
        ("dpmpp_sde(noise=independent)", 1),
        ("seeds_1", 1),
        ("seeds_1(quantity=eps)", 1),
        ("seeds_2(quantity=eps)", 2),
        ("seeds_3", 2),
        ("seeds_3(quantity=eps)", 2),
        ("dpmpp_2s(mode=grid, eta=1)", 1),
        ("dpmpp_3s(mode=grid, eta=0.5)", 1),
    ],
)
def test_weak_order(spec, order):
    solver = make(spec)
    assert measured_order(solver, VE)[0] == pytest.approx(order, abs=0.1)
    assert solver.order == order


class Still:
    """A model that answers x0 = 0 (or eps = 0), and records the states that it is shown."""

    def __init__(self, kind, schedule):
        self.kind, self.shown = kind, []
        self.node, self.node_of_lam = Mixture(schedule).node, Mixture(schedule).node_of_lam

    def predict(self, x, node):
        self.shown.append((node, x[0]))
        return Prediction(0 * x, x / node.sigma) if self.kind == "x0" else Prediction(x / node.alpha, 0 * x)


class Draws:
    """The k-th draw is the k-th basis vector; the intervals asked for are kept."""

    def __init__(self):
        self.intervals = []

    def __call__(self, t, s):
        z = torch.zeros(1, 4, dtype=torch.float64)
        z[0, len(self.intervals)] = 1.0
        self.intervals.append((t, s))
        return z


@pytest.mark.parametrize("eta", [0.3, 1.0, 1.4])
@pytest.mark.parametrize("kind", ["x0", "eps"])
def test_stages_and_end_see_one_brownian_path(kind, eta):
    """With a silent model the states are the SDE's noise: their covariance over the step is known.

    x0: Cov(y_a, y_b) = ratio_a ratio_b e^(-eta^2 (b - a)) (1 - e^(-2 eta^2 (a - t))) for a <= b in lam;
    eps: Cov(y_a, y_b) = eta^2 (ratio_t^2 - ratio_a^2), a martingale.
    """
    nodes = grid("logsnr", VP, 4)[2:4]
    model, draws = Still(kind, VP), Draws()
    x = torch.zeros(1, 4, dtype=torch.float64)
    end = solve(make(f"seeds_3(quantity={kind}, eta={eta})"), model, x, nodes, draws).x[0]
    t = nodes[0]
    states = [*model.shown[1:], (nodes[1], end)]
    assert [a for a, _ in draws.intervals] == [t, states[0][0], states[1][0]]  # disjoint, in order
    for i, (a, state_a) in enumerate(states):
        for b, state_b in states[i:]:
            if kind == "x0":
                kept = math.exp(-(eta**2) * (b.lam - a.lam)) * -math.expm1(-2 * eta**2 * (a.lam - t.lam))
                expected = a.sigma * b.sigma * kept
            else:
                expected = a.alpha * b.alpha * eta**2 * (t.ratio**2 - a.ratio**2)
            assert float(state_a @ state_b) == pytest.approx(expected, rel=1e-12)


def test_independent_noise_has_the_right_variances_and_no_covariance():
    nodes = grid("logsnr", VP, 4)[2:4]
    model, x = Still("x0", VP), torch.zeros(1, 4, dtype=torch.float64)
    end = solve(make("dpmpp_sde(noise=independent, s_noise=1.2)"), model, x, nodes, Draws()).x[0]
    middle, state = model.shown[1]
    assert float(state @ end) == 0
    for node, value in ((middle, state), (nodes[1], end)):
        fresh = -math.expm1(-2 * (node.lam - nodes[0].lam))
        assert float(value @ value) == pytest.approx(1.2**2 * node.sigma**2 * fresh, rel=1e-12)


def test_orders_of_a_grid_taken_in_groups():
    # what diffusers' DPMSolverSinglestepScheduler.get_order_list gives
    assert orders(3, 9, True) == (1, 2, 3, 1, 2, 3, 1, 2, 1)
    assert orders(3, 9, False) == (1, 2, 3) * 3
    assert orders(3, 7, True) == (1, 2, 3, 1, 2, 3, 1) == orders(3, 7, False)
    assert orders(3, 8, True) == (1, 2, 3, 1, 2, 3, 1, 2)
    assert orders(2, 6, True) == (1, 2, 1, 2, 1, 1)
    assert orders(2, 6, False) == (1, 2) * 3
    assert orders(2, 5, True) == (1, 2, 1, 2, 1)
    assert orders(1, 3, True) == (1, 1, 1)
    assert [orders(p, 1, cut) for p in (1, 2, 3) for cut in (True, False)] == [(1,)] * 6


@pytest.mark.parametrize(
    "spec",
    [
        "dpm_fast",
        "dpm_solver_2(mode=grid)",
        "dpm_solver_3(mode=grid)",
        "dpmpp_3s(mode=grid)",
        "dpmpp_3s(mode=grid, eta=1)",
    ],
)
@pytest.mark.parametrize("rule", ["logsnr", "karras"])  # to sigma > 0 and to sigma = 0
def test_grid_mode_takes_one_evaluation_an_interval(spec, rule):
    for steps in range(1, 10):
        assert evaluations(make(spec), VP, grid(rule, VP, steps)) == steps


def chained(problem, x, nodes, groups):
    """The state after steps of (method, intervals merged) over the grid."""
    done = 0
    for spec, size in groups:
        x = solve(make(spec), problem, x, (nodes[done], nodes[done + size])).x
        done += size
    assert done == len(nodes) - 1
    return x


@pytest.mark.parametrize("schedule", PATHS, ids=str)
@pytest.mark.parametrize("steps", [6, 7, 8])
def test_dpm_fast_merges_intervals(steps, schedule):
    """On a grid uniform in lam the inner nodes of a group are DPM-Solver's own stages."""
    last = {6: [("dpm_solver_2", 2), ("dpm_solver_1", 1)], 7: [("dpm_solver_3", 3), ("dpm_solver_1", 1)]}
    groups = [("dpm_solver_3", 3), *last.get(steps, [("dpm_solver_3", 3), ("dpm_solver_2", 2)])]
    nodes, problem = grid("logsnr", schedule, steps), Mixture(schedule)
    x = nodes[0].sigma * torch.linspace(-1, 1, 5, dtype=torch.float64).view(5, 1)
    found = solve(make("dpm_fast"), problem, x, nodes).x
    assert torch.allclose(found, chained(problem, x, nodes, groups), rtol=0, atol=1e-12)


@pytest.mark.parametrize("variant", ["dpmsolver", "taylor"])
@pytest.mark.parametrize("name", ["dpmpp_2s", "dpm_solver_2"])
def test_second_order_grid_mode_merges_two_intervals(name, variant):
    """On an uneven grid the stage stands where the middle node does."""
    nodes, problem = grid("uniform", VP, 4)[1:4], Mixture(VP)
    t, m, s = nodes
    x = t.sigma * torch.linspace(-1, 1, 5, dtype=torch.float64).view(5, 1)
    found = solve(make(f"{name}(mode=grid, variant={variant})"), problem, x, nodes).x
    r1 = (m.lam - t.lam) / (s.lam - t.lam)
    assert abs(r1 - 0.5) > 0.02
    merged = solve(make(f"{name}(r1={r1!r}, variant={variant})"), problem, x, (t, s)).x
    assert torch.allclose(found, merged, rtol=0, atol=1e-12)


@pytest.mark.parametrize("schedule", PATHS, ids=str)
@pytest.mark.parametrize("eta", [0.6, 1.0])
def test_grid_mode_with_noise_is_dpmpp_sde_with_its_stage_and_end_drawn_apart(eta, schedule):
    nodes = grid("uniform", schedule, 4)[1:4]
    r1 = (nodes[1].lam - nodes[0].lam) / (nodes[2].lam - nodes[0].lam)
    x = nodes[0].sigma * torch.linspace(-1, 1, 4, dtype=torch.float64).view(1, 4)
    for variant in ("dpmsolver", "taylor"):
        ours = make(f"dpmpp_2s(mode=grid, eta={eta}, variant={variant})")
        merged = make(f"dpmpp_sde(noise=independent, eta={eta}, r={r1!r}, variant={variant})")
        found = solve(ours, Mixture(schedule), x, nodes, Draws()).x
        expected = solve(merged, Mixture(schedule), x, (nodes[0], nodes[2]), Draws()).x
        assert torch.allclose(found, expected, rtol=0, atol=1e-12)


def test_the_noise_of_a_group_of_three_has_the_variances_of_the_sde_and_no_covariance():
    nodes = grid("quadratic", VP, 5)[1:5]
    model, x = Still("x0", VP), torch.zeros(1, 4, dtype=torch.float64)
    end = solve(make("dpmpp_3s(mode=grid, eta=0.7)"), model, x, nodes, Draws()).x[0]
    states = torch.stack([*(state for _, state in model.shown[1:]), end])
    fresh = [-math.expm1(-2 * 0.7**2 * (node.lam - nodes[0].lam)) * node.sigma**2 for node in nodes[1:]]
    expected = torch.diag(torch.tensor(fresh, dtype=torch.float64))
    assert torch.allclose(states @ states.T, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", ["dpmpp_3s", "dpm_solver_3"])
def test_third_order_grid_mode_merges_three_intervals(name):
    nodes, problem = grid("quadratic", VP, 5)[1:5], Mixture(VP)
    r1, r2 = ((node.lam - nodes[0].lam) / (nodes[3].lam - nodes[0].lam) for node in nodes[1:3])
    assert abs(r2 - 2 / 3) > 0.02
    x = nodes[0].sigma * torch.linspace(-1, 1, 5, dtype=torch.float64).view(5, 1)
    found = solve(make(f"{name}(mode=grid, variant=taylor)"), problem, x, nodes).x
    merged = solve(make(f"{name}(r1={r1!r}, r2={r2!r}, variant=taylor)"), problem, x, (nodes[0], nodes[3])).x
    assert torch.allclose(found, merged, rtol=0, atol=1e-12)


def test_grid_mode_of_order_three_on_whole_groups_is_of_order_three():
    problem, errors = GaussianData(VP), []
    for steps in (60, 120):
        nodes = grid("logsnr", VP, steps)
        exact = math.sqrt(problem.variance(nodes[-1]) / problem.variance(nodes[0]))
        found = solve(make("dpmpp_3s(mode=grid)"), problem, torch.ones(1, 1, dtype=torch.float64), nodes).x
        errors.append(abs(float(found) / exact - 1))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(3, abs=0.3)


def test_weights_of_every_order_sum_to_the_constant_s():
    for big in (-3.0, -1e-4, 1e-9, 0.2, 4.0):
        for variant in ("dpmsolver", "taylor"):
            for order, fractions in ((1, ()), (2, (0.3,)), (3, (0.3, 0.8))):
                total = sum(lagrange_weights(order, fractions, big, variant))
                assert total == pytest.approx(-math.expm1(-big), rel=1e-13)


@pytest.mark.parametrize(
    "spec",
    ["dpmpp_2s", "dpmpp_3s", "dpm_solver_3", "res_3s", "heun", "heun(quantity=velocity)", "rk4", "dpm_2"],
)
def test_advance_is_a_step_from_a_prediction_already_made(spec):
    solver, problem, (t, s) = make(spec), Mixture(VP), grid("logsnr", VP, 3)[1:3]
    x = torch.linspace(-1, 1, 5, dtype=torch.float64).view(5, 1)
    first = problem.predict(x, t)
    assert torch.equal(solver.advance(problem, x, t, s, first), solver.step(problem, x, t, s, None, None).x)


def test_res_3s_meets_the_third_stiff_condition():
    """sum_j b_j c_j^2 / 2 = phi3 holds as h -> 0: h / 6, for c2 and c3 of any size."""
    for c2, c3 in ((0.5, 1.0), (0.4, 0.8), (0.9, 0.3)):
        h = 1e-6
        end = make(f"res_3s(c2={c2}, c3={c3})").scheme().rows(h)[-1]
        assert sum(b * c**2 for b, c in zip(end, (0, c2, c3), strict=True)) / 2 == pytest.approx(h / 6, rel=1e-5)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("dpm_solver_2(r1=0)", "dpm_solver_2: r1 must lie in"),
        ("dpmpp_2s(r1=1.5)", "dpmpp_2s: r1 must lie in"),
        ("dpm_solver_3(r1=0.7)", "r1 must be less than r2, got 0.7, 0.666667"),
        ("dpmpp_3s(variant=midpoint)", "'variant'"),
        ("dpm_solver_2(mode=zigzag)", "'mode'"),
        ("dpm_solver_1(mode=grid)", "no option of dpm_solver_1 'mode'"),
        ("res_2s(c2=-1)", "res_2s: c2 must lie in"),
        ("res_3s(c2=0.6666666666666666)", "c2 must not be 2/3"),
        ("res_3s(c3=0.6, c2=0.1)", None),
        ("dpmpp_sde(r=1)", "r must lie in"),
        ("dpmpp_sde(eta=-1)", "eta must be at least 0"),
        ("seeds_2(s_noise=inf)", "s_noise must be finite"),
        ("seeds_3(r1=0.5, r2=0.5)", "r1 must be less than r2"),
        ("seeds_1(quantity=v)", "'quantity'"),
        ("rho_rk(tableau=heun4)", "did you mean heun"),
        ("dpm_2(r=0)", "dpm_2: r must lie in"),
        ("heun(quantity=x0)", "'quantity'"),
        ("dpmpp_2s(eta=1)", "dpmpp_2s: eta requires mode=grid; use dpmpp_sde(eta=1)"),
        ("dpmpp_3s(mode=grid, eta=-1)", "dpmpp_3s: eta must be at least 0"),
        ("dpm_solver_2(mode=grid, eta=1)", "no option of dpm_solver_2 'eta'"),
    ],
)
def test_bad_options_are_one_line(spec, message):
    if message is None:
        assert make(spec)
        return
    with pytest.raises(InputError) as error:
        make(spec)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_stochastic_solvers_refuse_to_encode_and_their_odes_do_not():
    nodes = grid("logsnr", VP, 3)[::-1]
    x = torch.ones(2, 1, dtype=torch.float64)
    for spec in ("dpmpp_sde", "seeds_2"):
        with pytest.raises(InputError, match="cannot encode"):
            solve(make(spec), Mixture(VP), x, nodes)
        ode = make(f"{spec}(eta=0)")
        assert torch.isfinite(solve(ode, Mixture(VP), x, nodes).x).all()


def test_names_that_people_type():
    typed = {"DPM++ SDE": "dpmpp_sde", "DPM fast": "dpm_fast", "DPM2": "dpm_2", "sample_dpm_2": "dpm_2"}
    assert {label: str(make(label)) for label in typed} == typed
    assert solvers.info("KDPM2DiscreteScheduler").name == "dpm_2"
    assert solvers.info("DPMSolverSDEScheduler").name == "dpmpp_sde"
