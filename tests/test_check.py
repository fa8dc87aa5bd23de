"""check: on exact networks and on small trained ones, with options that are deliberately wrong."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import scoresde
from scoresde import Denoiser, InputError
from scoresde.data import load
from scoresde.models.hypotheses import REVERSED
from scoresde.models.networks import networks
from scoresde.models.networks.mlp import ResidualMLP
from scoresde.models.time_labels import LABELS
from scoresde.paths.chain_paths import ChainSDE
from scoresde.training.loop import train
from scoresde.training.losses import DSM
from scoresde.training.options import TrainingOptions
from scoresde.training.weightings import V, weightings
from solvers import generator

pytestmark = pytest.mark.quick

SD = 0.5
TARGET = scoresde.targets.GaussianMixture(torch.tensor([[1.0, -0.5, 0.3, 0.0], [-0.6, 0.8, 0.0, -0.5]]), 0.05)
X = TARGET.sample(8, generator(0)).float()
VP, VE, FLOW, EDM, CHAIN = scoresde.VP(), scoresde.VE(), scoresde.RectifiedFlow(), scoresde.EDM(), ChainSDE()


def exact(sde, predicts, label, target=TARGET):
    """A network that is exact under these options, and only under these: it finds its time in a table of labels."""
    times = torch.linspace(sde.t_min, sde.t_max, 4001, dtype=torch.float64)
    reverse = label == REVERSED
    table = sde.t_max + sde.t_min - times if reverse else LABELS[label].of(sde(times), sde, 1000)
    sign = -1 if predicts.startswith("-") else 1

    def network(x, given):
        node = sde(times[(table[None] - given.double()[:, None]).abs().argmin(1)])
        wide = node.like(x)
        if predicts == "edm":
            x = x * (wide.alpha * (wide.ratio**2 + SD**2) ** 0.5)
        x0, eps = (lambda found: (found.x0, found.eps))(target.predict(x, node))
        total = (wide.ratio**2 + SD**2) ** 0.5
        outputs = {
            "x0": x0,
            "eps": eps,
            "v": wide.alpha * eps - wide.sigma * x0,
            "score": -eps / wide.sigma,
            "velocity": wide.dalpha * x0 + wide.dsigma * eps,
            "edm": (x0 - (SD / total) ** 2 * x / wide.alpha) * total / (wide.ratio * SD),
        }
        return sign * outputs[predicts.removeprefix("-")]

    return network


def named(found, what):
    (finding,) = [each for each in found.findings if each.what == what]
    return finding


@pytest.mark.parametrize(
    ("sde", "truth", "wrong"),
    [
        (VP, ("eps", "999t"), {"time_label": "t"}),
        (VP, ("v", "t"), {"predicts": "eps"}),
        (VE, ("score", "sigma"), {"predicts": "eps", "time_label": "log_sigma"}),
        (FLOW, ("velocity", "1000t"), {"time_label": "t"}),
        (EDM, ("edm", "c_noise"), {"predicts": "x0"}),
        (EDM, ("x0", "sigma"), {"predicts": "edm"}),
        (CHAIN, ("eps", "index"), {"time_label": "t"}),
    ],
    ids=str,
)
def test_the_wrong_option_is_named_and_the_right_one_is_not(sde, truth, wrong):
    right = Denoiser(exact(sde, *truth), sde, *truth)
    found = scoresde.check(right, X)
    assert found.ok
    assert str(found).startswith("nothing to change\n")
    assert found.score == found.best_score < -0.2  # this mixture is far from a normal distribution
    found = scoresde.check(replace(right, **wrong), X)
    names = {"predicts": "prediction", "time_label": "time label"}
    assert {each.what for each in found.wrong} == {names[option] for option in wrong}
    for option in wrong:
        finding, value = named(found, names[option]), getattr(right, option)
        assert value in (finding.best, *finding.also)
        assert finding.sure > 0.9
        assert f"{option}='" in finding.advice


def test_an_index_that_is_one_off_is_reported_as_equal():
    found = scoresde.check(Denoiser(exact(CHAIN, "eps", "index"), CHAIN, "eps", "index+1"), X)
    assert found.ok
    assert "index" in named(found, "time label").also


def test_a_flow_with_its_time_reversed_is_recognised():
    # flow matching with data at t = 1: the velocity has the other sign, and the label is 1 - t
    found = scoresde.check(Denoiser(exact(FLOW, "-velocity", REVERSED), FLOW, "velocity"), X)
    assert named(found, "prediction").best == "-velocity"
    assert "network(x, 1 - t)" in named(found, "time label").advice
    assert "lambda x, t: -network(x, t), with predicts='velocity'" in named(found, "prediction").advice


@pytest.fixture(scope="module")
def trained():
    """A network trained for a few seconds on the digits."""
    data = load("digits").train.tensor()
    torch.manual_seed(0)
    network = networks.make("mlp(width=64, depth=1)").build((1, 8, 8))
    denoiser = Denoiser(network, FLOW, "velocity")
    options = TrainingOptions(steps=250, learning_rate=4e-3, averages="ema(decay=0.97)")
    result = train(denoiser, network, data, DSM(V()), options, progress=False)
    return replace(denoiser, network=result.ema), data[:16]


@pytest.mark.parametrize(
    ("given", "best"),
    [
        (lambda x: x, None),
        (lambda x: (x + 1) / 2, "2 x - 1"),
        (lambda x: (x + 1) * 127.5, "x / 127.5 - 1"),
        (lambda x: (127.5 * (x + 1)).round().to(torch.uint8), "x / 127.5 - 1"),
    ],
)
def test_the_scale_of_the_data_of_a_trained_network(trained, given, best):
    denoiser, x = trained
    found = scoresde.check(denoiser, given(x))
    assert named(found, "prediction").best == "velocity"
    assert not named(found, "prediction").wrong
    assert named(found, "data").best == (best or "as given")
    assert found.ok == (best is None)
    if best is not None:
        assert f"pass {best} of these data" in str(found)


def test_the_prediction_of_a_trained_network(trained):
    denoiser, x = trained
    for wrong in ("eps", "x0", "v"):
        found = scoresde.check(replace(denoiser, predicts=wrong), x)
        assert named(found, "prediction").best == "velocity"
        assert named(found, "prediction").sure > 0.9


def test_an_untrained_network_fits_nothing(run):
    x = load("digits").train.first(8).x
    with torch.random.fork_rng():
        torch.manual_seed(0)
        untrained = networks.make("mlp(width=16, depth=1)").build((1, 8, 8))
        nn.init.normal_(untrained.leave.weight)
    found = scoresde.check(Denoiser(untrained, VP), x)
    assert not found.ok
    assert "Train it longer" in found.undertrained
    assert found.wrong == ()
    found = scoresde.check(scoresde.load(run), x)  # forty steps: little better than nothing
    assert found.score < 0.1


class Images(nn.Module):
    """Exact for N(0, 0.25 I) on VP, with the predictions' channels, a variance if it is learned, and dropout."""

    def __init__(self, learned):
        super().__init__()
        self.learned, self.drop = learned, nn.Dropout(0.3)
        self.level = nn.Linear(1, 1)

    def forward(self, x, label):
        if x.shape[1] != 3:
            raise RuntimeError("expected input to have 3 channels")
        node = VP(label.double())
        wide = node.like(x)
        eps = wide.sigma / (0.25 * wide.alpha**2 + wide.sigma**2) * x + 0 * self.drop(x)
        return torch.cat([eps, 0 * eps], 1) if self.learned else eps


