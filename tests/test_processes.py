"""Two and three processes that train together, over gloo: the same numbers as one, the same rows, the same end."""

import json
import math
import socket
from dataclasses import replace

import pytest
import torch
from attacks.processes import CONTEXT, serve
from trained_together import COUNT, KINDS, OPTIONS, of_kind, run, weights, work

from scoresde.training import checkpoint
from scoresde.training.processes import Processes, launched
from solvers import InputError

pytestmark = pytest.mark.long

# a package that raises on import, as a torchvision of another version of torch does
BROKEN = 'raise RuntimeError("operator torchvision::nms does not exist")'


def launch(count, folder, scenarios, path=()):
    """Runs the scenarios in some processes; returns what each process found, by scenario."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    shared |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    serve()
    started = []
    for index in range(count):
        own = {**shared, "RANK": str(index), "LOCAL_RANK": str(index)}
        started.append(CONTEXT.Process(target=work, args=(folder, scenarios, own, list(map(str, path)))))
        started[-1].start()
    for process in started:
        process.join(120)
        process.kill()
    assert [path.read_text() for path in folder.glob("error_*.txt")] == []
    read = lambda name: [json.loads((folder / f"{name}_{index}.json").read_text()) for index in range(count)]  # noqa: E731
    assert read("connected") == [False] * count  # nobody remains connected
    return {name: read(name) for name in scenarios}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What two and then three processes found, with an update of one process between them."""
    folder = tmp_path_factory.mktemp("together")
    (folder / "path" / "torchvision").mkdir(parents=True)
    (folder / "path" / "torchvision" / "__init__.py").write_text(BROKEN)
    two = launch(2, folder, ["first_part", "same_as_one", "errors", "one_dies"])
    alone = run(replace(OPTIONS, steps=8, workdir=folder / "shared"))[1].seen
    three = launch(3, folder, ["last_part", "same_as_one"], [folder / "path"])
    return folder, two, alone, three


def test_two_and_three_processes_train_as_one(found, tmp_path):
    folder, two, _, three = found
    for name, change in KINDS.items():
        result, _ = of_kind(name, replace(OPTIONS, workdir=tmp_path / name, **change))
        lines = lines_of(tmp_path / name)
        # a sum in another order differs by some roundings, of float32 or of bfloat16's products
        bound = 2e-2 if name == "bf16" else 1e-5
        for count, every in ((2, two["same_as_one"]), (3, three["same_as_one"])):
            assert all(each[name] == every[0][name] for each in every)
            assert every[0][name] == [pytest.approx(p, abs=bound) for p in weights(result)]
            own, theirs = (
                checkpoint.load(checkpoint.latest(f)).others for f in (tmp_path / name, folder / f"{name} {count}")
            )
            assert list(own) == list(theirs) == (["loss"] if name == "learned" else [])
            for key in own.get("loss", ()):
                assert torch.allclose(own["loss"][key], theirs["loss"][key], atol=1e-4), key
            theirs = lines_of(folder / f"{name} {count}")
            assert [line["step"] for line in theirs] == list(range(1, 9))
            for what, room in (("loss", bound), ("grad_norm", 10 * bound)):
                assert [line[what] for line in theirs] == pytest.approx([line[what] for line in lines], rel=room)


def learned_by(workdir):
    """What the loss of a run learned and remembers."""
    return checkpoint.load(checkpoint.latest(workdir)).others.get("loss", {})


def lines_of(workdir):
    return [json.loads(text) for text in (workdir / "train.jsonl").read_text().splitlines()]


def test_every_epoch_shows_every_row_once_to_two_then_one_then_three_processes(found):
    _, two, alone, three = found
    updates = [*joined(two["first_part"], 3), *alone[:5], *joined(three["last_part"], 6)]
    assert [len(rows) for rows in updates] == [10] * 14
    rows = [row for update in updates for row in update]
    epochs = [rows[first : first + COUNT] for first in range(0, len(rows) - COUNT, COUNT)]
    assert len(epochs) == 3
    assert all(sorted(epoch) == list(range(COUNT)) for epoch in epochs)
    # and they are the rows that one process would have seen
    assert updates == run(replace(OPTIONS, steps=14))[1].seen


def joined(seen, count):
    """The batches of several processes as whole batches; the first is read once more, to try the gradient."""
    assert all(each[0] == each[1] for each in seen)
    whole = []
    for step in range(count):
        batch = [None] * OPTIONS.batch_size
        for index, each in enumerate(seen):
            batch[index :: len(seen)] = each[1 + step]
        whole.append(batch)
    return whole


def test_what_happens_in_one_process_ends_all(found):
    folder, two, _, _ = found
    main, other = two["errors"]
    whole = run(replace(OPTIONS, steps=1))[1].seen[0]
    # row 3 is read by one of them, which reports it, and the other says who
    reader = (whole + run(replace(OPTIONS, steps=4))[1].seen[1]).index(3) % 2 if 3 in whole else None
    messages = [main["broken"], other["broken"]]
    assert sorted(messages)[1].startswith("InputError: row 3 cannot be read")
    assert sorted(messages)[0].startswith("Elsewhere: process ")
    if reader is not None:
        assert messages[reader].startswith("InputError")
    assert main["nan"].startswith("InputError: the loss is not finite at step 6: rows of the data and their noise")
    assert "the last good checkpoint is step_00000004" in main["nan"]
    row = run(replace(OPTIONS, steps=6))[1].seen[5][7]
    assert f"sigma / alpha: {row} at " in main["nan"]
    assert other["nan"] == main["nan"].replace("InputError", "Elsewhere")
    assert main["signal"] == other["signal"] == "KeyboardInterrupt: "
    assert checkpoint.latest(folder / "signal").name == "step_00000006"
    assert main["time"] == other["time"] == 1
    assert checkpoint.latest(folder / "time").name == "step_00000001"
    assert main["statistics"] == other["statistics"] == 8


def test_more_processes_than_samples_are_refused(found):
    _, two, _, _ = found
    main, other = two["errors"]
    for name, samples in (("batch", "a batch (or a part of one) of 1"), ("parts", "a batch (or a part of one) of 1"),
                          ("data", "data of 1")):  # fmt: skip
        assert main[name].startswith(f"InputError: 2 processes were launched for {samples} sample: launch fewer")
        assert other[name].startswith("Elsewhere: process 0 of 2 ended: InputError: 2 processes")


def test_a_folder_that_cannot_be_held_ends_all(found):
    _, two, _, _ = found
    main, other = two["errors"]
    assert main["folder"].startswith("InputError: cannot write to")
    assert other["folder"].startswith("Elsewhere: process 0 of 2 ended: InputError: cannot write to")


def test_a_process_that_is_killed_ends_the_others_with_a_line_that_says_so(found):
    folder, two, _, _ = found
    assert two["one_dies"][0].startswith("InputError: process 0 of 2 lost another, which has ended")
    assert checkpoint.latest(folder / "dies").name == "step_00000002"


@pytest.mark.quick
def test_a_process_without_a_launcher_is_alone(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with launched("cpu") as processes:
        assert processes == Processes(0, 1, None)
    assert list(processes.places(5)) == [0, 1, 2, 3, 4]
    assert [list(Processes(index, 3).places(8)) for index in range(3)] == [[0, 3, 6], [1, 4, 7], [2, 5]]
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(InputError, match="WORLD_SIZE, which a launcher sets, is 'two', no number"), launched("cpu"):
        pass
    assert math.isfinite(processes.total(torch.ones(1)))
