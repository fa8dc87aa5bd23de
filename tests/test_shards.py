"""Shards: every damage is found or changes nothing, and processes that score one folder at once lose nothing."""

import io
import json
import os
import random
import shutil

import numpy as np
import pytest
import torch
from commands import contents, fails, forked
from test_score import command, saved

import scoresde
from scoresde.cli.parser import main
from scoresde.io import checked_arrays
from scoresde.likelihood.learned_dequantisation import VariationalDequantiser, save_dequantiser
from scoresde.likelihood.result import LogProb
from scoresde.runs import shards
from scoresde.runs.run import load_run
from scoresde.runs.score import files_in
from scoresde.sampling.failures import Failure
from solvers import InputError
from solvers.time_grids.files import write_grid

FACTS = {"the weights": "0123", "likelihood.steps": 4}


def result(count, seed):
    """A result with every kind of field, one of its samples failed."""
    draw = torch.Generator().manual_seed(seed)
    nats, stderr, error = torch.randn(3, count, generator=draw, dtype=torch.float64)
    return LogProb(
        nats, stderr, 14, torch.randn(count, 2, generator=draw), {"prior": nats + 1, "offset": stderr}, "heun",
        "karras", "exact", 0.5, bin_width=0.125, solver_error=error, forwards=14.0, vjps=3.0, calls=28,
        freedom=torch.full((count,), 3.0),
        failures=(Failure(1, "not finite"),),
    )  # fmt: skip


@pytest.fixture
def shard(tmp_path):
    """The file of a shard with a value and a bound."""
    shards.write_shard(tmp_path / "00000.npz", FACTS, slice(4, 7), {"ode": result(3, 0), "bound": result(3, 1)})
    return tmp_path / "00000.npz"


def alike(one, other):
    """Whether two shards contain the same, bit for bit."""
    return repr([vars(part) for part in one.values()]) == repr([vars(part) for part in other.values()]) and all(
        torch.equal(a.nats, b.nats) for a, b in zip(one.values(), other.values(), strict=True)
    )


def refused(file, content):
    """Whether a shard with this content is refused with one line that names it; else it has the numbers of before."""
    before = file.read_bytes()
    whole = shards.read_shard(file, FACTS, slice(4, 7))
    file.write_bytes(content)
    try:
        assert alike(shards.read_shard(file, FACTS, slice(4, 7)), whole)
        return False
    except InputError as error:
        message = str(error)
    finally:
        file.write_bytes(before)
    assert "00000.npz" in message
    assert "\n" not in message
    return True


@pytest.mark.parametrize("distance", [71, pytest.param(7, marks=pytest.mark.slow)])
def test_a_flipped_bit_is_found_or_changes_nothing(shard, distance):
    content = shard.read_bytes()
    places = [*range(0, len(content), distance), *range(len(content) - 22, len(content))]
    found = 0
    for place in places:
        flipped = content[place] ^ (1 << (place % 8))
        found += refused(shard, content[:place] + bytes([flipped]) + content[place + 1 :])
    # free are the times and the attributes in the zip file's directory
    assert found > 0.5 * len(places)


