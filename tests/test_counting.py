"""What a solve costs: NFE at the solver, forwards and vector-Jacobian products at the network, budgets in either."""

import pytest
import torch

import scoresde
from scoresde import InputError, sample
from scoresde.models.counting import Count, add_vjps, counted
from scoresde.models.model import ModelWrapper
from scoresde.models.networks.conditioning import SelfConditioned
from scoresde.models.targets import GaussianMixture
from solvers import Prediction, solve

pytestmark = pytest.mark.quick

VP = scoresde.VP()
TARGET = GaussianMixture(torch.tensor([[-1.0, 0.5], [1.0, 0.5]]), 0.04)
PLAIN = TARGET.denoiser(VP)


class Twice(ModelWrapper):
    """A model that evaluates its network twice at high noise and once below ``edge``, where its prediction jumps."""

    def __init__(self, model, edge=1.0, high=None):
        super().__init__(model)
        self.edge, self.high = edge, high

    def is_high(self, node):
        return node.ratio > self.edge if self.high is None else self.high

    def cost(self, node):
        return 2 if self.is_high(node) else 1

    def predict(self, x, node, **conditions):
        found = self.model.predict(x, node, **conditions)
        if not self.is_high(node):
            return found
        other = self.model.predict(x + 1, node, **conditions)
        x0 = found.x0 + 0.3 * (other.x0 - found.x0)
        return Prediction(x0, found.eps - (node.alpha / node.sigma) * (x0 - found.x0))

    def pieces(self, nodes):
        up = nodes[0].ratio < nodes[-1].ratio
        k = next((k for k, node in enumerate(nodes) if (node.ratio > self.edge) == up), None)
        if k in (None, 0) or self.high is not None:
            return ((self, nodes),)
        middle = self.sde.node_of_lam(0.0)  # ratio 1
        ends = (
            (Twice(self.model, 1.0, not up), (*nodes[:k], middle)),
            (Twice(self.model, 1.0, up), (middle, *nodes[k:])),
        )
        return ends


class Network(torch.nn.Module):
    def forward(self, x, label, estimate):
        return 0.5 * x + torch.nan_to_num(estimate) * 0.1


def self_conditioned():
    return scoresde.Denoiser(SelfConditioned(Network(), (1, 2, 2)), VP)


def test_self_conditioning_is_two_forwards_of_one_evaluation():
    denoiser = self_conditioned()
    found = sample(denoiser, (1, 2, 2), 3, "heun", nfe=19)
    assert (found.nfe, found.forwards, found.vjps, found.calls) == (19, 38.0, 0.0, 19)
    assert len(sample(denoiser, (1, 2, 2), 3, "heun", forwards=19).nodes) == 6  # 9 evaluations, 18 forwards
    density = scoresde.log_prob(denoiser, torch.zeros(2, 1, 2, 2), "heun", steps=5, divergence="exact")
    assert (density.nfe, density.forwards, density.vjps, density.calls) == (10, 20.0, 40.0, 10)


@pytest.mark.parametrize("solver", ["heun", "dpmpp_2m", "ddpm", "uni_pc", "ipndm"])
@pytest.mark.parametrize("model", [PLAIN, Twice(PLAIN)], ids=["plain", "twice"])
def test_the_measured_forwards_are_the_planned_ones(solver, model):
    for budget in (17, 30):
        found = sample(model, (2,), 5, solver, forwards=budget, batch_size=2, on_failure="keep")
        more = sample(model, (2,), 5, solver, steps=scoresde.plan(model, solver, forwards=budget).steps + 1)
        assert found.forwards <= budget < more.forwards
        assert found.nfe <= budget
    assert (found.forwards == found.nfe) == (model is PLAIN)


def test_budgets_count_the_nodes_where_a_model_divides_the_solve():
    found = sample(Twice(PLAIN), (2,), 5, "heun", nfe=20)
    whole = sample(PLAIN, (2,), 5, "heun", nfe=20)
    assert found.nfe <= 20
    assert len(found.nodes) == len(whole.nodes)  # one node of the grid less, and one between
    assert 1.0 in [pytest.approx(node.ratio) for node in found.nodes]
    assert len(scoresde.plan(Twice(PLAIN), "heun", nfe=20).nodes) == len(found.nodes) - 1


def test_a_divided_solve_is_its_parts_one_after_the_other():
    """By programs, step by step, for data and for their density: bits of two solves, and the sums of their counts."""
    model, x = Twice(PLAIN), torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    for solver in ("dpmpp_2m", "adams_adaptive"):
        plan = scoresde.plan(model, solver, "logsnr", 10)
        parts = model.pieces(plan.nodes)
        first = solve(plan.solver, parts[0][0], x, parts[0][1])
        second = solve(plan.solver, parts[1][0], first.x, parts[1][1])
        found = solve(plan.solver, model, x, plan.nodes)
        assert torch.equal(found.x, second.x)
        assert torch.equal(found.nfe, first.nfe + second.nfe)
        assert torch.equal(found.accepted, first.accepted + second.accepted)
        drawn = sample(model, plan=plan, x_init=x, dtype=torch.float64)
        assert torch.allclose(drawn.x, second.x, rtol=1e-12, atol=1e-12)
        assert drawn.nfe == int(found.nfe.max())
    up = scoresde.encode(model, x, "heun", steps=40)
    back = sample(model, plan=scoresde.plan(model, "heun", "karras(end=t_min)", 40), x_init=up.x, dtype=torch.float64)
    assert len(up.nodes) == len(back.nodes) == 42
    assert float((back.x - x).abs().max()) < 0.1  # both of order two in 40 steps


def test_user_objects_count_once_however_they_are_made():
    class Guided:
        sde = VP

        def predict(self, x, node):
            first, second = PLAIN_MODEL.predict(x, node), PLAIN_MODEL.predict(x, node)
            return Prediction(2 * first.x0 - second.x0, first.eps)

    PLAIN_MODEL = scoresde.Denoiser(lambda x, label: x, VP)
    assert sample(Guided(), (2,), 3, "ddim", steps=4).forwards == 8.0
    assert sample(PLAIN, (2,), 3, "ddim", steps=4).forwards == 4.0


def test_counts_are_passed_on():
    with counted() as outer:
        with counted() as inner:
            add_vjps(3)
        with counted(passed_on=False):
            add_vjps(5)
        add_vjps(1)
    assert (inner, outer) == (Count(0, 3, 0), Count(0, 4, 0))


def test_budgets_exclude_one_another():
    for more in ({"steps": 3}, {"nfe": 3}):
        with pytest.raises(InputError, match="forwards, not both"):
            sample(PLAIN, (2,), 2, "ddim", forwards=5, **more)
    with pytest.raises(InputError, match="forwards=1 is too small for ddim: one step takes 2"):
        scoresde.plan(self_conditioned(), "ddim", forwards=1)
    with pytest.raises(InputError, match="chooses its own steps, so forwards=20 cannot be set"):
        scoresde.plan(PLAIN, "rk45", "karras", forwards=20)
