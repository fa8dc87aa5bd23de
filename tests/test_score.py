"""Scoring a data set from the command line: shards, resumption, several processes, tolerance, page, bad input."""

import json
import math
import os
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from commands import SMALL, contents, fails, forked

import scoresde
from scoresde.cli.parser import main
from scoresde.cli.readers import share_of
from scoresde.likelihood import result
from scoresde.likelihood.result import LogProb
from scoresde.runs import build, score, shards
from scoresde.runs.run import load_run
from scoresde.show import likelihood_page
from solvers import InputError

CHEAP = ["--config.likelihood.steps=4", "--config.likelihood.divergence=hutchinson(probes=2)"]


@pytest.fixture(scope="module")
def continuous(tmp_path_factory):
    """A run on numbers without a bin width: the folder, the data."""
    folder = tmp_path_factory.mktemp("continuous")
    np.save(folder / "x.npy", np.random.default_rng(0).normal(size=(40, 3)))
    data = ["--config.data.name=file", f"--config.data.path={folder / 'x.npy'}"]
    assert (
        main(
            ["train", "--config=digits_vp", f"--workdir={folder / 'run'}", *data, *SMALL, "--config.training.steps=20"]
        )
        == 0
    )
    return folder


def command(run, out, *more, limit=10):
    cheap = CHEAP[1:] if any(option.startswith("--tolerance") for option in more) else CHEAP
    given = ["likelihood", f"--workdir={run}", f"--out={out}", f"--limit={limit}", *cheap]
    return [*given, "--config.likelihood.batch_size=4", *more]


def saved(out):
    with np.load(out / "likelihood.npz") as file:
        return {name: file[name] for name in file}


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not np.array_equal(ours[name], theirs[name])] == []


def stop_after(monkeypatch, count):
    """Ctrl-C while the shard after ``count`` of them is scored; a list that counts those done."""
    done, real = [], score.log_prob

    def scored(*arguments, **options):
        if len(done) == count:
            raise KeyboardInterrupt
        done.append(list(options["seeds"]))
        return real(*arguments, **options)

    monkeypatch.setattr(score, "log_prob", scored)
    return done


def test_an_interrupted_evaluation_goes_on_to_the_same_bits(run, tmp_path, monkeypatch, capsys):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert main(command(run, whole)) == 0
    stop_after(monkeypatch, 2)
    assert main(command(run, halves)) == 130
    assert f"stopped: 2 of 3 shards are in {halves / 'shards'}; the same command resumes" in capsys.readouterr().err
    assert sorted(p.name for p in halves.rglob("*") if p.is_file()) == ["00000.npz", "00001.npz"]
    monkeypatch.undo()
    done = stop_after(monkeypatch, 99)
    assert main(command(run, halves)) == 0
    assert done == [[8, 9]]
    same(saved(halves), saved(whole))
    # and once more: nothing is left to do
    assert main(command(run, halves)) == 0
    assert len(done) == 1
    ours, theirs = (json.loads((out / "likelihood.json").read_text()) for out in (halves, whole))
    for key in ("means", "standard_errors", "uncertainty", "evaluation", "nfe", "forwards", "vjps", "samples"):
        assert ours[key] == theirs[key]


def test_processes_share_the_shards_and_the_last_puts_them_together(run, tmp_path, monkeypatch, capsys):
    assert main(command(run, tmp_path / "one")) == 0
    done = stop_after(monkeypatch, 99)
    assert main(command(run, tmp_path / "two", "--shards=2/2")) == 0
    assert done == [[4, 5, 6, 7]]
    assert "1 of 3 shards" in capsys.readouterr().out
    assert not (tmp_path / "two" / "likelihood.npz").exists()
    assert main(command(run, tmp_path / "two", "--shards=1/2")) == 0
    assert done[1:] == [[0, 1, 2, 3], [8, 9]]
    same(saved(tmp_path / "two"), saved(tmp_path / "one"))


def test_processes_at_the_same_time_with_different_numbers_of_adaptive_steps(run, tmp_path):
    options = ["--config.likelihood.solver=rk45(rtol=1e-3, atol=1e-3)", "--grid=logsnr"]
    assert main(command(run, tmp_path / "one", *options)) == 0
    commands = [command(run, tmp_path / "two", *options, share) for share in ("--shards=1/2", "--shards=2/2")]
    both = [forked(lambda given=given: main(given)) for given in commands]
    assert [os.waitpid(child, 0)[1] for child in both] == [0, 0]
    ours = saved(tmp_path / "two")
    assert len(set(ours["nfe"].tolist())) > 1
    same(ours, saved(tmp_path / "one"))


