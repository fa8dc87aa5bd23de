"""``scoresde.train``: ten lines from points to samples and densities, resumption, and refusals."""

import json
import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import scoresde
from scoresde import InputError
from scoresde.data.rows import Batch, Rows, TensorRows
from scoresde.models.networks.mlp import MLP


class Net(nn.Module):
    """A network of the user's: (x, label) -> like x; a class shifts it."""

    def __init__(self, size=2, width=48, classes=0):
        super().__init__()
        self.first, self.last = nn.Linear(size + 4, width), nn.Linear(width, size)
        self.hidden = nn.Linear(width, width)
        self.shift = nn.Embedding(classes, width) if classes else None

    def forward(self, x, label, kind=None):
        time = torch.stack([label, label**2, (6 * label).sin(), (6 * label).cos()], 1)
        h = self.first(torch.cat([x, time], 1))
        h = h if self.shift is None else h + self.shift(kind)
        return self.last(self.hidden(h.relu()).relu())


def points(count=400, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 2, generator=generator) * torch.tensor([0.3, 0.8]) + torch.tensor([0.5, -0.5])


def network(seed=0, **options):
    torch.manual_seed(seed)
    return Net(**options)


QUICK = {"batch_size": 64, "learning_rate": 3e-3, "progress": False, "averages": "ema(decay=0.98)"}


@pytest.mark.long
def test_ten_lines_from_points_to_samples_and_densities():
    """The density of a Gaussian: after 1500 updates, the log-likelihood of fresh points is near that of the truth."""
    data = points(4000)
    result = scoresde.train(network(), data, sde="vp", predicts="v", steps=1500, **QUICK)
    samples = scoresde.sample(result.denoiser, seeds=1000, nfe=20)
    found = scoresde.log_prob(result.denoiser, points(300, seed=1))

    # 1000 samples: the standard errors of a mean and of a deviation are 0.03 of the deviation and less; the rest is
    # the error of a small network, which is a tenth of the deviation
    assert samples.x.mean(0).tolist() == pytest.approx([0.5, -0.5], abs=0.13)
    assert samples.x.std(0).tolist() == pytest.approx([0.3, 0.8], rel=0.15)
    fresh, spread = points(300, seed=1), torch.tensor([0.3, 0.8])
    z = (fresh - torch.tensor([0.5, -0.5])) / spread
    truth = (-0.5 * z**2 - 0.5 * math.log(2 * math.pi) - spread.log()).sum(1)
    difference = float(found.nats.mean() - truth.mean())
    # a model has on average at most the truth's density; 300 points allow 0.02 more, the error of their mean
    assert -0.1 < difference < 0.02
    assert not any(part.training for part in result.denoiser.network.modules())
    assert not any(p.requires_grad for p in result.denoiser.network.parameters())
    assert result.step == 1500
    assert math.isfinite(result.loss)


@pytest.mark.parametrize("predicts", ["eps", "x0", "v", "score", "velocity", "edm"])
def test_every_output_learns_better_than_mean_and_variance(predicts):
    from scoresde.models.model import as_model
    from scoresde.runs.held_out import error_by_noise

    torch.manual_seed(0)
    net = MLP(width=32, depth=1).build((2,))
    two = torch.cat([points() * 0.1 - 0.8, points(seed=1) * 0.1 + 0.8])
    result = scoresde.train(net, two, predicts=predicts, steps=400, **QUICK)
    found = error_by_noise(as_model(result.denoiser), Batch(two), 0, 8)
    gains = [e / t for e, t in zip(found.error, found.trivial, strict=True)]
    assert min(gains) < 0.6
    assert result.denoiser.predicts == predicts
    if predicts == "edm":
        assert result.denoiser.sigma_data == pytest.approx(float(two.std(correction=0)), rel=0.05)


class Listed(Rows):
    """Rows that are not in memory, as far as the training knows."""

    def __init__(self, x):
        self.x = x

    @property
    def shape(self):
        return self.x.shape[1:]

    def __len__(self):
        return len(self.x)

    def batch(self, index):
        return Batch(self.x[index])


@pytest.mark.parametrize("kind", [TensorRows, Listed])
def test_the_deviation_is_that_of_all_data_in_any_order(kind):
    """Sorted data: the first ten thousand are nothing like the others."""
    data = torch.cat([torch.full((12_000, 1), -1.0), torch.full((8_000, 1), 4.0)])
    options = {**QUICK, "batch_size": 8}
    found = scoresde.train(MLP(width=8, depth=1).build((1,)), kind(data), predicts="edm", steps=1, **options).denoiser
    assert found.sigma_data == 2.4  # 5 sqrt(0.6 0.4) = 2.449, in two digits
    assert found.data_range == (-1, 4)


