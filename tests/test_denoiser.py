"""Every native output against the pair it stands for, built from known x0 and eps."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import scoresde
from scoresde import Denoiser, InputError
from scoresde.models.model import ModelObserver, ModelWrapper
from solvers import Prediction, generator

pytestmark = pytest.mark.quick

SDES = [scoresde.VP(), scoresde.SubVP(), scoresde.VE(), scoresde.EDM(), scoresde.Cosine(), scoresde.RectifiedFlow()]
each_sde = pytest.mark.parametrize("sde", SDES, ids=str)
SHAPES = [(3,), (1, 4, 4)]
SIGMA_DATA = 0.7


def edm_target(x0, eps, node):
    """F with D = c_skip y + c_out F, y = x / alpha at Karras' sigma, and D = x0."""
    sigma = node.sigma / node.alpha
    c_skip = SIGMA_DATA**2 / (sigma**2 + SIGMA_DATA**2)
    c_out = sigma * SIGMA_DATA / (sigma**2 + SIGMA_DATA**2) ** 0.5
    return (x0 - c_skip * (x0 + sigma * eps)) / c_out


IDEAL = {
    "x0": lambda x0, eps, node: x0,
    "eps": lambda x0, eps, node: eps,
    "v": lambda x0, eps, node: node.alpha * eps - node.sigma * x0,
    "score": lambda x0, eps, node: -eps / node.sigma,
    "velocity": lambda x0, eps, node: node.dalpha * x0 + node.dsigma * eps,
    "edm": edm_target,
}


def pair(shape, n=5):
    x0, eps = torch.randn(2, n, *shape, generator=generator(3), dtype=torch.float64)
    return x0, eps


def middle(sde, share=0.4):
    return sde.t_min + share * (sde.t_max - sde.t_min)


@each_sde
@pytest.mark.parametrize("predicts", IDEAL)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_ideal_output_gives_the_pair_back(predicts, sde, shape):
    x0, eps = pair(shape)
    for share in (0.05, 0.4, 0.95):
        node = sde(middle(sde, share))
        x, out = node.alpha * x0 + node.sigma * eps, IDEAL[predicts](x0, eps, node)
        found = Denoiser(lambda x, t, out=out: out, sde, predicts, sigma_data=SIGMA_DATA).predict(x, node)
        # the half that is not predicted comes by a difference: rounding of x over alpha, or over sigma
        bound = 1e-13 * float(x.abs().max()) * max(1, 1 / node.alpha, 1 / node.sigma)
        assert float((found.x0 - x0).abs().max()) < bound
        assert float((found.eps - eps).abs().max()) < bound
        assert float((node.alpha * found.x0 + node.sigma * found.eps - x).abs().max()) < bound


@each_sde
@pytest.mark.parametrize("predicts", IDEAL)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_node_of_many_times_treats_each_row_at_its_own(predicts, sde, shape):
    x0, eps = pair(shape)
    t = torch.linspace(middle(sde, 0.1), middle(sde, 0.9), 5, dtype=torch.float64)
    wide = sde(t).like(x0)
    x, out = wide.alpha * x0 + wide.sigma * eps, IDEAL[predicts](x0, eps, wide)
    found = Denoiser(lambda x, t: out, sde, predicts, sigma_data=SIGMA_DATA).predict(x, sde(t))
    for i, time in enumerate(t.tolist()):
        rows = Denoiser(lambda x, t, i=i: out[i : i + 1], sde, predicts, sigma_data=SIGMA_DATA)
        alone = rows.predict(x[i : i + 1], sde(time))
        assert torch.allclose(found.x0[i], alone.x0[0], rtol=1e-11, atol=1e-11)
        assert torch.allclose(found.eps[i], alone.eps[0], rtol=1e-11, atol=1e-11)
        assert torch.allclose(found.x0[i], x0[i], rtol=1e-9, atol=1e-9)