def test_channels_variance_mode_and_dtypes():
    x = 0.5 * torch.randn(6, 3, 8, 8, generator=generator(1))
    net = Images(learned=True).train()
    net.level.bfloat16()
    found = scoresde.check(Denoiser(net, VP, "eps", learned_variance=False), x.movedim(1, -1))
    text = str(found)
    assert "pass x.movedim(-1, 1)" in text
    assert "learned_variance=True" in named(found, "learned variance").advice
    assert not named(found, "mode").wrong
    assert "mode" not in text.splitlines()[0]  # a check runs in evaluation mode: there is nothing to change
    assert net.training  # restored
    net.add_module("other", nn.Linear(1, 1))
    assert "bfloat16, float32" in str(scoresde.check(Denoiser(net, VP, "eps", learned_variance=True), x))


def test_a_network_that_ignores_its_label_is_named():
    found = scoresde.check(Denoiser(lambda x, label: x / (1 + x.square()), VP), X)
    assert named(found, "time").advice == "the network ignores its time label"
    found = scoresde.check(Denoiser(exact(VP, "eps", "t"), VP), X)
    assert not named(found, "time").wrong


def test_other_models_are_compared_with_mean_and_variance():
    assert scoresde.check(TARGET.denoiser(VP), X).ok
    found = scoresde.check(scoresde.targets.Gaussian(torch.full((4,), 3.0), 0.01).denoiser(VP), X)
    assert str(found).startswith("undertrained: its error is 67.83 times that of mean and variance alone")


def learning(steps, predicts="eps"):
    """A network of right settings after a few steps of training on the digits."""
    data = load("digits").train.tensor()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = networks.make("mlp(width=64, depth=1)").build((1, 8, 8))
        denoiser = Denoiser(network, VP, predicts)
        options = TrainingOptions(steps=steps, learning_rate=2e-3, averages="ema(decay=0.9)")
        result = train(denoiser, network, data, DSM(weightings.make(predicts)), options, progress=False)
    return replace(denoiser, network=result.ema), data[:16]


@pytest.mark.parametrize(("steps", "predicts"), [(100, "eps"), (300, "eps"), (100, "x0"), (300, "x0")])
def test_right_settings_of_a_barely_trained_network_are_not_called_wrong(steps, predicts):
    denoiser, x = learning(steps, predicts)
    found = scoresde.check(denoiser, x)
    assert found.score > -0.05  # no better than mean and variance alone
    assert found.wrong == ()
    assert not found.ok
    assert str(found).startswith("undertrained: its error is ")
    assert "Train it longer and check again" in str(found)
    assert named(found, "prediction").best == predicts


