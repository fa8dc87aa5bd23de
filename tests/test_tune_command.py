"""``scoresde tune``: programs tuned to a run, as files that a config names."""

import json

import pytest
import torch
from commands import SMALL, fails

import scoresde
import solvers
from scoresde.cli import main
from scoresde.models.problem import Diffusion
from scoresde.runs.run import load_run

SHORT = ("--samples=24", "--solvers=ddim, ipndm", "--grids=karras, logsnr", "--iterations=20")


@pytest.fixture(scope="module")
def tuned(run, tmp_path_factory):
    """Tuned programs of two budgets."""
    out = tmp_path_factory.mktemp("tuned")
    assert main(["tune", f"--workdir={run}", "--nfe=4,5", f"--out={out}", *SHORT]) == 0
    return out


def test_a_tuned_file_is_a_solver_and_its_errors_are_those_of_held_out_seeds(run, tuned, tmp_path):
    path = tuned / "nfe5.json"
    assert sorted(p.name for p in tuned.iterdir()) == ["nfe4.json", "nfe5.json"]
    facts = json.loads(path.read_text())["tuning"]
    errors = {name: found["rms"] for name, found in facts["errors"]["held_out"].items()}
    command = ["sample", f"--workdir={run}", "--seeds=48-71", f"--out={tmp_path / 's'}"]
    assert main([*command, f"--config.sampling.solver=file:{path}"]) == 0
    denoiser = load_run(run).denoiser
    problem, truth = scoresde.trajectory(denoiser, None, range(48, 72))
    program = solvers.Program.from_json(path.read_text())
    outcome = program.run(Diffusion(denoiser), truth.states[0])
    made = scoresde.sample(denoiser, None, range(48, 72), f"file:{path}", dtype=torch.float64)
    assert made.nfe == program.nfe == facts["nfe"] == 5
    assert torch.allclose(made.x, outcome, rtol=0, atol=1e-6)
    error = float((outcome - truth.states[-1]).square().mean().sqrt())
    assert errors["tuned program"] == pytest.approx(error, rel=1e-6)
    chosen = facts["chosen"]
    held_out = truth.errors(chosen["solver"], problem, truth.place(chosen["grid"], chosen["steps"]))
    assert chosen["held_out"] == pytest.approx(float(held_out.mean().sqrt()), rel=1e-6)
    assert error < chosen["held_out"]


def test_files_of_the_run_are_kept_and_those_of_another_are_not_replaced(run, tuned, tmp_path, capsys):
    before = {p.name: p.read_bytes() for p in tuned.iterdir()}
    assert main(["tune", f"--workdir={run}", "--nfe=4,5", f"--out={tuned}", *SHORT]) == 0
    assert "nfe4.json is there already; --overwrite tunes it again" in capsys.readouterr().out
    assert {p.name: p.read_bytes() for p in tuned.iterdir()} == before
    other = tmp_path / "other"
    assert main(["train", "--config=digits_vp", f"--workdir={other}", "--config.training.steps=2", *SMALL]) == 0
    fails(
        capsys,
        ["tune", f"--workdir={other}", "--nfe=4", f"--out={tuned}", *SHORT],
        "is of another tuning, which differs in step",
    )
    fails(capsys, ["tune", f"--workdir={run}", "--nfe=4", f"--out={tuned}", *SHORT, "--loss=log"], "differs in loss")
    assert {p.name: p.read_bytes() for p in tuned.iterdir()} == before


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--nfe=4", "--free=node"], "did you mean"),
        (["--nfe=4", "--loss=squred"], "did you mean"),
        (["--nfe=1"], "too small"),
        (["--nfe=4", "--solvers=ddpm"], "draws noise"),
        (
            ["--nfe=4", "--solvers=few"],
            "cannot tune few: it starts from a solver whose grid can be tuned",
        ),
    ],
)
def test_bad_input_is_one_clear_line(run, tmp_path, capsys, given, message):
    fails(capsys, ["tune", f"--workdir={run}", f"--out={tmp_path}", "--samples=8", *given], message)
    assert not list(tmp_path.glob("nfe*.json"))
