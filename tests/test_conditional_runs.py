"""Runs on labelled data: trained, sampled by class, scored and compared from the command line."""

import json
import math

import numpy as np
import pytest
import torch

import scoresde
from scoresde.cli import main
from scoresde.data.conditions import Condition
from scoresde.models.learned_path import with_network
from scoresde.runs.conditions import choose, pictures_by_class
from scoresde.runs.run import load_run
from scoresde.training.loop import Training
from solvers import InputError

MEANS = np.array([[-1.5, 0.5], [1.0, 1.0], [0.3, -1.4]], dtype=np.float32)
FEW = ("--config.model.network=mlp(width=32, depth=1)", "--config.training.batch_size=64")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on three labelled Gaussians with deviation 0.3, with dropout of the label."""
    folder = tmp_path_factory.mktemp("conditional")
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 900)
    x = MEANS[y] + 0.3 * rng.standard_normal((900, 2), dtype=np.float32)
    np.savez(folder / "data.npz", x=x, y=y)
    arguments = (
        *("--config.data.name=file", f"--config.data.path={folder / 'data.npz'}", "--config.data.labels=y"),
        *(
            "--config.model.condition_dropout=0.2",
            "--config.training.steps=500",
            "--config.training.learning_rate=5e-3",
        ),
    )
    assert main(["train", "--config=digits_vp", f"--workdir={folder / 'run'}", *arguments, *FEW]) == 0
    return folder / "run"


def drawn(run, out, *arguments):
    assert main(["sample", f"--workdir={run}", f"--out={out}", *arguments]) == 0
    with np.load(out / "samples.npz") as file:
        return torch.from_numpy(file["x"]), json.loads((out / "samples.json").read_text())


def test_samples_have_the_class_that_was_asked_for(run, tmp_path, capsys):
    x, facts = drawn(run, tmp_path / "a", "--class=0-2", "--seeds=300")
    name = load_run(run).card.conditions[0].name
    assert facts["conditions"][name] == [0] * 100 + [1] * 100 + [2] * 100
    distances = torch.cdist(x, torch.from_numpy(MEANS)).argmin(1)
    # the means are eight deviations apart: chance alone confuses none; the short training may, a few
    assert float((distances == torch.tensor(facts["conditions"][name])).float().mean()) > 0.97
    # a seed's sample depends on its class and seed alone
    one, _ = drawn(run, tmp_path / "b", "--class=1", "--seeds=100-199")
    assert torch.allclose(one, x[100:200], atol=1e-5)
    same = scoresde.sample(load_run(run).denoiser, seeds=range(100, 200), condition={name: torch.ones(100).long()})
    assert torch.allclose(same.x, one, atol=1e-5)
    # without a class: all three at about equal shares
    none, facts = drawn(run, tmp_path / "c", "--class=none", "--seeds=300")
    assert facts["conditions"][name] == [3] * 300
    shares = torch.bincount(torch.cdist(none, torch.from_numpy(MEANS)).argmin(1), minlength=3) / 300
    assert float(shares.min()) > 0.2
    capsys.readouterr()
    by_default, facts = drawn(run, tmp_path / "d", "--seeds=300")
    assert torch.allclose(by_default, x, atol=1e-5)
    assert "of all 3 classes (--class=3 chooses one)" in capsys.readouterr().out


def test_the_null_is_saved_with_the_run(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    arrays = {"x": rng.standard_normal((80, 2)), "angle": rng.standard_normal((80, 3)), "kind": rng.integers(0, 4, 80)}
    np.savez(tmp_path / "data.npz", **{n: v if n == "kind" else v.astype(np.float32) for n, v in arrays.items()})
    results, run = [], Training.run

    def watched(self, *args, **kwargs):
        results.append((self, run(self, *args, **kwargs)))
        return results[-1][1]

    monkeypatch.setattr(Training, "run", watched)
    arguments = [
        "train", "--config=digits_vp", f"--workdir={tmp_path / 'run'}", "--config.data.name=file",
        f"--config.data.path={tmp_path / 'data.npz'}", "--config.data.labels=kind,angle", *FEW,
        "--config.model.condition_dropout=0.2", "--config.model.condition_dropout_each=0.2",
        "--config.training.steps=20", "--config.training.evaluate_every=0",
    ]  # fmt: skip
    assert main(arguments) == 0
    (training, result), loaded = results[0], scoresde.load(tmp_path / "run")
    assert loaded.conditions == training.denoiser.conditions
    null = {condition.name: condition.empty(5) for condition in loaded.conditions}
    x, node = torch.randn(5, 2), loaded.sde(0.4)
    trained = with_network(training.denoiser, result.ema)
    assert torch.equal(loaded.predict(x, node, **null).x0, trained.predict(x, node, **null).x0)
    # another row is not the null: neither a class nor a vector of zeros
    rows = {"class": torch.zeros(5).long(), "vector": torch.zeros(5, 3)}
    for condition in loaded.conditions:
        given = {**null, condition.name: rows[condition.kind]}
        assert not torch.equal(loaded.predict(x, node, **null).x0, loaded.predict(x, node, **given).x0)


def test_a_file_gives_the_conditions(run, tmp_path):
    name = load_run(run).card.conditions[0].name
    np.savez(tmp_path / "each.npz", **{name: np.arange(6) % 3})
    np.savez(tmp_path / "one.npz", **{name: np.array(2)})
    _, facts = drawn(run, tmp_path / "a", f"--condition={tmp_path / 'each.npz'}", "--seeds=6")
    assert facts["conditions"][name] == [0, 1, 2, 0, 1, 2]
    _, facts = drawn(run, tmp_path / "b", f"--condition={tmp_path / 'one.npz'}", "--seeds=6")
    assert facts["conditions"][name] == [2] * 6


def test_bad_conditions_are_one_line(run, tmp_path, capsys):
    name = load_run(run).card.conditions[0].name
    np.savez(tmp_path / "few.npz", **{name: np.arange(2)})
    np.savez(tmp_path / "one.npz", **{name: np.array(2)})
    np.savez(tmp_path / "other.npz", angle=np.zeros((4, 2)))
    np.savez(tmp_path / "outside.npz", **{name: np.full(4, 7)})
    np.savez(tmp_path / "text.npz", **{name: np.array(["a"] * 4)})
    for arguments, message in [
        (["--class=3"], f"the classes of {name} are 0 to 2, or none for no class; got 3"),
        (["--class=-1"], "cannot read the classes '-1'; expected 3, 0-9, 0,5,9 or none"),
        (["--class=2-1"], "cannot read the classes '2-1'"),
        ([f"--condition={tmp_path / 'few.npz'}"], "has 2 rows for 4 samples; give one row, or one per sample"),
        ([f"--condition={tmp_path / 'other.npz'}"], f"no condition of this run 'angle'; accepted: {name}"),
        ([f"--condition={tmp_path / 'outside.npz'}"], f"the condition {name} has the classes 0 to 2"),
        ([f"--condition={tmp_path / 'text.npz'}"], "must have numbers"),
        ([f"--condition={tmp_path / 'one.npz'}", "--class=1"], "leave out one"),
        ([f"--condition={tmp_path / 'nowhere.npz'}"], "nowhere.npz"),
    ]:
        assert main(["sample", f"--workdir={run}", f"--out={tmp_path / 'x'}", "--seeds=4", *arguments]) == 2, arguments
        error = capsys.readouterr().err
        assert message in error
        assert len(error.splitlines()) == 1


def test_likelihood_and_benchmark_use_the_conditions_of_the_data(run, tmp_path):
    trained = load_run(run)
    assert main(["likelihood", f"--workdir={run}", f"--out={tmp_path / 'l'}", "--limit=60", "--steps=10"]) == 0
    with np.load(tmp_path / "l" / "likelihood.npz") as file:
        nats = torch.from_numpy(file["nats"])
    from scoresde.runs.build import load_data

    rows = load_data(trained.config, trained.card).test.first(60)
    steps = {"solver": "heun", "steps": 10, "divergence": "exact"}
    right = scoresde.log_prob(trained.denoiser, rows.x, condition=rows.conditions, **steps).nats
    assert torch.allclose(nats, right, atol=1e-4)
    name = trained.card.conditions[0].name
    wrong = {name: (rows.conditions[name] + 1) % 3}
    # a sample is about eight deviations from the mean of another class: e^-30 or so
    assert float((right - scoresde.log_prob(trained.denoiser, rows.x, condition=wrong, **steps).nats).mean()) > 5
    # knowing the class is worth up to log 3 = 1.1 nats
    none = {name: torch.full_like(rows.conditions[name], 3)}
    gain = float((right - scoresde.log_prob(trained.denoiser, rows.x, condition=none, **steps).nats).mean())
    assert 0.6 < gain < 1.6
    assert trained.card.conditions[0].name in json.dumps(json.loads((tmp_path / "l" / "likelihood.json").read_text()))
    out = tmp_path / "b"
    assert main(["benchmark", f"--workdir={run}", f"--out={out}", "--solvers=heun", "--nfe=31", "--seeds=150"]) == 0
    row = json.loads((out / "results.json").read_text())["rows"][0]
    # the data's own mixture, not one class or the three as often as each other
    assert row["sliced_wasserstein"] < 0.3


def test_guided_samples_are_nearer_to_their_class(run, tmp_path, capsys):
    """At scale 3 they leave the mean of their class, away from the others, and the classes cannot be confused."""
    name = load_run(run).card.conditions[0].name
    more = (f"--condition={name}=1", "--seeds=200", "--guidance=cfg(scale=3, interval=[0.2, 5])", "--solver=heun")
    x, facts = drawn(run, tmp_path / "g", *more, "--forwards=60")
    assert facts["guidance"] == "cfg(interval=[0.2, 5.0], scale=3.0)"
    assert facts["conditions"][name] == [1] * 200
    assert facts["nfe"] < facts["forwards"] <= 60
    assert facts["vjps"] == 0
    assert facts["config"]["sampling"]["condition"] == f"{name}=1"
    assert bool((torch.cdist(x, torch.from_numpy(MEANS)).argmin(1) == 1).all())
    plain, _ = drawn(run, tmp_path / "p", "--class=1", "--seeds=200", "--solver=heun", "--forwards=60")
    away = MEANS[1] - MEANS.mean(0)
    assert float(((x - plain).mean(0) * torch.from_numpy(away)).sum()) > 0
    same = scoresde.sample(load_run(run).denoiser, seeds=200, solver="heun", forwards=60, guidance=facts["guidance"],
                           condition={name: torch.ones(200).long()})  # fmt: skip
    assert torch.allclose(same.x, x, atol=1e-5)
    # tilt has its own solver and grid, on the command line too
    tilt = "tilt(scale=2, particles=4)"
    x, facts = drawn(run, tmp_path / "t", f"--condition={name}=1", "--seeds=8", f"--guidance={tilt}", "--steps=5")
    same = scoresde.sample(load_run(run).denoiser, seeds=8, steps=5, guidance=tilt,
                           condition={name: torch.ones(8).long()})  # fmt: skip
    assert (facts["solver"], facts["grid"], facts["nfe"]) == (same.solver, same.grid, 20)
    assert torch.allclose(same.x, x, atol=1e-5)
    capsys.readouterr()
    for arguments, message in (
        (["--guidance=cgf(scale=3)"], "no guidance 'cgf'; did you mean cfg"),
        (["--guidance=cfg(scale=3, interval=[2, 1])"], "interval must have 0 <= lo < hi"),
        (["--condition=label2=1"], "no condition of this run 'label2'"),
        ([f"--condition={name}=9"], f"the classes of {name} are 0 to 2"),
        (["--guidance=cfgpp", "--solver=rk45"], "cfgpp: its scale depends on the steps"),
        (["--guidance=autoguidance(scale=2)"], "needs a worse model: pass bad="),
    ):
        assert main(["sample", f"--workdir={run}", f"--out={tmp_path / 'x'}", "--seeds=4", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error


def test_values_by_name_are_the_rows_of_all_samples():
    known = (Condition("digit", "class", classes=4), Condition("angle", "vector", (2,)))
    rows = choose(known, 4, given="digit=0,3 angle=0.5,-1").rows
    assert rows["digit"].tolist() == [0, 0, 3, 3]
    assert rows["angle"].tolist() == [[0.5, -1.0]] * 4
    empty = choose(known, 2, given="digit=none angle=none").rows
    assert empty["digit"].tolist() == [4, 4]
    assert bool(empty["angle"].isnan().all())
    with pytest.raises(InputError, match=r"the condition angle has numbers of shape \(2,\), got '1'"):
        choose(known, 4, given="digit=1 angle=1")


def test_a_class_is_known_by_its_common_names(tmp_path):
    known = (Condition("label", "class", classes=4), Condition("angle", "vector", (1,)))
    np.savez(tmp_path / "class.npz", targets=np.array(3), angle=np.zeros((1, 1)))
    for given in ("y=3 angle=0", "class=3 angle=0", str(tmp_path / "class.npz")):
        assert choose(known, 2, given=given).rows["label"].tolist() == [3, 3]
    with pytest.raises(InputError, match="no condition of this run 'y'; accepted: angle"):
        choose(known[1:], 2, given="y=3")
    own = (Condition("y", "class", classes=4), Condition("label", "class", classes=4))
    assert choose(own, 1, given="y=3 label=1").rows["y"].tolist() == [3]


def test_pictures_of_a_class_are_a_row():
    known = (Condition("digit", "class", classes=4),)
    rows = {"digit": torch.tensor([0, 0, 0, 2, 2, 2, 2, 3, 3, 3])}
    assert pictures_by_class(known, rows, 100) == ([0, 1, 2, 3, 4, 5, 7, 8, 9], 3)
    assert pictures_by_class(known, {"digit": torch.ones(10)}, 100) is None
    assert pictures_by_class((), {}, 100) is None


def test_other_conditions_are_asked_for():
    vector = Condition("angle", "vector", (2,))
    with pytest.raises(
        InputError, match=r"given angle, rows of shape \(2,\) of the kind vector: pass --condition=FILE.npz"
    ):
        choose([vector], 4)
    with pytest.raises(InputError, match=r"--class needs a run with one condition of classes; .* run: angle"):
        choose([vector], 4, [1])
    with pytest.raises(InputError, match="conditions of this run: none"):
        choose([], 4, [1])
    assert choose([], 4).rows == {}


def test_a_run_with_augmentation_samples_unchanged_images(tmp_path):
    augmented = ("--config.data.augmentation=edm(probability=0.5)", "--config.model.self_conditioning=True")
    labelled = ("--config.data.labels=label", "--config.model.condition_dropout=0.1")
    arguments = [*augmented, *labelled, *FEW, "--config.training.steps=3"]
    assert main(["train", "--config=digits_vp", f"--workdir={tmp_path / 'run'}", *arguments]) == 0
    denoiser = load_run(tmp_path / "run").denoiser
    name = denoiser.conditions[0].name
    x, node, label = torch.randn(2, 1, 8, 8), denoiser.sde(0.5), torch.tensor([1, 10])
    same = denoiser.predict(x, node, **{name: label, "augment_labels": torch.zeros(2, 9)})
    assert torch.equal(denoiser.predict(x, node, **{name: label}).x0, same.x0)
    other = denoiser.predict(x, node, **{name: label, "augment_labels": torch.ones(2, 9)})
    assert not torch.equal(other.x0, same.x0)
    assert denoiser.cost(node) == 2
    x, facts = drawn(tmp_path / "run", tmp_path / "s", "--seeds=20", "--nfe=8")
    assert (facts["nfe"], facts["forwards"], facts["vjps"]) == (8, 16, 0)
    assert math.isfinite(float(x.sum()))
    assert (tmp_path / "s" / "grid.png").exists()


def test_dropout_needs_conditions(tmp_path, capsys):
    arguments = ["--config.model.condition_dropout=0.1", *FEW, "--config.training.steps=3"]
    assert main(["train", "--config=digits_vp", f"--workdir={tmp_path / 'run'}", *arguments]) == 2
    assert "the data have no conditions: set data.labels" in capsys.readouterr().err
