"""Networks, denoisers, hooks and noise whose faults would look like numbers: each is refused by name."""

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from closed_forms import mixture
from torch.nn import functional

import scoresde
import solvers
from scoresde.models.model import Model
from scoresde.training.losses import losses
from solvers import InputError, Prediction
from solvers.noise.draws import Draws

pytestmark = pytest.mark.quick

SDE = scoresde.VP()
X = torch.linspace(-1, 1, 8).view(4, 2)
PLAIN = torch.tensor([[0.5, 0.25], [0.0, 1.0]])


def linear(x, label, y=None):
    return x @ PLAIN.to(x)


def scaled(x, label, y=None):
    x.mul_(0.5)
    return linear(x, label)


def assigned(x, label, y=None):
    x[:] = 0.5 * x
    return linear(x, label)


def rectified(x, label, y=None):
    return linear(functional.relu(x, inplace=True), label)


def through_a_view(x, label, y=None):
    x.view(-1)[0] = 0.0
    return linear(x, label)


def detached(x, label, y=None):
    x.detach().add_(1.0)
    return linear(x, label)


def label_of(x, label, y=None):
    label.mul_(1000)
    return linear(x, label)


def condition_of(x, label, y=None):
    y.zero_()
    return linear(x, label)


WRITERS = {
    scaled: "its input x",
    assigned: "its input x",
    rectified: "its input x",
    through_a_view: "its input x",
    detached: "its input x",
    label_of: "its time label",
    condition_of: "the condition 'y'",
}


class Own:
    """A user's own denoiser around a network."""

    def __init__(self, network):
        self.network, self.sde = network, SDE

    def predict(self, x, node, **conditions):
        label = torch.zeros(len(x))
        eps, node = self.network(x, label, **conditions), node.like(x)
        return Prediction((x - node.sigma * eps) / node.alpha, eps)


class OwnModel(Own, Model):
    """The same, derived from Model."""


def given(kind):
    return {"y": torch.ones(4)} if kind is condition_of else None


def sampled(solver, **more):
    steps = None if solver in ("rk45", "adams_adaptive", "scipy") else 4
    return lambda d, y: scoresde.sample(d, (2,), 4, solver, steps=steps, condition=y, **more)


def unconditional(call):
    return lambda d, y: call(d) if y is None else pytest.skip("no conditions here")


DOORS = {
    "program": sampled("dpmpp_2m"),
    "program with hooks": sampled("heun", hooks=lambda x, node: None),
    "stochastic": sampled("ddpm"),
    "picard": sampled("picard"),
    "adaptive": sampled("rk45"),
    "adaptive Adams": sampled("adams_adaptive"),
    "scipy": sampled("scipy"),
    "float64": sampled("rk45", dtype=torch.float64),
    "encode": lambda d, y: scoresde.encode(d, X, steps=4, condition=y),
    "log_prob": lambda d, y: scoresde.log_prob(d, X, steps=4, condition=y),
    "chain bound": lambda d, y: scoresde.chain_bound(d, X, chain=SDE.chain(8), condition=y),
    "continuous bound": lambda d, y: scoresde.continuous_bound(d, X, draws=2, sets=2, condition=y),
    "eps power": unconditional(lambda d: scoresde.eps_power(d, X, levels=2)),
    "check": lambda d, y: scoresde.check(d, X, condition=y),
    "predict": lambda d, y: d.predict(X.clone(), SDE(0.5), **(y or {})),
}


