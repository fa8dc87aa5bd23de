"""The command line end to end on real digits, and its manners with bad input: one line, status 2, nothing lost."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
import torch
from commands import SMALL, fails

import scoresde
import solvers
from scoresde.cli.parser import main
from scoresde.runs.run import load_run
from scoresde.sampling.plan import FEW_STEPS
from scoresde.show import solver_cards
from scoresde.training import checkpoint


@pytest.mark.quick
def test_training_leaves_a_whole_run(run):
    assert [p.name for p in sorted((run / "checkpoints").iterdir())] == ["step_00000020", "step_00000040"]
    steps = [json.loads(line)["step"] for line in (run / "train.jsonl").read_text().splitlines()]
    assert steps[0] == 1
    saved = json.loads((run / "config.json").read_text())
    assert saved["data"].pop("deviation") == pytest.approx(0.7526, abs=1e-4)
    data = scoresde.data.load("digits")
    assert saved["data"].pop("mean") == pytest.approx(float(data.train.tensor().mean()), abs=1e-6)
    fingerprints = [scoresde.io.result_files.fingerprint(split) for split in (data.train.tensor(), data.test.tensor())]
    assert saved["data"] == {
        **{"shape": [1, 8, 8], "low": -1.0, "high": 1.0, "bin_width": 0.125, "levels": [0, 16]},
        **{"samples": [1497, 300], "fingerprints": fingerprints, "conditions": [], "states": None, "symbols": ""},
    }


@pytest.mark.quick
def test_samples_are_those_of_the_library_and_of_their_seeds(run, tmp_path):
    out = tmp_path / "s"
    assert main(["sample", f"--workdir={run}", "--seeds=3,5-6", f"--out={out}", "--config.sampling.nfe=8"]) == 0
    saved = np.load(out / "samples.npz")
    trained = load_run(run)
    again = scoresde.sample(trained.denoiser, (1, 8, 8), [3, 5, 6], nfe=8)
    assert saved["seeds"].tolist() == [3, 5, 6]
    assert np.array_equal(saved["x"], again.x.numpy())
    record = json.loads((out / "samples.json").read_text())
    assert (record["nfe"], record["seeds"]) == (8, [3, 5, 6])
    assert (record["solver"], record["grid"]) == (FEW_STEPS, FEW_STEPS)  # the default of the library
    assert record["command"].startswith("scoresde sample --workdir=")
    assert record["environment"]["torch"] == torch.__version__
    assert (out / "grid.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("solver", "nfe"),
    [
        ("pc(predictor=reverse_diffusion, corrector=langevin)", 7),
        ("DPM++ 2M Karras", 4),
        ("rk45(rtol=0.1, atol=0.1)", 0),
    ],
)
def test_any_solver_by_name(run, tmp_path, solver, nfe):
    arguments = [f"--config.sampling.solver={solver}", "--seeds=0-1"]
    arguments += ["--config.sampling.steps=4"] if nfe else []
    assert main(["sample", f"--workdir={run}", f"--out={tmp_path}", *arguments]) == 0
    record = json.loads((tmp_path / "samples.json").read_text())
    assert record["nfe"] == nfe if nfe else record["nfe"] > 10
    assert np.isfinite(np.load(tmp_path / "samples.npz")["x"]).all()


@pytest.mark.quick
def test_likelihood_matches_the_library(run, tmp_path):
    options = ["--config.likelihood.steps=6", "--config.likelihood.divergence=exact"]
    assert main(["likelihood", f"--workdir={run}", "--split=test", "--limit=5", f"--out={tmp_path}", *options]) == 0
    saved = np.load(tmp_path / "likelihood.npz")
    x = scoresde.data.load("digits").test.first(5).x
    given = {"divergence": "exact", "bin_width": 0.125, "dequantiser": "uniform", "error": True}
    again = scoresde.log_prob(load_run(run).denoiser, x, steps=6, **given)
    assert np.allclose(saved["nats"], again.nats.numpy(), rtol=0, atol=1e-9)
    assert np.allclose(saved["bits_per_dim"], -again.nats.numpy() / (64 * np.log(2)), rtol=0, atol=1e-9)
    assert np.allclose(saved["solver_error"], again.solver_error.numpy(), rtol=0, atol=1e-9)
    record = json.loads((tmp_path / "likelihood.json").read_text())
    # 12 evaluations, 6 of half the steps and 2 of a quarter (one step)
    assert (record["samples"], record["nfe"], record["kind"]) == (
        5,
        20,
        "lower bound on the log-probability of the levels (exact ODE value)",
    )


def test_benchmark_writes_rows_that_were_measured(run, tmp_path, capsys):
    arguments = ["--solvers=ddim, heun, pc(corrector_steps=2)", "--nfe=2,6", "--seeds=0-15"]
    assert main(["benchmark", f"--workdir={run}", f"--out={tmp_path}", *arguments]) == 0
    header, rows = scoresde.benchmark.rows.read(tmp_path)
    assert [(row.solver, row.nfe) for row in rows] == [
        ("ddim", 2), ("ddim", 6), ("heun", 1), ("heun", 5), ("pc(corrector_steps=2)", 1), ("pc(corrector_steps=2)", 4),
    ]  # fmt: skip
    assert rows[1].error.value < rows[0].error.value
    assert header["seeds"] == list(range(16))
    assert "report.html" in capsys.readouterr().out
    assert (tmp_path / "report.html").stat().st_size > 10_000


def test_the_ve_path(tmp_path):
    run, out = tmp_path / "run", tmp_path / "s"
    arguments = ["--config=configs/digits_ve.py", f"--workdir={run}", "--config.training.steps=20", *SMALL]
    assert main(["train", *arguments]) == 0
    assert main(["sample", f"--workdir={run}", f"--out={out}", "--seeds=0-7"]) == 0
    assert str(load_run(run).denoiser.sde) == "ve"
    assert np.abs(np.load(out / "samples.npz")["x"]).max() < 10


def test_resuming_goes_on_where_it_stopped(run, tmp_path):
    arguments = ["train", "--config=configs/digits_vp.py", f"--workdir={tmp_path}", *SMALL]
    assert main([*arguments, "--config.training.steps=20"]) == 0
    assert main([*arguments, "--config.training.steps=40"]) == 0
    ours, theirs = (checkpoint.latest(folder) / "average_0.safetensors" for folder in (tmp_path, run))
    assert ours.read_bytes() == theirs.read_bytes()


def test_the_table_and_the_cards(capsys):
    assert main(["solvers"]) == 0
    table = capsys.readouterr().out
    assert all(re.search(rf"^{name} ", table, re.MULTILINE) for name in solvers.names())
    assert main(["solvers", "heun"]) == 0
    assert "2206.00364" in capsys.readouterr().out
    assert main(["solvers", "DPM++ 2M Karras"]) == 0
    assert capsys.readouterr().out.startswith("dpmpp_2m on the grid karras\n")


# see test_cards.py


@pytest.mark.parametrize("name", [*solvers.names("gaussian"), "DPM++ 2M Karras"])
def test_the_command_of_every_card_runs(run, tmp_path, name):
    command = re.search(r"^  command +(.+?)(?=^  \S|\Z)", solver_cards.card(name), re.MULTILINE | re.DOTALL)[1]
    words = shlex.split(command.replace("\\\n", " "))
    assert words[:4] == ["scoresde", "sample", "--workdir=runs/digits", "--out=samples"]
    assert main(["sample", f"--workdir={run}", f"--out={tmp_path}", *words[4:], "--seeds=0-1"]) == 0
    assert np.isfinite(np.load(tmp_path / "samples.npz")["x"]).all()
    assert json.loads((tmp_path / "samples.json").read_text())["nfe"] > 0


def test_the_demo_walks_the_whole_path(tmp_path, capsys):
    assert main(["demo", f"--out={tmp_path}", "--fast", *SMALL, "--config.training.steps=20"]) == 0
    assert {"report.html", "results.csv", "results.json", "likelihood.npz", "run"} <= {
        p.name for p in tmp_path.iterdir()
    }
    _, rows = scoresde.benchmark.rows.read(tmp_path)
    assert [row.nfe for row in rows if row.solver == "heun"] == [5, 9, 19, 49]
    assert {row.solver for row in rows} == {"ddim", "heun", "dpmpp_2m", "ddpm"}
    bits = np.load(tmp_path / "likelihood.npz")["bits_per_dim"].mean()
    assert f"bits/dim <= {bits:.4f}" in capsys.readouterr().out
    assert f"{bits:.4f}" in (tmp_path / "report.html").read_text()


def test_check_solver(capsys):
    assert main(["check-solver", "ddim"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("ddim: order 1, 1 evaluation per step, deterministic\n")
    assert "measured 0.92, declared 1" in text
    assert "FAIL" not in text
    count = text.count("PASS")
    assert text.endswith(f"\n{count} of {count} checks passed\n")


OUTSIDE = """
from dataclasses import dataclass
import solvers

