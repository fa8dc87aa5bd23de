"""``scoresde train`` without a config: what the data decide, resumption from the folder, and exit statuses."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from commands import contents, fails
from ml_collections import ConfigDict

from scoresde.cli.parser import main
from scoresde.data.dataset import DataCard
from scoresde.runs import choices, config
from scoresde.training import checkpoint

FEW = ["--config.training.steps=6", "--config.training.evaluate_every=0"]
TINY = [*FEW, "--config.model.network=mlp(width=16, depth=1)", "--config.training.batch_size=16"]


def card(shape, samples=5000):
    return DataCard(shape, -1.0, 1.0, None, 0.0, 0.5, None, (samples, samples // 5), ("a", "b"))


def chosen(shape, device="cpu", samples=5000):
    return {choice.field: choice.value for choice in choices.choices(card(shape, samples), device)}


@pytest.mark.parametrize(
    ("shape", "device", "network"),
    [
        ((2,), "cpu", "mlp(width=256, depth=3)"),
        ((1, 8, 8), "cpu", "mlp(width=256, depth=3)"),
        ((40, 30), "cpu", "mlp(width=512, depth=3)"),
        ((1, 28, 28), "cpu", "unet(channels=[32, 64, 64])"),  # 28, 14, 7
        ((3, 32, 32), "cpu", "unet(channels=[32, 64, 64])"),  # 32, 16, 8
        ((3, 16, 20), "cpu", "unet(channels=[32, 64, 64])"),  # 16x20, 8x10, 4x5
        ((3, 12, 12), "cpu", "mlp(width=512, depth=3)"),  # too small for convolutions
        ((3, 30, 30), "cpu", "unet(channels=[32, 64])"),  # 30, 15
        ((3, 31, 31), "cpu", "mlp(width=512, depth=3)"),  # cannot be halved
        ((3, 64, 64), "cuda", "unet(channels=[64, 128, 256, 256], layers=2, attention=[3])"),
    ],
)
def test_the_network_suits_the_shape(shape, device, network):
    from scoresde.models.networks import networks

    found = chosen(shape, device)
    assert found["model.network"] == network
    made = networks.make(network).build(shape)
    x = torch.zeros(2, *shape)
    assert made(x, torch.zeros(2)).shape == x.shape


def test_the_updates_suit_the_number_of_samples():
    assert chosen((2,))["training.steps"] == 10_000
    assert chosen((2,), samples=100)["training.steps"] == 2000  # at least
    assert chosen((2,), samples=1000)["training.steps"] == 1000 * 1000 // 256
    assert chosen((2,), samples=5)["training.batch_size"] == 4
    assert chosen((3, 256, 256), "cuda")["training.batch_size"] < chosen((3, 32, 32), "cuda")["training.batch_size"]
    assert chosen((1, 28, 28), "cuda")["device"] == "cuda"


@pytest.fixture
def spiral(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(choices, "_device", lambda: "cpu")
    angle = np.linspace(1, 9, 300)
    points = np.stack([angle * np.cos(angle), angle * np.sin(angle)], 1) / 8
    np.save(tmp_path / "a spiral.npy", points)
    return "a spiral.npy"


def test_data_alone_are_trained_on_and_the_choices_are_written(spiral, tmp_path, capsys):
    arguments = ["train", f"--data={spiral}", "--workdir=run", *FEW, "--config.sde=ve"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "model.network = mlp(width=256, depth=3)" in printed
    assert "2 numbers a sample" in printed
    assert "written to run/config.py" in printed
    saved = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert (saved["sde"], saved["training"]["steps"], saved["data"]["path"]) == ("ve", 6, spiral)
    # the file says the same, and can be used as a config
    again = config.read_config("run/config.py")
    assert isinstance(again, ConfigDict)
    assert json.loads(json.dumps(again.to_dict())) == saved
    assert main(["train", "--config=run/config.py", "--workdir=other"]) == 0
    one, two = (contents(tmp_path / name / "checkpoints") for name in ("run", "other"))
    assert list(one.values()) == list(two.values())
    # the same command again: it is complete
    capsys.readouterr()
    assert main(arguments) == 0
    assert "already complete" in capsys.readouterr().out


def test_hostile_names_are_quoted_in_the_config(spiral, tmp_path, monkeypatch):
    evil = 'x\'"""; raise SystemExit(3) #\\.npy'
    (tmp_path / spiral).rename(tmp_path / evil)
    assert main(["train", f"--data={evil}", "--workdir=run", *TINY]) == 0
    assert config.read_config("run/config.py").data.path == evil


def test_a_folder_alone_resumes_exactly(spiral, tmp_path, capsys):
    assert main(["train", f"--data={spiral}", "--workdir=whole", *TINY]) == 0
    assert main(["train", f"--data={spiral}", "--workdir=halves", *TINY, "--config.training.steps=3"]) == 0
    capsys.readouterr()
    assert main(["train", "--workdir=halves", "--config.training.steps=6"]) == 0
    assert "resuming step_00000003" in capsys.readouterr().out
    last = "checkpoints/step_00000006"
    one, two = (contents(tmp_path / name / last) for name in ("whole", "halves"))
    assert {p.name: d for p, d in one.items()} == {p.name: d for p, d in two.items()}
    document = json.loads((tmp_path / "halves" / "config.json").read_text())
    assert [text.split("--workdir=")[1].split()[0] for text in document["commands"]] == ["halves", "halves"]
    assert document["changes"] == [{"from": "step_00000003", "training.steps": [3, 6]}]
    assert main(["train", "--workdir=halves"]) == 0  # complete
    assert "already complete" in capsys.readouterr().out


