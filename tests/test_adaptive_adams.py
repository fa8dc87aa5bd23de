"""Adams' methods with per-sample steps, against their integrals done by quadrature, and where they are exact."""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import quad

import scoresde
import solvers
from solvers import Node, grid, solve
from solvers.adaptive.adams import AdamsAdaptive
from solvers.adaptive.base import Progress
from solvers.conformance.problems import PATHS, RECTIFIED_FLOW, SUB_VP, VE, VP, Mixture
from solvers.one_step.coefficients import lagrange, lagrange_rows

pytestmark = pytest.mark.quick


@dataclass(frozen=True)
class Rising(AdamsAdaptive):
    """The method on the grid's own steps: every step is accepted, and the order rises as long as it can."""

    first_step: float | None = math.inf
    max_step: float | None = math.inf

    def control(self, errors, row):
        row.order = len(row.places) + 2
        return True, math.inf


def clock(node):
    r = node.sigma / (node.alpha + node.sigma)
    return math.log((r + 0.1) / (1.1 - r))


def integral(at, j, start, end):
    """Of Lagrange's polynomial j through ``at``, over dr from the clock's ``start`` to ``end``."""

    def rate(c):
        r = (1.1 * math.exp(c) - 0.1) / (1 + math.exp(c))
        return (r + 0.1) * (1.1 - r) / 1.2

    def value(c):
        return rate(c) * math.prod((c - other) / (at[j] - other) for k, other in enumerate(at) if k != j)

    return quad(value, start, end, epsabs=1e-14, epsrel=1e-12)[0]


@pytest.mark.parametrize("order", [2, 3, 5])
@pytest.mark.parametrize("path", [VP, VE], ids=str)
def test_steps_are_the_integrals_of_polynomials_through_the_slopes(path, order):
    """Of fixed, uneven steps: the grid's own."""
    nodes, problem = grid("karras(end=t_min)", path, 6), Mixture(path)
    z = torch.linspace(-1.5, 1.5, 5, dtype=torch.float64).view(5, 1)
    x = math.hypot(nodes[0].alpha, nodes[0].sigma) * z
    found = solve(Rising(order=order), problem, x, nodes)

    def slope(y, node):
        said = problem.predict((node.alpha + node.sigma) * y, node)
        return said.eps - said.x0

    y = x / (nodes[0].alpha + nodes[0].sigma)
    places, slopes, errors = [clock(nodes[0])], [slope(y, nodes[0])], torch.zeros(5, dtype=torch.float64)
    for t, s in pairwise(nodes):
        here, there = clock(t), clock(s)

        def moved(at, known, y=y, here=here, there=there):
            return y + sum(integral(at, j, here, there) * f for j, f in enumerate(known))

        used = min(order - 1, len(places))
        places.append(there)
        slopes.append(slope(moved(places[-used - 1 : -1], slopes[-used:]), s))
        new = moved(places[-used - 1 :], slopes[-used - 1 :])
        gap = new - moved(places[-used:], slopes[-used:])
        errors += gap.abs().flatten()
        y = new
    assert torch.allclose(found.x, (nodes[-1].alpha + nodes[-1].sigma) * y, rtol=1e-11, atol=1e-11)
    assert torch.allclose(found.error, errors, rtol=1e-8, atol=1e-11)
    assert found.nfe.tolist() == [7] * 5


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_a_standing_prediction_is_a_line(path):
    """Data in one point: x0 and eps do not change along a solution, and no step errs."""
    nodes, problem = grid("uniform", path, 1), Mixture(path, (0.7,), (1.0,), 0.0)
    start, end = (0.7 * n.alpha + n.sigma * torch.tensor([[-1.0], [2.0]]).double() for n in (nodes[0], nodes[-1]))
    found = solve(solvers.make("adams_adaptive"), problem, start, nodes)
    assert torch.allclose(found.x, end, rtol=0, atol=1e-11)
    assert found.rejected.sum() == 0
    both = solve(solvers.make("adams_adaptive"), problem, end, nodes[::-1])
    assert torch.allclose(both.x, start, rtol=1e-10, atol=1e-10)


def test_what_it_remembers_survives_the_grid_and_not_a_moved_state():
    """One interval or many, the polynomials go on; after a hook has moved the state they begin anew."""
    problem, x = Mixture(VP), torch.tensor([[0.8]], dtype=torch.float64)
    nodes = grid("logsnr", VP, 8)
    solver = Rising()
    straight = solve(solver, problem, x, nodes).x
    touched = solve(solver, problem, x, nodes, hooks=[lambda x, node: x.clone()])
    assert int(touched.nfe) == 16  # a slope at every beginning
    # and each interval is then a solve of its own
    y = x
    for t, s in pairwise(nodes):
        y = solve(solver, problem, y, (t, s)).x
    assert torch.equal(touched.x, y)
    assert not torch.allclose(touched.x, straight, rtol=1e-4)


