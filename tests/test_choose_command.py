"""``scoresde choose``: a solver and a grid for a run and a budget."""

import json
import math
import shlex

import pytest
import torch
from commands import fails

import scoresde
from scoresde.cli import main
from scoresde.runs.run import load_run

SHORT = ("--seeds=64", "--solvers=ddim, dpmpp_2m, ipndm", "--grids=karras, logsnr")


@pytest.fixture(scope="module")
def digits(run):
    return load_run(run)


def test_the_trajectory_begins_where_samples_begin_and_ends_at_the_exact_solution(digits):
    _, truth = scoresde.trajectory(digits.denoiser, None, range(5, 9), batch_size=3)
    starts = []
    made = scoresde.sample(
        digits.denoiser, None, range(5, 9), "rk4", "logsnr(end=zero)", 96, dtype=torch.float64,
        hooks=lambda x, node: starts.append(x.clone()),
    )  # fmt: skip
    assert torch.allclose(truth.states[-1], made.x, atol=1e-5)  # batches of a network in float32
    assert torch.allclose(truth.states[1], starts[0], atol=1e-6)
    alone = scoresde.trajectory(digits.denoiser, None, [7])[1]
    assert torch.allclose(alone.states[:, 0], truth.states[:, 2], atol=1e-5)  # a network in float32
    fine = scoresde.trajectory(digits.denoiser, None, range(5, 9), 192)[1]
    assert float((fine.states[-1] - truth.states[-1]).square().mean().sqrt()) < 1e-3  # solvers' errors are above 0.03


def test_the_command_prints_fields_that_reach_the_error_it_names(run, digits, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("scoresde.cli.tuning.TRIED", 20)
    assert main(["choose", f"--workdir={run}", "--nfe=6", f"--out={tmp_path}", *SHORT]) == 0
    out = capsys.readouterr().out
    found = json.loads((tmp_path / "choice.json").read_text())["choices"]["6"]
    best = found["tied"][0]
    assert {(s["solver"], s["grid"]) for s in found["settings"]} == {
        (name, grid) for name in ("ddim", "dpmpp_2m", "ipndm") for grid in ("karras", "logsnr(end=zero)")
    }
    assert best["error"] == min(s["error"] for s in found["settings"] if s["samples"] == 64)
    line = shlex.split(out.splitlines()[-1])
    assert line[0] == f"--config.sampling.solver={best['solver']}"
    assert main(["sample", f"--workdir={run}", "--seeds=64", f"--out={tmp_path / 'drawn'}", *line]) == 0
    _, truth = scoresde.trajectory(digits.denoiser, None, range(64))
    made = scoresde.sample(digits.denoiser, None, range(64), best["solver"], best["grid"], nfe=best["nfe"])
    error = math.sqrt(float((made.x.double() - truth.states[-1]).square().mean()))
    assert error == pytest.approx(best["error"], rel=1e-3)  # samples are in float32
    problem, others = scoresde.trajectory(digits.denoiser, None, range(192, 256))  # after 64 and two parts of 64
    unseen = others.errors(best["solver"], problem, others.place(best["grid"], best["steps"]))
    assert found["untuned_held_out"] == pytest.approx(math.sqrt(float(unseen.mean())), rel=1e-6)
    assert found["tuned"]["rms"] < found["untuned_held_out"]
    assert f"tuned in 20 iterations: {found['tuned']['rms']:.4g}" in out


def test_a_solver_with_a_grid_of_its_own_is_measured_and_not_tuned(run, capsys):
    assert main(["choose", f"--workdir={run}", "--nfe=5", "--seeds=8", "--solvers=few"]) == 0
    out = capsys.readouterr().out
    assert "--config.sampling.solver=few" in out
    assert "no tuning was tried: it starts from a solver whose grid can be tuned, such as ipndm" in out


def test_bad_input_is_one_clear_line(run, tmp_path, capsys):
    fails(capsys, ["choose", f"--workdir={run}"], "--nfe")
    fails(capsys, ["choose", f"--workdir={run}", "--nfe=6", "--solvers=ddpm"], "draws noise")
    fails(capsys, ["choose", f"--workdir={run}", "--nfe=6", "--grids=karas"], "did you mean")
    fails(capsys, ["choose", f"--workdir={run}", "--nfe=6", "--class=3"], "--class needs a run")
    assert not list(tmp_path.iterdir())