def test_other_data_in_a_run_s_folder_are_refused(spiral, capsys):
    assert main(["train", f"--data={spiral}", "--workdir=run", *TINY]) == 0
    np.save("other.npy", np.random.default_rng(0).normal(size=(50, 2)))
    arguments = ["train", "--data=other.npy", "--workdir=run", "--config.training.steps=9"]
    fails(capsys, arguments, "run on other data", "--continue-with-other-data")
    assert main([*arguments, "--continue-with-other-data"]) == 0


def test_the_run_of_somebody_else_imports_nothing(spiral, tmp_path, capsys):
    assert main(["train", f"--data={spiral}", "--workdir=run", *TINY]) == 0
    (tmp_path / "mine.py").write_text("raise SystemExit(3)")
    path = tmp_path / "run" / "config.json"
    path.write_text(path.read_text().replace('"mlp(width=16, depth=1)"', '"mine:Net"'))
    fails(capsys, ["train", "--workdir=run", "--config.training.steps=9"], "mine:Net", "--trust")


def test_a_time_limit_ends_with_its_own_status_and_the_same_command_resumes(spiral, tmp_path, capsys):
    """The limit is far below the time of all updates, and the run ends long before them with a checkpoint."""
    arguments = ["train", f"--data={spiral}", "--workdir=run", *TINY, "--config.training.steps=1000000"]
    began = time.monotonic()
    assert main([*arguments, "--max-minutes=0.01"]) == 75
    assert time.monotonic() - began < 60
    printed = capsys.readouterr().out
    assert "the 0.01 minutes are over, the same command resumes" in printed
    first = checkpoint.latest(tmp_path / "run").name
    assert main([*arguments, "--max-minutes=0.01"]) == 75
    assert f"resuming {first}" in capsys.readouterr().out
    assert checkpoint.latest(tmp_path / "run").name > first
    assert main(["train", "--workdir=run", "--max-minutes=0.01"]) == 75


def test_the_page_of_a_stopped_run_is_written(spiral, tmp_path):
    arguments = ["train", f"--data={spiral}", "--workdir=run", *TINY, "--config.training.steps=1000000"]
    assert main([*arguments, "--max-minutes=0.005", "--config.training.evaluate_every=1000000"]) == 75
    assert "updates of 16 samples" in (tmp_path / "run" / "training.html").read_text(encoding="utf-8")
    assert not (tmp_path / "run" / "evaluations.jsonl").exists()  # a stop does not wait for an evaluation


def test_python_m_scoresde_has_the_same_statuses(spiral, tmp_path):
    command = [sys.executable, "-m", "scoresde", "train", f"--data={spiral}", "--workdir=run", *TINY]
    done = subprocess.run(
        [*command, "--config.training.steps=1000000", "--max-minutes=0.01"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.count("Traceback")) == (75, 0)


def test_bad_input_is_one_clear_line(spiral, tmp_path, capsys):
    fails(capsys, ["train", "--workdir=new"], "contains no run to resume", "--data=PATH", "--config=NAME")
    fails(capsys, ["train", "--data=nothing", "--workdir=new"], "'nothing'", "does not exist")
    fails(capsys, ["train", f"--data={spiral}", "--workdir=new", "--max-minutes=-1"], "max_minutes must be positive")
    fails(capsys, ["train", f"--data={spiral}", "--workdir=new", "--max-minutes=soon"], "--max-minutes", "soon")
    fails(capsys, ["train", f"--data={spiral}", "--workdir=new", "--config.training.stepz=3"], "training.steps")
    (tmp_path / "empty").mkdir()
    fails(capsys, ["train", "--data=empty", "--workdir=new"], "'empty'", "no data")
    assert not (tmp_path / "new").exists() or contents(tmp_path / "new") == {}


def test_a_network_whose_package_is_missing_or_broken_is_one_clear_line(tmp_path, monkeypatch, capsys):
    command = ["train", "--config=digits_vp", "--config.model.network=unet", "--workdir=new", *FEW]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "diffusers", None)  # as if it were not installed
    fails(capsys, command, "the network 'unet' needs diffusers: pip install \"scoresde[images]\"")
    (tmp_path / "diffusers").mkdir()
    (tmp_path / "diffusers" / "__init__.py").write_text("import torchvision")
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("raise RuntimeError('operator nms does not exist')")
    monkeypatch.delitem(sys.modules, "diffusers")
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    fails(capsys, command, "torchvision is broken in this environment", "uninstall torchvision")
    assert not (tmp_path / "new").exists() or contents(tmp_path / "new") == {}


def test_a_config_can_be_given_other_data(spiral, tmp_path):
    assert main(["train", "--config=digits_edm", f"--data={spiral}", "--workdir=run", *TINY]) == 0
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (saved["config"]["sde"], saved["config"]["data"]["path"]) == ("edm", spiral)
    assert saved["data"]["shape"] == [2]
    assert not (tmp_path / "run" / "config.py").exists()


def test_the_help_names_the_statuses(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = capsys.readouterr().out
    assert "75 when --max-minutes ended" in text
    assert "130 after Ctrl-C" in text