def test_a_clearly_better_setting_of_a_barely_trained_network_is_reported():
    denoiser, x = learning(500)
    found = scoresde.check(replace(denoiser, predicts="score"), x)
    assert found.score > 1.5  # more than four times the error
    assert -0.05 < found.best_score < 0.2
    assert named(found, "prediction").best == "eps"
    assert "predicts='eps'" in named(found, "prediction").advice
    assert str(found).startswith("change prediction")
    assert "as far as an undertrained network shows: its error is " in str(found)


def test_arrays_are_checked_as_tensors_are():
    denoiser = Denoiser(exact(VP, "eps", "t"), VP)
    wanted = str(scoresde.check(denoiser, X))
    assert str(scoresde.check(denoiser, X.numpy())) == wanted
    assert str(scoresde.check(denoiser, X.double().numpy())) == wanted
    net = Images(learned=False)  # float32 weights, and float64 samples
    x = 0.5 * np.random.default_rng(0).normal(size=(6, 3, 8, 8))
    assert str(scoresde.check(Denoiser(net, VP), x)) == str(scoresde.check(Denoiser(net, VP), torch.tensor(x).float()))


def test_what_is_said_of_data_is_no_change_of_nothing():
    denoiser = Denoiser(exact(VP, "eps", "t"), VP)
    text = str(scoresde.check(denoiser, 40 * X))
    assert "as it is" not in text
    assert "  scale: the data range from " in text


def test_bad_samples_are_refused():
    denoiser = Denoiser(exact(VP, "eps", "t"), VP)
    for x in (X[:1], torch.full((3, 4), float("nan")), X[0], "x"):
        with pytest.raises(InputError, match="check needs at least two finite samples"):
            scoresde.check(denoiser, x)
    with pytest.raises(InputError, match="the network rejects the data"):
        scoresde.check(denoiser, torch.zeros(3, 5))


NET = networks.make("mlp(width=8, depth=1)").build((2,))


@pytest.mark.parametrize(
    ("data", "sde", "message"),
    [
        (lambda x: 1e6 * x, VP, "at the end of vp they are still .* scale them to order 1"),
        (lambda x: 1e6 * x, EDM, "at the end of edm they are still"),
        (
            lambda x: 128 + 100 * x,
            VP,
            "with standard deviation 98: at the end of vp they are still 1",
        ),
        (lambda x: 1e-4 * x, VE, "the least noise of ve is 1"),
    ],
)
def test_training_refuses_data_beyond_its_path(data, sde, message):
    x = torch.randn(50, 2, generator=generator(2))
    with pytest.raises(InputError, match=message):
        train(Denoiser(NET, sde), NET, data(x), DSM(), TrainingOptions(steps=1), progress=False)


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (lambda x: 8 * x, {}, "networks are made for data of order 1; scale them"),
        (lambda x: (2 * x).round(), {}, "the data are whole numbers: scale levels"),
        (
            lambda x: x,
            {"predicts": "edm", "sigma_data": 0.2},
            r"sigma_data is 0\.2, but the standard deviation",
        ),
        (
            lambda x: x,
            {"time_label": "1000t"},
            "the labels '1000t' reach 1000, but the network's embedding",
        ),
        (lambda x: x[:, :1].expand(50, 384).reshape(50, 8, 16, 3), {}, "seem to have their channels last"),
    ],
)
def test_training_warns_of_what_it_would_learn_badly(data, options, message):
    x = data(torch.randn(50, 2, generator=generator(2)))
    network = networks.make("mlp(width=8, depth=1)").build(tuple(x.shape[1:]))
    with pytest.warns(UserWarning, match=message):
        train(Denoiser(network, VP, **options), network, x, DSM(), TrainingOptions(steps=1), progress=False)


def test_noise_that_was_not_scaled_is_noticed():
    noise = torch.randn(32, 4, generator=generator(3))
    denoiser = TARGET.denoiser(EDM)
    with pytest.warns(UserWarning, match=r"x_init has a root mean square of .*, but states at t=80 have about 80"):
        scoresde.sample(denoiser, (4,), range(32), "ddim", steps=3, x_init=noise)


def test_nothing_is_said_about_what_is_right(recwarn):
    noise = torch.randn(32, 4, generator=generator(3))
    scoresde.sample(TARGET.denoiser(EDM), (4,), range(32), "ddim", steps=3, x_init=80 * noise)
    data = torch.randn(50, 2, generator=generator(2))
    train(Denoiser(NET, VP), NET, data, DSM(), TrainingOptions(steps=1), progress=False)
    assert [str(each.message) for each in recwarn if each.category is UserWarning] == []


def test_load_warns_of_a_network_that_ignores_its_label(run, monkeypatch):
    monkeypatch.setattr(ResidualMLP, "forward", lambda self, x, label: torch.sin(x))
    with pytest.warns(UserWarning, match="the network ignores its time label"):
        scoresde.load(run)
