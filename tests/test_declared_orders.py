"""What a solver declares is what its options reach, and no more: orders measured where an option decides them."""

import math
from itertools import pairwise

import pytest
import torch

import solvers
from solvers import InputError, grid, make, solve
from solvers.conformance.convergence import measured_order, reaches
from solvers.conformance.problems import VP, Mixture


@pytest.mark.parametrize(
    ("options", "declared"),
    [
        pytest.param("1, 1", 1, marks=pytest.mark.slow),
        ("2, 1", 1),  # the corrector, of order 1, overwrites what the predictor did
        pytest.param("3, 1", 1, marks=pytest.mark.slow),
        ("1, 2", 2),
        pytest.param("2, 2", 2, marks=pytest.mark.slow),
        ("3, 0", 2),
        pytest.param("3, 4", 2, marks=pytest.mark.slow),
        ("3, 1, eta=0", 1),
        ("1, 3, eta=0", 2),  # a corrector is one order better than its predictor, at most
        pytest.param("2, 0, eta=0", 2, marks=pytest.mark.slow),
        ("2, 3, eta=0", 3),
        ("4, 3, eta=0", 3),
        pytest.param("3, 4, eta=0", 3, marks=pytest.mark.slow),
    ],
)
def test_sa_solver_has_the_order_of_its_last_word(options, declared):
    solver = make(f"sa_solver({options})")
    assert solver.order == declared
    order, _ = measured_order(solver, VP)
    assert reaches(solver, order)
    assert order < declared + 0.5 or declared > 1  # order 1 is sharp


@pytest.mark.parametrize(("gamma", "order"), [(1.0, 1), (1.5, 2), (2.0, 1), (3.0, 1)])
def test_gradient_estimation_is_of_order_one_but_for_one_gamma(gamma, order):
    solver = make(f"gradient_estimation(gamma={gamma})")
    measured, _ = measured_order(solver, VP)
    assert solver.order == order
    assert abs(measured - order) < 0.3  # at gamma = 3: 1.22, and falling


def test_gradient_estimation_is_its_formula():
    nodes, problem = grid("karras(end=t_min)", VP, 4), Mixture(VP)
    x = torch.linspace(-2, 2, 5, dtype=torch.float64).view(5, 1)
    y, before = x / nodes[0].alpha, None
    for t, s in pairwise(nodes):
        eps = problem.predict(t.alpha * y, t).eps
        pushed = eps if before is None else 2.5 * eps - 1.5 * before
        y, before = y + (s.ratio - t.ratio) * pushed, eps
    found = solve(make("gradient_estimation(gamma=2.5)"), problem, x, nodes).x
    assert torch.allclose(found, nodes[-1].alpha * y, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 1.5])
def test_euler_maruyama_steps_along_the_sde_of_its_eta(eta):
    t, s = nodes = (VP(0.9), VP(0.7))
    x, z = torch.tensor([[0.3]], dtype=torch.float64), torch.tensor([[1.1]], dtype=torch.float64)
    found = solve(make(f"euler_maruyama(eta={eta})"), Mixture(VP), x, nodes, lambda t, s: z).x
    # dx = -x dt + sqrt(2) dw on this path: f = -1, g^2 = 2
    score = Mixture(VP).predict(x, t).score(t)
    drift = -x - (1 + eta**2) / 2 * 2 * score
    assert float(found) == pytest.approx(float(x + drift * (s.t - t.t) + eta * math.sqrt(2 * 0.2) * z), rel=1e-12)
    assert make(f"euler_maruyama(eta={eta})").stochastic == (eta > 0)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("dpmpp_3s(variant=flipped)", "variant=flipped requires mode=grid and eta > 0; use variant=taylor"),
        ("dpmpp_3s(variant=flipped, mode=grid)", "variant=flipped requires mode=grid and eta > 0"),
        ("gradient_estimation(gamma=0.5)", "gamma must be at least 1, got 0.5"),
        ("euler_maruyama(eta=-1)", "euler_maruyama: eta must be at least 0, got -1"),
        ("pc(corrector=noise_renewal(delta=0))", r"delta must lie in \(0, 1\], got 0"),
        ("adams(coordinate=angel)", "did you mean angle"),
    ],
)
def test_options_that_do_not_fit_are_told(spec, message):
    with pytest.raises(InputError, match=message):
        solvers.make(spec)


@pytest.mark.parametrize("name", solvers.names())
def test_a_card_states_the_order_that_the_default_solver_promises(name):
    solver = solvers.make(name)
    assert solvers.info(name).order == solver.order <= solver.nominal_order