@pytest.mark.parametrize("count", [30, pytest.param(300, marks=pytest.mark.slow)])
def test_runs_of_bytes_of_any_kind_and_files_cut_short_are_found(shard, count):
    content, chosen = shard.read_bytes(), random.Random(0)
    for _ in range(count):
        place = chosen.randrange(len(content))
        refused(shard, content[:place] + chosen.randbytes(chosen.choice([1, 4, 60])) + content[place:])
    for length in (0, 1, 10, len(content) // 2, len(content) - 1):
        assert refused(shard, content[:length])


def packed(arrays):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def test_an_array_that_is_dropped_renamed_or_added_is_named(shard):
    with np.load(shard) as file:
        arrays = dict(file)
    assert len(arrays) == 3 + 2 * 7
    for name in arrays:
        less = {key: value for key, value in arrays.items() if key != name}
        for other in (less, {**less, f"{name}x": arrays[name]}, {**arrays, f"{name}x": arrays[name]}):
            assert refused(shard, packed(other))
    for one, other in (
        ("ode.nats", "ode.stderr"),
        ("ode.nats", "bound.nats"),
        ("ode.budget.prior", "ode.budget.offset"),
    ):
        assert refused(shard, packed({**arrays, one: arrays[other], other: arrays[one]}))
    assert not refused(shard, packed(dict(reversed(arrays.items()))))


def forged(shard, change):
    """The content of a shard whose arrays were changed and whose fingerprints fit."""
    with np.load(shard) as file:
        arrays = dict(file)
    facts = json.loads(str(arrays.pop("facts")))
    change(arrays)
    manifest = {name: checked_arrays.digest(array) for name, array in arrays.items()}
    return packed({**arrays, "facts": np.array(json.dumps({**facts, "arrays": manifest}))})


def plain_with(name, value):
    def change(arrays):
        document = json.loads(str(arrays["plain"]))
        document["ode"][name] = value
        arrays["plain"] = np.array(json.dumps(document))

    return change


@pytest.mark.parametrize(
    "change",
    [
        *(plain_with(name, [1]) for name in ("solver", "nfe", "seconds", "bin_width", "kind", "failures", "vjps")),
        *(plain_with("failures", value) for value in (None, 7, [[1]], [["1", "why"]], [[9, "why"]], [[-1, "why"]])),
        *(plain_with("nfe", value) for value in (None, True, 1.5, "14")),
        plain_with("strange", 1),
        lambda arrays: arrays.update({"plain": np.array("[" * 100_000)}),
        lambda arrays: arrays.update({"plain": np.array("[]")}),
        lambda arrays: arrays.update({"plain": np.array("{}")}),
        lambda arrays: arrays.update({"plain": np.zeros(3)}),
        lambda arrays: arrays.update({"ode.nats": arrays["ode.nats"][:2]}),
        lambda arrays: arrays.update({"ode.nats": np.array("text")}),
        lambda arrays: arrays.update({"ode.nats": np.zeros(())}),
        lambda arrays: arrays.update({"ode.strange": np.zeros(3)}),
        lambda arrays: arrays.update({"other.nats": np.zeros(3)}),
        lambda arrays: arrays.update({"items": np.arange(3)}),
        lambda arrays: arrays.update({"items": np.zeros((3, 3))}),
        lambda arrays: arrays.pop("ode.nats"),
        lambda arrays: arrays.pop("items"),
        lambda arrays: arrays.pop("plain"),
    ],
)
def test_a_forged_shard_with_the_right_fingerprints_is_one_line(shard, change):
    assert refused(shard, forged(shard, change))


def test_shards_of_different_parts_are_not_joined(run, tmp_path, capsys):
    assert main(command(run, tmp_path)) == 0
    file = tmp_path / "shards" / "00001.npz"
    for change in (lambda arrays: arrays.pop("ode.budget.prior"), lambda arrays: arrays.pop("ode.solver_error")):
        before = file.read_bytes()
        file.write_bytes(forged(file, change))
        fails(capsys, command(run, tmp_path), "00001.npz is damaged (it has other parts than the other shards)")
        file.write_bytes(before)
    assert main(command(run, tmp_path)) == 0


def test_stray_files_are_not_shards_and_stay(run, tmp_path, monkeypatch):
    assert main(command(run, tmp_path / "plain")) == 0
    folder = tmp_path / "strays" / "shards"
    folder.mkdir(parents=True)
    for name in ("00000 copy.npz", "00000.npz.bak", ".DS_Store", "0.npz", ".00001.npz.12345.1.tmp", "notes.npz"):
        (folder / name).write_bytes(b"stray")
    before = contents(folder)
    assert main(command(run, tmp_path / "strays")) == 0
    after = contents(folder)
    assert {path: after[path] for path in before} == before
    assert sorted(p.name for p in set(after) - set(before)) == ["00000.npz", "00001.npz", "00002.npz"]
    ours, theirs = saved(tmp_path / "strays"), saved(tmp_path / "plain")
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


def test_files_that_a_spec_names_are_part_of_the_evaluation_by_content(run, tmp_path, capsys, monkeypatch):
    """A grid and a dequantiser with the same name and other content give another evaluation."""
    monkeypatch.chdir(tmp_path)
    dequantiser = VariationalDequantiser((1, 8, 8), layers=2, width=4)
    levels = [node.ratio for node in scoresde.plan(load_run(run).denoiser, "heun", "logsnr", 4).to_t_min().nodes]

    def write(number):
        write_grid("grid.json", [*levels[:2], levels[2] / number, *levels[3:]], {})
        with torch.no_grad():
            dequantiser.networks[0][0].weight.fill_(1 / number)
        save_dequantiser(dequantiser, "noise.safetensors")

    options = {
        "grid.json": ["--config.likelihood.grid=file:grid.json", "--config.likelihood.error=False"],
        "noise.safetensors": ["--config.likelihood.dequantiser=variational(path='noise.safetensors')"],
    }
    write(1.0)
    for name, given in options.items():
        assert main(command(run, tmp_path / f"{name}.out", *given, limit=4)) == 0
    write(1.1)
    for name, given in options.items():
        again = command(run, tmp_path / f"{name}.out", *given, limit=4)
        fails(
            capsys, again, "of a different evaluation", "'s weights is" if "noise" in name else f"content of {name} is"
        )
    write(1.0)
    assert main(command(run, tmp_path / "grid.json.out", *options["grid.json"], limit=4)) == 0


def test_the_files_that_a_spec_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.json", "b c.json", "published", "heun"):
        (tmp_path / name).write_text("{}")
    for text, files in [
        ("file:a.json", ["a.json"]),
        ("file:b c.json", ["b c.json"]),
        ("file(path='a.json')", ["a.json"]),
        ("file('b c.json', end=zero)", ["b c.json"]),
        ("pc(predictor=file(path='a.json'), corrector='file:b c.json')", ["a.json", "b c.json"]),
        ("several(parts=[file('a.json'), heun, 'file(\"b c.json\")'])", ["a.json", "b c.json"]),
        ("file:none.json", []),
        ("heun", []),  # a file that is called like a solver or an option is not meant
        ("ddpm(variance=published)", []),
        ("DPM++ 2M Karras", []),
        ("((((", []),
    ]:
        assert files_in(text) == files, text


@pytest.mark.parametrize(
    ("count", "shares"),
    [(2, False), (4, True), *(pytest.param(n, s, marks=pytest.mark.slow) for n in (2, 4, 7) for s in (True, False))],
)
def test_processes_on_one_folder_lose_nothing_and_give_the_bits_of_one(run, tmp_path, count, shares):
    """Each with its share of the shards, or all of them with the same command."""
    options = ["--config.likelihood.batch_size=2", "--config.likelihood.error=False"]
    assert main([*command(run, tmp_path / "one", limit=15), *options]) == 0
    own = [[f"--shards={k + 1}/{count}"] if shares else [] for k in range(count)]
    arguments = [[*command(run, tmp_path / "all", limit=15), *options, *share] for share in own]
    children = [forked(lambda given=given: main(given)) for given in arguments]
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * count
    assert sorted(p.name for p in (tmp_path / "all" / "shards").iterdir()) == [f"{k:05d}.npz" for k in range(8)]
    ours, theirs = saved(tmp_path / "all"), saved(tmp_path / "one")
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name].tobytes() != theirs[name].tobytes()] == []
    names = {p.name for p in (tmp_path / "all").iterdir()}
    assert names == {p.name for p in (tmp_path / "one").iterdir()}
    shutil.rmtree(tmp_path / "all" / "shards")  # the results are complete without them
    assert json.loads((tmp_path / "all" / "likelihood.json").read_text())["samples"] == 15
