"""Sources of data other than images and small arrays: CIFAR's files, large arrays, other libraries' data sets."""

import os
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from scoresde.data import Condition, ImageOptions, StoredRows, TensorRows, assembly, load
from scoresde.data.file_arrays import FileArray
from scoresde.data.foreign import of_huggingface
from scoresde.data.sources import source_of
from solvers import InputError

pytestmark = pytest.mark.quick

RNG = np.random.default_rng(0)


def grey(x):
    """The float32 nearest to k / 127.5 - 1."""
    return torch.from_numpy((2 * x.astype(np.float64) - 255) / 255).float()


@pytest.fixture
def streamed(monkeypatch):
    """Every data set is too large for the memory."""
    monkeypatch.setattr(assembly, "IN_MEMORY", 0)


@pytest.mark.parametrize("kind", ["<f4", ">f8", "|u1", "<i2", "<f2"])
def test_rows_that_stay_in_their_file_are_those_in_memory(tmp_path, kind, monkeypatch):
    x = RNG.integers(0, 99, (50, 2, 5)).astype(kind)
    x = x if kind[1] != "f" else x + x.dtype.type(0.5)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "labels.npy", np.arange(50) % 3)
    labels = str(tmp_path / "labels.npy")
    inside = load("file", str(tmp_path / "x.npy"), seed=2, labels=labels)
    monkeypatch.setattr(assembly, "IN_MEMORY", 0)
    monkeypatch.setattr("scoresde.data.survey.CHUNK", 64)  # several pieces
    outside = load("file", str(tmp_path / "x.npy"), seed=2, labels=labels)
    assert isinstance(inside.train, TensorRows)
    assert isinstance(outside.train, StoredRows)
    for one, other in ((inside.train, outside.train), (inside.test, outside.test)):
        index = torch.tensor([3, 0, 3, 5, 6, 7, 1])
        assert torch.equal(one.batch(index).x, other.batch(index).x)
        assert torch.equal(one.tensor(), other.tensor())
        assert torch.equal(one.batch(index).conditions["label"], other.batch(index).conditions["label"])
        assert torch.equal(one.first(4).x, other.first(4).x)
    mine, theirs = inside.card, outside.card
    assert (mine.low, mine.high, mine.levels, mine.conditions) == (
        theirs.low,
        theirs.high,
        theirs.levels,
        theirs.conditions,
    )
    assert mine.deviation == pytest.approx(theirs.deviation, rel=1e-12)  # sums in another order
    assert mine.mean == pytest.approx(theirs.mean, abs=1e-12)
    assert load("file", str(tmp_path / "x.npy"), seed=2, labels=labels).card == theirs
    assert load("file", str(tmp_path / "x.npy"), seed=3, labels=labels).card.fingerprints != theirs.fingerprints
    x[7, 1, 2] += 1
    np.save(tmp_path / "x.npy", x)
    assert load("file", str(tmp_path / "x.npy"), seed=2, labels=labels).card.fingerprints != theirs.fingerprints


