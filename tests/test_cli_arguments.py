"""The flags of the command line: shortcuts for the config, nearest matches, versions, pipes, signals and quiet logs."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from commands import SMALL, contents, fails, forked

import scoresde
import solvers
from scoresde.cli import arguments, benchmarking, commands, solver_commands
from scoresde.cli.parser import main
from scoresde.io import progress
from scoresde.runs.run import load_run
from scoresde.training import checkpoint

COMMAND = [sys.executable, "-m", "scoresde.cli"]


@pytest.fixture
def own(run, tmp_path):
    """A copy of the trained run that a test may change."""
    return shutil.copytree(run, tmp_path / "run")


def record(out):
    return json.loads((out / "samples.json").read_text())


@pytest.mark.quick
def test_the_flags_of_a_solver_are_fields_of_the_config(run, tmp_path):
    sample = ["sample", f"--workdir={run}", f"--out={tmp_path}", "--seeds=4"]
    assert main([*sample, "--solver=heun", "--grid=logsnr", "--steps=3"]) == 0
    found = record(tmp_path)
    assert (found["solver"], found["grid"], found["nfe"], found["seeds"]) == ("heun", "logsnr", 6, [0, 1, 2, 3])
    saved = np.load(tmp_path / "samples.npz")
    assert saved["seeds"].tolist() == [0, 1, 2, 3]
    ours = scoresde.sample(load_run(run).denoiser, (1, 8, 8), 4, "heun", "logsnr", 3)
    assert np.array_equal(saved["x"], ours.x.numpy())
    sample.append("--overwrite")
    assert main([*sample, "--solver", "heun", "--nfe", "7"]) == 0  # steps of the config give way
    assert record(tmp_path)["nfe"] == 7
    assert main([*sample, "--config.sampling.steps", "5"]) == 0
    assert (record(tmp_path)["steps"], record(tmp_path)["config"]["sampling"]["steps"]) == (5, 5)
    likelihood = ["likelihood", f"--workdir={run}", f"--out={tmp_path}", "--limit=2"]
    assert main([*likelihood, "--solver=heun", "--steps=4", "--config.likelihood.error=False"]) == 0
    found = json.loads((tmp_path / "likelihood.json").read_text())
    assert (found["solver"], found["nfe"]) == ("heun", 8)


@pytest.mark.parametrize(
    ("method", "text"),
    [
        (["--solver=heun"], "heun on the grid karras (none was named; --grid=NAME chooses another), 5 NFE"),
        (["--solver=heun", "--grid=logsnr"], "heun on the grid logsnr, 6 NFE"),
        (["--solver=DPM++ 2M Karras"], "dpmpp_2m on the grid karras, 3 NFE"),
        ([], "ipndm on the grid logsnr(end=zero), 3 NFE"),
        (["--solver=few"], "few on the grid few, of which it has no table: it is ipndm in 3 steps, 3 NFE"),
        (["--solver=few", "--steps=5"], "few on the grid few, 5 NFE"),
    ],
)
def test_sample_prints_the_grid_and_whether_it_was_chosen(run, tmp_path, capsys, method, text):
    assert main(["sample", f"--workdir={run}", f"--out={tmp_path}", "--seeds=2", "--steps=3", *method]) == 0
    assert f"2 samples by {text}, " in capsys.readouterr().out


def test_all_solvers_and_repeated_budgets(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(solvers, "names", lambda space: ["ddim", "heun", "rk23"])  # others exist: warnings name them
    arguments = ["--solvers=all", "--nfe=1,2,2,6", "--seeds=5"]
    assert main(["benchmark", f"--workdir={run}", f"--out={tmp_path}", *arguments]) == 0
    _, rows = scoresde.benchmark.rows.read(tmp_path)
    measured = [(row.solver, row.nfe, row.steps) for row in rows if not row.skipped]
    assert [row for row in measured if row[0] != "rk23"] == [
        *(("ddim", 1, 1), ("ddim", 2, 2), ("ddim", 6, 6), ("heun", 1, 1), ("heun", 5, 3)),
    ]
    assert [row.skipped for row in rows if row.skipped] == ["the same steps as with nfe=1"]  # heun at 2
    assert {row.solver for row in rows} == {"ddim", "heun", "rk23"}
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert len({tuple(line[:3]) for line in lines if line and line[0] == "ddim"}) == 3


@pytest.mark.quick
def test_a_mistyped_word_gets_its_nearest_match(run, tmp_path, capsys):
    sample = ["sample", f"--workdir={run}", f"--out={tmp_path}"]
    fails(capsys, ["smaple"], "no command 'smaple'; did you mean sample?")
    fails(capsys, ["xyzzy"], "no command 'xyzzy'; accepted: demo, train, sample")
    fails(capsys, [*sample, "--step=3"], "scoresde sample has no --step=3; did you mean --steps?")
    fails(capsys, ["sample", f"--workdir={run}", "--otu=x"], "did you mean --out?")  # before what is missing
    fails(capsys, [*sample, "--solvr", "heun"], "did you mean --solver?")
    fails(capsys, [*sample, "--conifg.sampling.grid=ays"], "did you mean --config.sampling.grid?")
    fails(capsys, [*sample, "--seeds=0"], "0 seeds are no samples; 0-0 is the sample of seed 0")
    fails(capsys, ["benchmark", f"--workdir={run}", f"--out={tmp_path}", "--steps=3"], "use --nfe=5,10,20")
    fails(capsys, ["likelihood", f"--workdir={run}", "--seeds=3"], "use --limit=4")
    fails(capsys, ["train", "--config=digits_vp", f"--workdir={tmp_path}", "--steps=3"], "--config.training.steps")


@pytest.mark.quick
def test_solvers_without_commas_are_told_apart(run, tmp_path, capsys):
    bench = ["benchmark", f"--workdir={run}", f"--out={tmp_path / 'b'}"]
    advice = "separate solvers by commas, --solvers="
    fails(capsys, [*bench, "--solvers=ddim heun"], f"no solver 'ddim heun'; {advice}'ddim, heun'")
    fails(capsys, [*bench, "--solvers=pc(predictor=ddpm, corrector=langevin) DDIM, rk4"], "langevin), DDIM", advice)
    fails(capsys, [*bench, "--solvers=huen, ddim"], "no solver 'huen'; did you mean heun?")
    for label in ("DPM++ 2M Karras", "euler ancestral", "ddim(eta=1)"):
        benchmarking._check_commas([label])  # names that people type contain spaces
    assert not (tmp_path / "b").exists()


def test_only_near_names_are_suggested():
    for name, near in {"nope": None, "xyzzy": None, "euler_ancestal": "euler_ancestral", "huen": "heun"}.items():
        with pytest.raises(solvers.InputError) as caught:
            solvers.make(name)
        tail = str(caught.value).partition("; ")[2]
        assert tail == f"did you mean {near}?" if near else tail.startswith("accepted: adams, ")


@pytest.mark.quick
def test_values_of_the_wrong_kind_are_named_in_plain_words(run, tmp_path, capsys):
    sample = ["sample", f"--workdir={run}", f"--out={tmp_path}"]
    fails(capsys, [*sample, "--config.sampling.steps=abc"], "sampling.steps=abc: expected an integer")
    fails(capsys, [*sample, "--config.sampling.batch_size=2.5"], "sampling.batch_size=2.5: expected an integer")
    fails(capsys, [*sample, "--steps=abc"], "argument --steps: must be a positive integer, got abc")
    fails(capsys, [*sample, "--seeds=x"], "cannot read the seeds 'x'; expected a number of samples, 0-63 or 0,5,9")
    fails(capsys, ["likelihood", f"--workdir={run}", "--tolerance=x"], "likelihood.tolerance=x: expected a number")
    train = ["train", "--config=digits_vp", f"--workdir={tmp_path / 'r'}"]
    fails(capsys, [*train, "--config.data.dequantise=maybe"], "data.dequantise=maybe: expected True or False")
    assert main([*sample, "--seeds=1", "--config.sampling.grid=None", "--config.sampling.steps=None"]) == 0


@pytest.mark.quick
def test_none_is_none_or_an_error_and_never_a_text():
    """Every field: None where the default config leaves it empty, after it was set too; elsewhere an error."""
    fields = dict(scoresde.runs.config.flat(scoresde.runs.config.read_config("default")))
    values = {"solver": "heun", "grid": "karras", "divergence": "exact", "target": "eps", "times": "uniform"}
    for field, value in fields.items():
        for text in ("None", "none"):
            if value is not None:
                with pytest.raises(solvers.InputError, match=f"^{field}={text}: expected .*; it cannot be None$"):
                    scoresde.runs.config.read_config("default", [f"--config.{field}={text}"])
                continue
            given = values.get(field.partition(".")[2], "1")
            changes = [f"--config.{field}={given}", f"--config.{field}={text}"]
            assert dict(scoresde.runs.config.flat(scoresde.runs.config.read_config("default", changes)))[field] is None


@pytest.mark.quick
def test_options_that_exclude_each_other_are_refused(run, tmp_path, capsys):
    sample, likelihood = ["sample", f"--workdir={run}", f"--out={tmp_path}"], ["likelihood", f"--workdir={run}"]
    fails(capsys, [*sample, "--steps=3", "--nfe=6"], "sampling.steps and sampling.nfe exclude each other")
    fails(capsys, [*likelihood, "--steps=3", "--tolerance=0.1"], "steps and likelihood.tolerance exclude each other")
    for path in ("--workdir=", "--out="):
        fails(capsys, [*sample, path], "the path is empty; use . for the current folder")


@pytest.mark.quick
def test_a_finished_run_refuses_fields_that_a_command_does_not_use(own, tmp_path, capsys):
    out = tmp_path / "out"
    for field in ("training.steps=7", "training.learning_rate=1", "likelihood.steps=3", "data.path=x"):
        arguments = ["sample", f"--workdir={own}", f"--out={out}", f"--config.{field}"]
        fails(capsys, arguments, field.partition("=")[0], "only sampling and device can be overridden here")
    arguments = ["likelihood", f"--workdir={own}", f"--out={out}", "--config.sampling.steps=3"]
    fails(
        capsys,
        arguments,
        "sampling.steps",
        "only likelihood, sampling.ema, device and data.path can be overridden",
    )
    assert not out.exists()


def test_a_resumed_run_says_and_records_what_has_changed(own, capsys):
    train = ["train", "--config=digits_vp", f"--workdir={own}", *SMALL]
    assert main([*train, "--config.training.steps=41", "--config.training.learning_rate=0.001"]) == 0
    text = capsys.readouterr().out
    assert "this run resumes with " in text
    assert all(
        f"training.{change}" in text for change in ("steps=41 instead of 40", "learning_rate=0.001 instead of 0.002")
    )
    (change,) = json.loads((own / "config.json").read_text())["changes"]
    assert change == {
        "from": "step_00000040", "training.steps": [40, 41], "training.learning_rate": [0.002, 0.001],
    }  # fmt: skip
    capsys.readouterr()
    before = (own / "config.json").read_bytes()
    for rate in (0.001, 0.5):  # no update of the complete run has used another one
        assert main([*train, "--config.training.steps=41", f"--config.training.learning_rate={rate}"]) == 0
        text = capsys.readouterr().out
        assert "instead of" not in text
        assert "already complete; config.json stays as it is" in text
        assert (own / "config.json").read_bytes() == before


@pytest.mark.quick
@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("sampling.solver=dppm_2m", ("config.sampling, which later commands use", "dpmpp_2m?")),
        ("sampling.posterior=mmsp", ("config.sampling", "no posterior 'mmsp'; did you mean mmps?")),
        ("sampling.noise=brownain", ("config.sampling", "did you mean brownian")),
        ("likelihood.divergence=exakt", ("config.likelihood", "did you mean exact")),
        ("likelihood.solver=ddpm", ("config.likelihood", "draws noise")),
    ],
)
def test_names_that_are_used_later_are_checked_before_the_training(tmp_path, capsys, field, words):
    arguments = ["train", "--config=digits_vp", f"--workdir={tmp_path / 'r'}", *SMALL, f"--config.{field}"]
    fails(capsys, arguments, *words)
    assert not (tmp_path / "r" / "config.json").exists()


@pytest.mark.quick
def test_a_standard_deviation_that_nothing_uses_is_refused(tmp_path, capsys):
    train = ["train", "--config=digits_vp", f"--workdir={tmp_path}", *SMALL, "--config.model.sigma_data=0.3"]
    other = [*train, "--config.model.predicts=eps", "--config.training.weighting=eps"]
    fails(capsys, other, "model.sigma_data is not used: predicts is 'eps' and the weighting 'eps'")
    assert (
        main([*train, "--config.model.predicts=eps", "--config.training.steps=1"]) == 0
    )  # the loss's weighting is edm


UNDECLARED = """
from dataclasses import dataclass
import solvers