def test_conditions_of_an_array_reach_the_network():
    """Two classes at -1 and 1: samples of a class are on its side."""
    kinds = torch.arange(600) % 2
    data = points(600) * 0.2 + (2 * kinds[:, None] - 1)
    result = scoresde.train(network(classes=2), data, steps=400, condition={"kind": kinds}, **QUICK)
    asked = torch.arange(40) % 2
    x = scoresde.sample(result.denoiser, seeds=40, nfe=15, condition={"kind": asked}).x
    # the parts are 2 apart and 0.16 wide; a network that ignores the class would be right for half of them
    assert ((x.mean(1) > 0) == (asked == 1)).float().mean() > 0.95


def test_conditions_are_dropped_and_the_null_is_known():
    """Two classes at -1 and 1: without its class, x0 of pure noise is the mean of both; guidance needs no null."""
    kinds = torch.arange(600) % 2
    data = points(600) * 0.2 + (2 * kinds[:, None] - 1)
    given = {"condition": {"kind": kinds}, "condition_dropout": 0.3, **QUICK}
    denoiser = scoresde.train(network(classes=3), data, steps=400, **given).denoiser
    (condition,) = denoiser.conditions
    assert str(condition) == "kind: 2 classes"
    far = denoiser.sde(denoiser.sde.t_max)
    means = {k: float(denoiser.predict(torch.zeros(1, 2), far, kind=torch.tensor([k])).x0.mean()) for k in (0, 1, 2)}
    # the mean of points() is 0; the network's own error is about a tenth
    assert means == pytest.approx({0: -1.0, 1: 1.0, 2: 0.0}, abs=0.35)
    found = scoresde.sample(denoiser, seeds=4, nfe=5, guidance="cfg(scale=2)", condition={"kind": torch.ones(4).long()})
    assert found.forwards == 2 * found.nfe


def test_conditions_are_noised_as_asked(tmp_path):
    """x ~ N(0, 1), y = x + 0.5 n, and y_t with the noise of x_t: less is known of x than with y itself."""
    source = torch.Generator().manual_seed(0)
    x = torch.randn(600, 1, generator=source)
    y = x + 0.5 * torch.randn(600, 1, generator=source)

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 1))

        def forward(self, x, label, seen):
            return self.net(torch.cat([x, label[:, None], torch.nan_to_num(seen)], 1))

    how = {"condition": {"seen": y}, "sde": "ve", "steps": 200, **QUICK}
    torch.manual_seed(0)
    denoiser = scoresde.train(Plain(), x, condition_noise="decay(start=2, end=0.5, steps=300)", **how).denoiser
    assert str(denoiser.condition_noise) == "decay(start=2.0, end=0.5, steps=300, made=200)"
    assert [str(c) for c in denoiser.conditions] == ["seen: vector (1,)"]
    found = scoresde.sample(denoiser, seeds=3, nfe=5, condition={"seen": torch.ones(3, 1)})
    assert found.x.isfinite().all()
    scoresde.train(Plain(), x, workdir=tmp_path / "r", condition_noise="same", **{**how, "steps": 2})
    with pytest.raises(InputError, match="condition_noise is 'same' there and 'none' here"):
        scoresde.train(Plain(), x, workdir=tmp_path / "r", **{**how, "steps": 2})
    for change, words in (
        ({"condition_dropout": 1.5}, r"condition_dropout must lie in \[0, 1\)"),
        ({"condition_dropout_each": 0.1}, "is for several conditions"),
        ({"condition": None, "condition_dropout": 0.1}, "the data have no conditions"),
        ({"condition": None, "condition_noise": "same"}, "the data have no conditions"),
        ({"condition": {"seen": y > 0}, "condition_dropout": 0.1}, "must have classes"),
    ):
        with pytest.raises(InputError, match=words):
            scoresde.train(Plain(), x, **{**how, "steps": 2, **change})