@each_sde
def test_edm_preconditioning_is_karras_table_1(sde):
    x, node, seen = 2 * pair((3,))[0], sde(middle(sde)), []

    def network(x, label):
        seen.append((x, label))
        return torch.tanh(x) + label.unsqueeze(1)

    found = Denoiser(network, sde, "edm", sigma_data=SIGMA_DATA).predict(x, node)
    y, sigma = x / node.alpha, node.sigma / node.alpha
    c_in, c_noise = 1 / math.sqrt(sigma**2 + SIGMA_DATA**2), math.log(sigma) / 4
    c_skip = SIGMA_DATA**2 / (sigma**2 + SIGMA_DATA**2)
    c_out = sigma * SIGMA_DATA / math.sqrt(sigma**2 + SIGMA_DATA**2)
    wanted = c_skip * y + c_out * (torch.tanh(c_in * y) + c_noise)
    assert torch.allclose(seen[0][0], c_in * y, rtol=1e-13, atol=0)
    assert torch.allclose(seen[0][1], torch.full((5,), c_noise, dtype=torch.float64), rtol=1e-13, atol=1e-15)
    assert torch.allclose(found.x0, wanted, rtol=1e-12, atol=1e-13)
    assert torch.allclose(found.eps, (y - wanted) / sigma, rtol=1e-10, atol=1e-11)


def test_edm_does_not_cancel_at_low_noise():
    # float32 at sigma = 0.002: (y - D) / sigma by subtraction would be off by 1e-7 / 0.002 = 5e-5
    sde = scoresde.EDM()
    x0, eps = pair((3,))
    node = sde(0.002)
    out = edm_target(x0, eps, node).float()
    x = x0 + node.sigma * eps
    found = Denoiser(lambda x, t: out, sde, "edm", sigma_data=SIGMA_DATA).predict(x.float(), node)
    assert float((found.eps.double() - eps).abs().max()) < 2e-6  # a few roundings of numbers of order 3


LABELS = {
    "t": lambda node: node.t,
    "999t": lambda node: 999 * node.t,
    "1000t": lambda node: 1000 * node.t,
    "sigma": lambda node: node.sigma,
    "log_sigma": lambda node: math.log(node.sigma),
    "c_noise": lambda node: math.log(node.sigma / node.alpha) / 4,
}


@each_sde
@pytest.mark.parametrize("label", LABELS)
def test_the_network_sees_its_label(label, sde):
    seen, x = [], pair((3,))[0]

    def network(x, label):
        seen.append(label)
        return x

    denoiser = Denoiser(network, sde, time_label=label)
    times = [middle(sde, share) for share in (0.1, 0.3, 0.5, 0.7, 0.9)]
    denoiser.predict(x, sde(torch.tensor(times, dtype=torch.float64)))
    for i, t in enumerate(times):
        wanted = LABELS[label](sde(t))
        denoiser.predict(x, sde(t))
        assert seen[-1].shape == (5,)
        assert seen[-1].tolist() == [pytest.approx(wanted, rel=1e-12, abs=1e-14)] * 5
        assert float(seen[0][i]) == pytest.approx(wanted, rel=1e-12, abs=1e-14)


@pytest.mark.parametrize("predicts", IDEAL)
def test_the_default_label(predicts):
    seen, sde, x = [], scoresde.VP(), pair((3,))[0]

    def network(x, label):
        seen.append(float(label[0]))
        return x

    Denoiser(network, sde, predicts).predict(x, sde(0.3))
    assert seen[0] == pytest.approx(LABELS["c_noise" if predicts == "edm" else "t"](sde(0.3)), rel=1e-12)


class Linear(nn.Module):
    """0.5 x + label, in the dtype of its one parameter; the label has at least float32."""

    def __init__(self, dtype):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5, dtype=dtype))

    def forward(self, x, label):
        assert x.dtype == self.weight.dtype
        assert label.dtype == torch.promote_types(x.dtype, torch.float32)
        return self.weight * x + label.to(x.dtype).view(-1, *(1,) * (x.ndim - 1))


