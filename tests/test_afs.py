"""The analytical first step: one evaluation less, the same method after it."""

import math

import pytest
import torch

import solvers
from solvers import InputError, grid, make, solve
from solvers.budget import evaluations, steps_of_nfe
from solvers.conformance.problems import EDM, VP, GaussianData, Mixture
from solvers.program.instructions import Evaluate

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("inner", ["euler", "heun", "dpmpp_2m", "ipndm", "uni_pc", "dpm_fast", "final"])
@pytest.mark.parametrize("rule", ["logsnr", "karras"])
def test_it_takes_one_evaluation_less_and_none_at_the_start(inner, rule):
    nodes = grid(rule, VP, 8)
    before, after = (solvers.trace(spec, nodes, VP) for spec in (inner, f"afs(solver={inner})"))
    assert after.nfe == before.nfe - 1
    asked = [
        [program.nodes[i.node] for i in program.instructions if isinstance(i, Evaluate)] for program in (before, after)
    ]
    assert asked[0][0] == nodes[0]
    assert nodes[0] not in asked[1]


def test_the_first_step_is_along_the_state():
    t, s = nodes = grid("explicit(ratios=[10, 4])", EDM)
    x = torch.tensor([[1.0, -3.0]], dtype=torch.float64)
    found = solve(make("afs(solver=euler)"), Mixture(EDM), x, nodes)
    wanted = x + (s.ratio - t.ratio) * x / math.hypot(1, 10)
    assert torch.allclose(found.x, wanted, rtol=1e-15)
    assert found.nfe.tolist() == [0]


def test_its_prediction_is_a_pair_to_sigma_0():
    nodes = grid("karras", VP, 1)
    x = torch.tensor([[1.0, -3.0]], dtype=torch.float64)
    t = nodes[0]
    found = solve(make("afs(solver=euler)"), Mixture(VP), x, nodes).x
    assert torch.allclose(found, (x - t.sigma * x / math.hypot(t.alpha, t.sigma)) / t.alpha, rtol=1e-12)


@pytest.mark.parametrize("data", [0.04, 1.0])
def test_what_it_is_off_by_is_small_at_high_noise(data):
    # eps = sigma x / (alpha^2 v + sigma^2); of data of unit variance the two differ by the fraction 1 / (2 ratio^2)
    problem, t = GaussianData(EDM, data), EDM(10.0)
    x = torch.ones(1, 1, dtype=torch.float64)
    assert abs(float(problem.predict(x, t).eps) / (1 / math.hypot(1, 10)) - 1) < 0.006


def test_it_encodes_as_its_solver_does():
    nodes = grid("logsnr", VP, 8)[::-1]
    x = torch.linspace(-1, 1, 5, dtype=torch.float64).view(5, 1)
    one, other = (solve(make(spec), Mixture(VP), x, nodes) for spec in ("afs(solver=heun)", "heun"))
    assert torch.equal(one.x, other.x)
    assert one.nfe.tolist() == other.nfe.tolist()


@pytest.mark.parametrize(
    ("inner", "message"),
    [("picard", "evaluates several steps at once"), ("rk45", "chooses its own steps")],
)
def test_what_it_makes_no_sense_around_is_refused(inner, message):
    with pytest.raises(InputError, match=message):
        make(f"afs(solver={inner})")


@pytest.mark.parametrize("inner", ["euler", "ipndm", "heun", "dpm_solver_3", "plms"])
@pytest.mark.parametrize("rule", ["logsnr(end=t_min)", "karras"])
def test_a_budget_is_spent_to_the_last_evaluation_that_a_step_leaves(inner, rule):
    method, places = make(f"afs(solver={inner})"), solvers.grids.make(rule)
    for nfe in (3, 5, 8, 10):
        steps = steps_of_nfe(method, places, VP, nfe)
        assert evaluations(method, VP, places.nodes(VP, steps)) <= nfe
        assert evaluations(method, VP, places.nodes(VP, steps + 1)) > nfe


def test_the_free_step_is_not_counted_in_a_budget():
    # one evaluation buys the free step and another one; without it, the row of a benchmark had 0 evaluations
    for nfe in (1, 5, 20):
        steps = steps_of_nfe(make("afs(solver=euler)"), solvers.grids.make("karras"), VP, nfe)
        assert steps == nfe + 1
        assert evaluations(make("afs(solver=euler)"), VP, grid("karras", VP, steps)) == nfe
