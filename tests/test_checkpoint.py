"""Checkpoints: exact contents, atomic writing, and the detection of every kind of damage."""

import hashlib
import json
import os
import pickle
import struct
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save as save_tensors
from torch import nn

from scoresde.training import step_folders
from scoresde.training.checkpoint import AverageState, Checkpoint, latest, load, remove_older, remove_unfinished, save
from scoresde.training.optimiser import moments_of
from solvers import InputError

pytestmark = pytest.mark.quick
PARTS = [f"{name}.safetensors" for name in ("model", "average_0", "average_1", "optimizer", "loss")]


def state(step=10, seed=0):
    """A network with tied weights, a counter and a transposed parameter, after one AdamW step."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
        net[2].weight = net[0].weight
        net.register_parameter("turned", nn.Parameter(torch.randn(2, 5).t()))
        names, parameters = zip(*net.named_parameters(), strict=True)
        optimizer = torch.optim.AdamW(parameters)
        (net(torch.randn(4, 3)).sum() + net.turned.sum()).backward()
        optimizer.step()
        means = [{name: value * share for name, value in net.state_dict().items()} for share in (0.5, 0.25)]
    # two averages with counters of their own, the second begun later
    averages = {"power(std=0.1)": AverageState(step, means[0]), "ema": AverageState(step - 1, means[1])}
    others = {"loss": {"scale": torch.tensor([seed + 0.5])}}
    return Checkpoint(step, net.state_dict(), averages, moments_of(optimizer, names), others)


def written(folder, **changes):
    """Writes state.json with some fields changed and the digest of all."""
    fields = {**json.loads((folder / "state.json").read_text()), **changes}
    del fields["sha256"]
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    (folder / "state.json").write_text(json.dumps({**fields, "sha256": hashlib.sha256(text.encode()).hexdigest()}))


def replaced(file, content):
    """Replaces a file of a checkpoint, with its digest."""
    file.write_bytes(content)
    files = json.loads((file.parent / "state.json").read_text())["files"]
    files[file.name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    written(file.parent, files=files)


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
    assert found.step == 10
    assert [(spec, average.updates) for spec, average in found.averages.items()] == [("power(std=0.1)", 10), ("ema", 9)]
    for part in ("model", "averages", "optimizer", "others"):
        assert same(getattr(saved, part), getattr(found, part))
    assert found.model["1.num_batches_tracked"].tolist() == 1


def test_state_json_names_every_file_with_size_and_digest(tmp_path):
    folder = save(tmp_path, state())
    recorded = json.loads((folder / "state.json").read_text())
    assert (recorded["format"], recorded["step"]) == (3, 10)
    assert recorded["averages"] == [{"spec": "power(std=0.1)", "updates": 10}, {"spec": "ema", "updates": 9}]
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


def test_every_mth_is_kept_besides_the_last_ones(tmp_path):
    for step in range(3, 25, 3):
        save(tmp_path, state(step), keep=2, keep_every=6)
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == [f"step_{step:08d}" for step in (6, 12, 18, 21, 24)]
    remove_older(tmp_path, keep=1, keep_every=12)  # with other settings after a resumption
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step_00000012", "step_00000024"]


def test_a_group_of_other_tensors_does_not_replace_a_part(tmp_path):
    saved = state()
    for name in ("model", "average_1"):
        with pytest.raises(InputError, match=f"the name '{name}' is taken"):
            save(tmp_path, replace(saved, others={name: {}}))


def test_what_is_not_a_checkpoint_is_neither_counted_nor_removed(tmp_path):
    folder = save(tmp_path, state(5))
    strays = [
        "step_00000009x",
        "step_",
        "step_9",
        "step_00000010.bak",
        "step_5 copy",
        ".tmp_mine",
        "notes",
        "step_" + "\u0667" * 8,
    ]
    for name in strays:
        (folder.parent / name).mkdir()
    for name in ("step_00000011", ".DS_Store"):
        (folder.parent / name).write_text("a file")
    assert latest(tmp_path) == folder
    for step in (6, 7, 8):
        save(tmp_path, state(step), keep=1)
    remove_unfinished(tmp_path)
    assert sorted(p.name for p in folder.parent.iterdir()) == sorted(
        [*strays, "step_00000011", ".DS_Store", "step_00000008"]
    )


@pytest.mark.parametrize("moment", ["fsync", "rename"])
def test_a_save_that_fails_leaves_the_last_one_and_nothing_else(tmp_path, monkeypatch, moment):
    first = save(tmp_path, state(1))

    def fail(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os if moment == "fsync" else step_folders.Path, moment, fail)
        with pytest.raises(OSError, match="No space"):
            save(tmp_path, state(2))
    assert [p.name for p in first.parent.iterdir()] == ["step_00000001"]
    assert load(first).step == 1


def test_what_a_killed_process_left_is_removed_and_carries_its_number(tmp_path, monkeypatch):
    first = save(tmp_path, state(1))
    # killed: nothing is cleaned up
    monkeypatch.setattr(step_folders.shutil, "rmtree", lambda *args, **options: None)
    monkeypatch.setattr(step_folders.Path, "rename", lambda *args: exec("raise KeyboardInterrupt"))
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, state(2))
    monkeypatch.undo()
    left = first.parent / f".tmp_step_00000002.{os.getpid()}"
    assert sorted(p.name for p in left.iterdir()) == sorted(["state.json", *PARTS])
    assert latest(tmp_path) == first
    left.rename(left.with_name(".tmp_step_00000002.12345"))
    save(tmp_path, state(2))  # another process's name is no hindrance
    remove_unfinished(tmp_path)
    assert [p.name for p in sorted(first.parent.iterdir())] == ["step_00000001", "step_00000002"]


def test_nothing_written_is_overwritten(tmp_path):
    folder = save(tmp_path, state(4))
    with pytest.raises(InputError, match="step_00000004' exists already"):
        save(tmp_path, state(4, seed=1))
    assert same(load(folder).model, state(4).model)


@pytest.mark.parametrize("name", [*PARTS, "state.json"])
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


def numbers(value, path=()):
    """The places of all numbers and texts in a document."""
    parts = enumerate(value) if isinstance(value, list) else value.items()
    for key, part in parts:
        yield from numbers(part, (*path, key)) if isinstance(part, (dict, list)) else [((*path, key), part)]


def test_every_edit_of_the_state_is_found(tmp_path):
    """By the digest of the file itself; only its spacing and order are free."""
    folder = save(tmp_path, state())
    file, good = folder / "state.json", (folder / "state.json").read_text()
    places = list(numbers(json.loads(good)))
    assert len(places) == 2 + 2 * 2 + 5 * 2 + 1  # step and format; averages; files; digest
    for path, value in places:
        for other in (value + 1, -1, 0.5, None) if isinstance(value, int) else (value[:-1] + "x", "", 7):
            document = json.loads(good)
            holder = document
            for key in path[:-1]:
                holder = holder[key]
            holder[path[-1]] = other
            file.write_text(json.dumps(document))
            with pytest.raises(InputError, match=r"state\.json' (is damaged: its SHA-256|has format)"):
                load(folder)
    file.write_text(json.dumps(json.loads(good), sort_keys=True))
    assert load(folder).step == 10


def test_bad_states_with_the_right_digest(tmp_path):
    folder = save(tmp_path, state())
    good = json.loads((folder / "state.json").read_text())
    for change, message in [
        ({"format": 2}, "has format 2; this version reads 3"),
        ({"step": 11}, "damaged: it is of step 11"),
        ({"step": -1}, "damaged: a field"),
        ({"step": True}, "damaged: a field"),
        ({"step": 2**60}, "damaged: a field"),
        ({"averages": []}, "damaged: a field"),
        ({"averages": None}, "damaged: a field"),
        ({"averages": good["averages"][:1] * 2}, "damaged: a field"),
        ({"averages": [*good["averages"], {"spec": "half_life", "updates": 10}]}, "damaged: a field"),
        ({"averages": [{"spec": "ema", "updates": "9"}]}, "damaged: a field"),
        ({"averages": [{"spec": "ema", "updates": 11}]}, "damaged: a field"),
        ({"averages": [{"spec": ["ema"], "updates": 10}]}, "damaged: a field"),
        ({"files": {name: good["files"][name] for name in PARTS[1:]}}, "damaged: a field"),
        ({"files": {**good["files"], "../stray.safetensors": good["files"][PARTS[0]]}}, "damaged: a field"),
        ({"files": {}}, "damaged: a field"),
        ({"files": None}, "damaged: a field"),
        ({"files": [good["files"]]}, "damaged: a field"),
    ]:
        written(folder, **{**good, **change})
        with pytest.raises(InputError, match=message):
            load(folder)
    for text, reason in (("[]", "not an object"), ("[" * 100_000, "nested too deeply"), ('{"step": 1', "not JSON")):
        (folder / "state.json").write_text(text)
        with pytest.raises(InputError, match=rf"state\.json' is damaged: .*{reason}"):
            load(folder)
    (folder / "state.json").unlink()
    os.mkfifo(folder / "state.json")
    with pytest.raises(InputError, match="it is a pipe"):
        load(folder)
    for place in (tmp_path, tmp_path / "missing"):
        with pytest.raises(InputError, match=r"is not a checkpoint: it has no state\.json"):
            load(place)


@pytest.mark.parametrize("name", [*PARTS, "state.json"])
def test_files_of_two_checkpoints_do_not_mix(tmp_path, name):
    one, two = save(tmp_path, state(10)), save(tmp_path, state(11))
    content, own = (two / name).read_bytes(), json.loads((one / "state.json").read_text())
    (one / name).write_bytes(content)
    with pytest.raises(InputError, match="is damaged: "):
        load(one)
    if name == "state.json":
        written(one, step=10, averages=own["averages"])
        with pytest.raises(InputError, match="is damaged: its SHA-256"):  # the files are of step 10
            load(one)
    else:
        replaced(one / name, content)
        with pytest.raises(InputError, match=rf"{name}' is of a different step: 11, not 10"):
            load(one)


class Bomb:
    def __reduce__(self):
        return (sys.exit, ("unpickled",))


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps(Bomb()),
        b"neither",
        b"",
        struct.pack("<Q", 2**60) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 100_000) + b"[" * 100_000,
        save_tensors({"x": torch.zeros(2)}),
        save_tensors({"x": torch.zeros(2)}, {"step": "ten"}),
    ],
)
def test_a_forged_file_with_the_right_digest_runs_nothing(tmp_path, name, content):
    folder = save(tmp_path, state())
    replaced(folder / name, content)
    with pytest.raises(InputError, match=rf"{name}' is (not a file of a checkpoint|of a different step)"):
        load(folder)
