"""The solver's error as it is told against the true one, and gradients of log p against differences."""

from functools import cache

import pytest
import torch
from closed_forms import exact, exact_prior, mixture
from sklearn.datasets import load_digits
from sklearn.mixture import GaussianMixture as Fit

import scoresde
from scoresde.likelihood.solver_error import bound
from scoresde.models.targets import GaussianMixture
from solvers import InputError, generator

SDE = scoresde.VP()
MEANS = torch.tensor([[-1.0, 0.2], [0.8, 0.5], [0.1, -0.9]], dtype=torch.float64)
TARGET = GaussianMixture(MEANS, 0.02, [0.2, 0.5, 0.3])
X = TARGET.sample(80, generator(0))


@cache
def of_dimensions(d):
    """A mixture with exact densities, and data: in 64 dimensions fitted to the digits, with others of them as data."""
    if d == 2:
        return TARGET, X
    if d == 16:
        return mixture(16), mixture(16).sample(60, generator(0))
    x = torch.from_numpy(load_digits().data) / 8 - 1
    x = x + (torch.rand(x.shape, generator=generator(1), dtype=torch.float64) - 0.5) / 8
    fit = Fit(4, reg_covar=1e-3, random_state=0, max_iter=10).fit(x[:1500].numpy())
    return GaussianMixture(*(torch.from_numpy(v) for v in (fit.means_, fit.covariances_, fit.weights_))), x[1500:1520]


@pytest.mark.parametrize(
    ("d", "solver", "steps"),
    [
        (2, "heun", 20),
        (2, "dpmpp_3m", 30),
        (2, "uni_pc", 12),
        (2, "rk4", 10),
        (2, "rk45", None),
        (2, "tsit5(rtol=1e-3,atol=1e-3)", None),
        (2, "adams_adaptive(rtol=1e-3,atol=1e-3)", None),
        (2, None, None),
        (16, "heun", 10),
        (16, "dpmpp_2m", 20),
        (16, "dpmpp_3m", 40),
        (16, "uni_pc", 20),
        (16, "rk4", 12),
        (16, "rk45(rtol=1e-3,atol=1e-3)", None),
        (16, "tsit5(rtol=1e-3,atol=1e-3)", None),
        (16, "adams_adaptive(rtol=1e-2,atol=1e-2)", None),
        (16, None, None),
        (64, "heun", 20),
        pytest.param(64, "uni_pc", 40, marks=pytest.mark.slow),
        pytest.param(64, "rk45(rtol=1e-2,atol=1e-2)", None, marks=pytest.mark.slow),
        (64, None, None),
    ],
)
def test_the_error_that_is_told_bounds_the_true_one(d, solver, steps):
    target, x = of_dimensions(d)
    options = {"divergence": "exact", "prior": exact_prior(target, SDE)}
    found = scoresde.log_prob(target.denoiser(SDE), x, solver, steps=steps, error=True, **options)
    true = (found.nats - exact(target, SDE, x)).abs()
    assert float((true <= found.solver_error).double().mean()) >= 0.95
    # and says something: half of the samples are not told so many times their error
    assert float((found.solver_error / true).median()) < (100 if steps is None else 400)


