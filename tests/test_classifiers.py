"""Classifiers of noisy samples, trained and loaded; and Bayes' classifier from the likelihood under each class."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import scoresde
from scoresde.cli import main
from scoresde.data.conditions import Condition
from scoresde.models.classifier import Classifier
from scoresde.runs.build import load_data
from scoresde.runs.class_posterior import ClassPosterior, class_posterior
from scoresde.runs.run import load_run
from scoresde.training.losses import losses
from solvers import InputError
from solvers.noise.draws import Draws

MEANS = torch.tensor([[-1.0, 0.4], [0.8, 0.6], [0.2, -0.9]], dtype=torch.float64)
SPREAD = 0.5  # overlapping: Bayes' classifier is right for about nine of ten clean samples
FEW = ("--config.model.network=mlp(width=32, depth=1)", "--config.training.batch_size=128")


def bayes(x, node):
    """log p(c | x_t) (B, 3) of the mixture with equal weights."""
    variance = (node.alpha * SPREAD) ** 2 + node.sigma**2
    return (-(torch.cdist(x.double(), node.alpha * MEANS) ** 2) / (2 * variance)).log_softmax(1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("classes"), np.random.default_rng(0)
    y = rng.integers(0, 3, 3000)
    x = MEANS.numpy()[y] + SPREAD * rng.standard_normal((3000, 2))
    np.savez(folder / "data.npz", x=x.astype(np.float32), y=y)
    return folder / "data.npz"


def arguments_of(data, workdir, *more):
    return [
        "train", "--config=digits_vp", f"--workdir={workdir}", "--config.data.name=file",
        f"--config.data.path={data}", "--config.data.labels=y", *FEW, *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def classifier_run(data):
    run = data.parent / "classifier"
    more = (
        "--config.training.loss=classifier",
        "--config.training.steps=1500",
        "--config.training.evaluate_every=1500",
    )
    assert main(arguments_of(data, run, *more, "--config.training.schedule=cosine")) == 0
    return run


def test_a_trained_classifier_is_bayes(classifier_run):
    classifier = scoresde.load(classifier_run)
    assert isinstance(classifier, Classifier)
    sde, source = classifier.sde, torch.Generator().manual_seed(1)
    target = scoresde.targets.GaussianMixture(MEANS, SPREAD**2)
    x0 = target.sample(2000, source).float()
    name = classifier.condition.name
    for t in (0.02, 0.2, 0.4, 0.7, 1.0):
        node = sde(t)
        x = node.alpha * x0 + node.sigma * torch.randn(x0.shape, generator=source)
        right, found = bayes(x, node), classifier.log_probs(x, node).double()
        divergence = (right.exp() * (right - found)).sum(1)
        # nats from Bayes' posterior: 2500 samples gave 0.009 at t = 0.02 and less above; knowing nothing costs 0.89,
        # 0.48 and 0.11 nats at the first three times
        assert float(divergence.mean()) < 0.02, t
        useless = (right.exp() * (right + math.log(3))).sum(1).mean()
        assert t > 0.4 or float(useless) > 0.1, t
        classes = torch.arange(2000) % 4
        given = classifier(x, node, **{name: classes, "other": x})
        assert torch.allclose(given[:3].double(), found[[0, 1, 2], [0, 1, 2]])
        assert not given[classes == 3].any()
    # times that differ between the samples, as in training
    t = torch.tensor([0.2, 0.7], dtype=torch.float64)
    mixed = classifier.log_probs(x[:2], sde(t))
    alone = [classifier.log_probs(x[i : i + 1], sde(float(t[i]))) for i in range(2)]
    assert torch.allclose(mixed, torch.cat(alone), atol=1e-5)


def test_its_gradient_guides(classifier_run):
    classifier = scoresde.load(classifier_run)
    source, node = torch.Generator().manual_seed(2), classifier.sde(0.3)
    x = (node.alpha * scoresde.targets.GaussianMixture(MEANS, SPREAD**2).sample(500, source)).float()
    x = (x + node.sigma * torch.randn(x.shape, generator=source)).requires_grad_()
    classes = torch.arange(500) % 3
    (found,) = torch.autograd.grad(classifier(x, node, **{classifier.condition.name: classes}).sum(), x)
    precise = x.detach().double().requires_grad_()
    (right,) = torch.autograd.grad(bayes(precise, node).gather(1, classes[:, None]).sum(), precise)
    # relative squared error of grad log p(c | x_t): 0.05; without a class it is 1
    assert float((found - right).square().sum() / right.square().sum()) < 0.1


def test_a_loaded_classifier_samples_its_classes(classifier_run):
    classifier = scoresde.load(classifier_run)
    exact = scoresde.targets.GaussianMixture(MEANS, SPREAD**2).denoiser(classifier.sde)
    guided = scoresde.guide(exact, "classifier(scale=1)", classifier=classifier)
    classes = torch.arange(600) % 3
    found = scoresde.sample(guided, (2,), 600, "heun", steps=15, condition={classifier.condition.name: classes})
    assert found.vjps > 0
    means = torch.stack([found.x[classes == c].mean(0) for c in range(3)])
    # 200 samples of deviation 0.5: 0.035 each; the classes are 1.4 to 1.8 apart
    assert float((means - MEANS).norm(dim=1).max()) < 0.2
    assert float((torch.cdist(found.x.double(), MEANS).argmin(1) == classes).double().mean()) > 0.8


def test_its_run_is_watched_and_resumes(classifier_run, data, tmp_path, capsys):
    (line,) = (classifier_run / "evaluations.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert "fault" not in record
    # the mean over uniform times of Bayes' cross-entropy lies between 0 and log 3
    assert 0.3 < record["loss"] < 1.0
    assert (classifier_run / "training.html").exists()
    few = ("--config.training.loss=classifier", "--config.training.evaluate_every=0")
    parts = ("--config.training.checkpoint_every=2",)
    assert main(arguments_of(data, tmp_path / "whole", *few, *parts, "--config.training.steps=6")) == 0
    for steps in (3, 6):
        assert main(arguments_of(data, tmp_path / "parts", *few, *parts, f"--config.training.steps={steps}")) == 0
    whole, resumed = (scoresde.load(tmp_path / name).network.state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    capsys.readouterr()
    assert main(["sample", f"--workdir={classifier_run}", f"--out={tmp_path / 'x'}"]) == 2
    assert "is a classifier, which draws no samples" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--config.model.condition_dropout=0.1"], "which has no model.condition_dropout, got 0.1"),
        (["--config.model.condition_noise=same"], "which has no model.condition_noise"),
        (["--config.data.labels=off"], "a classifier needs data with one condition of classes; theirs: none"),
        (["--config.training.loss=classifier(times=adaptive)"], "remembers losses"),
        (["--config.training.weighting=v"], "the loss classifier does not use training.weighting"),
    ],
)
def test_bad_classifiers_are_one_line(data, tmp_path, capsys, more, message):
    given = ["--config.training.loss=classifier", *more, "--config.training.steps=2"]
    assert main(arguments_of(data, tmp_path / "run", *given)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "run" / "config.json").exists()


def test_bad_use_of_a_classifier():
    digit = Condition("digit", "class", classes=3)
    classifier = Classifier(lambda x, t: x, scoresde.VP(), digit)
    node, x = classifier.sde(0.5), torch.zeros(2, 2)
    with pytest.raises(InputError, match=r"must return logits \(2, 3\), got \(2, 2\)"):
        classifier.log_probs(x, node)
    with pytest.raises(InputError, match="needs the condition 'digit'"):
        classifier(x, node)
    with pytest.raises(InputError, match="predicts no x0"):
        scoresde.sample(classifier, (2,), 2, "ddim", steps=2, condition={"digit": torch.zeros(2).long()})
    with pytest.raises(InputError, match="for a condition of classes"):
        Classifier(lambda x, t: x, "vp", Condition("v", "vector", (2,)))
    exact = scoresde.targets.GaussianMixture(MEANS, SPREAD**2).denoiser(scoresde.VP())
    with pytest.raises(InputError, match=r"trains a scoresde\.Classifier, got a Exact"):
        losses.make("classifier")(exact, x, Draws.of(0, 0, 2))


class Exactly:
    """The exact denoiser of each class of the mixture, with its condition."""

    conditions = (Condition("y", "class", classes=3),)

    def __init__(self, sde):
        self.sde = sde

    def network(self, x, t, y):
        node = self.sde(t.double())
        alpha, sigma = node.alpha[:, None], node.sigma[:, None]
        mean = MEANS[y]
        gain = alpha * SPREAD**2 / ((alpha * SPREAD) ** 2 + sigma**2)
        return (mean + gain * (x - alpha * mean)).to(x)


def test_likelihood_gives_the_posterior_over_classes():
    exactly = Exactly(scoresde.VP())
    denoiser = scoresde.Denoiser(exactly.network, exactly.sde, "x0", "t", conditions=exactly.conditions)
    x = scoresde.targets.GaussianMixture(MEANS, SPREAD**2).sample(40, torch.Generator().manual_seed(3))
    columns = [
        scoresde.log_prob(denoiser, x, condition={"y": torch.full((40,), c)}, divergence="exact").nats for c in range(3)
    ]
    found = ClassPosterior(torch.stack(columns, 1), torch.zeros(40).long())
    clean = (-(torch.cdist(x, MEANS) ** 2) / (2 * SPREAD**2)).log_softmax(1)
    # the prior is N(0, I) instead of the noised class: alpha(t_max) z m = 0.0066 * 6 * 1.1 nats, of up to 12
    assert torch.allclose(found.log_posterior, clean, atol=0.06)
    assert torch.equal(found.predicted, clean.argmax(1))
    facts, shares = found.facts(), found.log_posterior.exp()
    assert facts["probability"] == pytest.approx(float(shares[:, 0].mean()))
    assert facts["confidence"] == pytest.approx(float(shares.amax(1).mean()))
    assert facts["log_likelihood"] == pytest.approx(float(columns[0].mean()))
    assert facts["probability_stderr"] == pytest.approx(float(shares[:, 0].std() / 40**0.5))


@pytest.fixture(scope="module")
def denoiser_run(data):
    run = data.parent / "denoiser"
    more = ("--config.training.steps=600", "--config.training.learning_rate=5e-3", "--config.training.evaluate_every=0")
    assert main(arguments_of(data, run, *more, "--config.training.schedule=cosine")) == 0
    return run


def test_the_command_prints_the_accuracy_of_bayes_classifier(denoiser_run, tmp_path, capsys):
    out = tmp_path / "l"
    options = ["--limit=100", "--steps=12", "--config.likelihood.error=False"]
    arguments = ["likelihood", f"--workdir={denoiser_run}", f"--out={out}", "--class=all", *options]
    capsys.readouterr()
    assert main([*arguments, "--shards=1/2", "--config.likelihood.batch_size=50"]) == 0
    assert "3 of 6 shards" in capsys.readouterr().out
    assert main([*arguments, "--shards=2/2", "--config.likelihood.batch_size=50"]) == 0
    text, facts = capsys.readouterr().out, json.loads((out / "classes.json").read_text())
    with np.load(out / "classes.npz") as file:
        found = {name: torch.from_numpy(file[name]) for name in file}
    run = load_run(denoiser_run)
    rows = load_data(run.config, run.card).test.first(100)
    x = rows.x.double()
    right = (-(torch.cdist(x, MEANS) ** 2) / (2 * SPREAD**2)).log_softmax(1)
    divergence = (right.exp() * (right - found["log_posterior"])).sum(1)
    # nats between Bayes' posterior and that of a network trained for 600 updates: 0.005; without the class it is 0.9
    assert float(divergence.mean()) < 0.03
    accuracy = float((found["predicted"] == rows.conditions[next(iter(rows.conditions))]).double().mean())
    assert facts["accuracy"] == pytest.approx(accuracy)
    # Bayes' own accuracy on these samples differs by a few that lie on the border
    best = float((right.argmax(1) == rows.conditions[next(iter(rows.conditions))]).double().mean())
    assert abs(accuracy - best) <= 0.05
    assert f"{accuracy:.4f}" in text
    assert facts["cross_entropy"] < 0.45
    # Bayes' posterior is calibrated: 100 samples have a standard error of 0.04
    assert abs(facts["confidence"] - accuracy) < 0.12


def test_a_bound_that_the_config_names_replaces_the_ode(denoiser_run, tmp_path, capsys):
    out = tmp_path / "l"
    arguments = ["likelihood", f"--workdir={denoiser_run}", f"--out={out}", "--class=all", "--limit=60"]
    assert main([*arguments, "--config.likelihood.bound=continuous"]) == 0
    facts = json.loads((out / "classes.json").read_text())
    assert facts["accuracy"] > 0.8  # Bayes' own is 0.87 there; three classes
    assert facts["cross_entropy"] < 0.5
    with np.load(next((out / "classes" / "class_0").glob("*.npz"))) as file:
        assert not any(name.startswith("ode") for name in file)


def test_bayes_classifier_needs_classes(tmp_path, denoiser_run, capsys):
    run = load_run(denoiser_run)
    bare = replace(run, card=replace(run.card, conditions=()))
    with pytest.raises(InputError, match=r"--class=all needs a run with one condition of classes; .* run: none"):
        class_posterior(bare, None, "test")
    assert main(["likelihood", f"--workdir={denoiser_run}", f"--out={tmp_path / 'l'}", "--class=3"]) == 2
    assert "all" in capsys.readouterr().err