@pytest.mark.quick
def test_every_sample_once_with_the_values_of_the_library(run, tmp_path):
    """In shards of 4, 4, 2 and 10 at once: the seeds are the places, so nothing but rounding in the network differs."""
    assert main(command(run, tmp_path)) == 0
    model, x = load_run(run).denoiser, scoresde.data.load("digits").test.first(10).x
    direct = scoresde.log_prob(
        model, x, steps=4, divergence="hutchinson(probes=2)", bin_width=0.125, dequantiser="uniform", error=True
    )
    ours = saved(tmp_path)
    for name in ("nats", "stderr", "solver_error", "bits_per_dim", "latent"):
        assert ours[name] == pytest.approx(getattr(direct, name).numpy(), rel=1e-4, abs=1e-4)
    for name, part in direct.budget.items():
        assert ours[name] == pytest.approx(part.numpy(), rel=1e-4, abs=1e-4)
    budget = ("prior", "divergence", "truncation", "dequantisation", "offset")
    assert sum(ours[name] for name in budget) == pytest.approx(ours["nats"], rel=1e-12)
    record = json.loads((tmp_path / "likelihood.json").read_text())
    assert record["means"]["bits_per_dim"] == pytest.approx(ours["bits_per_dim"].mean(), rel=1e-12)
    spread = ours["nats"].std(ddof=1) / math.sqrt(10)
    assert record["standard_errors"]["nats"] == pytest.approx(spread, rel=1e-12)
    assert record["solver_error_max"] == ours["solver_error"].max()
    assert (record["nfe"], record["vjps"], record["means"]["nfe"]) == (
        14,
        28,
        14,
    )  # 8 + 4 + 2 evaluations, 2 probes
    assert record["evaluation"]["the data"] == scoresde.io.result_files.fingerprint(x)


def test_shards_of_another_evaluation_are_refused_and_named(run, tmp_path, monkeypatch, capsys):
    assert main(command(run, tmp_path)) == 0
    before = contents(tmp_path)
    there = f"{tmp_path / 'shards'} contains shards of a different evaluation"
    steps = command(run, tmp_path, "--config.likelihood.steps=6")
    fails(capsys, steps, there, "likelihood.steps is 4 there and 6 here", "use a different --out")
    fails(capsys, command(run, tmp_path, "--split=train"), "the split is 'test' there and 'train' here")
    fails(capsys, command(run, tmp_path, limit=9), "the number of samples is 10 there and 9 here")
    fails(capsys, command(run, tmp_path, "--config.likelihood.batch_size=5"), "batch_size is 4 there and 5 here")
    fails(capsys, command(run, tmp_path, "--tolerance=0.5"), "likelihood.steps is 4 there and None here")
    another = scoresde.data.load("digits", seed=1)
    monkeypatch.setattr(build, "load_data", lambda *_: another)
    fails(capsys, command(run, tmp_path), "the data is")
    monkeypatch.undo()
    trained = load_run(run)
    with torch.no_grad():
        next(trained.denoiser.network.parameters())[0] += 1e-6
    x = scoresde.data.load("digits").test.first(10).x
    with pytest.raises(InputError, match="the weights is"):
        score.evaluate(trained, x, "test", tmp_path / "shards")
    assert contents(tmp_path) == before


def test_damaged_shards_and_shards_in_the_wrong_place(run, tmp_path, capsys):
    assert main(command(run, tmp_path)) == 0
    folder = tmp_path / "shards"
    whole = (folder / "00001.npz").read_bytes()
    (folder / "00001.npz").write_bytes(whole[:-50])
    fails(capsys, command(run, tmp_path), "00001.npz is damaged", "remove it")
    (folder / "00001.npz").write_bytes((folder / "00000.npz").read_bytes())
    fails(capsys, command(run, tmp_path), "00001.npz contains other samples than 4 to 7")
    (folder / "00001.npz").unlink()
    before = saved(tmp_path)
    assert main(command(run, tmp_path)) == 0
    same(saved(tmp_path), before)


