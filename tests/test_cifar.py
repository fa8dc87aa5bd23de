"""CIFAR's files, and pickles that are read without unpickling."""

import pickle
import struct

import numpy as np
import pytest
import torch

from scoresde.data import load
from scoresde.data.plain_pickle import read_plain
from solvers import InputError

pytestmark = pytest.mark.quick

RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (7, 3072), dtype=np.uint8)
LABELS = [3, 1, 4, 1, 5, 9, 2]
ran = []


class Trap:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return ran.append, (1,)


def grey(x):
    """The float32 nearest to k / 127.5 - 1."""
    return torch.from_numpy((2 * x.astype(np.float64) - 255) / 255).float()


def python2(x, labels):
    """A batch as CIFAR's authors pickled it, by Python 2."""

    def text(value):
        return b"U" + struct.pack("<B", len(value)) + value

    numbers = b"".join(b"K" + struct.pack("<B", label) for label in labels)
    shape = b"K" + struct.pack("<B", len(x)) + b"M" + struct.pack("<H", 3072) + b"\x86"
    dtype = b"cnumpy\ndtype\nq\x0a" + text(b"u1") + b"K\0K\1\x87Rq\x0b(K\3" + text(b"|") + b"NNNJ" + b"\xff" * 4 + b"J"
    dtype += b"\xff" * 4 + b"K\0tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\nq\7cnumpy\nndarray\nq\x08K\0\x85" + text(b"b") + b"\x87Rq\x09("
    array += b"K\1" + shape + dtype + b"\x89T" + struct.pack("<I", x.nbytes) + x.tobytes() + b"tb"
    head = b"\x80\2}q\1(" + text(b"batch_label") + text(b"training batch 1 of 5") + text(b"labels") + b"]q\4("
    return head + numbers + b"e" + text(b"data") + array + text(b"filenames") + b"]" + b"(" + text(b"a.png") + b"eu."


def batches(folder, write, train=2):
    folder.mkdir(exist_ok=True)
    for i in range(train):
        (folder / f"data_batch_{i + 1}").write_bytes(write(X[i * 3 : i * 3 + 3], LABELS[i * 3 : i * 3 + 3]))
    (folder / "test_batch").write_bytes(write(X[6:], LABELS[6:]))
    return folder


def pickled(protocol):
    return lambda x, labels: pickle.dumps({b"data": x, b"labels": labels, b"batch_label": b"b"}, protocol=protocol)


@pytest.mark.parametrize("write", [python2, *map(pickled, (2, 3, 4, 5))], ids=["python2", "2", "3", "4", "5"])
def test_cifar_is_read_without_unpickling(tmp_path, write, monkeypatch):
    batches(tmp_path, write)
    forbidden = pickle.loads(python2(X[:3], LABELS[:3]), encoding="bytes")  # what we write is what Python 2 wrote
    assert np.array_equal(forbidden[b"data"], X[:3])
    monkeypatch.setattr(pickle, "loads", None)
    data = load("auto", str(tmp_path), labels="label")
    assert (data.name, data.card.shape, data.card.levels) == ("cifar", (3, 32, 32), (0, 255))
    assert torch.equal(data.train.tensor(), grey(X[:6].reshape(-1, 3, 32, 32)))
    assert torch.equal(data.test.tensor(), grey(X[6:].reshape(-1, 3, 32, 32)))
    assert data.train.first().conditions["label"].tolist() == LABELS[:6]


def test_cifars_binary_files(tmp_path):
    for name, rows in (
        ("data_batch_1.bin", slice(0, 2)),
        ("data_batch_2.bin", slice(2, 6)),
        ("test_batch.bin", slice(6, 7)),
    ):
        content = np.concatenate([np.array(LABELS, np.uint8)[rows, None], X[rows]], 1)
        (tmp_path / name).write_bytes(content.tobytes())
    data = load("auto", str(tmp_path), labels="y")
    assert torch.equal(data.train.tensor(), grey(X[:6].reshape(-1, 3, 32, 32)))
    assert data.train.first().conditions["label"].tolist() == LABELS[:6]
    whole = (tmp_path / "data_batch_2.bin").read_bytes()
    (tmp_path / "data_batch_2.bin").write_bytes(whole[:-1])
    with pytest.raises(InputError, match=r"data_batch_2.bin' has 12,291 bytes, which are no whole records of 3,073"):
        load("cifar", str(tmp_path))
    (tmp_path / "data_batch_2.bin").write_bytes(b"\x0a" + whole[1:])
    with pytest.raises(InputError, match=r"data_batch_2.bin': a label of CIFAR-10 is at most 9, got 10"):
        load("cifar", str(tmp_path))
    (tmp_path / "test_batch.bin").unlink()
    with pytest.raises(InputError, match=r"contains a part of CIFAR-10: test_batch.bin is missing"):
        load("cifar", str(tmp_path))


