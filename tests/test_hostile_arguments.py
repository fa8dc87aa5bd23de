"""The command line under hostile arguments and bad luck: one line and its exit status, never a traceback."""

import os
import signal
import subprocess
import sys

import pytest
from commands import fails

from scoresde.cli import main
from scoresde.cli.arguments import Usage, read
from scoresde.cli.readers import specs_of

pytestmark = pytest.mark.quick

LONG, DIGITS = "a" * 200_000, "9" * 5000


@pytest.mark.parametrize(
    "arguments",
    [
        [LONG],
        ["solvers", LONG],
        ["solvers", "heun", f"--{LONG}"],
        ["solvers", "heun", "--show", "--steps=2", f"--grid={LONG}"],
        ["solvers", "heun", "--steps=2", f"--json={LONG}"],
        ["solvers", "heun", "--steps=2", "--json=a\0b"],
        ["solvers", "file:a\0b"],
        ["solvers", "file:/dev/zero"],
        ["solvers", f"ddim(eta={DIGITS})"],
        ["solvers", "heun(" * 900 + ")" * 900],
        ["solvers", "heun", "--show", f"--steps={DIGITS}"],
        ["check-solver", LONG],
        ["sample", f"--workdir={LONG}", "--out=x"],
        ["sample", "--workdir=a\0b", "--out=x"],
        ["sample", "--workdir=/dev/null", "--out=x"],
        ["sample", "--workdir=x", "--out=x", f"--seeds={DIGITS}"],
        ["sample", "--workdir=x", "--out=x", "--seeds=" + "0-9999999," * 1000],
        ["benchmark", "--workdir=x", "--out=x", f"--nfe={LONG}"],
        ["likelihood", "--workdir=x", f"--shards=1/{DIGITS}"],
        ["train", f"--config={LONG}", "--workdir=x"],
        ["train", "--config=digits_vp", "--workdir=a\0b"],
        ["train", "--config=digits_vp", "--workdir=/dev/null"],
        ["train", "--config=digits_vp", "--workdir=x", f"--config.{LONG}=1"],
        ["train", "--config=digits_vp", "--workdir=x", f"--config.training.steps={DIGITS}"],
        ["train", "--config=digits_vp", "--workdir=x", f"--config.sde={LONG}"],
        ["train", "--config=digits_vp", "--workdir=x", "--config.data.name=idx", "--config.data.path=/dev/zero"],
        ["train", "--config=digits_vp", "--workdir=x", "--config.data.name=idx", f"--config.data.path={LONG}"],
    ],
    ids=lambda arguments: " ".join(arguments)[:40].replace("\0", "NUL"),
)
def test_hostile_arguments_are_one_short_line(arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fails(capsys, arguments)
    assert main(arguments) == 2
    assert len(capsys.readouterr().err.strip().splitlines()[-1]) < 2100


def test_control_characters_reach_no_terminal(capsys):
    assert main(["sample", "--workdir=\x1b]0;title\x07\u202e", "--out=x"]) == 2
    assert "\\x1b" in (found := capsys.readouterr().err)
    assert found.strip().isprintable()


def test_a_device_is_not_replaced_by_a_file(capsys):
    fails(capsys, ["solvers", "heun", "--steps=2", "--json=/dev/null"], "cannot write '/dev/null': it is a pipe")
    assert not os.path.isfile("/dev/null")


def test_a_full_disk_is_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    fails(capsys, ["solvers", "heun", "--steps=2", f"--json={tmp_path / 'x.json'}"], "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_a_long_list_of_solvers_is_split_in_linear_time():
    names = ["pc(predictor=ddpm, corrector=[1, 2])"] * 20_000
    assert specs_of(", ".join(names)) == names


def test_readers_of_arguments_need_no_digits_beyond_the_limit():
    for flag in ("--steps", "--seeds"):
        parsed, _ = read(["sample", "--workdir=x", "--out=x", f"{flag}=7"])
        assert getattr(parsed, flag[2:]) in (7, list(range(7)))
    with pytest.raises(Usage, match="too many or too large"):
        read(["sample", "--workdir=x", "--out=x", f"--seeds=0,{DIGITS}"])
    with pytest.raises(Usage, match="too many or too large"):
        read(["sample", "--workdir=x", "--out=x", "--seeds=0-9999999,0-9999999"])


def test_ctrl_c_during_the_imports_is_one_line():
    started = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "scoresde.cli", "solvers"], stderr=subprocess.PIPE, text=True
    )
    for line in started.stderr:
        if "torch._utils_internal" in line:  # in the middle of torch
            break
    started.send_signal(signal.SIGINT)
    rest = [line for line in started.stderr if not line.startswith("import time:")]
    assert started.wait(120) == 130
    assert rest == ["stopped\n"]


def test_a_deleted_current_folder_is_one_line(tmp_path):
    (tmp_path / "gone").mkdir()
    script = "import os, sys; os.rmdir(os.getcwd()); from scoresde.cli import main; sys.exit(main(['solvers', 'heun']))"
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path / "gone", capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": root},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (2, "error: the current folder has been deleted: change to another one\n")


def test_where_the_output_goes_may_be_full_closed_or_gone():
    python = f"{sys.executable} -m scoresde.cli"
    for shell, status, text in (
        (f"{python} solvers heun >/dev/full", 2, "error: [Errno 28] No space left on device\n"),
        (f"{python} smaple 2>&-", 2, ""),
        (f"{python} --help | true; exit ${{PIPESTATUS[0]}}", None, ""),
    ):
        done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=False)
        assert done.stderr == text
        assert done.stdout == ""
        assert status in (None, done.returncode)