@pytest.mark.parametrize(("dtype", "eps"), [(torch.float32, 2**-24), (torch.bfloat16, 2**-9), (torch.float64, 2**-53)])
def test_the_network_computes_in_its_own_dtype_and_the_rest_in_the_states(dtype, eps):
    sde, x = scoresde.VP(), pair((1, 4, 4))[0]
    node = sde(0.3)
    found = Denoiser(Linear(dtype), sde, "eps").predict(x, node)
    exact = 0.5 * x + 0.3
    assert found.x0.dtype == found.eps.dtype == torch.float64
    # rounded: x, the label, the sum: 3 half-ulps of numbers below 0.5 |x| + 0.3
    error = float(((found.eps.detach() - exact).abs() / (0.5 * x.abs() + 0.3)).max())
    assert error <= 4 * eps
    if dtype != torch.float64:
        assert error > 0.1 * eps  # it was computed in that dtype
    # x = alpha x0 + sigma eps still holds in float64
    again = node.alpha * found.x0.detach() + node.sigma * found.eps.detach()
    assert float((again - x).abs().max()) < 1e-14


def test_a_16_bit_network_tells_neighbouring_times_apart():
    class Labels(Linear):
        def forward(self, x, label):
            seen.append(label.double())
            return x

    seen, sde, x = [], scoresde.VP(), pair((3,))[0]
    denoiser = Denoiser(Labels(torch.bfloat16), sde, time_label="999t")
    times = torch.tensor([0.98947, 0.98949, 0.9895, 0.9896, 0.99], dtype=torch.float64)
    denoiser.predict(x, sde(times))
    assert torch.allclose(seen[0], 999 * times, rtol=2**-23, atol=0)  # bfloat16 would make them all 988 or 992


def test_a_network_that_is_no_module_sees_the_states_dtype():
    sde, x = scoresde.VP(), pair((3,))[0].float()
    seen = []

    def network(x, label):
        seen.append((x.dtype, label.dtype))
        return x

    assert Denoiser(network, sde).predict(x, sde(0.3)).eps.dtype == torch.float32
    assert Denoiser(network, sde).predict(x, sde(torch.full((5,), 0.3, dtype=torch.float64))).x0.dtype == torch.float32
    assert seen == [(torch.float32, torch.float32)] * 2


def test_an_answer_inside_an_object_is_taken_out():
    sde, x = scoresde.VP(), pair((3,))[0]
    found = Denoiser(lambda x, t: SimpleNamespace(sample=2 * x), sde).predict(x, sde(0.5))
    assert torch.equal(found.eps, 2 * x)


def test_conditions_reach_the_network():
    sde, x = scoresde.VP(), pair((3,))[0]
    classes = torch.arange(5.0).unsqueeze(1)
    found = Denoiser(lambda x, t, y, scale: scale * y + 0 * x, sde).predict(x, sde(0.5), y=classes, scale=torch.ones(1))
    assert torch.equal(found.eps, classes.expand(5, 3).double())


