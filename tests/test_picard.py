"""Parallel in time: the outcome of the steps taken one by one, in fewer calls of the model."""

import math
from itertools import pairwise

import pytest
import torch

import solvers
from solvers import InputError, SeededNoise, grid, solve
from solvers.conformance.convergence import measured_order
from solvers.conformance.problems import EDM, VP, Mixture
from solvers.noise.brownian import BrownianNoise


def run(spec, nodes, schedule=VP, problem=None, seeds=range(5), dtype=torch.float64, kind=SeededNoise, hooks=()):
    noise = kind(seeds, (3,), dtype)
    x = math.hypot(nodes[0].alpha, nodes[0].sigma) * noise.initial()
    return solve(solvers.make(spec), problem or Mixture(schedule), x, nodes, noise, hooks)


INNER = ["ddim", "heun", "ddpm", "ddim(eta=0.5)", "pc(predictor=ddpm)", "euler_maruyama", "churn"]


@pytest.mark.parametrize("schedule", [VP, EDM], ids=str)
@pytest.mark.parametrize("spec", ["logsnr", "karras"])  # the second ends at sigma = 0
@pytest.mark.parametrize("inner", INNER)
def test_up_to_rounding_it_is_the_solver_alone(inner, spec, schedule):
    nodes = grid(spec, schedule, 30)
    alone = run(inner, nodes, schedule)
    for window in (1, 4, 50):
        found = run(f"picard(solver={inner}, window={window})", nodes, schedule)
        # what rounding leaves; pc's norms in three dimensions pass more of it on
        assert torch.allclose(found.x, alone.x, rtol=0, atol=1e-9 if "pc" in inner else 1e-12)
        assert found.calls <= alone.calls
        if window == 1:
            assert torch.equal(found.x, alone.x)
            assert found.nfe.tolist() == alone.nfe.tolist()


@pytest.mark.parametrize(
    ("inner", "tolerance", "most"), [("ddim", 1e-3, 20), ("heun", 1e-3, 40), ("ddpm", 1e-3, 28), ("ddim", 0, 50)]
)
def test_it_calls_the_model_less_often(inner, tolerance, most):
    """100 steps of a smooth problem: at most a quarter of the calls, for an error of about the tolerance."""
    nodes, problem = grid("logsnr", VP, 100), Mixture(VP, v=0.5)
    alone = run(inner, nodes, problem=problem)
    found = run(f"picard(solver={inner}, tolerance={tolerance})", nodes, problem=problem)
    assert found.calls <= most < alone.calls / 1.9
    assert float((found.x - alone.x).abs().max()) < max(3 * tolerance, 1e-12)
    assert bool((found.nfe > alone.nfe).all())  # what it costs


def test_a_smaller_tolerance_comes_nearer():
    nodes, gaps = grid("logsnr", VP, 100), []
    alone = run("ddim", nodes)
    for tolerance in (1e-1, 1e-3, 1e-5, 1e-7):
        found = run(f"picard(tolerance={tolerance})", nodes)
        gaps.append(float((found.x - alone.x).abs().max()))
        assert gaps[-1] < 10 * tolerance
    assert gaps == sorted(gaps, reverse=True)


@pytest.mark.parametrize("tolerance", [0, 1e-2])
@pytest.mark.parametrize("inner", ["ddim", "ddpm", "heun"])
def test_a_sample_and_its_evaluations_are_the_same_alone(inner, tolerance):
    nodes = grid("karras", VP, 40)
    spec = f"picard(solver={inner}, tolerance={tolerance}, window=7)"
    batch = run(spec, nodes, seeds=range(12))
    for seed in (0, 5, 11):
        alone = run(spec, nodes, seeds=[seed])
        assert torch.equal(alone.x, batch.x[[seed]])
        assert alone.nfe.tolist() == batch.nfe[[seed]].tolist()
        assert alone.calls <= batch.calls
    assert len(set(batch.nfe.tolist())) > 1  # they do converge apart


def test_samples_carry_their_conditions():
    class Conditioned(Mixture):
        def __init__(self, shift):
            super().__init__(VP)
            object.__setattr__(self, "shift", shift)

        def predict(self, x, node):
            moved = super().predict(x - node.like(x).alpha * self.shift, node)
            return solvers.Prediction(moved.x0 + self.shift, moved.eps)

        def select(self, rows):
            return Conditioned(self.shift[rows])

    shift = torch.arange(5, dtype=torch.float64).view(5, 1)
    nodes, problem = grid("logsnr", VP, 30), Conditioned(shift)
    found, alone = (run(spec, nodes, problem=problem) for spec in ("picard(window=6)", "ddim"))
    assert torch.allclose(found.x, alone.x, rtol=0, atol=1e-12)
    assert float(found.x[4].mean() - found.x[0].mean()) > 1  # the conditions do matter


def test_in_float32_up_to_its_own_rounding():
    nodes = grid("logsnr", VP, 60)
    found, alone = (run(spec, nodes, dtype=torch.float32) for spec in ("picard", "ddim"))
    assert found.x.dtype == torch.float32
    assert torch.allclose(found.x, alone.x, rtol=0, atol=1e-4)
    assert found.calls < 45


def test_brownian_noise_too():
    nodes = grid("logsnr", VP, 30)
    found, alone = (run(spec, nodes, kind=BrownianNoise) for spec in ("picard(solver=ddpm)", "ddpm"))
    assert torch.allclose(found.x, alone.x, rtol=0, atol=1e-12)


def test_a_hook_that_changes_the_state_is_heard():
    nodes = grid("logsnr", VP, 20)

    def push(x, node):
        return x + 0.01 if node.ratio > 0.5 else None

    for inner in ("ddim", "ddpm"):
        found = run(f"picard(solver={inner}, window=5)", nodes, hooks=[push])
        assert torch.allclose(found.x, run(inner, nodes, hooks=[push]).x, rtol=0, atol=1e-12)


def test_it_encodes():
    nodes = grid("logsnr", VP, 50)[::-1]
    x = torch.linspace(-1.5, 1.5, 5, dtype=torch.float64).view(5, 1)
    found, alone = (solve(solvers.make(spec), Mixture(VP), x, nodes) for spec in ("picard", "ddim"))
    assert torch.allclose(found.x, alone.x, rtol=0, atol=1e-12)
    assert found.calls < 50


def test_memory_is_the_windows():
    """Only the states from here to the end of the window are kept."""
    solver, nodes = solvers.make("picard(window=4)"), grid("logsnr", VP, 30)
    x = torch.ones(1, 1, dtype=torch.float64)
    carry = solver.init(Mixture(VP), x, nodes)
    for t, s in pairwise(nodes):
        x, carry = solver.step(Mixture(VP), x, t, s, carry, None)[:2]
        assert len(carry.points) <= 5


def test_its_order_is_the_solvers():
    order, _ = measured_order(solvers.make("picard(solver=heun)"), VP)
    assert 1.8 < order < 2.2
    assert solvers.make("picard(solver=heun)").order == 2


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("picard(solver=dpmpp_2m)", "picard: dpmpp_2m carries state from step to step; take a single-step solver"),
        ("picard(solver=rk45)", "picard: rk45 chooses its own steps; take a solver of fixed steps"),
        ("picard(window=0)", "picard: window must be a positive integer, got 0"),
        ("picard(tolerance=-1)", "picard: tolerance must be at least 0, got -1"),
    ],
)
def test_what_makes_no_sense_is_refused(spec, message):
    with pytest.raises(InputError, match=message):
        solvers.make(spec)
