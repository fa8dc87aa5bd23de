"""The solver's error as it is told against the true one, and gradients of log p against differences."""

import pytest
import torch

import scoresde
from solvers import InputError, generator

SDE = scoresde.VP()
MEANS = torch.tensor([[-1.0, 0.2], [0.8, 0.5], [0.1, -0.9]], dtype=torch.float64)
TARGET = scoresde.targets.GaussianMixture(MEANS, 0.02, [0.2, 0.5, 0.3])
X = TARGET.sample(80, generator(0))


def exact_prior(x):
    return TARGET.log_prob(x, SDE(SDE.t_max))


def truth(x):
    node = SDE(SDE.t_min)
    return TARGET.log_prob(node.alpha * x, node) + x.shape[1] * torch.log(torch.tensor(node.alpha)).double()


@pytest.mark.parametrize(
    ("solver", "steps"),
    [("heun", 60), ("dpmpp_2m", 80), ("rk4", 30), ("rk45", None), ("rk45(rtol=1e-3,atol=1e-3)", None)],
)
def test_the_error_that_is_told_bounds_the_true_one(solver, steps):
    options = {"divergence": "exact", "prior": exact_prior, "error": True}
    found = scoresde.log_prob(TARGET.denoiser(SDE), X, solver, steps=steps, **options)
    true = (found.nats - truth(X)).abs()
    assert float((true <= found.solver_error).double().mean()) >= 0.95
    # and says something: half of the samples are not told ten thousand times their error
    assert float((found.solver_error / true).median()) < 1e4
    plain = scoresde.log_prob(TARGET.denoiser(SDE), X, solver, steps=steps, **(options | {"error": False}))
    assert torch.equal(plain.nats, found.nats)
    assert plain.solver_error is None
    assert plain.nfe < found.nfe  # the second solve is counted
    assert "solver's error" in str(found)


def test_the_error_of_one_step_is_not_to_be_had():
    with pytest.raises(InputError, match="at least two"):
        scoresde.log_prob(TARGET.denoiser(SDE), X, "heun", steps=1, error=True)


@pytest.mark.parametrize("divergence", ["exact", "hutchinson(probes=2)", "hutchpp(vectors=1)"])
@pytest.mark.parametrize(("solver", "steps"), [("heun", 12), ("dpmpp_2m", 12), ("rk45(rtol=1e-8,atol=1e-8)", None)])
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