def test_a_prediction_has_a_score_and_a_velocity():
    for sde in SDES:
        x0, eps = pair((3,))
        node = sde(middle(sde))
        prediction = Denoiser(lambda x, t, eps=eps: eps, sde).predict(node.alpha * x0 + node.sigma * eps, node)
        assert torch.allclose(prediction.score(node), -eps / node.sigma, rtol=1e-14, atol=0)
        # velocity = f x - g^2 score / 2, the probability-flow ODE
        x = node.alpha * x0 + node.sigma * eps
        flow = node.f * x + 0.5 * node.g2 * eps / node.sigma
        scale = float((node.f * x).abs().max()) + float(flow.abs().max())
        assert float((prediction.velocity(node) - flow).abs().max()) < 1e-12 * scale


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"predicts": "noise"}, "^no prediction type 'noise'; accepted: edm, eps, score, v, velocity, x0$"),
        ({"predicts": "epss"}, "did you mean eps"),
        ({"time_label": "t1000"}, "^no time label 't1000'; did you mean 1000t"),
        ({"sigma_data": 0.0}, "sigma_data must be positive, got 0.0"),
        ({"sigma_data": -1}, "sigma_data must be positive, got -1"),
        ({"sigma_data": math.nan}, "sigma_data must be positive, got nan"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        Denoiser(lambda x, t: x, scoresde.VP(), **options)


class Refusing(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, label):
        return self.layer(x)


@pytest.mark.parametrize(
    ("layer", "shape"), [(nn.Linear(5, 5), (3,)), (nn.Conv2d(3, 3, 3, padding=1), (1, 4, 4))], ids=["linear", "conv"]
)
def test_a_shape_that_the_network_refuses_is_told_in_one_line(layer, shape):
    sde = scoresde.VP()
    with pytest.raises(InputError, match=r"^the network rejects samples of shape \(.*\): [^\n]+$"):
        Denoiser(Refusing(layer), sde).predict(pair(shape)[0], sde(0.5))


def test_an_answer_of_another_shape_is_refused():
    sde, x = scoresde.VP(), pair((3,))[0]
    with pytest.raises(InputError, match=r"^the network returns \(5, 2\) for samples \(5, 3\)$"):
        Denoiser(lambda x, t: x[:, :2], sde).predict(x, sde(0.5))


def test_a_networks_own_error_is_not_taken_for_a_refusal():
    def network(x, label):
        raise RuntimeError("out of memory")

    sde, x = scoresde.VP(), pair((3,))[0]
    with pytest.raises(RuntimeError, match="out of memory") as caught:
        Denoiser(network, sde).predict(x, sde(0.5))
    assert not isinstance(caught.value, InputError)


class Halved(ModelWrapper):
    """A model whose x0 is half of the inner one's."""

    def predict(self, x, node, **conditions):
        x0 = super().predict(x, node, **conditions).x0 / 2
        return Prediction(x0, (x - node.alpha * x0) / node.sigma)


def test_a_wrapper_that_overrides_predict_changes_every_use_of_the_model():
    """A wrapper halves x0 = x / 2; a network with x0 = x / 4 is the same model."""
    wrapped = Halved(Denoiser(lambda x, label: x / 2, scoresde.VP(), "x0", "index", round_labels=True))
    plain = Denoiser(lambda x, label: x / 4, scoresde.VP(), "x0", "index", round_labels=True)
    x, node = torch.randn(4, 2, generator=generator(1), dtype=torch.float64), scoresde.VP()(0.3004)
    assert torch.allclose(wrapped.raw(x, node), x / 4, rtol=1e-15)
    assert wrapped.output.name == "x0"
    assert wrapped.log_prob is None
    assert wrapped.label_shift(node) == plain.label_shift(node) > 0
    ours, theirs = (scoresde.sample(model, (2,), range(4), steps=5, dtype=torch.float64) for model in (wrapped, plain))
    assert torch.allclose(ours.x, theirs.x, rtol=1e-12)
    assert ours.label_shift == theirs.label_shift > 0
    ours, theirs = (scoresde.log_prob(model, x, steps=5, divergence="exact").nats for model in (wrapped, plain))
    assert torch.allclose(ours, theirs, rtol=1e-12)


def test_an_observer_sees_every_evaluation_and_changes_none():
    class Observed(ModelObserver):
        def observe(self, x, node):
            seen.append(node.t)

    seen: list[float] = []
    model = Denoiser(lambda x, label: x / 2, scoresde.VP())
    ours, theirs = (scoresde.sample(m, (2,), range(4), "ddim", steps=5) for m in (Observed(model), model))
    assert torch.equal(ours.x, theirs.x)
    assert len(seen) == ours.nfe == 5
    assert seen == [node.t for node in ours.nodes[:-1]]
