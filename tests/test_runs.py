"""A run is one thing: it knows its data, one process trains in it, and what is wrong changes nothing in its folder."""

import contextlib
import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import SMALL, contents, fails, forked
from safetensors.torch import load as read_tensors
from safetensors.torch import save as write_tensors
from test_checkpoint import replaced
from test_train import OPTIONS
from test_train import run as train_network

import scoresde
from scoresde.cli.parser import main
from scoresde.io.result_files import exclusive, writable
from scoresde.runs.run import load_run
from scoresde.runs.saved import saved
from scoresde.training import checkpoint
from solvers import InputError

ROWS = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)


def command(workdir, path, *more):
    data = ["--config.data.name=file", f"--config.data.path={path}"]
    steps = [] if any("training.steps" in option for option in more) else ["--config.training.steps=20"]
    return ["train", "--config=digits_vp", f"--workdir={workdir}", *data, *SMALL, *steps, *more]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with data in ``x.npy`` and a run on them that is complete; tests copy it."""
    folder = tmp_path_factory.mktemp("finished")
    np.save(folder / "x.npy", ROWS)
    with contextlib.chdir(folder):
        assert main(command("run", "x.npy")) == 0
    return folder


@pytest.fixture
def folder(finished, tmp_path, monkeypatch):
    """The current folder, with a copy of the run in ``run`` and its data in ``x.npy``."""
    monkeypatch.chdir(shutil.copytree(finished, tmp_path / "copy"))
    return Path()


def changed(place, value):
    rows = ROWS.copy()
    rows[place] = value
    return rows


def test_a_run_refuses_other_data_and_says_what_differs(folder, capsys):
    before, data = contents(folder / "run"), scoresde.data.load("file", "x.npy")
    firsts = [float(split.tensor()[0, 0]) for split in (data.train, data.test)]
    trained, held_out = (ROWS[:, 0].tolist().index(x) for x in firsts)
    swapped = ROWS.copy()
    swapped[[held_out, trained]] = ROWS[[trained, held_out]]
    for rows, words in [
        (np.concatenate([ROWS, ROWS[:6]]), ["30 + 6 samples instead of 25 + 5 to train and test"]),
        (ROWS * 2, ["mean", "deviation", "instead of"]),
        (ROWS[:, :2], ["the data are of shape (2,), the model was trained on (3,)"]),
        (changed((trained, 0), ROWS[trained, 0] * (1 + 1e-6)), ["here are other numbers in the 25 training samples"]),
        (changed((held_out, 0), 0.0), ["here are other numbers in the 5 test samples"]),
        (swapped, ["run contains a run on other data: here are "]),
    ]:
        np.save(folder / "other.npy", rows)
        fails(capsys, command(folder / "run", folder / "other.npy"), *words)
        more = command(folder / "run", folder / "other.npy", "--config.training.steps=30")
        fails(capsys, more, *words)
        assert contents(folder / "run") == before
    assert main(command(folder / "run", folder / "x.npy")) == 0
    assert "already complete" in capsys.readouterr().out
    assert contents(folder / "run") == before


def test_no_failed_check_changes_a_finished_run(folder, capsys, monkeypatch):
    run, data = folder / "run", folder / "x.npy"
    np.save(folder / "nan.npy", changed((3, 1), np.nan))
    before = contents(run)
    more = "--config.training.steps=40"
    for options, word in [
        ([more, "--config.model.network=mlp(width=16, depth=1)"], "run of a different config"),
        ([more, "--config.training.loss=dsm"], "run of a different config"),
        ([more, "--config.training.clip=-1.0"], "clip must be positive"),
        ([more, "--config.training.keep=0"], "keep must be a positive integer"),
        ([more, "--config.sampling.solver=huen"], "did you mean heun"),
        ([more, "--config.likelihood.divergence=hutch"], "did you mean hutchpp"),
        ([more, "--config.device=gpu"], "gpu"),
        (["--config.training.steps=5"], "already past steps=5"),
        ([more, f"--config.data.path={folder / 'nan.npy'}"], "not finite"),
        ([more, f"--config.data.path={folder / 'none.npy'}"], "does not exist"),
    ]:
        fails(capsys, command(run, data, *options), word)
        assert contents(run) == before, options
    for name in ("model.safetensors", "state.json"):
        file = checkpoint.latest(run) / name
        whole = file.read_bytes()
        file.write_bytes(whole[:-9])
        damaged = contents(run)
        fails(capsys, command(run, data, more, "--config.training.learning_rate=0.1"), f"{name}' is damaged", "cannot")
        assert contents(run) == damaged
        file.write_bytes(whole)
    # a file of a different network, with the right digest
    file = checkpoint.latest(run) / "model.safetensors"
    tensors = read_tensors(file.read_bytes())
    name = next(iter(tensors))
    replaced(file, write_tensors({**tensors, name: tensors[name][None]}, {"step": "20"}))
    altered = contents(run)
    fails(capsys, command(run, data, more), "is a checkpoint of a different network", name)
    assert contents(run) == altered


def test_other_data_are_accepted_on_request_and_recorded(folder, capsys):
    run, other = folder / "run", folder / "other.npy"
    np.save(other, ROWS + 1)
    before, old = contents(run), saved(run)
    go_on = command(run, other, "--continue-with-other-data")
    fails(capsys, go_on, "is complete: to continue with other data, raise --config.training.steps")
    assert contents(run) == before
    assert main([*go_on, "--config.training.steps=30"]) == 0
    new = saved(run)
    assert new.card == scoresde.data.load("file", str(other)).card
    assert new.card.mean == pytest.approx(old.card.mean + 1, abs=1e-6)
    assert new.changes == [
        {
            "from": "step_00000020",
            "data.path": ["x.npy", "other.npy"],
            "training.steps": [20, 30],
            "data.fingerprints": [list(old.card.fingerprints), list(new.card.fingerprints)],
        }
    ]
    fails(capsys, command(run, folder / "x.npy", "--config.training.steps=40"), "on other data", "mean")
    assert main(command(run, other, "--config.training.steps=40")) == 0
    assert [change["from"] for change in saved(run).changes] == ["step_00000020", "step_00000030"]


def test_commands_work_with_moved_data_and_say_if_they_are_others(folder, capsys):
    run = folder / "run"
    np.save(folder / "moved.npy", ROWS)
    np.save(folder / "others.npy", ROWS[::-1])
    score = ["likelihood", f"--workdir={run}", "--config.likelihood.steps=4", "--limit=2"]
    compare = ["benchmark", f"--workdir={run}", "--solvers=ddim", "--nfe=4", "--seeds=16"]
    for name, other in (("moved", False), ("others", True)):
        path = f"--config.data.path={folder / name}.npy"
        for number, base in enumerate((score, compare) if other else (score,)):
            capsys.readouterr()
            assert main([*base, path, f"--out={folder / name}{number}"]) == 0
            said = "note: the data are not those that the run was trained on: " in capsys.readouterr().err
            assert said is other
    (folder / "x.npy").unlink()
    assert main(["sample", f"--workdir={run}", "--seeds=2", "--nfe=4", f"--out={folder / 'samples'}"]) == 0


def test_config_json_is_written_before_the_first_update(finished, tmp_path, monkeypatch):
    seen = []
    real = scoresde.training.loop.Training.update
    monkeypatch.setattr(
        scoresde.training.loop.Training,
        "update",
        lambda self: (seen.append((tmp_path / "run" / "config.json").exists()), real(self))[1],
    )
    assert main(command(tmp_path / "run", finished / "x.npy", "--config.training.steps=2")) == 0
    assert seen == [True, True]


def test_checkpoints_that_a_killed_process_did_not_remove_are_removed(folder):
    checkpoints = folder / "run" / "checkpoints"
    for step in (1, 2):  # two are kept; the process ended after the last one got its name
        shutil.copytree(checkpoints / "step_00000020", checkpoints / f"step_{step:08d}")
    assert main(command(folder / "run", folder / "x.npy")) == 0
    assert {path.name for path in checkpoints.iterdir()} == {"step_00000002", "step_00000020"}


def test_a_log_that_is_a_link_is_replaced_and_one_that_is_no_file_changes_nothing(folder, capsys):
    run, outside = folder / "run", folder / "outside.jsonl"
    outside.write_text('{"step": 1}\n')
    (run / "train.jsonl").unlink()
    (run / "train.jsonl").symlink_to(outside.resolve())
    more = command(run, folder / "x.npy", "--config.training.steps=25")
    assert main(more) == 0
    assert outside.read_text() == '{"step": 1}\n'
    assert not (run / "train.jsonl").is_symlink()
    (run / "train.jsonl").unlink()
    os.mkfifo(run / "train.jsonl")
    before = (run / "config.json").read_bytes()
    fails(capsys, command(run, folder / "x.npy", "--config.training.steps=30"), "it is a pipe or a device")
    assert (run / "config.json").read_bytes() == before


def test_a_checkpoint_that_was_moved_to_another_disk_is_a_checkpoint(folder):
    checkpoints = folder / "run" / "checkpoints"
    shutil.move(checkpoints / "step_00000020", folder / "elsewhere")
    (checkpoints / "step_00000020").symlink_to((folder / "elsewhere").resolve())
    steps = ["--config.training.steps=25", "--config.training.keep=1"]
    assert main(command(folder / "run", folder / "x.npy", *steps)) == 0
    assert [path.name for path in checkpoints.iterdir()] == ["step_00000025"]
    assert (folder / "elsewhere" / "state.json").is_file()


def test_layers_that_no_checkpoint_has_are_refused_before_they_are_made(folder):
    file = folder / "run" / "config.json"
    document = json.loads(file.read_text())
    for network in ("mlp(width=16, depth=1000000)", "unet(layers=1000000)", f"unet(channels={[16] * 2000})"):
        document["config"]["model"]["network"] = network
        file.write_text(json.dumps(document))
        with pytest.raises(InputError, match=r"does not fit the network .* but the checkpoint has \d+ tensors"):
            load_run(folder / "run")


def test_a_run_is_loaded_while_another_process_removes_its_checkpoints(folder, monkeypatch):
    checkpoints = folder / "run" / "checkpoints"

    def load(place):  # as if a training had written a newer one, and removed this one, after it was chosen
        if place.name == "step_00000020":
            place.rename(checkpoints / "step_00000021")
            raise InputError("cannot read it: No such file or directory")
        raise InputError(f"the next one, {place.name}")

    monkeypatch.setattr(checkpoint, "load", load)
    with pytest.raises(InputError, match="the next one, step_00000021"):
        load_run(folder / "run")


def test_one_process_trains_in_a_folder_and_its_death_frees_it(finished, tmp_path, capsys):
    run, endless = tmp_path / "run", "--config.training.steps=900000"
    child = forked(lambda: main(command(run, finished / "x.npy", endless)))
    try:
        deadline = time.monotonic() + 60
        while checkpoint.latest(run) is None and time.monotonic() < deadline:
            time.sleep(0.01)
        number = f" ({child})" if os.path.exists("/proc/locks") else ""
        for workdir in (run, run / ".." / "run"):
            second = command(workdir, finished / "x.npy", endless)
            fails(capsys, second, f"{workdir} is in use: another process{number} trains in it")
        with pytest.raises(InputError, match=r"is in use"):
            train_network(OPTIONS.__class__(steps=1, workdir=run))
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    (run / "checkpoints" / ".tmp_step_00000099.12345").mkdir()
    (run / ".config.json.12345.678.tmp").write_text("{")
    step = checkpoint.load(checkpoint.latest(run)).step
    assert main(command(run, finished / "x.npy", f"--config.training.steps={step + 1}")) == 0
    left = {path.name for path in run.rglob("*")} - {path.name for path in checkpoint.latest(run).iterdir()}
    assert {name for name in left if not name.startswith("step_")} == {
        *("config.json", "train.jsonl", "checkpoints", ".lock"),
    }


def test_a_folder_is_held_against_other_threads_and_freed_by_an_error(tmp_path):
    found = []

    def hold():
        try:
            with exclusive(tmp_path):
                found.append("held")
        except InputError as error:
            found.append(str(error))

    other = threading.Thread(target=hold)
    with contextlib.suppress(KeyError), exclusive(tmp_path):
        other.start()
        other.join()
        raise KeyError
    hold()
    assert len(found) == 2
    assert found[0].startswith(f"{tmp_path} is in use")
    assert found[1] == "held"


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to(path.parent / "precious")])
def test_a_lock_that_is_no_file_is_refused_or_harmless(tmp_path, make):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "precious").write_text("precious")
    make(folder / ".lock")
    message = ""
    try:
        with exclusive(folder):
            pass
    except InputError as error:
        message = str(error)
    assert message.startswith(f"cannot lock {folder}" if make is not os.mkfifo else "")
    assert (folder / "precious").read_text() == "precious"


def test_processes_that_ask_at_once_whether_a_folder_is_writable_do_not_meet(tmp_path):
    def ask():
        for _ in range(500):
            writable(tmp_path / "out")
        return 0

    children = [forked(ask) for _ in range(4)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0, 0]
    assert list((tmp_path / "out").iterdir()) == []


def edited(file, change):
    tensors = read_tensors(file.read_bytes())
    step = file.parent.name.removeprefix("step_").lstrip("0")
    replaced(file, write_tensors(change(tensors), {"step": step}))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "optimizer",
            lambda t: {**t, "last.weight.exp_avg": t["last.weight.exp_avg"].t().contiguous()},
            "last.weight.exp_avg has",
        ),
        (
            "optimizer",
            lambda t: {**t, "first.bias.exp_avg_sq": torch.zeros(())},
            r"first.bias.exp_avg_sq has the shape \(\)",
        ),
        ("optimizer", lambda t: {**t, "first.bias.step": torch.tensor(25.0)}, "first.bias.step is not a number of up"),
        (
            "optimizer",
            lambda t: {**t, "first.bias.step": torch.tensor(torch.nan)},
            "first.bias.step is not a number of",
        ),
        ("optimizer", lambda t: {**t, "first.bias.step": torch.full((2,), 24.0)}, "first.bias.step is not a number of"),
        (
            "optimizer",
            lambda t: {**t, "fist.bias.step": torch.tensor(24.0)},
            "has fist.bias.step, of which the network",
        ),
        ("optimizer", lambda t: {k: v for k, v in t.items() if k != "first.bias.exp_avg"}, "has only .* of first.bias"),
        ("model", lambda t: {**t, "last.bias": t["last.bias"][:1].clone()}, "last.bias"),
        ("average_0", lambda t: {**t, "last.weight": t["last.weight"].t().contiguous()}, "last.weight"),
        ("average_0", lambda t: {k: v for k, v in t.items() if k != "norm.running_var"}, "norm.running_var"),
        ("model", lambda t: {**t, "more": torch.zeros(1)}, "more"),
    ],
)
def test_a_checkpoint_of_other_shapes_is_refused_by_name(tmp_path, name, change, message):
    options = OPTIONS.__class__(steps=24, batch_size=10, workdir=tmp_path)
    train_network(options)
    edited(checkpoint.latest(tmp_path) / f"{name}.safetensors", change)
    before = contents(tmp_path)
    with pytest.raises(InputError, match=rf"step_00000024' is a checkpoint of a different network: .*{message}"):
        train_network(OPTIONS.__class__(steps=30, batch_size=10, workdir=tmp_path))
    assert contents(tmp_path) == before


JUNK = [None, True, -1, 0, 10**30, 1e308, float("nan"), float("inf"), "", "x" * 20_000, "((((", [], [[]], {}, {"a": {}}]


def fields_of(document, path=()):
    for key, value in document.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from fields_of(value, (*path, key))


@pytest.mark.filterwarnings("ignore")
def test_whatever_stands_in_config_json_is_a_config_or_one_error(folder):
    file = folder / "run" / "config.json"
    document = json.loads(file.read_text())
    refused = []
    for i, path in enumerate(list(fields_of(document))):
        for junk in JUNK[i % 3 :: 3]:  # a third of them, another third at the next field
            changed = json.loads(json.dumps(document))
            holder = changed
            for key in path[:-1]:
                holder = holder[key]
            holder[path[-1]] = junk
            file.write_text(json.dumps(changed))
            try:
                load_run(folder / "run")
            except InputError as error:
                refused.append(str(error))
    assert len(refused) > 200
    assert [message for message in refused if "\n" in message] == []
    huge = json.loads(json.dumps(document))
    huge["config"]["model"]["network"] = "mlp(width=900000, depth=3)"  # 10 TB
    wide = json.loads(json.dumps(document))
    wide["data"]["shape"] = [1000, 1000, 1000]
    for document, name in (
        (huge, "embed.0.weight is (32, 64) in the checkpoint, and (900000, 64) in"),
        (wide, "and (32, 1000000000) in"),
    ):
        file.write_text(json.dumps(document))
        with pytest.raises(InputError, match="step_00000020 does not fit the network") as caught:
            load_run(folder / "run")
        assert name in str(caught.value)
    for text in ("", "[]", "null", "7", "{" * 10_000, '{"config": {}, "config": {}}', "\0", '{"config": []}'):
        file.write_text(text)
        with pytest.raises(InputError, match=r"config\.json"):
            load_run(folder / "run")