def test_what_an_error_is_made_of():
    options = {"divergence": "exact", "bin_width": 0.25, "dequantiser": "uniform", "draws": 3}
    levels, denoiser = torch.round(X[:6] * 4) / 4, TARGET.denoiser(SDE)
    found = scoresde.log_prob(denoiser, levels, "heun", steps=21, error=True, **options)
    parts = [scoresde.log_prob(denoiser, levels, "heun", steps=n, **options) for n in (21, 10, 5)]
    value, half, quarter = (part.nats for part in parts)
    first, second = (value - half).abs(), (half - quarter).abs()
    by_hand = (2 * first + second) * (2 * first / second).clamp(min=1)  # of all three draws, weighted
    assert found.solver_error.tolist() == pytest.approx(by_hand.tolist(), rel=1e-9)
    assert torch.equal(found.nats, value)
    assert found.nfe == sum(part.nfe for part in parts) == 3 * 2 * (21 + 10 + 5)
    assert parts[0].solver_error is None
    # of a sample alone, and of a list of nodes those that are left of it
    alone = scoresde.log_prob(denoiser, levels[2:3], "heun", steps=21, error=True, seeds=[2], **options)
    assert float(alone.solver_error) == pytest.approx(float(found.solver_error[2]), rel=1e-6)
    times = [1.0, 0.8, 0.6, 0.4, 0.2, 0.1, 0.01]
    some = [
        scoresde.log_prob(denoiser, X, "heun", f"explicit(times={nodes})", divergence="exact").nats
        for nodes in (times, [1.0, 0.6, 0.2, 0.01], [1.0, 0.2, 0.01])
    ]
    told = scoresde.log_prob(denoiser, X, "heun", f"explicit(times={times})", divergence="exact", error=True)
    assert torch.allclose(told.solver_error, bound(*some), rtol=1e-9)


def test_distances_that_do_not_shrink_are_told_as_a_large_error():
    one = torch.ones(1, dtype=torch.float64)
    assert float(bound(0 * one, 1 * one, 3 * one)) == 4  # they halve: 2 a + b
    assert float(bound(0 * one, 0 * one, 3 * one)) == 3  # two values agree
    assert float(bound(0 * one, 3 * one, 2 * one)) == 7 * 6  # they grow: six times 2 a + b
    assert float(bound(one, one, one)) == 0


def test_the_error_of_three_steps_is_not_to_be_had():
    with pytest.raises(InputError, match="needs at least 4, got 3"):
        scoresde.log_prob(TARGET.denoiser(SDE), X, "heun", steps=3, error=True)


RULES, TIGHT = ("exact", "hutchinson(probes=2)", "hutchpp(vectors=1)"), "rk45(rtol=1e-8,atol=1e-8)"


@pytest.mark.parametrize(
    ("solver", "steps", "divergence"),
    [
        *((solver, 12, rule) for solver in ("heun", "dpmpp_2m") for rule in RULES),
        (TIGHT, None, RULES[0]),
        *(pytest.param(TIGHT, None, rule, marks=pytest.mark.slow) for rule in RULES[1:]),
    ],
)
def test_gradients_of_log_p(solver, steps, divergence):
    weight = torch.tensor([[0.9, -0.3], [0.2, 0.7]], dtype=torch.float64, requires_grad=True)

    def value(w, x):
        denoiser = scoresde.Denoiser(lambda y, label: torch.tanh(y @ w) * torch.cos(label).view(-1, 1), SDE)
        return scoresde.log_prob(denoiser, x, solver, steps=steps, divergence=divergence, differentiable=True).nats

    x = X[:3].clone().requires_grad_()
    by_x, by_weight = torch.autograd.grad(value(weight, x).sum(), (x, weight))
    step = 1e-5
    for i in range(2):
        shift = torch.zeros(2, dtype=torch.float64)
        shift[i] = step
        with torch.no_grad():
            up, down = value(weight, x + shift), value(weight, x - shift)
            # an adaptive solver's steps jump with x, by about its tolerance over 2e-5
            tolerance = {"abs": 1e-6, "rel": 1e-5} if steps else {"abs": 0.02, "rel": 0.02}
            assert by_x[:, i].tolist() == pytest.approx(((up - down) / (2 * step)).tolist(), **tolerance)
            shifts = torch.zeros_like(weight)
            shifts[0, i] = step
            change = (value(weight + shifts, x) - value(weight - shifts, x)).sum() / (2 * step)
            assert float(by_weight[0, i]) == pytest.approx(float(change), **tolerance)


def test_without_gradients_none_are_kept():
    x = X[:2].clone().requires_grad_()
    found = scoresde.log_prob(TARGET.denoiser(SDE), x, steps=4, divergence="exact")
    assert not found.nats.requires_grad
    assert x.grad is None
