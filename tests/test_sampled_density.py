"""Samples with their log-density in one solve: against the exact density, against ``log_prob``, against ``sample``."""

import math
from itertools import pairwise

import pytest
import torch
from closed_forms import Shifted, exact, exact_prior, mixture
from torch import nn

import scoresde
from scoresde import log_prob, sample_with_log_prob
from solvers import InputError

PATHS = {"vp": scoresde.VP(), "ve": scoresde.VE()}


def start(target, sde, n):
    """Draws of x_T, whose law ``exact_prior`` knows."""
    g, node = torch.Generator().manual_seed(0), sde(sde.t_max)
    x0 = target.sample(n, g)
    return node.alpha * x0 + node.sigma * torch.randn(x0.shape, generator=g, dtype=torch.float64)


@pytest.mark.long
@pytest.mark.parametrize(
    ("solver", "order", "together", "path"),
    [
        ("ddim", 1, 1, "vp"),
        ("heun", 2, 3, "vp"),
        ("dpmpp_2m", 2, 3, "ve"),
        pytest.param("ddim", 1, 1, "ve", marks=pytest.mark.slow),
        pytest.param("heun", 2, 3, "ve", marks=pytest.mark.slow),
        pytest.param("dpmpp_2m", 2, 3, "vp", marks=pytest.mark.slow),
    ],
)
def test_the_density_of_the_samples_at_the_solvers_order(path, solver, order, together):
    """Against the exact density the error falls at the solver's order. Going back up with ``log_prob`` undoes the step
    just made, whose errors of second order are the same on the way back, so that the two functions agree to third."""
    target, sde = mixture(16), PATHS[path]
    denoiser, prior = target.denoiser(sde), exact_prior(target, sde)
    options = {"solver": solver, "divergence": "exact", "prior": prior}
    wrong, apart = [], []
    for steps in (60, 120, 240):
        x, found = sample_with_log_prob(
            denoiser, (16,), range(12), steps=steps, x_init=start(target, sde, 12), dtype=torch.float64, **options
        )
        wrong.append(float((found.nats - exact(target, sde, x)).abs().mean()))
        apart.append(float((found.nats - log_prob(denoiser, x, steps=steps, **options).nats).abs().mean()))
    assert all(abs(math.log2(a / b) - order) < 0.2 for a, b in pairwise(wrong)), wrong
    assert all(abs(math.log2(a / b) - together) < 0.2 for a, b in pairwise(apart)), apart
    assert wrong[-1] < (0.5 if order == 1 else 0.015)


def test_adaptive_solvers_are_exact_and_carry_each_sample_alone():
    target, sde = mixture(2), PATHS["vp"]
    x, found = sample_with_log_prob(
        target.denoiser(sde), (2,), range(6), "rk45(rtol=1e-8, atol=1e-8)", divergence="exact",
        x_init=start(target, sde, 6), prior=exact_prior(target, sde), dtype=torch.float64,
    )  # fmt: skip
    assert (found.nats - exact(target, sde, x)).abs().max() < 1e-4
    assert len(set(found.nfe_per_sample.tolist())) > 1


def test_the_same_probes_as_log_prob():
    """Both integrate the same estimate: they differ by the solver's error, far less than the probes' own."""
    target, sde = mixture(16), PATHS["vp"]
    denoiser = target.denoiser(sde)
    x, found = sample_with_log_prob(
        denoiser, (16,), range(5, 13), steps=200, divergence="hutchinson(probes=2)", dtype=torch.float64
    )
    after = log_prob(denoiser, x, steps=200, divergence="hutchinson(probes=2)", seeds=range(5, 13))
    assert torch.allclose(found.nats, after.nats, rtol=0, atol=0.02)
    assert torch.allclose(found.stderr, after.stderr, rtol=1e-2)
    assert torch.allclose(found.latent, after.latent, rtol=0, atol=5e-3)
    assert float(found.stderr.mean()) > 0.2
    assert found.kind == after.kind == "estimate of the ODE value"
    for name in ("prior", "divergence", "truncation"):
        assert torch.allclose(found.budget[name], after.budget[name], rtol=0, atol=0.02), name
    assert torch.allclose(sum(found.budget.values()), found.nats, rtol=0, atol=1e-12)
    assert (found.nfe, found.vjps, found.solver, found.grid) == (400, 800, "heun", after.grid)


def test_the_samples_are_those_of_sample():
    target, sde = mixture(2), PATHS["vp"]
    denoiser, first = target.denoiser(sde), sde(sde.t_min)
    x, found = sample_with_log_prob(denoiser, (2,), [3, 8], "dpmpp_2m", steps=20, dtype=torch.float64)
    theirs = scoresde.sample(denoiser, (2,), [3, 8], "dpmpp_2m", "logsnr(end=t_min)", steps=20, dtype=torch.float64)
    assert torch.allclose(first.alpha * x, theirs.x, rtol=0, atol=1e-10)
    assert found.nfe == theirs.nfe
    narrow, same = sample_with_log_prob(denoiser, (2,), [3, 8], "dpmpp_2m", steps=20)
    assert narrow.dtype == torch.float32
    assert torch.allclose(narrow.double(), x, rtol=0, atol=1e-4)
    assert torch.allclose(same.nats, found.nats, rtol=0, atol=1e-3)


