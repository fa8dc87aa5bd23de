"""Runge-Kutta methods against closed forms: Euler's numbers, Heun's rule for velocities, the tableaux' conditions."""

from itertools import pairwise
from typing import get_args, get_type_hints

import pytest
import torch
from linear_response import coefficients

import solvers
from scoresde.interop import sample_function
from solvers import grid, make, solve
from solvers.conformance.problems import PATHS, RECTIFIED_FLOW, VE, Mixture
from solvers.one_step.runge_kutta import TABLEAUX, RhoRK

pytestmark = pytest.mark.quick


def test_linear_response_of_euler_is_the_formula():
    nodes = grid("logsnr", VE, 2)
    x, asked = coefficients(make("euler"), nodes, VE)
    ratio = [node.ratio for node in nodes]
    expected = torch.tensor([1.0, ratio[1] - ratio[0], ratio[2] - ratio[1]], dtype=torch.float64)
    assert torch.allclose(x, expected, rtol=0, atol=1e-15)
    assert [node for node, _ in asked] == list(nodes[:2])
    assert torch.equal(asked[1][1], torch.tensor([1.0, float(x[1]), 0.0], dtype=torch.float64))


@pytest.mark.parametrize("schedule", PATHS, ids=str)
def test_heun_of_velocities_is_the_trapezoidal_rule_on_the_straight_path(schedule):
    """Divided by alpha + sigma, every path is the straight one at time sigma / (alpha + sigma)."""
    problem, (t, s) = Mixture(schedule), grid("logsnr", schedule, 3)[1:3]
    y = torch.linspace(-1, 1, 5, dtype=torch.float64).view(5, 1)
    a, b = t.sigma / (t.alpha + t.sigma), s.sigma / (s.alpha + s.sigma)

    def velocity(y, time):
        prediction = Mixture(RECTIFIED_FLOW).predict(y, RECTIFIED_FLOW(time))
        return prediction.eps - prediction.x0

    first = velocity(y, a)
    expected = y + (b - a) * (first + velocity(y + (b - a) * first, b)) / 2
    found = solve(make("heun(quantity=velocity)"), problem, (t.alpha + t.sigma) * y, (t, s)).x / (s.alpha + s.sigma)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)


def trees(tableau):
    """The order conditions up to order 4: (order, value, what it must be)."""
    b, c = torch.tensor(tableau.b, dtype=torch.float64), torch.tensor(tableau.c, dtype=torch.float64)
    a = torch.zeros(len(b), len(b), dtype=torch.float64)
    for i, row in enumerate(tableau.a):
        a[i, : len(row)] = torch.tensor(row, dtype=torch.float64)
    assert torch.allclose(a.sum(1), c, rtol=0, atol=1e-15)
    return [
        (1, b.sum(), 1),
        (2, b @ c, 1 / 2),
        (3, b @ c**2, 1 / 3),
        (3, b @ a @ c, 1 / 6),
        (4, b @ c**3, 1 / 4),
        (4, (b * c) @ a @ c, 1 / 8),
        (4, b @ a @ c**2, 1 / 12),
        (4, b @ a @ a @ c, 1 / 24),
    ]


@pytest.mark.parametrize("name", TABLEAUX)
def test_tableaux_meet_the_conditions_of_their_order_and_no_more(name):
    order, tableau = TABLEAUX[name]
    gaps = [(tree, abs(float(value) - wanted)) for tree, value, wanted in trees(tableau)]
    assert all(gap < 1e-15 for tree, gap in gaps if tree <= order)
    assert order == 4 or any(gap > 1e-3 for tree, gap in gaps if tree == order + 1)
    solver = make(f"rho_rk(tableau={name})")
    assert (solver.order, solver.evaluations) == (order, len(tableau.b))


def test_every_tableau_is_an_option():
    assert set(get_args(get_type_hints(RhoRK)["tableau"])) == set(TABLEAUX)


@pytest.mark.parametrize(
    "levels", [[80.0, 30, 10, 3, 1, 0.2, 0.0], [80.0, 30, 10, 3, 1, 0.05], [80.0, 10, 0], [80.0, 0]]
)
def test_heunpp2_is_the_front_ends_loop(levels):
    def model(x, sigma):
        return torch.tanh(x / (1 + float(sigma.flatten()[0])))

    def slope(x, sigma):
        return (x - model(x, torch.tensor([sigma], dtype=x.dtype))) / sigma

    x = 80 * torch.randn(3, 4, generator=solvers.generator(0), dtype=torch.float64)
    found = sample_function("heunpp2")(model, x, levels, disable=True)
    for i, (now, then) in enumerate(pairwise(levels)):
        left, d = len(levels) - 2 - i, slope(x, now)
        if left == 0:
            step = d
        else:
            first = x + (then - now) * d
            d_2, share = slope(first, then), then / ((2 if left == 1 else 3) * levels[0])
            step = (1 - share) * d + share * d_2
            if left > 1:
                after = levels[i + 2]
                d_3 = slope(first + (after - then) * d_2, after)
                step = step + after / (3 * levels[0]) * (d_3 - d)
        x = x + (then - now) * step
    # the level of the third evaluation comes from lam and is rounded to 1e-15
    assert torch.allclose(found, x, rtol=1e-12, atol=1e-12)
