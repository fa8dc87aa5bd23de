"""Runs of discrete states: trained from a config, resumed, loaded, sampled, scored and compared by the commands."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import contents, fails

import scoresde
from scoresde.cli.parser import main
from scoresde.runs.run import load_run
from scoresde.runs.saved import saved

BEATS = [[int(i % 5 == k) for i in range(20)] for k in range(5)]
SENTENCE = "the quick brown fox jumps over the lazy dog; "
SMALL = ["--config.training.evaluate_every=0", "--config.training.checkpoint_every=1000"]
TINY = [
    "--config.model.network=transformer(width=16, depth=1, heads=2)", "--config.data.length=8",
    "--config.training.batch_size=16", "--config.sampling.steps=4", "--config.likelihood.bound_indices=8",
]  # fmt: skip


def run(*arguments):
    assert main([str(a) for a in arguments]) == 0


def train(workdir, config, *arguments, steps=6):
    run("train", f"--config={config}", f"--workdir={workdir}", f"--config.training.steps={steps}", *SMALL, *arguments)


@pytest.fixture(scope="module")
def heart(tmp_path_factory):
    """A heartbeat that is trained for seconds, with a learning rate and averages for so few updates."""
    folder = tmp_path_factory.mktemp("heart") / "run"
    few = ["--config.training.learning_rate=1e-2", "--config.training.warmup=20"]
    train(folder, "heartbeat", *few, "--config.training.averages=ema(decay=0.97)", steps=400)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A text and a run on it."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "text.txt").write_text(SENTENCE * 12)
    train(folder / "run", "text_absorbing", *TINY, f"--config.data.path={folder / 'text.txt'}")
    return folder


# the heartbeat


def test_a_trained_heartbeat_is_near_its_entropy(heart, tmp_path, capsys):
    run("likelihood", f"--workdir={heart}", f"--out={tmp_path}", "--config.likelihood.bound_indices=512")
    shown = capsys.readouterr().out
    document = json.loads((tmp_path / "likelihood.json").read_text())
    bits = 20 * document["means"]["bits_per_dim"]
    error = 20 * document["standard_errors"]["bits_per_dim"]
    # the entropy is log2 5 = 2.322 bits, and the bound is above it; its estimate may be below by its error
    assert math.log2(5) - 3 * error - 0.05 < bits < 2.6
    # named a bound, with its parts and its error
    assert re.search(r"log p >= -1\.\d+ .* nats \(mean of 5\), lower bound, of the reverse process", shown)
    assert re.search(r"bits/dim <= 0\.1\d+", shown)
    for part in ("prior", "diffusion", "reconstruction", "standard error of the draws of noisy states"):
        assert part in shown
    values = np.load(tmp_path / "likelihood.npz")
    parts = values["prior"] + values["diffusion"] + values["reconstruction"]
    assert np.allclose(parts, values["nats"])
    assert "lower bound, of the reverse process" in (tmp_path / "likelihood.html").read_text()


def test_samples_of_a_trained_heartbeat_are_heartbeats(heart, tmp_path):
    run("sample", f"--workdir={heart}", f"--out={tmp_path / 's'}", "--seeds=200")
    facts = json.loads((tmp_path / "s" / "samples.json").read_text())
    assert (facts["solver"], facts["nfe"]) == ("first_hitting", 20)
    x = np.load(tmp_path / "s" / "samples.npz")["x"]
    assert x.dtype == np.int64
    places = [BEATS.index(row) for row in x.tolist() if row in BEATS]
    assert len(places) >= 190  # 95 %; the exact model has all
    # each of the five has the share 1/5: 40 +- 5.7 of 200, here within four of these
    assert all(17 <= count <= 63 for count in np.bincount(places, minlength=5))


def test_a_loaded_run_is_the_model_of_the_commands(heart, tmp_path):
    model = scoresde.load(heart)
    assert isinstance(model, scoresde.DiscreteDenoiser)
    assert (str(model.process), model.predicts, model.time, model.shape) == (
        "absorbing(schedule=linear, states=2)",
        "x0_logits",
        False,
        (20,),
    )
    found = scoresde.sample(model, seeds=range(5), solver="tweedie", nfe=6)
    options = ["--config.sampling.solver=tweedie", "--config.sampling.nfe=6"]
    run("sample", f"--workdir={heart}", f"--out={tmp_path / 's'}", "--seeds=5", *options)
    assert torch.equal(found.x, torch.from_numpy(np.load(tmp_path / "s" / "samples.npz")["x"]))
    bound = scoresde.discrete_bound(model, torch.tensor(BEATS), steps=8, draws=16)
    assert bound.is_bound
    assert bound.nats.shape == (5,)


def test_solvers_are_compared_at_budgets_that_are_counted(heart, tmp_path, capsys):
    names = "--solvers=tweedie, tau_hold, theta_trapezoidal, first_hitting"
    run("benchmark", f"--workdir={heart}", f"--out={tmp_path / 'b'}", names, "--nfe=4,8", "--seeds=8")
    rows = json.loads((tmp_path / "b" / "results.json").read_text())["rows"]
    counted = {(row["solver"], row["nfe_budget"]): row["nfe"] for row in rows if not row["skipped"]}
    assert counted[("tweedie", 4)] == 4
    assert counted[("tau_hold", 8)] == 8
    assert counted[("first_hitting", None)] == 20  # one for each token
    assert all(nfe <= budget for (name, budget), nfe in counted.items() if name != "first_hitting")
    shown = capsys.readouterr().out
    assert re.search(r"solver +NFE +steps +invalid +bigrams +trigrams", shown)
    assert "5 training samples have invalid 0.0000 [0.0000,0.4345]" in shown
    wrong = {(row["solver"], row["nfe_budget"]): row["invalid"] for row in rows if not row["skipped"]}
    assert wrong[("first_hitting", None)] <= wrong[("tweedie", 4)]  # a share of 8 samples
    page = (tmp_path / "b" / "report.html").read_text()
    assert "share of invalid samples" in page
    assert re.search(r"<pre>([01]{20}\n){3}[01]{20}</pre>", page)


def test_a_stopped_run_resumes_bit_for_bit(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    few = ["--config.model.network=mlp(width=16, depth=1)", "--config.training.schedule=constant"]
    train(whole, "heartbeat", *few, steps=8)
    train(parts, "heartbeat", *few, steps=3)
    train(parts, "heartbeat", *few, steps=8)
    last = [max((folder / "checkpoints").iterdir()) for folder in (whole, parts)]
    assert last[0].name == last[1].name
    one, other = ({p.name: c for p, c in contents(folder).items() if p.suffix == ".safetensors"} for folder in last)
    assert one
    assert one == other


# texts


def test_samples_of_a_text_can_be_read(text, tmp_path):
    run("sample", f"--workdir={text / 'run'}", f"--out={tmp_path / 's'}", "--seeds=7,3")
    x = np.load(tmp_path / "s" / "samples.npz")["x"]
    symbols = sorted(set(SENTENCE))
    words = ["".join(symbols[token] for token in row) for row in x]
    wanted = f"=== seed 7 ===\n{words[0]}\n=== seed 3 ===\n{words[1]}\n"
    assert (tmp_path / "s" / "samples.txt").read_text() == wanted
    assert saved(text / "run").card.symbols == "".join(symbols)
    capable = load_run(text / "run").denoiser
    assert (capable.process.states, capable.process.mask) == (len(symbols), len(symbols))


def test_the_likelihood_of_a_text_is_in_bits_per_character(text, tmp_path, capsys):
    other = tmp_path / "other.txt"
    other.write_text("the dog jumps over the quick fox; " * 9)
    run(
        "likelihood", f"--workdir={text / 'run'}", f"--config.data.path={other}", f"--out={tmp_path / 'l'}", "--limit=3"
    )
    printed = capsys.readouterr()
    # six updates leave the law of all characters alike, of log2 28 = 4.81 bits
    found = re.search(r"bits/character <= (\d\.\d+) ", printed.out)
    assert found is not None
    assert 2.5 < float(found[1]) < 5.5
    assert "(draws " in printed.out  # no trace and no solver: a bound solves no equation
    assert "the solver error" not in printed.out
    assert "bits/character" in (tmp_path / "l" / "likelihood.html").read_text()
    assert "the data are not those that the run was trained on" in printed.err
    # a second call reads the shards that are there
    run(
        "likelihood", f"--workdir={text / 'run'}", f"--config.data.path={other}", f"--out={tmp_path / 'l'}", "--limit=3"
    )
    assert found[0] in capsys.readouterr().out


def test_a_text_with_unknown_symbols_is_refused(text, tmp_path, capsys):
    other = tmp_path / "other.txt"
    other.write_text("Élan? " * 9)
    arguments = ["likelihood", f"--workdir={text / 'run'}", f"--config.data.path={other}"]
    fails(capsys, arguments, "symbols that are not among the 28 of the vocabulary", "'É' (9x)", "'?' (9x)")
    other.write_text("")
    fails(capsys, arguments, f"the text '{other}' is empty")


def test_evaluations_of_a_text_have_a_loss_a_bound_and_samples(text, tmp_path):
    folder = tmp_path / "run"
    path = f"--config.data.path={text / 'text.txt'}"
    scored = ["--config.training.evaluate_every=2", "--config.training.evaluate_likelihood=2"]
    arguments = ["train", "--config=text_multinomial", f"--workdir={folder}", "--config.training.steps=2", path, *TINY]
    run(*arguments, *scored)
    (line,) = [json.loads(each) for each in (folder / "evaluations.jsonl").read_text().splitlines()]
    assert "fault" not in line
    assert 1 < line["bits_per_dim"] < 9
    assert line["scored"] == 2
    assert line["loss"] > 1
    drawn = (folder / "grids" / "step_00000002.txt").read_text().splitlines()
    assert (drawn[0], len(drawn)) == ("=== seed 0 ===", 32)
    assert (folder / "training.html").exists()


def test_sundae_draws_samples_and_has_no_likelihood(text, tmp_path, capsys):
    folder, path = tmp_path / "run", f"--config.data.path={text / 'text.txt'}"
    train(folder, "text_sundae", *TINY, path)
    run("sample", f"--workdir={folder}", f"--out={tmp_path / 's'}", "--seeds=2")
    assert (tmp_path / "s" / "samples.txt").exists()
    fails(capsys, ["likelihood", f"--workdir={folder}"], "has no likelihood")


def test_bytes_are_drawn_as_bytes(tmp_path):
    (tmp_path / "data").write_bytes(bytes(range(200)) * 4)
    name = ["--config.data.name=bytes", f"--config.data.path={tmp_path / 'data'}"]
    train(tmp_path / "run", "text_absorbing", *TINY, *name)
    run("sample", f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 's'}", "--seeds=1")
    x = np.load(tmp_path / "s" / "samples.npz")["x"]
    assert (tmp_path / "s" / "samples.txt").read_bytes() == b"=== seed 0 ===\n" + bytes(x[0].tolist()) + b"\n"


# images and classes


def test_levels_of_digits_are_drawn_and_scored_by_class(tmp_path):
    pytest.importorskip("sklearn")
    folder, few = tmp_path / "run", ["--config.model.network=mlp(width=16, depth=1)", "--config.data.labels=label"]
    train(folder, "digits_levels", *few, "--config.training.batch_size=16")
    run("sample", f"--workdir={folder}", f"--out={tmp_path / 's'}", "--seeds=4", "--class=3", "--steps=3")
    facts = json.loads((tmp_path / "s" / "samples.json").read_text())
    assert facts["conditions"] == {"label": [3, 3, 3, 3]}
    x = np.load(tmp_path / "s" / "samples.npz")["x"]
    assert x.shape == (4, 1, 8, 8)
    assert 0 <= x.min() < x.max() <= 16
    from PIL import Image

    picture = np.asarray(Image.open(tmp_path / "s" / "grid.png").convert("L"))
    # level k is k / 16 of white
    assert set(np.unique(picture[:64, :64])) == {round(255 * k / 16) for k in np.unique(x[0])}
    options = ["--limit=4", "--config.likelihood.bound_indices=4", f"--out={tmp_path / 'l'}"]
    run("likelihood", f"--workdir={folder}", "--class=all", *options)
    found = np.load(tmp_path / "l" / "classes.npz")["log_likelihood"]
    assert found.shape == (4, 10)
    # six updates leave all levels and classes alike: log p is near -64 log 17 = -181 nats
    assert (found > -250).all()
    assert (found < -120).all()


# what is refused


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config.process=None"], ["these data are tokens, for discrete states: set config.process"]),
        (["--config.process=absorbed"], ["no process 'absorbed'", "absorbing"]),
        (["--config.process=absorbing(5)"], ["has 5 states, but the tokens of the data have 2 values"]),
        (["--config.training.loss=dsm"], ["the loss dsm is for gaussian states", "masked"]),
        (["--config.model.predicts=eps"], ["no prediction 'eps'"]),
        (["--config.model.self_conditioning=True"], ["no model.self_conditioning"]),
        (["--config.data.augmentation=flip"], ["data.augmentation changes numbers"]),
        (["--config.sampling.solver=ddim"], ["ddim solves for gaussian states", "tweedie"]),
        (["--config.sampling.grid=karras"], ["no noise level"]),
        (["--config.sampling.noise=brownian"], ["discrete states have seeded noise only"]),
        (["--config.likelihood.solver=heun"], ["discrete states have no exact likelihood, only a bound"]),
        (["--config.likelihood.divergence=exact"], ["discrete states have no exact likelihood, only a bound"]),
        (["--config.model.network=unet(channels=[8, 16])"], ["unet"]),
        (["--config.data.bin_width=0.1"], ["leave out bin_width"]),
    ],
)
def test_settings_that_discrete_states_do_not_have(tmp_path, capsys, arguments, words):
    few = ["--config.training.steps=1", *SMALL]
    fails(capsys, ["train", "--config=heartbeat", f"--workdir={tmp_path / 'run'}", *few, *arguments], *words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config.sampling.solver=tweedie"], ["tweedie solves for discrete states", "gaussian"]),
        (["--config.training.loss=masked"], ["the loss masked is for discrete states", "dsm"]),
        (["--config.model.network=transformer"], ["takes tokens"]),
        (["--config.data.length=5"], ["data.length=5 is for tokens: set config.process"]),
        (["--config.data.levels=2"], ["data.levels=2 is for tokens"]),
    ],
)
def test_settings_that_only_discrete_states_have(tmp_path, capsys, arguments, words):
    pytest.importorskip("sklearn")
    few = ["--config.training.steps=1", *SMALL]
    fails(capsys, ["train", "--config=digits_vp", f"--workdir={tmp_path / 'run'}", *few, *arguments], *words)


def test_arrays_of_floats_and_masks_are_refused_by_the_command(tmp_path, capsys):
    for numbers, words in [
        (np.random.default_rng(0).random((9, 4)), ["floats (float64)"]),
        (np.full((9, 4), 3), ["the token 3", "as the mask, which data must not have"]),
        (np.full((9, 4), 7), ["the token 7, where 3 values 0 to 2 are known"]),
    ]:
        np.save(tmp_path / "x.npy", numbers)
        given = ["--config.data.name=file", f"--config.data.path={tmp_path / 'x.npy'}", "--config.data.states=3"]
        fails(capsys, ["train", "--config=heartbeat", f"--workdir={tmp_path / 'run'}", *given], *words)
    assert not (tmp_path / "run").exists() or not list(Path(tmp_path / "run").glob("*.json"))


def test_commands_of_gaussian_states_refuse_a_discrete_run(heart, tmp_path, capsys):
    out = f"--out={tmp_path / 'o'}"
    fails(capsys, ["sample", f"--workdir={heart}", out, "--solver=ddim"], "ddim solves for gaussian states", "tweedie")
    fails(capsys, ["sample", f"--workdir={heart}", out, "--guidance=cfg(scale=2)"], "discrete states")
    fails(capsys, ["likelihood", f"--workdir={heart}", "--tolerance=0.1"], "no exact likelihood, only a bound")
    fails(capsys, ["train", "--data=x.npy", "--config.process=absorbing", f"--workdir={tmp_path / 'r'}"], "x.npy")


@pytest.mark.parametrize(
    "damage",
    [{"states": 2.5}, {"states": 1}, {"states": 2**40}, {"symbols": "ab"}, {"symbols": 3}, {"symbols": "a" * 28}],
)
def test_a_damaged_vocabulary_is_an_error(text, tmp_path, capsys, damage):
    import shutil

    folder = tmp_path / "run"
    shutil.copytree(text / "run", folder)
    document = json.loads((folder / "config.json").read_text())
    document["data"] |= damage
    (folder / "config.json").write_text(json.dumps(document))
    fails(capsys, ["sample", f"--workdir={folder}", f"--out={tmp_path / 's'}"], "config.json is damaged")