def test_a_tolerance_from_the_command_line_is_met(continuous, tmp_path):
    """In nats, as the data have no bins; the probes' part of it holds in the root mean square."""
    run, out = continuous / "run", tmp_path / "out"
    options = ["--tolerance=0.01", "--config.likelihood.batch_size=4"]
    assert main(["likelihood", f"--workdir={run}", f"--out={out}", *options]) == 0
    trained = load_run(run)
    x = scoresde.data.load("file", str(continuous / "x.npy")).test.tensor()
    truth = scoresde.log_prob(trained.denoiser, x, "rk45(rtol=1e-9, atol=1e-9)", divergence="exact").nats.numpy()
    ours = saved(out)
    assert np.sqrt(np.square(ours["nats"] - truth).mean()) < 0.01
    assert ours["solver_error"].max() < 0.01
    assert "bits_per_dim" not in ours
    record = json.loads((out / "likelihood.json").read_text())
    assert record["config"]["likelihood"]["tolerance"] == 0.01
    assert record["solver"].startswith("adams_adaptive")
    assert record["nfe"] == ours["nfe"].max()


def test_the_dequantiser_and_its_draws_come_from_the_config(run, tmp_path):
    options = ["--config.likelihood.dequantiser=truncated_normal", "--config.likelihood.draws=2"]
    assert main(command(run, tmp_path, *options, "--config.likelihood.error=False", limit=4)) == 0
    model, x = load_run(run).denoiser, scoresde.data.load("digits").test.first(4).x
    direct = scoresde.log_prob(
        model, x, steps=4, divergence="hutchinson(probes=2)", bin_width=0.125, dequantiser="truncated_normal", draws=2
    )
    ours = saved(tmp_path)
    assert np.array_equal(ours["nats"], direct.nats.numpy())
    assert np.array_equal(ours["importance"], direct.budget["importance"].numpy())
    assert "solver_error" not in ours


class Links(HTMLParser):
    """The pictures and whatever else a page would fetch or run."""

    def __init__(self):
        super().__init__()
        self.pictures, self.outside, self.text = [], [], []

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in ("src", "href"):
                (self.pictures if value.startswith("data:image/png;base64,") else self.outside).append(value)
        if tag in ("script", "iframe", "link"):
            self.outside.append(tag)

    def handle_data(self, data):
        self.text += data.split()


def test_the_page_holds_the_block_the_budget_and_both_ends(run, tmp_path, capsys):
    capsys.readouterr()
    options = ["--config.likelihood.bound=ddpm(variance=beta)", "--config.likelihood.bound_indices=2"]
    assert main(command(run, tmp_path, *options, limit=30)) == 0
    printed = capsys.readouterr().out
    html = (tmp_path / "likelihood.html").read_text(encoding="utf-8")
    found = Links()
    found.feed(html)
    assert found.outside == []
    assert len(found.pictures) == 1 + 2 * 12  # the histogram, and the two ends
    words = " ".join(found.text)
    ours = saved(tmp_path)
    for line in printed.strip().splitlines()[:-1]:
        assert " ".join(line.split()) in words
    places = [int(place) for place in re.findall(r"no\. (\d+)", words)]
    order = np.argsort(ours["nats"])
    assert places == [*order[:12], *order[::-1][:12]]
    assert f"{ours['bits_per_dim'][order[0]]:.4g} no. {order[0]}" in words
    prior = ours["prior"]
    error = prior.std(ddof=1) / math.sqrt(30)
    per_dim = -prior.mean() / (64 * math.log(2))
    row = f"prior {prior.mean():.3f} {error:.3g} {per_dim:.4f} {error / (64 * math.log(2)):.3g}"
    assert row in words
    assert f"{ours['bound_prior'].mean():.3f}" in words
    assert "solver error" in printed
    assert "NFE per sample: 14.0, at most 14" in printed


def test_the_page_of_numbers_has_no_pictures_of_them_and_is_escaped(continuous, tmp_path):
    run, out = continuous / "run", tmp_path / "<b>&out"
    assert main(["likelihood", f"--workdir={run}", f"--out={out}", *CHEAP]) == 0
    html = (out / "likelihood.html").read_text(encoding="utf-8")
    assert "<b>" not in html
    assert "&lt;b&gt;&amp;out" in html
    assert html.count("<img") == 1
    assert "bits" not in html.partition("To run this again")[0]


