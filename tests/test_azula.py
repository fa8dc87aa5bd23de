"""azula's samplers, from the formulas of its documentation: each is an option of an engine here.

The formulas are integrated by quadrature of their own (scipy), in the variables they are stated in.
"""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import quad

import solvers
from solvers import SeededNoise, grid, resolve, solve
from solvers.conformance.problems import EDM, RECTIFIED_FLOW, SUB_VP, VP, Mixture

pytestmark = pytest.mark.quick


def basis(at, i):
    """The i-th Lagrange polynomial over the points ``at``."""
    others = [u for j, u in enumerate(at) if j != i]
    return lambda u: math.prod((u - other) / (at[i] - other) for other in others)


def adams_bashforth(path, nodes, x, order, scale, clock, slope, density=lambda u: 1.0):
    """x / scale moved by the integral of the slopes' polynomial in ``clock``, times ``density``: newest slopes last."""
    problem, past = Mixture(path), []
    for t, s in pairwise(nodes):
        past = [*past, (clock(t), slope(problem.predict(x, t), x, t))][-order:]
        at = [u for u, _ in past]
        moved = x / scale(t)
        for i, (_, q) in enumerate(past):
            lagrange = basis(at, i)
            weight, _ = quad(
                lambda u, polynomial=lagrange: density(u) * polynomial(u),
                clock(t),
                clock(s),
                epsabs=1e-14,
                epsrel=1e-13,
            )
            moved = moved + weight * q
        x = scale(s) * moved
    return x


def velocity(said, x, t):
    return x / t.sigma - (1 + t.alpha / t.sigma) * said.x0


def rosenbrock(said, x, t):
    # ((1 - a) x / alpha - x0) / b, a = sigma^2 / (alpha^2 + sigma^2), b = sqrt(a)
    a = t.sigma**2 / (t.alpha**2 + t.sigma**2)
    return ((1 - a) * x / t.alpha - said.x0) / math.sqrt(a)


CASES = {
    "vABSampler": (
        lambda n: n.alpha + n.sigma,
        lambda n: n.sigma / (n.alpha + n.sigma),
        velocity,
        lambda u: 1.0,
    ),
    # REAB, the square root's sigma being that of the node it arrives at
    "REABSampler": (
        lambda n: math.hypot(n.alpha, n.sigma),
        lambda n: math.log(n.sigma / n.alpha),
        rosenbrock,
        lambda u: math.exp(u) / (1 + math.exp(2 * u)),
    ),
}


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("path", [VP, SUB_VP, EDM, RECTIFIED_FLOW], ids=str)
@pytest.mark.parametrize("label", CASES)
def test_a_multistep_sampler_is_an_option_of_adams(label, path, order):
    solver = solvers.make(f"{label}(order={order})")
    assert solvers.solvers.info_of(solver).name == "adams"
    nodes = grid("quadratic", path, 6)
    x = nodes[0].sigma * torch.linspace(-2, 2, 9, dtype=torch.float64).view(9, 1)
    # 1e-11: six steps of quadratures good to 1e-13
    wanted = adams_bashforth(path, nodes, x, order, *CASES[label])
    assert torch.allclose(solve(solver, Mixture(path), x, nodes).x, wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
def test_the_ito_sampler_is_seeds_1_in_eps(eta):
    spec, _ = resolve(f"ItoSampler(eta={eta})")
    nodes, problem = grid("karras(end=t_min)", VP, 5), Mixture(VP)
    start = SeededNoise(range(3), (2,), torch.float64)
    x = y = start.initial()
    found = solve(solvers.make(spec), problem, x, nodes, SeededNoise(range(3), (2,), torch.float64)).x
    noise = SeededNoise(range(3), (2,), torch.float64)
    for t, s in pairwise(nodes):
        gap = y - t.alpha * problem.predict(y, t).x0
        drift = (1 + eta**2) * (s.sigma / t.sigma - s.alpha / t.alpha) * gap
        y = s.alpha / t.alpha * y + drift
        if eta:
            y = y + eta * s.alpha * math.sqrt(t.ratio**2 - s.ratio**2) * noise(t, s)
    assert torch.allclose(found, y, rtol=1e-12, atol=1e-12)


def test_the_clocks_of_adams_are_those_in_which_its_path_is_straight():
    # where the velocity (or v) does not change, the steps in its own clock are exact, whatever the coordinate's spacing
    angle, flow = (solvers.multistep.base.place(VP(0.4), name) for name in ("angle", "flow"))
    assert math.tan(angle) == pytest.approx(VP(0.4).ratio, rel=1e-14)
    assert flow == pytest.approx(VP(0.4).sigma / (VP(0.4).alpha + VP(0.4).sigma), rel=1e-14)
    for quantity, coordinate in (("velocity", "flow"), ("v", "angle")):
        nodes = grid("quadratic", VP, 5)
        past = [nodes[2], nodes[1], nodes[0]]
        row = solvers.multistep.base.adams(Mixture(VP), nodes[3], nodes[2], past, quantity, coordinate)
        u = [solvers.multistep.base.place(node, coordinate) for node in (nodes[3], *past)]
        scale = 1 + nodes[3].ratio if quantity == "velocity" else math.hypot(1, nodes[3].ratio)
        for power in (0, 1, 2):  # exact for polynomials in the clock
            exact = (u[0] ** (power + 1) - u[1] ** (power + 1)) / (power + 1)
            assert scale * exact == pytest.approx(np.dot(row.weights, np.power(u[1:], power)), rel=1e-12)