@pytest.mark.parametrize("mode", [contextlib.nullcontext, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("door", DOORS)
def test_a_network_that_writes_into_its_input_is_named(door, mode):
    """torch counts no writes into tensors of inference mode: the network gets copies that count."""
    for writer, where in WRITERS.items():
        with mode(), pytest.raises(InputError, match=f"writes into ({where}|a tensor that requires gradients)"):
            DOORS[door](scoresde.Denoiser(writer, SDE), given(writer))


@pytest.mark.parametrize("kind", [Own, OwnModel])
@pytest.mark.parametrize("door", [door for door in DOORS if door != "predict"])
def test_a_denoiser_that_writes_into_its_input_is_named(door, kind):
    for writer in (scaled, assigned, through_a_view):
        with pytest.raises(InputError, match=r"writes into (its input x|a tensor that requires gradients)"):
            DOORS[door](kind(writer), None)


def test_a_compiled_network_that_writes_into_its_input_is_named():
    compiled = torch.compile(scaled, backend="aot_eager")
    with pytest.raises(InputError, match="the network writes into its input x"):
        scoresde.sample(scoresde.Denoiser(compiled, SDE), (2,), 4, steps=4)


def test_a_network_that_writes_in_training_is_named():
    loss = losses.make("dsm")
    for make in (scoresde.Denoiser, lambda network, sde: OwnModel(network)):
        with pytest.raises(InputError, match="writes into its input x"):
            loss(make(scaled, SDE), X, Draws.of(0, 0, len(X)))


def test_a_problem_of_ones_own_that_writes_is_named():
    class Mine(solvers.Problem):
        path = SDE

        def predict(self, x, node):
            return Own(scaled).predict(x, node)

    nodes = solvers.grid("karras", SDE, steps=4)
    for problem in (Mine(), Own(scaled)):
        for solver in ("heun", "dpmpp_2m", "rk45"):
            with pytest.raises(InputError, match="the model writes into its input x"):
                solvers.solve(solvers.make(solver), problem, X, nodes)
        with pytest.raises(InputError, match="the model writes into its input x"):
            solvers.trace(solvers.make("heun"), nodes).run(problem, X)


def drive(program):
    for request in program.steps(X):
        request.answer(Own(scaled).predict(request.x, request.node))


@pytest.mark.parametrize("mode", [contextlib.nullcontext, torch.inference_mode])
def test_a_foreign_loop_that_writes_is_named(mode):
    nodes = solvers.grid("karras", SDE, steps=4)
    program = solvers.trace(solvers.make("heun"), nodes)
    with mode(), pytest.raises(InputError, match=r"the loop writes into request\.x"):
        drive(program)
    sigmas = torch.tensor([10.0, 5.0, 1.0, 0.0])
    with mode(), pytest.raises(InputError, match="the model writes into its input x"):
        scoresde.interop.sample_function("DPM++ 2M")(scaled, X, sigmas, disable=True)


def stops(x, label, y=None):
    return next(iter(()))


def stops_with_a_value(x, label, y=None):
    raise StopIteration(torch.zeros_like(x))


ANSWERS = {
    "raised StopIteration: is there a next": stops,
    "raised StopIteration with Tensor": stops_with_a_value,
    r"torch\.complex64 instead of floats": lambda x, label: torch.complex(x.float(), x.float()),
    r"torch\.bool instead of floats": lambda x, label: x > 0,
    r"torch\.int64 instead of floats": lambda x, label: x.long(),
    "NoneType for samples": lambda x, label: None,
    "tuple for samples": lambda x, label: (x,),
    "ndarray for samples": lambda x, label: np.zeros((4, 2)),
    r"\(\d+, 1\) for samples": lambda x, label: x[:, :1],
    "a tensor on meta instead of cpu": lambda x, label: x.to("meta"),
}


@pytest.mark.parametrize("wrong", ANSWERS)
@pytest.mark.parametrize("predicts", ["eps", "x0"])
def test_a_network_that_returns_no_numbers_is_refused(wrong, predicts):
    denoiser = scoresde.Denoiser(ANSWERS[wrong], SDE, predicts=predicts)
    for door in ("program", "program with hooks", "picard", "adaptive", "scipy", "log_prob", "chain bound", "predict"):
        with pytest.raises(InputError, match=f"^the network (returns )?{wrong}"):
            DOORS[door](denoiser, None)


@pytest.mark.parametrize("kind", [Own, OwnModel])
def test_a_denoiser_that_returns_no_numbers_is_refused(kind):
    class Returns(kind):
        def __init__(self, found):
            super().__init__(linear)
            self.found = found

        def predict(self, x, node, **conditions):
            return self.found(x)

    pairs = {
        "(x0 as|returns) NoneType": lambda x: Prediction(None, x),
        r"eps as torch\.complex64": lambda x: Prediction(x, x.to(torch.complex64)),
        r"eps as torch\.int64": lambda x: Prediction(x, x.long()),
        r"(x0 as|returns) \(1, 2\)": lambda x: Prediction(x[:1], x),
        "raised StopIteration": lambda x: next(iter(())),
        r"must return solvers\.Prediction": lambda x: (x, x),
    }
    for wrong, found in pairs.items():
        for door in ("program", "picard", "adaptive", "log_prob", "chain bound"):
            with pytest.raises(InputError, match=wrong):
                DOORS[door](Returns(found), None)


def test_diffusers_outputs_are_accepted():
    wrapped = scoresde.Denoiser(lambda x, label: SimpleNamespace(sample=linear(x, label)), SDE)
    plain = scoresde.Denoiser(linear, SDE)
    assert torch.equal(*(scoresde.sample(d, (2,), 4, steps=4).x for d in (wrapped, plain)))


def test_a_network_that_enables_gradients_leaves_no_graph():
    weight = torch.ones(1, requires_grad=True)

    def network(x, label):
        with torch.enable_grad():
            return linear(x, label) * weight

    for solver in ("ddim", "heun", "dpmpp_2m", "rk45", "picard"):
        for kind in (scoresde.Denoiser, lambda network, sde: Own(network)):
            steps = None if solver == "rk45" else 4
            found = scoresde.sample(kind(network, SDE), (2,), 4, solver, steps=steps)
            expected = scoresde.sample(kind(linear, SDE), (2,), 4, solver, steps=steps)
            assert not found.x.requires_grad
            assert torch.equal(found.x, expected.x)


HOOKS = {
    "raised StopIteration": lambda x, node: next(iter(())),
    "returns tuple": lambda x, node: (x,),
    r"returns torch\.int64": lambda x, node: x.long(),
    r"returns torch\.complex64": lambda x, node: x.to(torch.complex64),
    r"returns \(4, 1\)": lambda x, node: x[:, :1],
}


@pytest.mark.parametrize("wrong", HOOKS)
@pytest.mark.parametrize("solver", ["heun", "rk45", "picard"])
def test_a_hook_that_returns_no_state_is_refused(wrong, solver):
    denoiser = mixture(2).denoiser(SDE)
    with pytest.raises(InputError, match=f"^a hook {wrong}"):
        scoresde.sample(denoiser, (2,), 4, solver, steps=None if solver == "rk45" else 4, hooks=HOOKS[wrong])


NOISES = {
    "raised StopIteration": lambda t, s: next(iter(())),
    "returns NoneType": lambda t, s: None,
    r"returns torch\.int64": lambda t, s: torch.zeros(4, 2, dtype=torch.long),
    r"returns torch\.complex64": lambda t, s: torch.zeros(4, 2, dtype=torch.complex64),
}


@pytest.mark.parametrize("wrong", NOISES)
def test_noise_that_is_none_is_refused(wrong):
    nodes, denoiser = solvers.grid("karras", SDE, steps=4), mixture(2).denoiser(SDE)
    for solver in ("ddpm", "gotta_go_fast", "pc"):
        with pytest.raises(InputError, match=f"^the noise source {wrong}"):
            solvers.solve(solvers.make(solver), denoiser, X, nodes, NOISES[wrong])
    with pytest.raises(InputError, match=f"^the noise source {wrong}"):
        solvers.trace(solvers.make("ddpm"), nodes).run(denoiser, X, NOISES[wrong])


def test_a_prior_that_stops_or_returns_no_real_numbers_is_refused_by_name():
    def stops(x):
        raise StopIteration(x)

    model = mixture(2).denoiser(SDE)
    for prior, message in [
        (stops, "the prior raised StopIteration"),
        (lambda x: torch.zeros(len(x), dtype=torch.complex64), "of each state, got torch.complex64"),
        (lambda x: x[:, 0] > 0, "of each state, got torch.bool"),
    ]:
        with pytest.raises(InputError, match=message):
            scoresde.log_prob(model, X, steps=2, prior=prior)


def test_a_sparse_output_is_refused_by_name():
    denoiser = scoresde.Denoiser(lambda x, label: linear(x, label).to_sparse(), SDE)
    for solver in ("dpmpp_2m", "rk45"):
        with pytest.raises(InputError, match=r"a tensor of layout torch\.sparse_coo"):
            scoresde.sample(denoiser, (2,), 4, solver)