def made(nats, stderr, solver_error):
    return LogProb(
        torch.tensor(nats, dtype=torch.float64), torch.tensor(stderr), 4, torch.zeros(len(nats), 2), {}, "s", "g", "d",
        1.0, solver_error=None if solver_error is None else torch.tensor(solver_error),
    )  # fmt: skip


def test_uncertainty_adds_up_by_hand():
    found = result.uncertainty(made([0.0, 2.0, 4.0, 6.0], [3.0, 0.0, 4.0, 0.0], [1.0, 3.0, 2.0, 2.0]))
    assert found["samples"] == pytest.approx(math.sqrt(20 / 3 / 4))
    assert found["trace"] == pytest.approx(5 / 4)
    assert found["solver"] == pytest.approx(2.0)
    assert found["of_these"] == pytest.approx(math.hypot(1.25, 2))
    assert found["total"] == pytest.approx(math.sqrt(20 / 12 + 4))
    single = result.uncertainty(made([1.0], [0.5], None))
    assert math.isnan(single["samples"])
    assert math.isnan(single["solver"])
    assert single["of_these"] == 0.5
    text = likelihood_page.block(made([1.0, 2.0], [0.0, 0.0], None))
    assert "not included: the solver error, which was not measured" in text
    assert "not included" not in likelihood_page.block(made([1.0, 2.0], [0.0, 0.0], [0.1, 0.1]))
    assert "unknown from a single sample" in likelihood_page.block(made([1.0], [0.5], None))


def test_joined_shards():
    joined = shards.join([made([1.0, 2.0], [0.0, 0.0], None), made([3.0], [1.0], None)])
    assert joined.nats.tolist() == [1, 2, 3]
    assert joined.stderr.tolist() == [0, 0, 1]
    assert (joined.nfe, joined.seconds, joined.solver, joined.solver_error) == (4, 2.0, "s", None)


def test_intervals_of_joined_shards(tmp_path):
    """Shards of a tolerance have numbers of probes of their own, which come back from their files."""
    a = replace(made([1.0, 2.0], [0.5, 0.25], None), freedom=torch.tensor([7.0, 7.0]), stderr_of="the trace's probes")
    b = replace(made([3.0], [1.0], None), freedom=torch.tensor([2.0]), stderr_of="the trace's probes")
    c = replace(made([4.0, 5.0], [0.0, math.nan], None), freedom=torch.tensor([0.0, 0.0]))
    parts = []
    for k, (part, rows) in enumerate(((a, slice(0, 2)), (b, slice(2, 3)), (c, slice(3, 5)))):
        part = replace(part, budget={"prior": part.nats})
        shards.write_shard(tmp_path / f"{k}.npz", {"k": k}, rows, {"ode": part})
        parts.append(shards.read_shard(tmp_path / f"{k}.npz", {"k": k}, rows)["ode"])
    joined = shards.join(parts)
    low, high = joined.interval(0.95)
    # Student's quantiles 0.975 of 7 and of 2 degrees of freedom, from tables
    assert ((high - low) / 2)[:4].tolist() == pytest.approx([2.3646 * 0.5, 2.3646 * 0.25, 4.3027, 0], rel=1e-4)
    assert math.isnan(float(low[4]))
    assert joined.freedom.tolist() == [7, 7, 2, 0, 0]
    assert "standard error of the trace's probes: 0.438 nats a sample" in str(joined)  # the mean of those known
    assert joined.stderr_of == "the trace's probes"  # of the shards that have probes
    unknown = shards.join([made([1.0], [0.5], None)])
    assert math.isnan(float(unknown.interval()[0]))


def test_the_bound_says_what_its_standard_error_is_of(run, tmp_path, capsys):
    capsys.readouterr()
    options = ["--config.likelihood.bound=continuous", "--config.likelihood.bound_indices=8"]
    assert main(command(run, tmp_path, *options, limit=2)) == 0
    printed = capsys.readouterr().out
    assert "standard error of the trace's probes:" in printed
    bound = saved(tmp_path)["bound_stderr"]
    assert f"standard error of the draws of times and noise: {bound.mean():.3g} nats a sample" in printed
    assert f"{bound.mean():.3g} nats a sample" in (tmp_path / "likelihood.html").read_text(encoding="utf-8")


