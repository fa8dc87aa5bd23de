"""Checkpoints: exact contents, atomic writing, and the detection of every kind of damage."""

import hashlib
import json
import os
import pickle
import sys

import pytest
import torch
from torch import nn

from scoresde.training import checkpoint
from scoresde.training.checkpoint import Checkpoint, latest, load, save
from solvers import InputError

pytestmark = pytest.mark.quick


def state(step=10, seed=0):
    """A network with tied weights, a counter and a transposed parameter, after one AdamW step."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
        net[2].weight = net[0].weight
        net.register_parameter("turned", nn.Parameter(torch.randn(2, 5).t()))
        optimizer = torch.optim.AdamW(net.parameters())
        (net(torch.randn(4, 3)).sum() + net.turned.sum()).backward()
        optimizer.step()
        mean = {name: value * 0.5 for name, value in net.state_dict().items()}
    return Checkpoint(step, net.state_dict(), mean, optimizer.state_dict(), ema_updates=step - 1)


def same(a, b):
    """Equality of nested values, tensors bit for bit."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if hasattr(a, "keys"):
        return sorted(a, key=str) == sorted(b, key=str) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_round_trip_is_exact(tmp_path):
    saved = state()
    folder = save(tmp_path, saved)
    assert folder == tmp_path / "checkpoints" / "step_00000010"
    found = load(folder)
    assert (found.step, found.ema_updates) == (10, 9)
    for part in ("model", "ema", "optimizer"):
        assert same(getattr(saved, part), getattr(found, part))
    assert found.model["1.num_batches_tracked"].tolist() == 1


def test_state_json_names_every_file_with_size_and_digest(tmp_path):
    folder = save(tmp_path, state())
    recorded = json.loads((folder / "state.json").read_text())
    assert (recorded["format"], recorded["step"], recorded["ema_updates"]) == (1, 10, 9)
    assert sorted(p.name for p in folder.iterdir()) == sorted([*recorded["files"], "state.json"])
    for name, facts in recorded["files"].items():
        data = (folder / name).read_bytes()
        assert facts == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_the_last_ones_are_kept_by_number(tmp_path):
    assert latest(tmp_path) is None
    assert latest(tmp_path / "missing") is None
    for step in (9, 10, 99_999_999, 100_000_000):  # the last has one digit more
        save(tmp_path, state(step), keep=3)
    assert latest(tmp_path).name == "step_100000000"
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["step_00000010", "step_100000000", "step_99999999"]


def test_what_is_not_a_checkpoint_is_not_the_latest(tmp_path):
    folder = save(tmp_path, state(5))
    for name in ("step_00000009x", "step_", ".tmp_step_00000010", "notes"):
        (folder.parent / name).mkdir()
    (folder.parent / "step_00000011").write_text("a file")
    assert latest(tmp_path) == folder


@pytest.mark.parametrize("moment", ["fsync", "rename"])
def test_a_save_cut_short_leaves_the_last_one_and_is_cleaned_up(tmp_path, monkeypatch, moment):
    first = save(tmp_path, state(1))

    def fail(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os if moment == "fsync" else checkpoint.Path, moment, fail)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, state(2))
    assert latest(tmp_path) == first
    assert load(first).step == 1
    assert len(list(first.parent.glob(".tmp_*"))) == 1
    save(tmp_path, state(3))
    assert not list(first.parent.glob(".tmp_*"))
    assert [p.name for p in sorted(first.parent.iterdir())] == ["step_00000001", "step_00000003"]


def test_nothing_written_is_overwritten(tmp_path):
    folder = save(tmp_path, state(4))
    with pytest.raises(InputError, match="step_00000004' exists already"):
        save(tmp_path, state(4, seed=1))
    assert same(load(folder).model, state(4).model)


@pytest.mark.parametrize("name", ["model.safetensors", "ema.safetensors", "optimizer.pt", "state.json"])
def test_damage_is_found_and_named(tmp_path, name):
    folder = save(tmp_path, state())
    file = folder / name
    data = file.read_bytes()
    for bad in (data[:-1], data[: len(data) // 2], b""):
        file.write_bytes(bad)
        with pytest.raises(InputError, match=f"{name}' is damaged"):
            load(folder)
    if name != "state.json":
        middle = len(data) // 2
        file.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
        with pytest.raises(InputError, match=f"{name}' is damaged: its SHA-256"):
            load(folder)
    file.unlink()
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        load(folder)
    file.write_bytes(data)
    assert load(folder).step == 10


def test_bad_state_files(tmp_path):
    folder = save(tmp_path, state())
    good = json.loads((folder / "state.json").read_text())
    for change, message in [
        ({"format": 2}, "has format 2; this version reads 1"),
        ({"step": -1}, "damaged: a field"),
        ({"step": True}, "damaged: a field"),
        ({"ema_updates": "9"}, "damaged: a field"),
        ({"files": {}}, "damaged: a field"),
        ({"files": None}, "damaged: a field"),
    ]:
        (folder / "state.json").write_text(json.dumps({**good, **change}))
        with pytest.raises(InputError, match=message):
            load(folder)
    (folder / "state.json").write_text("[]")
    with pytest.raises(InputError, match="damaged"):
        load(folder)
    for place in (tmp_path, tmp_path / "missing"):
        with pytest.raises(InputError, match=r"is not a checkpoint: it has no readable state\.json"):
            load(place)


class Bomb:
    def __reduce__(self):
        return (sys.exit, ("unpickled",))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("content", [pickle.dumps(Bomb()), b"neither"])
def test_a_forged_optimizer_with_matching_digest_runs_nothing(tmp_path, content):
    folder = save(tmp_path, state())
    for name in ("optimizer.pt", "model.safetensors"):
        (folder / name).write_bytes(content)
        recorded = json.loads((folder / "state.json").read_text())
        recorded["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        (folder / "state.json").write_text(json.dumps(recorded))
        with pytest.raises(InputError, match="is not a checkpoint"):
            load(folder)