def test_errors_at_other_orders_are_differences_of_correctors():
    """Of the slopes that a step of its order used, and of one slope more."""
    nodes, problem, seen = grid("karras(end=t_min)", VP, 6), Mixture(VP), []

    class Told(Rising):
        def attempt(self, problem, x, slope, rows, ends, dtype):
            made = super().attempt(problem, x, slope, rows, ends, dtype)
            known = [*slope[0].flatten().tolist(), float(made.slope[0, -1])]
            seen.append((self._order(rows[0]), [*rows[0].places, clock(ends[0])], known, made.others))
            return made

        def control(self, errors, row):
            row.order = 2 + len(row.places) // 2
            return True, math.inf

    solve(Told(order=4), problem, 0.4 + torch.zeros(1, 1, dtype=torch.float64), nodes)
    assert [order for order, *_ in seen] == [2, 2, 3, 3, 4, 4]
    for order, places, known, others in seen:

        def moved(count, places=places, known=known):
            at = places[-count:]
            return sum(integral(at, j, *places[-2:]) * f for j, f in enumerate(known[-count:]))

        lower, higher = (float(v) for v in others)
        if order > 2:
            assert lower == pytest.approx(moved(order - 1) - moved(order - 2), rel=1e-7, abs=1e-12)
        if order < min(4, len(places)):
            assert higher == pytest.approx(moved(order + 1) - moved(order), rel=1e-7, abs=1e-12)


@pytest.mark.parametrize(
    ("order", "errors", "accepted", "factor", "then"),
    [
        (4, (0.1, 0.5, 0.5), True, 0.7 * 0.1 ** (-1 / 4), 4),
        (4, (0.1, 0.05, 0.5), True, 0.7 * 0.05 ** (-1 / 3), 3),  # one order less allows a longer step
        (4, (0.1, 0.19, 0.5), True, 0.7 * 0.19 ** (-1 / 3), 3),  # or one that is hardly shorter
        (4, (0.1, 0.5, 0.03), True, 0.7 * 0.03 ** (-1 / 5), 5),
        (4, (0.1, 0.5, 0.08), True, 0.7 * 0.1 ** (-1 / 4), 4),  # hardly longer at one order more
        (4, (16.0, 20.0, 0.01), False, 0.7 / 2, 4),  # no rise after a rejection
        (4, (1.1, 0.01, 0.01), False, 0.9, 3),  # a rejected step is not repeated at its length
        (2, (0.1, 1e-6, 0.5), True, 0.7 * 0.1 ** (-1 / 2), 2),
        (6, (0.1, 0.5, 1e-9), True, 0.7 * 0.1 ** (-1 / 6), 6),
        (4, (1e-12, 1.0, 1.0), True, 2.5, 4),
    ],
)
def test_the_order_that_allows_the_longest_step_is_next(order, errors, accepted, factor, then):
    row = Progress(Node(0.5, 1.0, 1.0), order=order, places=tuple(range(8)), others=errors[1:])
    assert solvers.make("adams_adaptive").control(errors[:1], row) == (accepted, pytest.approx(factor))
    assert row.order == then


