"""Gradients of log p for networks with group normalisation and attention, against differences of log p."""

import pytest
import torch

import scoresde
from scoresde.models.networks import networks
from solvers import generator

SHAPE = (1, 4, 4)
OPTIONS = {"solver": "heun", "steps": 2, "divergence": "hutchinson(probes=2)"}


def denoiser_of(spec):
    """A tiny network with random weights, in float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return scoresde.Denoiser(networks.make(spec).build(SHAPE).double().eval(), scoresde.VP(), predicts="edm")


UNETS = ["unet(channels=[4, 8], groups=2)", "unet(channels=[4, 8], groups=2, attention=[1])"]


@pytest.mark.parametrize("spec", UNETS)
def test_gradients_of_log_p_of_a_unet(spec):
    """By x and by every parameter, along a random direction."""
    denoiser = denoiser_of(spec)
    parameters = list(denoiser.network.parameters())
    x = torch.randn(2, *SHAPE, generator=generator(0), dtype=torch.float64)

    def value(x, **more):
        return scoresde.log_prob(denoiser, x, **OPTIONS, **more).nats.sum()

    leaf = x.clone().requires_grad_()
    by_x, *by_parameters = torch.autograd.grad(value(leaf, differentiable=True), [leaf, *parameters])
    way = torch.randn(x.shape, generator=generator(1), dtype=torch.float64)
    ways = [torch.randn(p.shape, generator=generator(2), dtype=torch.float64) for p in parameters]
    # central differences err by step^2 times a third derivative of order 1 to 1e3, and by rounding 1e-13 / step
    step = 1e-5
    change = (value(x + step * way) - value(x - step * way)) / (2 * step)
    assert float((by_x * way).sum()) == pytest.approx(float(change), rel=1e-5, abs=1e-5)
    sides = []
    for sign in (1, -2):
        torch._foreach_add_([p.data for p in parameters], ways, alpha=sign * step)
        sides.append(value(x))
    expected = float(sides[0] - sides[1]) / (2 * step)
    found = sum(float((g * w).sum()) for g, w in zip(by_parameters, ways, strict=True))
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert abs(expected) > 1e-2


def test_a_dequantiser_is_trained_against_a_unet():
    denoiser = denoiser_of(UNETS[1])
    levels = (torch.randint(0, 4, (8, *SHAPE), generator=generator(0)) / 2.0 - 1).double()
    learned = scoresde.fit_dequantiser(denoiser, levels, 0.5, iterations=2, batch=2, steps=2)
    # an untrained one is uniform: its weights of the last layers are 0
    assert any(float(p.detach().abs().max()) > 0 for n in learned.networks for p in list(n.parameters())[-2:])