@solvers.register("outside", order=1, kind="ODE", reference="a test")
@dataclass(frozen=True)
class Mine(solvers.Solver):
    def step(self, problem, x, t, s, carry, noise):
        prediction = problem.predict(x, t)
        return solvers.Step(s.alpha * prediction.x0 + s.sigma * prediction.eps)
"""
FAILING = """
from dataclasses import dataclass
import solvers

@dataclass(frozen=True)
class Wrong(solvers.Solver):
    order = 1.0
    by: float = 0.0
    def step(self, problem, x, t, s, carry, noise):
        prediction = problem.predict(x, t)
        return solvers.Step(s.alpha * prediction.x0 + (1 + self.by) * s.sigma * prediction.eps)

@dataclass(frozen=True)
class Raising(solvers.Solver):
    def step(self, problem, x, t, s, carry, noise):
        return problem.predict(x, t).x1
"""


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("Wrong(by=0.01)", ("Wrong(by=0.01): order 1", "FAIL  order on vp", "look at: it does not converge")),
        ("Raising", ("raised AttributeError", "failing_solvers.py, in step: return problem.predict(x, t).x1")),
    ],
)
def test_a_solver_that_fails_is_told_where_to_look(tmp_path, monkeypatch, capsys, spec, words):
    (tmp_path / "failing_solvers.py").write_text(FAILING)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "failing_solvers", raising=False)
    assert main(["check-solver", f"failing_solvers:{spec}"]) == 1
    text = capsys.readouterr().out
    assert all(word in text for word in words), text
    failed, passed = (len(re.findall(f"^{verdict}  ", text, re.MULTILINE)) for verdict in ("FAIL", "PASS"))
    assert failed > 0
    assert text.count("look at: ") == failed
    assert text.endswith(f"\n{passed} of {passed + failed} checks passed\n")


def test_a_solver_beside_the_user(run, tmp_path, monkeypatch, registry, capsys):
    """One command as it is installed: a test's own process has the folder of the tests on its path."""
    (tmp_path / "mymodule.py").write_text(OUTSIDE)
    command = os.path.join(os.path.dirname(sys.executable), "scoresde")
    arguments = ["sample", f"--workdir={run}", "--out=s", "--config.sampling.solver=mymodule:Mine", "--seeds=0-1"]
    done = subprocess.run([command, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    again = scoresde.sample(load_run(run).denoiser, (1, 8, 8), [0, 1], "ddim", steps=20)
    assert np.allclose(np.load(tmp_path / "s" / "samples.npz")["x"], again.x.numpy(), rtol=0, atol=1e-5)
    monkeypatch.chdir(tmp_path)
    try:
        assert main(["check-solver", "mymodule:Mine"]) == 0
        assert "measured 0.92, declared 1" in capsys.readouterr().out
        assert main(["solvers", "mymodule:Mine"]) == 0
        assert "--solver=mymodule:Mine" in capsys.readouterr().out
    finally:
        sys.modules.pop("mymodule", None)


@pytest.mark.quick
def test_bad_options(run, tmp_path, capsys):
    sample = ["sample", f"--workdir={run}", f"--out={tmp_path / 'out'}"]
    fails(capsys, [*sample, "--config.sampling.solver=dppm_2m"], "no solver 'dppm_2m'", "did you mean", "dpmpp_2m")
    fails(capsys, [*sample, "--config.sampling.solver=ddim(etta=1)"], "etta", "eta")
    fails(capsys, [*sample, "--config.sampling.grid=karas"], "no grid 'karas'", "karras")
    fails(capsys, [*sample, "--config.sampling.steps=0"], "steps must be a positive integer, got 0")
    fails(capsys, [*sample, "--config.sampling.steps=-3"], "positive integer", "-3")
    fails(capsys, [*sample, "--config.sampling.steps=2.5"], "steps=2.5")
    fails(capsys, [*sample, "--config.sampling.nfe=0"], "nfe must be a positive integer")
    fails(capsys, [*sample, "--config.sampling.solver=rk45", "--config.sampling.nfe=9"], "chooses its own steps")
    fails(capsys, [*sample, "--config.sampling.grid=explicit(times=[1.5, 0.5])"], "t=1.5 is outside [0.001, 1]")
    fails(capsys, [*sample, "--config.sampling.stepz=3"], "config field 'sampling.stepz'", "sampling.steps")
    fails(capsys, [*sample, "--config.device=warp"], "device 'warp'")
    fails(capsys, [*sample, "--config.sampling.steps=100000000"], "steps must be at most 1000000")
    fails(capsys, [*sample, "--config.sampling.grid=karras(rho=1e-300)"], "rho must lie in")
    fails(capsys, [*sample, "--config.device=meta"], "device 'meta'")
    fails(capsys, [*sample, "--config.sampling.solver=nowhere:Mine"], "nowhere")
    fails(capsys, [*sample, "--seeds=9-3"], "seeds '9-3'")
    fails(capsys, [*sample, "--seeds=99999999999999999999"], "too many or too large")
    fails(capsys, ["benchmark", f"--workdir={run}", f"--out={tmp_path}", "--solvers="], "no solvers given")
    fails(capsys, ["benchmark", f"--workdir={run}", f"--out={tmp_path}", "--nfe=abc"], "evaluations 'abc'")
    fails(capsys, [*sample, "--seed=3"], "--seed=3")
    fails(capsys, ["sample", f"--workdir={run}"], "--out")
    fails(capsys, ["sing"], "sing")
    fails(capsys, ["solvers", "huen"], "did you mean heun")
    fails(capsys, ["solvers", "--space=discreet"], "no space of states 'discreet'; did you mean discrete?")
    fails(capsys, ["solvers", "heun", "--space=gaussian"], "leave out the solver's name")
    fails(capsys, ["solvers", ""], "no solver ''; accepted: adams")
    fails(capsys, ["solvers", "ddim(etta=1)"], "etta", "eta")
    fails(capsys, ["check-solver", "huen"], "did you mean heun")
    fails(capsys, ["check-solver", "json:JSONDecoder"], "does not derive from Solver")
    fails(capsys, ["check-solver", "nowhere:Solver"], "nowhere")
    fails(capsys, ["train", "--config=digits_vp", f"--workdir={tmp_path / 'w'}", "--config.sde=vpp"], "no SDE 'vpp'")
    fails(capsys, ["train", "--config=digits_vq", f"--workdir={tmp_path / 'w'}"], "digits_vq", "digits_vp")
    fails(capsys, ["likelihood", f"--workdir={run}", f"--out={tmp_path}", "--limit=0"], "--limit")
    assert not (tmp_path / "out" / "samples.npz").exists()


def test_likelihood_refuses_a_stochastic_solver(run, tmp_path, capsys):
    arguments = ["likelihood", f"--workdir={run}", f"--out={tmp_path}", "--config.likelihood.solver=ddpm"]
    fails(capsys, arguments, "ddpm", "draws noise")


def test_folders_that_are_not_runs(tmp_path, capsys):
    fails(capsys, ["sample", f"--workdir={tmp_path}", f"--out={tmp_path}"], "is not a run")
    (tmp_path / "config.json").write_text("{")
    fails(
        capsys, ["sample", f"--workdir={tmp_path}", f"--out={tmp_path}"], "config.json' is not a config: it is not JSON"
    )


def test_a_workdir_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    fails(capsys, ["train", "--config=digits_vp", f"--workdir={tmp_path / 'file' / 'run'}"], "cannot write to")


def test_a_config_file_that_does_not_run(tmp_path, capsys):
    broken = tmp_path / "broken.py"
    broken.write_text("import nothing_of_this_name\n")
    fails(
        capsys, ["train", f"--config={broken}", f"--workdir={tmp_path}"], "ModuleNotFoundError", "nothing_of_this_name"
    )
    broken.write_text("import sys\nsys.exit(3)\n")
    fails(capsys, ["train", f"--config={broken}", f"--workdir={tmp_path}"], "SystemExit: 3")
    (tmp_path / "config.txt").write_text("")
    fails(capsys, ["train", f"--config={tmp_path / 'config.txt'}", f"--workdir={tmp_path}"], "not a Python file")
    broken.write_text("def get_config():\n    return {}\n")
    fails(capsys, ["train", f"--config={broken}", f"--workdir={tmp_path}"], "must return a ConfigDict")


def test_another_config_in_the_same_folder(run, capsys):
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    train = ["train", f"--workdir={run}", *SMALL]
    fails(capsys, [*train, "--config=configs/digits_ve.py"], "a different config", "sde is 'vp' there")
    changed = [*train, "--config=configs/digits_vp.py", "--config.training.batch_size=5"]
    fails(capsys, changed, "training.batch_size is 128 there and 5 here")
    for other in ("--config.sde=ve", "--config.model.predicts=eps", "--config.seed=7"):
        for command in ("sample", "likelihood", "benchmark"):
            fails(
                capsys, [command, f"--workdir={run}", f"--out={run}", other], "a different config", "can be overridden"
            )
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


def test_a_run_of_a_different_config_resumes_with_the_arguments_of_the_error(tmp_path, capsys):
    """Such as an old run, whose config names the target and the times beside the loss."""
    train = ["train", "--config=configs/digits_vp.py", f"--workdir={tmp_path}", *SMALL]
    old = [
        "--config.training.loss=dsm", "--config.training.times=lognormal(std=2.0)", "--config.training.weighting=x0"
    ]  # fmt: skip
    assert main([*train, *old, "--config.training.steps=20"]) == 0
    fails(capsys, train, "a different config: training.loss is 'dsm' there", f"add {shlex.join(old)}; otherwise")
    assert main([*train, *old, "--config.training.steps=30"]) == 0
    assert (tmp_path / "checkpoints" / "step_00000030").is_dir()
    steps = [*train, *old, "--config.model.num_train_timesteps=50"]
    fails(
        capsys, steps, "50 here; to resume it, add --config.model.num_train_timesteps=None; otherwise use a different"
    )


def test_a_truncated_checkpoint(tmp_path, capsys):
    arguments = ["--config=configs/digits_vp.py", f"--workdir={tmp_path}", "--config.training.steps=20", *SMALL]
    assert main(["train", *arguments]) == 0
    weights = tmp_path / "checkpoints" / "step_00000020" / "average_0.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    fails(capsys, ["sample", f"--workdir={tmp_path}", f"--out={tmp_path / 's'}"], "average_0.safetensors", "damaged")
    fails(capsys, ["train", *arguments], "average_0.safetensors", "damaged")
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    fails(capsys, ["sample", f"--workdir={tmp_path}", f"--out={tmp_path / 's'}"], "SHA-256")


def test_a_run_that_failed_before_its_first_checkpoint_can_be_started_again(tmp_path, capsys):
    train = ["train", "--config=configs/digits_vp.py", f"--workdir={tmp_path}", *SMALL, "--config.training.steps=20"]
    fails(capsys, [*train, "--config.training.learning_rate=1e30"], "not finite at step", "lower learning_rate")
    assert main([*train, "--config.training.batch_size=16"]) == 0


def test_own_data_of_any_shape_and_data_that_cannot_be_used(tmp_path, capsys):
    run, path = tmp_path / "run", tmp_path / "x.npy"
    options = ["--config.data.name=file", f"--config.data.path={path}", "--config.training.steps=20", *SMALL]
    train = ["train", "--config=configs/digits_vp.py", f"--workdir={run}", *options]
    fails(capsys, train, "x.npy")
    for bad, word in ((np.zeros((0, 3)), "empty"), (np.full((9, 3), np.nan), "not finite")):
        np.save(path, bad)
        fails(capsys, train, word)
    np.save(path, np.random.default_rng(0).normal(size=(64, 5)))
    assert main(train) == 0
    assert main(["likelihood", f"--workdir={run}", f"--out={tmp_path / 'l'}", "--config.likelihood.steps=5"]) == 0
    assert "bits_per_dim" not in np.load(tmp_path / "l" / "likelihood.npz")
    assert main(["sample", f"--workdir={run}", f"--out={tmp_path / 's'}", "--seeds=0-3"]) == 0
    assert np.load(tmp_path / "s" / "samples.npz")["x"].shape == (4, 5)
    np.save(path, np.zeros((64, 7)))
    fails(capsys, ["likelihood", f"--workdir={run}", f"--out={tmp_path / 'l'}"], "(7,)", "(5,)")


@pytest.mark.skipif(os.name == "nt", reason="signals of a terminal")
def test_ctrl_c_writes_a_checkpoint_and_the_run_goes_on(tmp_path):
    arguments = ["--config=configs/digits_vp.py", f"--workdir={tmp_path}", *SMALL[:1], "--config.training.steps=100000"]
    command = [sys.executable, "-m", "scoresde.cli", "train", *arguments]
    # a test run in the background ignores the signal, and so would its children
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, preexec_fn=heed)
    log = tmp_path / "train.jsonl"
    deadline = time.monotonic() + 60
    while not (log.exists() and log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    folder = checkpoint.latest(tmp_path)
    assert f"stopped: {folder.name} is written" in error
    assert "Traceback" not in error
    steps = checkpoint.load(folder).step
    assert 0 < steps < 100000
    assert main(["train", *arguments[:-1], f"--config.training.steps={steps + 1}"]) == 0
    assert checkpoint.load(checkpoint.latest(tmp_path)).step == steps + 1