def test_cifar_100_has_two_columns(tmp_path):
    for name, rows in (("train", slice(0, 5)), ("test", slice(5, 7))):
        content = {"data": X[rows], "fine_labels": [90 + k for k in LABELS[rows]], "coarse_labels": LABELS[rows]}
        (tmp_path / name).write_bytes(pickle.dumps(content))
    (tmp_path / "meta").write_bytes(b"")
    data = load("auto", str(tmp_path), labels="label, coarse")
    assert [condition.classes for condition in data.card.conditions] == [100, 10]
    assert data.test.first().conditions["coarse"].tolist() == LABELS[5:]
    assert data.test.first().conditions["label"].tolist() == [90 + k for k in LABELS[5:]]


def hostile():
    good = pickle.dumps({"data": X[:3], "labels": LABELS[:3]})
    yield "trap", pickle.dumps({"data": X[:3], "labels": Trap()}), "it names 'builtins.getattr', which is not|it names"
    yield "system", b"cos\nsystem\n(S'true'\ntR.", r"it names 'os\.system', which is not plain data"
    yield "stack", b"\x80\4\x8c\2os\x8c\6system\x93\x8c\4true\x85R.", r"it names 'os\.system'"
    yield "objects", pickle.dumps({"data": np.array([Trap()], dtype=object), "labels": []}), "other than numbers|names"
    yield "instance", b"(ios\nsystem\n.", "it contains the instruction INST"
    yield "extension", b"\x80\2\x82\1.", "it contains the instruction EXT1"
    yield "persistent", b"Px\n.", "it contains the instruction PERSID"
    yield "state", b"\x80\2}}b.", "sets the state of what is no array"
    yield "call", b"\x80\2}\x85R.", "not a pickle of plain data|calls what is no function"
    yield "ndarray", b"\x80\2cnumpy\nndarray\n)R.", "it calls ndarray, which makes no plain data"
    yield "dtype", b"\x80\2cnumpy\ndtype\nX\1\0\0\0O\x85R.", "other than numbers"
    yield "half", good[: len(good) // 2], "not a pickle of plain data|ends early"
    yield "empty", b"", "not a pickle of plain data|ends early"
    yield "number", pickle.dumps(3), "contains no images of CIFAR-10"
    yield "shape", pickle.dumps({"data": X[:3, :7], "labels": [1, 2, 3]}), "contains no images of CIFAR-10"
    yield (
        "few",
        pickle.dumps({"data": X[:3], "labels": [1, 2]}),
        "the labels 'label' of CIFAR-10 are missing, or not one",
    )
    yield "texts", pickle.dumps({"data": X[:3], "labels": ["a"] * 3}), "labels 'label' of CIFAR-10 are missing"
    yield "large", good.replace(b"\x4d\0\x0c", b"\x4d\0\xff"), "claims the shape|no images"
    yield "huge", b"\x80\4\x8e" + struct.pack("<Q", 2**62) + b"x.", "not a pickle of plain data"
    yield "deep", b"]" * 10_000 + b".", "contains no images"
    yield "mark", b"\x80\2]e.", "a mark is missing"
    yield "self", b"\x80\2}q\0X\1\0\0\0ah\0s.", "contains no images"


@pytest.mark.parametrize("case", list(hostile()), ids=lambda case: case[0])
def test_a_hostile_pickle_is_one_line_and_does_nothing(tmp_path, case):
    _, content, message = case
    batches(tmp_path, lambda x, labels: content)
    with pytest.raises(InputError, match=message) as error:
        load("cifar", str(tmp_path))
    assert "\n" not in str(error.value)
    assert ran == []


def test_plain_pickles_are_what_python_makes_of_them():
    for protocol in (2, 3, 4, 5):
        for value in (
            {"a": [1, -2, 3.5, None, True, "text", b"bytes", 2**40]},
            {"t": (1, (2, 3), (), (1, 2, 3, 4)), "same": [[1]] * 2},
            {"x": np.arange(6, dtype=">i2").reshape(2, 3), "f": np.asfortranarray(np.arange(6.0).reshape(2, 3))},
            {"s": np.arange(0.0, 6)[::2], "e": np.zeros((0, 3), np.float32), "b": np.array([True, False])},
        ):
            content = pickle.dumps(value, protocol=protocol)
            found, wanted = read_plain(content), pickle.loads(content)
            assert found.keys() == wanted.keys()
            for key in wanted:
                assert np.array_equal(found[key], wanted[key]) if key in "xfseb" else found[key] == wanted[key], key


def test_a_data_set_of_levels_takes_no_bin_width(tmp_path):
    batches(tmp_path, pickled(4))
    with pytest.raises(InputError, match="leave out bin_width"):
        load("cifar", str(tmp_path), bin_width=0.1)