def test_bad_input(run, continuous, tmp_path, capsys):
    out = tmp_path / "out"
    fails(capsys, command(run, out, "--tolerance=-0.1"), "tolerance must be positive, got -0.1")
    fails(capsys, command(run, out, "--tolerance=nan"), "tolerance must be positive, got nan")
    fails(capsys, command(run, out, "--tolerance=inf"), "tolerance must be a positive, finite number, got inf")
    fails(capsys, command(run, out, "--tolerance=tight"), "likelihood.tolerance=tight: expected a number")
    fails(capsys, command(run, out, "--tolerance=1", "--nfe=9"), "nfe and likelihood.tolerance exclude each other")
    fails(capsys, command(run, out, "--tolerance=1", "--config.likelihood.draws=2"), "tolerance chooses", "draws")
    fails(
        capsys, command(run, out, "--config.likelihood.draws=0"), "likelihood.draws must be a positive integer, got 0"
    )
    fails(capsys, command(run, out, "--config.likelihood.dequantiser=unifrom"), "no dequantiser 'unifrom'", "uniform")
    fails(capsys, command(run, out, "--config.likelihood.solver=ddpm"), "ddpm", "draws noise")
    fails(capsys, command(run, out, "--config.likelihood.divergence=hutchinsen"), "did you mean hutchinson")
    fails(capsys, command(run, out, "--config.likelihood.batch_size=0"), "batch_size must be a positive integer, got 0")
    fails(capsys, command(run, out, "--config.likelihood.steps=1"), "at least 4")
    to_zero = "--config.likelihood.grid=explicit(times=[1.0, 0.0])"
    plain = ["likelihood", f"--workdir={run}", f"--out={out}", to_zero, "--solver=heun"]
    fails(capsys, plain, "t=0 is outside [0.001, 1]")
    fails(capsys, command(run, out, to_zero), "the explicit grid has 1 steps, not 4")
    for text in ("3/2", "0/2", "2", "a/b", "1/0"):
        fails(capsys, command(run, out, f"--shards={text}"), f"cannot read the shards '{text}'")
    # data without a bin width have no levels to draw in
    several = ["likelihood", f"--workdir={continuous / 'run'}", f"--out={out}", "--config.likelihood.draws=2"]
    fails(capsys, several, "draws=2")
    assert not (out / "likelihood.npz").exists()
    assert share_of("2/3") == (2, 3)


def test_data_outside_the_levels_of_the_training(tmp_path, capsys):
    """Levels 0, 1, 2, 3 in training: half a bin further is the end."""
    levels = np.random.default_rng(0).integers(0, 4, size=(60, 2)).astype(float)
    levels[0], path, run = (0, 3), tmp_path / "x.npz", tmp_path / "run"
    np.savez(path, train=levels, test=levels[:6])
    data = ["--config.data.name=file", f"--config.data.path={path}", "--config.data.bin_width=1.0"]
    assert main(["train", "--config=digits_vp", f"--workdir={run}", *data, *SMALL, "--config.training.steps=20"]) == 0
    score = ["likelihood", f"--workdir={run}", *CHEAP]
    assert main([*score, f"--out={tmp_path / 'inside'}"]) == 0
    assert saved(tmp_path / "inside")["offset"] == pytest.approx(np.zeros(6))  # two bins of volume one
    for value in (4.0, -1.0):
        moved = levels[:6].copy()
        moved[3, 1] = value
        np.savez(tmp_path / "moved.npz", train=levels, test=moved)
        arguments = [*score, f"--out={tmp_path / 'outside'}", f"--config.data.path={tmp_path / 'moved.npz'}"]
        fails(capsys, arguments, "the test data range from", f"{value:g}", "the model's levels, 1 apart, from 0 to 3")


def test_by_default_the_results_lie_in_the_run(run, tmp_path, capsys):
    run = shutil.copytree(run, tmp_path / "run")
    assert main(["likelihood", f"--workdir={run}", "--limit=2", *CHEAP]) == 0
    assert str(run / "likelihood" / "likelihood.html") in capsys.readouterr().out
    assert len(saved(run / "likelihood")["nats"]) == 2