def test_an_array_larger_than_the_memory_that_it_may_use(tmp_path):
    # 160 MB of which a process that may use 1 MB for data reads all once and then batches; pieces take 40 MB
    made = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (40_000, 1000))
    made[::3989] = RNG.normal(size=(11, 1000)).astype(np.float32)  # the rest is a hole in the file
    made.flush()
    script = f"""
import resource, torch
from scoresde.data import assembly, load
assembly.IN_MEMORY = 2**20
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
data = load("auto", {str(tmp_path / "x.npy")!r})
for k in range(0, len(data.train), 7000):
    data.train.batch(torch.arange(k, k + 100)).x.double().square().sum()
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((after - before) // 1024, data.card.deviation, data.card.samples, type(data.train).__name__)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    grown, deviation, *rest = done.stdout.split(maxsplit=2)
    assert int(grown) < 80
    assert float(deviation) == pytest.approx((11 / 40_000) ** 0.5, rel=0.6)  # of the rows that train, about nine
    assert rest == ["(33333, 6667) StoredRows\n"]


def test_a_file_that_becomes_shorter_is_an_error(tmp_path, streamed):
    np.save(tmp_path / "x.npy", RNG.normal(size=(50, 2)))
    data = load("file", str(tmp_path / "x.npy"))
    os.truncate(tmp_path / "x.npy", 300)
    with pytest.raises(InputError, match=r"x.npy' has become shorter while it was read"):
        data.train.tensor()


def test_safetensors(tmp_path):
    x = torch.randn(10, 3, 4)
    file = tmp_path / "x.safetensors"
    for kind in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        save_file({"x": x.to(kind), "y": torch.arange(10) % 2, "angle": x[:, 0, 0].clone()}, file)
        data = load("auto", str(file), labels="label,angle", test_fraction=0.2)
        rows = data.train.first()
        for row, angle, label in zip(rows.x, rows.conditions["angle"], rows.conditions["label"], strict=True):
            place = int((x[:, 0, 0] - angle).abs().argmin())
            assert torch.equal(row, x[place].to(kind).float())
            assert label == place % 2
    save_file({"train": x, "test": x[:3].clone()}, file)
    assert torch.equal(load("file", str(file)).test.tensor(), x[:3])
    content = file.read_bytes()
    for bad, message in (
        (content[:-1], "its header claims bytes"),
        (content.replace(b"[10,3,4]", b"[99,3,4]"), "its header claims 480 bytes for F32"),
        (content.replace(b'"F32"', b'"F8_"', 1), "a tensor of 'F8_', which is not read"),
        (content.replace(b"[10,3,4]", b'[10,"a"]'), "its header is damaged"),
        (b"\xff" * 40, "its header claims"),
    ):
        file.write_bytes(bad)
        with pytest.raises(InputError, match=f"cannot read the data '.*x.safetensors': .*{message}"):
            load("file", str(file))


def test_fortrans_order_is_read_into_memory_or_refused(tmp_path):
    x = np.asfortranarray(RNG.normal(size=(9, 4)))
    np.save(tmp_path / "x.npy", x)
    found = load("file", str(tmp_path / "x.npy"))
    assert sorted(found.train.tensor()[:, 0].tolist() + found.test.tensor()[:, 0].tolist()) == pytest.approx(
        sorted(x[:, 0]), abs=1e-6
    )


@pytest.mark.parametrize(
    ("name", "source"),
    [("x.npy", "file"), ("x.npz", "file"), ("x.safetensors", "file"), ("train-images-idx3-ubyte.gz", "idx")],
)
def test_the_source_is_found_by_the_path(tmp_path, name, source):
    (tmp_path / name).write_bytes(b"")
    assert source_of(str(tmp_path / name)) == source
    if source == "idx":
        assert source_of(str(tmp_path)) == "idx"
    else:
        with pytest.raises(InputError, match=f"contains no data that can be read; name one file: {name}"):
            source_of(str(tmp_path))


def test_paths_without_one_source(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"the path '.*missing' does not exist"):
        load("auto", str(tmp_path / "missing"))
    (tmp_path / "photos").mkdir()
    with pytest.raises(InputError, match=r"the path '.*fotos' does not exist; did you mean '.*photos'\?$"):
        load("auto", str(tmp_path / "fotos"))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(InputError, match=rf"the path '~/photos' does not exist; did you mean '{tmp_path}/photos'\?$"):
        load("auto", "~/photos")
    with pytest.raises(InputError, match="the data set 'auto' needs a path"):
        load("auto")
    (tmp_path / "x.csv").write_text("1,2")
    with pytest.raises(
        InputError, match=r"x.csv'; expected a .npy, .npz, .safetensors or idx3-ubyte file, or a folder"
    ):
        load("auto", str(tmp_path / "x.csv"))
    for name, kind, hint in (
        ("x.csv", "auto", r"numpy.save\('x.npy', numpy.loadtxt\(FILE, delimiter=',', skiprows=1\)\)"),
        ("x.csv", "file", r"numpy.save\('x.npy', numpy.loadtxt\(FILE, delimiter=',', skiprows=1\)\)"),
        ("photos.ZIP", "auto", "unpack it and give the folder"),
        ("x.pt", "file", "reading it could run code, so save the array by numpy.save"),
        ("a.jpg", "auto", "give the folder that contains the images"),
    ):
        (tmp_path / name).write_bytes(b"1,2")
        with pytest.raises(InputError, match=rf"cannot read '.*{name}'; expected .*{hint}$"):
            load(kind, str(tmp_path / name))
        (tmp_path / name).unlink()
    for name in ("a.png", "train-images-idx3-ubyte", "x.npy"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(
        InputError, match=r"contains data of several kinds \(idx, images, file\): name one with --config.data.name"
    ):
        load("auto", str(tmp_path))


def test_arrays_that_are_not_read_are_named(tmp_path):
    """Labels next to the samples may have been meant as conditions."""
    x, label = np.random.default_rng(0).normal(size=(12, 2)), np.arange(12) % 3
    np.savez(tmp_path / "x.npz", x=x, label=label, more=x)
    tensors = {name: torch.tensor(value) for name, value in (("x", x), ("label", label), ("more", x))}
    save_file(tensors, tmp_path / "x.safetensors")
    for name in ("x.npz", "x.safetensors"):
        notes = load("auto", str(tmp_path / name)).notes
        assert "not read: label, more (--config.data.labels names the conditions)" in notes
        for labels in ("off", "label"):
            assert "not read" not in str(load("auto", str(tmp_path / name), labels=labels))
    np.savez(tmp_path / "x.npz", x=x)
    assert "not read" not in str(load("auto", str(tmp_path / "x.npz")))


class Pairs(torch.utils.data.Dataset):
    def __len__(self):
        return 12

    def __getitem__(self, place):
        return torch.full((2, 3), place + 0.5), place % 4


class Dictionaries(Pairs):
    def __getitem__(self, place):
        x, label = super().__getitem__(place)
        return {"x": x.numpy(), "y": label, "angle": float(place)}


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter([torch.zeros(2)])


def test_torch_data_sets(streamed):
    for items, labels in ((Pairs(), "label"), (Dictionaries(), "label,angle")):
        data = load(items, labels=labels)
        assert isinstance(data.train, StoredRows)
        assert data.card.conditions[0] == Condition("label", "class", (), 4)
        batch = data.train.batch(torch.tensor([4, 1]))
        assert (batch.x[:, 0, 0] - 0.5).long().remainder(4).tolist() == batch.conditions["label"].tolist()
        if "angle" in labels:
            assert torch.equal(batch.conditions["angle"][:, 0], batch.x[:, 0, 0] - 0.5)
    assert load(Pairs()).card.conditions == ()
    for bad, message in (
        (Stream(), r"an iterable data set has no rows .*: pass list\(dataset\) if it fits in memory"),
        (3, "expected a data set with __getitem__ and __len__, got 3"),
        ([], "the data set is empty"),
        (["a", "b"], "item 0 has no sample that is an array"),
        ([torch.zeros(2), torch.zeros(3)], r"item 1 has the shape \(3,\), item 0 \(2,\)"),
        ([torch.zeros(2), torch.zeros(2).long()], "item 1 has the type int64, item 0 float32"),
        ([{"a": torch.zeros(2), "b": torch.zeros(2)}] * 2, "needs a column called image, img, x"),
    ):
        with pytest.raises(InputError, match=message):
            load(bad)
    with pytest.raises(InputError, match="a path and options of images belong to the name of a data set"):
        load(Pairs(), images=ImageOptions(channels=1))
    with pytest.raises(InputError, match="no column of the data set, whose items are tuples, 'label'"):
        load([torch.zeros(2)] * 3, labels="label")


def test_tensors_and_arrays_are_data_sets_too():
    x = torch.arange(24.0).reshape(12, 2) + 0.5
    for given in (x, x.numpy(), x.double()):
        data = load(given, seed=1)
        assert sorted(torch.cat([data.train.tensor(), data.test.tensor()])[:, 0].tolist()) == x[:, 0].tolist()
    whole = load({"x": x, "label": torch.arange(12) % 3, "angle": x}, labels="label,angle")
    rows = whole.train.first()
    assert torch.equal(rows.x, rows.conditions["angle"])
    assert rows.conditions["label"].tolist() == ((rows.x[:, 0] - 0.5) / 2).long().remainder(3).tolist()


class Table:
    """What a Hugging Face data set offers."""

    def __init__(self, **columns):
        self.columns = columns
        self.column_names = list(columns)

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def __getitem__(self, key):
        if isinstance(key, str):
            return self.columns[key]
        return {name: column[key] for name, column in self.columns.items()}


def test_hugging_face_data_sets(tmp_path, monkeypatch):
    from PIL import Image

    pixels = RNG.integers(0, 256, (9, 8, 8, 3), dtype=np.uint8)
    table = Table(image=[Image.fromarray(x) for x in pixels], label=list(range(9)))
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(InputError, match="need the package datasets: pip install datasets"):
        load("auto", str(tmp_path))
    fake = types.ModuleType("datasets")
    fake.load_from_disk = lambda path: {"train": table, "validation": table, "extra": table}
    fake.load_dataset = lambda name: table if name == "somebody/pictures" else 1 / 0
    monkeypatch.setitem(sys.modules, "datasets", fake)
    data = load("auto", str(tmp_path), labels="label")
    assert (data.name, data.card.shape, len(data.test)) == ("huggingface", (3, 8, 8), 9)
    assert torch.equal(data.test.tensor(), grey(np.moveaxis(pixels, -1, 1)))
    assert data.train.first().conditions["label"].tolist() == list(range(9))
    assert "splits left out: extra" in str(data)
    hub = load("auto", "hub:somebody/pictures")
    assert [len(rows) for rows in (hub.train, hub.test)] == [7, 2]
    with pytest.raises(InputError, match="cannot read the Hugging Face data set 'hub:other': division by zero"):
        load("auto", "hub:other")
    with pytest.raises(InputError, match=r"no column of the data set 'lable'; did you mean label\?"):
        load("auto", str(tmp_path), labels="lable")
    with pytest.raises(InputError, match="the data set has no split 'train'; it has test"):
        of_huggingface({"test": table})


def test_a_file_array_reads_what_is_asked_for(tmp_path):
    from scoresde.io.array_files import array_place

    x = RNG.normal(size=(20, 3))
    np.save(tmp_path / "x.npy", x)
    rows = FileArray(tmp_path / "x.npy", array_place(tmp_path / "x.npy"))
    for index in ([], [0], [19, 0, 0], [3, 4, 5, 9, 10, 2, 3]):
        assert np.array_equal(rows[np.array(index, dtype=np.int64)], x[index])