def test_where_stability_limits_the_steps_the_order_falls():
    """The slope cos r - 400 (y - sin r), whose solution sin r is smooth, but which is stiff."""
    path = RECTIFIED_FLOW

    class Stiff(Mixture):
        def predict(self, x, node):
            node = node.like(x)
            y = x / (node.alpha + node.sigma)
            r = torch.as_tensor(node.sigma / (node.alpha + node.sigma), dtype=x.dtype)
            slope = r.cos() - 400 * (y - r.sin())  # whose solution is sin r
            return solvers.Prediction(x - node.sigma * slope, x + node.alpha * slope)

    lams = (math.log(20.0), math.log(0.1))
    nodes = [path(path.t_of_lam(lam)) for lam in lams]
    r = [n.sigma / (n.alpha + n.sigma) for n in nodes]
    start = torch.full((1, 1), (nodes[0].alpha + nodes[0].sigma) * math.sin(r[0]), dtype=torch.float64)
    used = []

    class Told(AdamsAdaptive):
        def control(self, errors, row):
            found = super().control(errors, row)
            used.append(row.order)
            return found

    found = solve(Told(rtol=1e-4, atol=1e-4), Stiff(path), start, nodes)
    # the errors of a few steps, each about the tolerance; older ones have decayed
    assert float(found.x) / (nodes[1].alpha + nodes[1].sigma) == pytest.approx(math.sin(r[1]), abs=1e-3)
    assert sorted(used)[len(used) // 2] <= 3
    assert int(found.nfe) > 50  # stability does limit the steps


def test_every_path_takes_the_same_steps():
    """One solve in five coordinates: the same places, errors and evaluations, whatever the tolerance."""
    z = torch.linspace(-2, 2, 9, dtype=torch.float64).view(9, 1)
    for tolerance in (1e-2, 1e-4):
        solver, found = solvers.make(f"adams_adaptive(rtol={tolerance}, atol={tolerance})"), []
        for path in (VP, SUB_VP, VE, RECTIFIED_FLOW):
            lams = (math.log(0.1), math.log(20.0))
            nodes = [path(path.t_of_lam(lam)) for lam in lams]
            start = (nodes[0].alpha + nodes[0].sigma) * z
            solution = solve(solver, Mixture(path), start, nodes)
            found.append((solution.x / (nodes[1].alpha + nodes[1].sigma), solution.nfe, solution.error))
        for x, nfe, error in found[1:]:
            assert torch.allclose(x, found[0][0], rtol=0, atol=1e-9)
            assert torch.equal(nfe, found[0][1])
            assert torch.allclose(error, found[0][2], rtol=1e-6)


def test_a_hook_may_move_the_state_in_place():
    problem, nodes = Mixture(VP), grid("logsnr", VP, 4)
    x = torch.tensor([[0.8], [-0.3]], dtype=torch.float64)
    solver = solvers.make("adams_adaptive")
    ends = [
        solve(solver, problem, x.clone(), nodes, hooks=[move]).x
        for move in (lambda x, node: x.mul_(1.01), lambda x, node: 1.01 * x)
    ]
    assert torch.equal(*ends)


def test_weights_of_rows_are_those_of_each():
    generator = np.random.default_rng(0)
    at, points, measure = (generator.normal(size=shape) for shape in ((5, 4), (5, 9), (5, 9)))
    whole = lagrange_rows(at, points, measure)
    for i in range(5):
        assert np.array_equal(whole[i : i + 1], lagrange_rows(at[i : i + 1], points[i : i + 1], measure[i : i + 1]))
        cubic = np.polyval([2.0, -1.0, 0.5, 3.0], points[i]) @ measure[i]
        weights = lagrange(at[i].tolist(), points[i], measure[i])
        assert np.dot(weights, np.polyval([2.0, -1.0, 0.5, 3.0], at[i])) == pytest.approx(cubic, rel=1e-9)


def test_the_ends_of_the_path_are_on_its_clock():
    solver = solvers.make("adams_adaptive")
    assert solver.clock(Node(1.0, 0.0, 1.0)) == pytest.approx(math.log(11))  # alpha = 0, of rectified flow
    assert solver.clock(Node(0.0, 1.0, 0.0)) == pytest.approx(-math.log(11))
    for ratio in (1e-6, 0.01, 1.0, 300.0):
        node = Node(0.5, 1.0, ratio)
        assert solver.lam_at(solver.clock(node)) == pytest.approx(node.lam, rel=1e-8, abs=1e-9)


@pytest.mark.parametrize("path", ["vp(t_min=1e-8)", "subvp(t_min=1e-5)", "rectified_flow(t_min=1e-5, t_max=0.99999)"])
def test_a_start_where_every_slope_vanishes_is_not_crossed_in_one_step(path):
    """At x = 0 = E[x0] the state stays, and at both ends of the path the density's slope vanishes as well."""
    target, sde = scoresde.targets.Gaussian(torch.zeros(2, dtype=torch.float64), 0.25), scoresde.make_sde(path)
    x, node = torch.zeros(1, 2, dtype=torch.float64), sde(sde.t_min)
    wanted = float(target.log_prob(node.alpha * x, node)) + 2 * math.log(node.alpha)
    for tolerance in (1.0, 0.02):
        found = scoresde.log_prob(target.denoiser(sde), x, tolerance=tolerance, divergence="exact")
        # the prior N(0, (alpha^2 + sigma^2) I) differs from the law at t_max by less than 1e-3 here
        assert abs(float(found.nats) - wanted) < tolerance + 1e-3