def test_the_mean_is_minus_the_entropy():
    """E log p(x) over the model's own samples, for data N(0, v): -d/2 log(2 pi e (v + ratio^2))."""
    target, sde, d, n = scoresde.targets.Gaussian(torch.zeros(3), 0.3), scoresde.VE(), 3, 400
    _, found = sample_with_log_prob(target.denoiser(sde), (d,), range(n), steps=100, divergence="exact")
    entropy = 0.5 * d * math.log(2 * math.pi * math.e * (0.3 + sde(0.0).ratio ** 2))
    # log p is -chi^2 / 2 with d degrees of freedom: its standard deviation is sqrt(d / 2)
    assert abs(float(found.nats.mean()) + entropy) < 4 * math.sqrt(d / 2 / n)
    assert abs(float(found.nats.var()) / (d / 2) - 1) < 0.5


def test_conditions_and_batches():
    denoiser = scoresde.Denoiser(Shifted(), scoresde.VP(), predicts="x0")
    y = torch.tensor([0.0, 0.5, -0.5], dtype=torch.float64)
    options = {"steps": 20, "divergence": "exact", "dtype": torch.float64}
    x, found = sample_with_log_prob(denoiser, (1, 2, 2), range(3), condition={"y": y}, batch_size=2, **options)
    for i in range(3):
        one, alone = sample_with_log_prob(denoiser, (1, 2, 2), [i], condition={"y": y[i : i + 1]}, **options)
        assert torch.allclose(x[i : i + 1], one, rtol=0, atol=1e-10)
        assert torch.allclose(found.nats[i : i + 1], alone.nats, rtol=0, atol=1e-9)
    other, _ = sample_with_log_prob(denoiser, (1, 2, 2), range(3), condition={"y": -y}, **options)
    assert torch.allclose(other[0], x[0])
    assert (other[1:] - x[1:]).abs().min() > 0.1


class Scaled(nn.Module):
    """A network that answers x0 = tanh(w x)."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def forward(self, x, label):
        return torch.tanh(self.w * x)


def test_gradients_through_samples_and_density_agree_with_differences():
    network = Scaled()
    denoiser = scoresde.Denoiser(network, scoresde.VP(), predicts="x0")

    def value():  # a reverse Kullback-Leibler divergence's: of the density and of the samples
        x, found = sample_with_log_prob(
            denoiser, (2,), range(3), steps=6, divergence="exact", dtype=torch.float64, differentiable=True
        )
        return (found.nats + x.square().sum(1)).sum()

    value().backward()
    h, sides = 1e-5, []
    for sign in (1, -1):
        with torch.no_grad():
            network.w += sign * h
        sides.append(value().item())
        with torch.no_grad():
            network.w -= sign * h
    assert float(network.w.grad) == pytest.approx((sides[0] - sides[1]) / (2 * h), rel=1e-6)
    x, found = sample_with_log_prob(denoiser, (2,), range(3), steps=6)
    assert not x.requires_grad
    assert not found.nats.requires_grad


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"solver": "ddpm"}, "ddpm draws noise; a likelihood needs a deterministic solver"),
        ({"seeds": []}, "no seeds"),
        ({"shape": (0,)}, "every length in shape"),
        ({"dtype": torch.int64}, "float type"),
        ({"t_max": 0.5}, "the solve starts at t=0.5, not t_max=1: pass x_init and its prior"),
        ({"prior": lambda x: x.sum(1)}, "a custom prior needs its own draws: pass them as x_init"),
        ({"x_init": torch.zeros(3, 2)}, r"x_init must have shape \(2, 2\), a state per seed, got \(3, 2\)"),
        ({"condition": {"y": torch.zeros(1)}}, "y has 1 rows for 2 samples"),
        ({"divergence": "exakt"}, "did you mean exact"),
        ({"seeds": "4"}, "list of integers, got '4'"),
        ({"seeds": ["1"]}, "a seed must be an integer of at least 0, got '1'"),
        ({"x_init": torch.zeros(2, 2), "prior": lambda x: x}, r"the prior must return .* got shape \(2, 2\)"),
        (
            {"solver": "scipy", "steps": None, "differentiable": True},
            "scipy computes outside torch, so it has no gradients",
        ),
    ],
)
def test_bad_input(change, message):
    options = {"shape": (2,), "seeds": range(2), "solver": "heun", "steps": 5, **change}
    with pytest.raises(InputError, match=message):
        sample_with_log_prob(mixture(2).denoiser(scoresde.VP()), **options)


def test_a_model_that_fails_is_told():
    denoiser = scoresde.Denoiser(lambda x, label: math.nan * x, scoresde.VP(), predicts="x0")
    with pytest.raises(InputError, match="not finite"):
        sample_with_log_prob(denoiser, (2,), range(2), steps=5)
