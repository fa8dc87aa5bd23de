"""A user's own denoiser that multiplies by the numbers of a node as they are, where every sample has its own node.

With as many samples as components, tensors (B,) would broadcast against the wrong axis without an error.
"""

import math

import pytest
import torch

import scoresde
import solvers
from scoresde.models.targets import Gaussian
from solvers import InputError, Prediction, SeededNoise, solve

pytestmark = pytest.mark.quick

SDE = scoresde.VP()


class Own:
    """The exact denoiser of N(0, 1/4), written with plain products."""

    sde = SDE

    def predict(self, x, node):
        eps = node.sigma / (node.alpha**2 / 4 + node.sigma**2) * x
        return Prediction((x - node.sigma * eps) / node.alpha, eps)


class Straight(Own):
    """The same from t alone, as code of rectified flow is written: x_t = (1 - t) x0 + t eps."""

    sde = scoresde.RectifiedFlow()

    def predict(self, x, node):
        velocity = (node.t - (1 - node.t) / 4) / ((1 - node.t) ** 2 / 4 + node.t**2) * x
        return Prediction(x - node.t * velocity, x + (1 - node.t) * velocity)


class OwnProblem(solvers.Problem):
    """The same as a problem."""

    path = SDE

    def predict(self, x, node):
        return Own().predict(x, node)


def exact(shape, sde=SDE):
    return Gaussian(torch.zeros(shape, dtype=torch.float64), 0.25).denoiser(sde)


@pytest.mark.parametrize("spec", ["adams_adaptive", "rk45", "dpm_adaptive", "gotta_go_fast", "picard", "dopri5"])
@pytest.mark.parametrize("shape", [(4,), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("own", [Own(), Straight(), OwnProblem()], ids=lambda own: type(own).__name__)
def test_plain_products_are_right_with_as_many_samples_as_components(spec, shape, own):
    sde = own.path if isinstance(own, solvers.Problem) else own.sde
    steps = 6 if spec == "picard" else 1
    nodes = solvers.grid("logsnr", sde, steps, t_min=0.01, t_max=0.9)
    noise = SeededNoise(range(4), shape, torch.float64)
    x = noise.initial()
    ends = [
        solve(solvers.make(spec), model, x, nodes, SeededNoise(range(4), shape, torch.float64)).x
        for model in (own, exact(shape, sde))
    ]
    assert torch.allclose(*ends, rtol=0, atol=1e-9)  # the same formula, rounded in another order


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("own", [Own(), Straight()], ids=lambda own: type(own).__name__)
def test_the_default_density_is_the_closed_form(own, dtype):
    x = torch.linspace(-1, 1, 16, dtype=dtype).view(4, 4)
    node = own.sde(own.sde.t_min)
    variance = 0.25 + (node.sigma / node.alpha) ** 2  # of x0 + ratio(t_min) eps
    wanted = -0.5 * ((x.double() ** 2).sum(1) / variance + 4 * math.log(2 * math.pi * variance))
    prior = exact((4,), own.sde)
    found = scoresde.log_prob(own, x, prior=lambda end: prior.target.log_prob(end.double(), own.sde(own.sde.t_max)))
    # the solver's tolerance, summed over its steps, in double; float32 keeps seven digits of an x divided by sigma
    assert torch.allclose(found.nats, wanted, rtol=0, atol=2e-3)


def test_a_denoiser_around_a_network_is_the_network():
    """The node that a user gets is good for a denoiser of the library too, for every label."""
    seen = []

    def network(x, label):
        seen.append(label.shape)
        return torch.tanh(x + label.view(-1, 1))

    for label in ("t", "index", "log_sigma", "c_noise"):
        inner = scoresde.Denoiser(network, SDE, predicts="x0", time_label=label)

        class Around:
            sde = SDE

            def predict(self, x, node, inner=inner):
                return inner.predict(x, node)

        one, other = (scoresde.sample(d, (4,), range(4), "rk45", dtype=torch.float64).x for d in (inner, Around()))
        assert torch.equal(one, other)
    assert all(len(shape) == 1 for shape in seen)


def test_a_time_label_of_the_wrong_shape_is_named():
    class Wrong(Own):
        def predict(self, x, node):
            x0 = torch.tanh(x + node.t.unsqueeze(1))  # as if t were (B,)
            return Prediction(x0, x0)

    with pytest.raises(InputError, match=r"predicts x0 as \(4, 4, 4\) for samples \(4, 4\).*flatten"):
        scoresde.sample(Wrong(), (4,), range(4), "rk45")
