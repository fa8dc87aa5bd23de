"""Losses of a tuning: their formulas, their gradients where they are 0, and that a tuning lowers them."""

import math

import pytest
import torch
from small_tunings import MIXTURE, PROBLEM, references, tune

from solvers.tuning import tuning_losses
from solvers.tuning.losses import bound

pytestmark = pytest.mark.quick


@pytest.fixture(scope="module")
def known():
    return references()


def test_losses_are_their_formulas():
    generator = torch.Generator().manual_seed(2)
    x, exact, data = (torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in (6, 6, 9))
    every = torch.arange(6)
    squares = (x - exact).square().mean(1)

    def value(loss, of=x, against=exact):
        return float(bound(tuning_losses.make(loss), against, None, data)(of, every))

    assert value("squared") == pytest.approx(float(squares.mean()))
    assert value("pseudo_huber(delta=0.5)") == pytest.approx(float((squares + 0.25).sqrt().mean()) - 0.5)
    assert value("log(floor=0.1)") == pytest.approx(math.exp(sum(math.log(s + 0.01) for s in squares.tolist()) / 12))
    apart = [
        sum(math.dist(a, b) for a in one.tolist() for b in two.tolist()) / (len(one) * len(two))
        for one, two in ((x, data), (x, x), (data, data))
    ]
    assert value("energy") == pytest.approx((2 * apart[0] - apart[1] - apart[2]) / math.sqrt(3))
    # for a shift the squared distance is |shift|^2 cos^2, on average a third of it; 4000 directions: within 0.02
    shift = torch.tensor([0.3, -1.0, 0.5], dtype=torch.float64)
    found = float(tuning_losses.make("sliced_wasserstein(directions=4000)").against(data)(data + shift, every))
    assert found == pytest.approx(float(shift.square().sum()) / 3, rel=0.05)
    # of fewer samples, each is compared with the quantile at its middle
    line = torch.arange(9, dtype=torch.float64).unsqueeze(1)
    assert float(tuning_losses.make("sliced_wasserstein").against(line)(line[1::3], every)) == pytest.approx(0.0)


@pytest.mark.parametrize("loss", ["squared", "pseudo_huber", "log", "energy", "sliced_wasserstein"])
def test_a_loss_of_zero_has_a_finite_gradient(loss):
    exact = torch.randn(5, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    x = exact.clone().requires_grad_()
    value = bound(tuning_losses.make(loss), exact, None, exact)(x, torch.arange(5))
    (gradient,) = torch.autograd.grad(value, x)
    assert value < 2e-4
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("loss", ["log", "energy", "sliced_wasserstein"])
def test_a_tuning_lowers_the_loss_that_it_is_given(loss, known):
    data = MIXTURE.sample(256, torch.Generator().manual_seed(4))
    seen = []
    tune(known, nfe=3, loss=loss, data=data, iterations=30, progress=seen.append)
    assert seen[-1].best < 0.9 * seen[0].validation


def test_features_are_where_the_loss_compares(known):
    seen, validation = [], known["validation"]
    made = tune(known, nfe=3, features=lambda x: 2 * x[:, :1], iterations=20, progress=seen.append)
    gap = made.program.run(PROBLEM, validation.states[0]) - validation.states[-1]
    assert seen[-1].best == pytest.approx(4 * float(gap[:, 0].square().mean()), rel=1e-6)
    assert seen[-1].best < 0.8 * seen[0].validation