@dataclass(frozen=True)
class Undeclared(solvers.Solver):
    def step(self, problem, x, t, s, carry, noise):
        prediction = problem.predict(x, t)
        return solvers.Step(s.alpha * prediction.x0 + s.sigma * prediction.eps)
"""


def test_a_solver_without_an_order_does_not_pass_what_needs_one(tmp_path, monkeypatch, capsys):
    (tmp_path / "undeclared.py").write_text(UNDECLARED)
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["check-solver", "undeclared:Undeclared"]) == 0
    text = capsys.readouterr().out
    assert "SKIP  order on vp: no order is declared; measured 0.99; declare it by @solvers.register(name" in text
    passed, skipped = (len(re.findall(f"^{verdict}  ", text, re.MULTILINE)) for verdict in ("PASS", "SKIP"))
    assert skipped == 10  # order, encode and decode, on five paths
    assert text.endswith(f"\n{passed} of {passed} checks passed, {skipped} skipped\n")


def test_no_pictures_of_earlier_samples_remain(run, tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(64, 5)).astype("float32"))
    options = ["--config.data.name=file", f"--config.data.path={tmp_path / 'x.npy'}", "--config.training.steps=1"]
    flat, out = tmp_path / "flat", tmp_path / "out"
    assert main(["train", "--config=digits_vp", f"--workdir={flat}", *options, *SMALL]) == 0
    assert main(["sample", f"--workdir={run}", f"--out={out}", "--seeds=2", "--steps=2"]) == 0
    assert (out / "grid.png").exists()
    assert main(["sample", f"--workdir={flat}", f"--out={out}", "--seeds=2", "--steps=2", "--overwrite"]) == 0
    assert not (out / "grid.png").exists()


@pytest.mark.quick
def test_results_that_are_there_are_replaced_only_on_request(run, tmp_path, capsys, monkeypatch):
    sample = ["sample", f"--workdir={run}", f"--out={tmp_path}", "--seeds=2", "--steps=2"]
    bench = ["benchmark", f"--workdir={run}", f"--out={tmp_path}", "--solvers=ddim", "--nfe=2", "--seeds=4"]

    def stopped(*_, **__):
        raise KeyboardInterrupt

    (tmp_path / "notes.txt").write_text("a file of the user's own does not matter")
    assert (main(sample), main(bench)) == (0, 0)  # files of other names: two commands may share a folder
    before = contents(tmp_path)
    remedy = "use a different --out, or add --overwrite"
    fails(
        capsys, [*sample, "--solver=heun"], f"{tmp_path} already contains samples.npz, grid.png, samples.json: {remedy}"
    )
    fails(
        capsys, [*bench, "--solver=heun"], f"{tmp_path} already contains results.json with 1 rows that", "--overwrite"
    )
    fails(capsys, [*sample, "--overwrite", "--solver=huen"], "did you mean heun?")
    with monkeypatch.context() as patch:
        patch.setattr(commands, "draw", stopped)  # while it samples
        assert main([*sample, "--overwrite", "--solver=heun"]) == 130
    assert contents(tmp_path) == before
    assert (main([*sample, "--overwrite", "--solver=heun"]), main([*bench, "--overwrite", "--solver=heun"])) == (0, 0)
    assert record(tmp_path)["solver"] == "heun"
    assert {row.solver for row in scoresde.benchmark.rows.read(tmp_path)[1]} == {"heun"}


@pytest.mark.quick
def test_help_shows_fields_of_the_config_and_the_version(capsys):
    for command in arguments.FIELDS:
        with pytest.raises(SystemExit):
            main([command, "--help"])
        text = capsys.readouterr().out
        assert "--config.SECTION.FIELD=VALUE" in text
        shown = re.findall(r"^  --config\.(\S+?)=", text, re.MULTILINE)
        fields = dict(scoresde.runs.config.flat(scoresde.runs.config.read_config("default")))
        assert shown
        assert set(shown) <= set(fields)
    with pytest.raises(SystemExit) as done:
        main(["--version"])
    assert done.value.code == 0
    assert capsys.readouterr().out == f"scoresde {scoresde.__version__}\n"


@pytest.mark.quick
def test_a_program_is_not_written_into_a_folder_that_does_not_exist(tmp_path, capsys):
    file = tmp_path / "none" / "x.json"
    fails(capsys, ["solvers", "heun", "--steps=3", f"--json={file}"], "there is no folder", str(file.parent))
    assert not file.parent.exists()


@pytest.mark.skipif(os.name == "nt", reason="pipes and signals of POSIX")
def test_a_closed_pipe_is_no_error():
    reader, writer = os.pipe()
    process = subprocess.Popen([*COMMAND, "solvers", "heun"], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(reader)
    os.close(writer)
    assert process.communicate(timeout=120)[1] == ""
    assert process.returncode == 141


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_sigterm_writes_a_checkpoint_as_ctrl_c_does(tmp_path):
    options = ["--config=digits_vp", f"--workdir={tmp_path / 'run'}", *SMALL[:1], "--config.training.steps=100000"]

    def train():
        for number in (1, 2):
            os.dup2(os.open(tmp_path / str(number), os.O_WRONLY | os.O_CREAT), number)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
        return main(["train", *options])

    child = forked(train)  # test_ctrl_c_writes_a_checkpoint_and_the_run_goes_on starts Python
    log, deadline = tmp_path / "run" / "train.jsonl", time.monotonic() + 120
    while not (log.exists() and log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(child, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130
    tmp_path, error = tmp_path / "run", (tmp_path / "2").read_text()
    folder = checkpoint.latest(tmp_path)
    assert f"stopped: {folder.name} is written" in error
    assert "Traceback" not in error
    assert "\r" not in error  # no frames of a bar without a terminal


@pytest.mark.parametrize("fails", [True, False])
def test_ctrl_c_is_ctrl_c_also_where_a_package_fails_at_its_cleanup(capsys, monkeypatch, fails):
    def stopped(*_):
        try:
            raise KeyboardInterrupt
        finally:
            if fails:
                raise ValueError("this file is open")

    monkeypatch.setitem(solver_commands.COMMANDS, "solvers", stopped)
    assert main(["solvers"]) == 130
    assert capsys.readouterr().err == "stopped\n"


def test_the_caller_s_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM)
    assert main(["solvers", "heun"]) == 0
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.quick
def test_a_log_gets_a_line_every_so_often(monkeypatch):
    clock, log = [0.0], io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)  # no terminal
    with progress.bar(total=1000, desc="train", file=log) as bar:
        bar._time = lambda: clock[0]
        bar.start_t = bar.last_print_t = 0.0
        for second in range(100):
            clock[0] = float(second)
            bar.update(10)
    lines = log.getvalue().splitlines()
    assert "\r" not in log.getvalue()
    counts = [int(re.match(r"train: (\d+) of 1000, ", line)[1]) for line in lines]
    assert len(counts) == 3
    assert all(after - before >= 300 for before, after in zip([0, *counts], counts, strict=False))  # 30 seconds


def test_a_terminal_gets_a_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress.bar(total=2, desc="train", file=sys.stderr) as bar:
        bar.update()
        bar.refresh()
        assert "\r" in sys.stderr.getvalue()
        assert not isinstance(bar, progress.Lines)
