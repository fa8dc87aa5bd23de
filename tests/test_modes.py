"""What the caller's modes change and what they do not: training mode, gradients, inference mode, autocast."""

import functools
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import scoresde
from scoresde.likelihood.log_prob import dequantise
from scoresde.models.model import Model

pytestmark = pytest.mark.quick

SDE = scoresde.VP()


class Net(nn.Module):
    """Dropout, batch normalisation, and a part that its owner keeps in evaluation mode."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 16), nn.Linear(16, 2)
        self.norm, self.drop, self.frozen = nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Dropout(0.5)

    def forward(self, x, label):
        h = self.first(torch.cat([x, label[:, None]], 1))
        return self.last(self.frozen(self.drop(torch.tanh(self.norm(h)))))


@pytest.fixture
def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Net()
    net.train()
    net.frozen.eval()
    return net


class Own(nn.Module):
    """A user's own denoiser, a module itself."""

    def __init__(self, network):
        super().__init__()
        self.sde, self.inner = SDE, network

    def predict(self, x, node, **conditions):
        return scoresde.Denoiser(self.inner.forward, SDE).predict(x, node)


@dataclass
class Holder:
    """A user's own denoiser that holds a network."""

    network: nn.Module
    sde: scoresde.SDE = SDE

    def predict(self, x, node, **conditions):
        return scoresde.Denoiser(self.network.forward, SDE).predict(x, node)


class Caller:
    """A user's object that is called like a network, and holds it in a list."""

    def __init__(self, network):
        self.parts = [network]

    def __call__(self, x, label):
        return self.parts[0](x, label)


X = torch.linspace(-1, 1, 8).view(4, 2)
CALLS = {
    "sample": lambda d, x: scoresde.sample(d, (2,), range(4), "ddim", steps=5, x_init=x).x,
    "encode": lambda d, x: scoresde.encode(d, x, "ddim", steps=5).x,
    "log_prob": lambda d, x: scoresde.log_prob(d, x, steps=5, divergence="exact").nats,
    "log_prob with its error": lambda d, x: (
        scoresde.log_prob(d, x, steps=8, divergence="exact", error=True).solver_error
    ),
    "sample_with_log_prob": lambda d, x: (
        scoresde.sample_with_log_prob(d, (2,), range(4), steps=5, divergence="exact")[1].nats
    ),
    "chain_bound": lambda d, x: scoresde.chain_bound(d, x, chain=SDE.chain(10), decoder="gaussian").nats,
    "continuous_bound": lambda d, x: scoresde.continuous_bound(d, x, decoder="gaussian", draws=4, sets=2).nats,
    "plug_in_bound": lambda d, x: scoresde.plug_in_bound(d, x, 0.0, steps=4, draws=2, divergence="exact").nats,
    "eps_power": lambda d, x: torch.tensor(scoresde.eps_power(d, x, levels=3)),
}
DENOISERS = {"Denoiser": lambda net: scoresde.Denoiser(net, SDE), "module": Own, "holder": Holder}
CALLABLES = {
    "lambda": lambda net: lambda x, label: net(x, label),
    "method": lambda net: net.forward,
    "call": lambda net: net.__call__,
    "partial": functools.partial,
    "argument": lambda net: functools.partial(lambda inner, x, label: inner(x, label), net),
    "object": Caller,
}
each_call = pytest.mark.parametrize("call", CALLS)


@each_call
@pytest.mark.parametrize("kind", DENOISERS)
def test_a_network_in_training_mode_is_solved_in_evaluation_mode_and_restored(network, call, kind):
    denoiser, run = DENOISERS[kind](network), CALLS[call]
    modes = {name: part.training for name, part in network.named_modules()}
    found, statistics = run(denoiser, X), network.norm.running_mean.clone()
    assert {name: part.training for name, part in network.named_modules()} == modes
    assert torch.equal(run(denoiser, X), found)  # no dropout
    assert torch.equal(network.norm.running_mean, statistics)  # and no batch statistics
    network.eval()
    assert torch.equal(run(denoiser, X), found)
    assert not network.training