def test_the_same_call_resumes_and_other_settings_are_refused(tmp_path):
    data, whole = points(), tmp_path / "whole"
    first = scoresde.train(network(), data, steps=12, workdir=whole, **QUICK)
    halves = tmp_path / "halves"
    for steps in (5, 12):
        second = scoresde.train(network(), data, steps=steps, workdir=halves, **QUICK)
    for one, two in zip(first.network.parameters(), second.network.parameters(), strict=True):
        assert torch.equal(one, two)
    again = scoresde.train(network(seed=3), data, steps=12, workdir=halves, **QUICK)
    assert math.isnan(again.loss)
    pairs = zip(again.denoiser.network.parameters(), first.denoiser.network.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    for change, words in (
        ({"predicts": "eps"}, "predicts is 'v' there and 'eps' here"),
        ({"sde": "ve"}, "sde is 'vp'"),
        ({"seed": 4}, "seed is 0 there and 4 here"),
        ({"loss": "dsm"}, "loss is"),
    ):
        with pytest.raises(InputError, match=words):
            scoresde.train(network(), data, workdir=halves, **{"steps": 12, **QUICK, **change})
    with pytest.raises(InputError, match=r"data is .400 samples"):
        scoresde.train(network(), points(seed=2), steps=12, workdir=halves, **QUICK)
    with pytest.raises(InputError, match="network is 'Net, 2,786 weights'"):
        scoresde.train(network(width=40), data, steps=20, workdir=halves, **QUICK)


def test_a_folder_gets_evaluations_pictures_and_a_page(tmp_path):
    result = scoresde.train(
        network(), points(), steps=20, workdir=tmp_path / "run", held_out=points(30, seed=1).numpy(),
        evaluate_every=10, evaluate_likelihood=8, **QUICK,
    )  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "run" / "evaluations.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20]
    assert [line["samples"] for line in lines] == [30, 30]
    assert all("fault" not in line for line in lines)
    expected = scoresde.log_prob(result.denoiser, points(30, seed=1)[:8], seeds=8).nats.mean()
    assert lines[-1]["nats"] == pytest.approx(float(expected), rel=1e-6)
    assert sorted(p.name for p in (tmp_path / "run" / "grids").iterdir()) == ["step_00000010.png", "step_00000020.png"]
    text = (tmp_path / "run" / "training.html").read_text(encoding="utf-8")
    assert "Net, " in text
    assert "20 updates of 64 samples" in text


def test_rows_arrays_data_sets_and_files_give_the_same_training(tmp_path):
    data = points(60)
    np.save(tmp_path / "points.npy", data.numpy())
    given = [data, data.numpy(), data.double(), TensorRows(data)]
    losses = [scoresde.train(network(), each, steps=3, **QUICK).loss for each in given]
    assert losses == [losses[0]] * 4
    read = [tmp_path / "points.npy", str(tmp_path / "points.npy"), TensorDataset(data)]
    losses = [scoresde.train(network(), each, steps=3, **QUICK).loss for each in read]
    assert losses == [losses[0]] * 3


def test_what_was_read_is_reported_before_the_first_update(tmp_path, capsys):
    np.save(tmp_path / "levels.npy", np.random.default_rng(0).integers(0, 5, (30, 2)))
    options = {**QUICK, "progress": True}
    scoresde.train(network(), tmp_path / "levels.npy", steps=1, **options)
    found = capsys.readouterr()
    assert "file: 25 + 5 samples (2,) to train and test; numbers from -1 to 1, mean" in found.err
    assert "whole numbers from 0 to 4, scaled to [-1, 1]: the levels that occur" in found.err
    assert found.out == ""
    scoresde.train(network(), tmp_path / "levels.npy", steps=1, **QUICK)
    assert "samples" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": lambda x, t: x}, "a network that is a torch.nn.Module"),
        ({"predicts": "noise"}, "no network output 'noise'"),
        ({"sde": "vpp"}, "no SDE 'vpp'"),
        ({"loss": "dsn"}, "no loss 'dsn'; did you mean dsm"),
        ({"data": torch.arange(10)}, r"must be floats \(N, \*\), got torch.int64"),
        ({"data": torch.full((4, 2), math.nan)}, "numbers that are not finite"),
        ({"data": 3}, "expected a data set with __getitem__ and __len__, got 3"),
        ({"data": "nowhere.npy"}, "does not exist"),
        ({"learning_rates": 1e-3}, "no option of train 'learning_rates'; did you mean learning_rate"),
        ({"steps": 0}, "steps must be a positive integer"),
        ({"condition": {"kind": torch.zeros(3)}}, "the condition kind has 3 rows for 400 samples"),
        ({"data": TensorRows(points()), "condition": {}}, "condition belongs to data in an array"),
        ({"device": "gpu"}, "gpu"),
        ({"network": nn.Identity()}, "the network has no parameters to train"),
        ({"workdir": 3}, "workdir must be the path of a folder, got 3"),
        ({"evaluate_likelihood": "3"}, "evaluate_likelihood must be a positive integer, got '3'"),
    ],
)
def test_bad_input_is_one_clear_line(change, message):
    given = {"network": network(), "data": points(), "steps": 2, "progress": False, **change}
    with pytest.raises(InputError, match=message) as raised:
        scoresde.train(given.pop("network"), given.pop("data"), **given)
    assert "\n" not in str(raised.value)


def test_data_on_another_scale_are_warned_of_as_on_the_command_line():
    with pytest.warns(UserWarning, match="scale them to order 1"):
        scoresde.train(network(), 20 * points(), steps=1, **QUICK)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scoresde.train(network(), points(), steps=1, **QUICK)