@pytest.mark.parametrize("kind", CALLABLES)
def test_a_network_inside_a_callable_is_solved_in_evaluation_mode(network, kind):
    denoiser, run = scoresde.Denoiser(CALLABLES[kind](network), SDE), CALLS["sample"]
    found = run(denoiser, X)
    assert torch.equal(run(denoiser, X), found)
    assert network.training
    network.eval()
    assert torch.equal(run(denoiser, X), found)


def test_the_mode_is_restored_after_an_error(network):
    denoiser = scoresde.Denoiser(network, SDE)
    network.last.weight.data.fill_(float("nan"))
    with pytest.raises(scoresde.InputError, match="not finite"):
        scoresde.sample(denoiser, (2,), [0], "ddim", steps=2)
    assert network.training
    assert not network.frozen.training


def test_a_model_without_modules_has_none():
    assert scoresde.Denoiser(lambda x, label: x, SDE).modules == ()
    assert Model().modules == ()


@each_call
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_gradient_modes_do_not_change_the_numbers_and_no_graph_is_kept(network, call, mode):
    denoiser, run = scoresde.Denoiser(network, SDE), CALLS[call]
    plain = run(denoiser, X)
    with mode():
        x = X.clone()
        if not x.is_inference():
            x.requires_grad_()
        found = run(denoiser, x)
        assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)
        assert torch.is_grad_enabled() == (mode is torch.enable_grad)
    assert torch.equal(found, plain)
    assert not found.requires_grad
    assert all(p.grad is None for p in network.parameters())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_a_graph_is_kept_where_it_is_asked_for_in_every_mode(network, mode):
    denoiser = scoresde.Denoiser(network.eval(), SDE)

    def gradient():
        x = X.clone()
        found = scoresde.log_prob(denoiser, x, steps=4, divergence="exact", differentiable=True).nats
        return found, [p.detach().clone() for p in torch.autograd.grad(found.sum(), list(network.parameters()))]

    plain = gradient()[1]
    with mode():
        found = scoresde.log_prob(denoiser, X.clone(), steps=4, divergence="exact", differentiable=True).nats
    assert found.requires_grad
    again = torch.autograd.grad(found.sum(), list(network.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


class Within(nn.Module):
    """A network that enters autocast itself."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x, label):
        with torch.autocast("cpu", torch.bfloat16):
            return self.network(x, label)


@pytest.mark.parametrize("call", [name for name in CALLS if name != "eps_power"])
def test_autocast_holds_for_the_network_and_for_nothing_else(network, call):
    run = CALLS[call]
    inside = run(scoresde.Denoiser(Within(network), SDE), X)
    with torch.autocast("cpu", torch.bfloat16):
        outside = run(scoresde.Denoiser(network, SDE), X)
    assert outside.dtype == inside.dtype
    assert torch.equal(outside, inside)
    assert not torch.equal(outside, run(scoresde.Denoiser(network, SDE), X))  # the network did see it


def test_an_exact_model_stays_exact_under_autocast():
    means = torch.tensor([[1.0, 0.5], [-0.3, 0.2]], dtype=torch.float64)
    for target in (
        scoresde.targets.GaussianMixture(means, 0.04),
        scoresde.targets.GaussianMixture(means, torch.tensor([[0.3, 0.1], [0.1, 0.2]]).expand(2, 2, 2)),
        scoresde.targets.Empirical(means),
    ):
        plain = target.predict(X, SDE(0.3))
        with torch.autocast("cpu", torch.bfloat16):
            found, nats = target.predict(X, SDE(0.3)), target.log_prob(X, SDE(0.3))
        assert torch.equal(found.x0, plain.x0)
        assert torch.equal(found.eps, plain.eps)
        assert torch.equal(nats, target.log_prob(X, SDE(0.3)))


def test_dequantised_data_may_come_from_inference_mode(network):
    with torch.inference_mode():
        x = dequantise(X, 0.1, range(4))
    assert torch.isfinite(scoresde.log_prob(scoresde.Denoiser(network, SDE), x, steps=4, divergence="exact").nats).all()
