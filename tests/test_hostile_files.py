"""Files of arrays from anybody: one line for each fault, no memory for a claim, no code, no waiting."""

import gzip
import io
import json
import os
import pickle
import struct
import zipfile
import zlib

import numpy as np
import pytest
import torch
from safetensors.torch import save

from scoresde import data
from scoresde.io import array_files
from scoresde.io.array_files import read_array, read_arrays, read_images, read_tensors
from solvers import InputError

pytestmark = pytest.mark.quick

ran = []


class Trap:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return ran.append, (1,)


def header(text):
    text = text.encode() + b" " * (53 - len(text) % 64 % 54) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def claim(shape, kind="<f8"):
    return header(f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {shape}, }}")


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def archive(path, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in members.items():
            made.writestr(f"{name}.npy", content)
    return path


def idx(*sizes):
    return b"\0\0\x08\x03" + struct.pack(">3I", *sizes)


@pytest.mark.parametrize("kind", ["<f4", ">f8", "<i2", "|b1", "<c16", "<U7", "|S3", "|u1"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_are_what_was_written(tmp_path, kind, order):
    array = np.asarray(np.arange(24).reshape(2, 3, 4), order=order).astype(kind)
    np.save(tmp_path / "x.npy", array)
    np.savez_compressed(tmp_path / "x.npz", x=array, none=array[:0], one=np.array("text"))
    for found in (read_array(tmp_path / "x.npy"), read_arrays(tmp_path / "x.npz")["x"]):
        assert found.dtype == np.dtype(kind).newbyteorder("=")
        assert np.array_equal(found, array)
    others = read_arrays(tmp_path / "x.npz", pick=lambda names: [name for name in names if name != "x"])
    assert others.keys() == {"none", "one"}
    assert str(others["one"]) == "text"
    assert others["none"].shape == (0, 3, 4)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (claim((10**13,)), "its header claims 80,000,000,000,000 bytes .* and 0 are there"),
        (claim((10**30,)), "its header claims 8,000"),
        (claim((2,)) + bytes(15), "its header claims 16 bytes .* and 15 are there"),
        (claim((2,)) + bytes(17), "its header claims 16 bytes .* and 17 are there"),
        (claim((-1, -2)) + bytes(16), "not of numbers or text"),
        (claim((1,) * 200) + bytes(8), "dimension"),
        (claim((10**12,), "<U0"), "not of numbers or text"),
        (claim((1,), "<U1") + b"\xff\xff\xff\xff", "its text is damaged"),
        (claim((1,), "<M8[s]") + bytes(8), "not of numbers or text"),
        (claim((1,), "|O") + pickle.dumps(Trap()), "pickled objects"),
        (npy(np.array([Trap()])), "pickled objects"),
        (header("[" * 9000), "not an array in NumPy's format"),
        (header("{'descr': '<f8', 'shape': __import__('os').getpid()}"), "not an array in NumPy's format"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\x7f", "not an array in NumPy's format"),
        (npy(np.zeros(3, [("a", "<f4"), ("b", "O")])), "pickled objects"),
        (pickle.dumps(Trap()), "not an array in NumPy's format"),
        (b"", "not an array in NumPy's format"),
    ],
)
def test_a_hostile_array_is_one_line(tmp_path, content, reason):
    (tmp_path / "x.npy").write_bytes(content)
    archive(tmp_path / "x.npz", x=content)
    for read, name in ((read_array, "x.npy"), (read_arrays, "x.npz")):
        with pytest.raises(InputError, match=f"cannot read the grid '.*{name}': .*{reason}") as error:
            read(tmp_path / name, "grid")
        assert "\n" not in str(error.value)
    assert ran == []


def test_an_archive_that_unpacks_to_more_than_the_limit_is_not_unpacked(tmp_path, monkeypatch):
    archive(tmp_path / "x.npz", x=npy(np.zeros(10**6)))
    with pytest.raises(InputError, match="it claims 8,000,128 bytes, unpacked; at most 1,000,000 are read"):
        read_arrays(tmp_path / "x.npz", limit=10**6)
    monkeypatch.setattr(array_files, "LARGEST_UNPACKED", 10**6)  # by itself: a hundred times the file, which has 8 kB
    with pytest.raises(InputError, match="it claims 8,000,128 bytes, unpacked"):
        read_arrays(tmp_path / "x.npz")


def damaged_archives(path):
    """An archive with one fault, by the name of the fault."""
    good = archive(path, x=npy(np.arange(300.0)), y=npy(np.arange(3.0))).read_bytes()
    central = good.index(b"PK\x01\x02")

    def with_bytes(place, content):
        return good[:place] + content + good[place + len(content) :]

    yield "larger", with_bytes(central + 24, struct.pack("<I", 2**31))
    yield "smaller", with_bytes(central + 24, struct.pack("<I", 200))
    yield "packed", with_bytes(central + 20, struct.pack("<I", 2**31))
    yield "bzip2", with_bytes(central + 10, struct.pack("<H", 12))
    yield "strange", with_bytes(central + 10, struct.pack("<H", 77))
    yield "encrypted", with_bytes(central + 8, b"\1\0")
    yield "version", with_bytes(central + 6, b"\xff\0")
    yield "offset", with_bytes(central + 42, struct.pack("<I", 2**31))
    yield "directory", with_bytes(len(good) - 10, struct.pack("<I", 2**31))
    yield "start", with_bytes(len(good) - 6, struct.pack("<I", 2**31))
    yield "flipped", with_bytes(60, bytes([good[60] ^ 1]))
    yield "half", good[: len(good) // 2]
    yield "short", good[:-1]


def test_every_damaged_archive_is_one_line(tmp_path):
    for name, content in damaged_archives(tmp_path / "good.npz"):
        (tmp_path / f"{name}.npz").write_bytes(content)
        with pytest.raises(InputError, match=f"cannot read the shard '.*{name}.npz': ") as error:
            read_arrays(tmp_path / f"{name}.npz", "shard")
        assert "\n" not in str(error.value), name


def test_a_name_that_occurs_twice_is_refused(tmp_path):
    archive(tmp_path / "x.npz", x=npy(np.array([1.0])), y=npy(np.array([2.0])))
    (tmp_path / "x.npz").write_bytes((tmp_path / "x.npz").read_bytes().replace(b"y.npy", b"x.npy"))
    with pytest.raises(InputError, match="it contains a name twice"):
        read_arrays(tmp_path / "x.npz")


def test_a_directory_of_a_million_members_is_not_read(tmp_path):
    entry = b"PK\x01\x02" + bytes(42)
    content = entry * 100_000
    end = b"PK\x05\x06" + struct.pack("<4HIIH", 0, 0, 65535, 65535, len(content), 0, 0)
    (tmp_path / "x.npz").write_bytes(content + end)
    with pytest.raises(InputError, match="its directory claims 4,600,000 bytes"):
        read_arrays(tmp_path / "x.npz")


def test_no_reader_waits_for_a_pipe(tmp_path):
    for name, read in (("x.npy", read_array), ("x.npz", read_arrays), ("x.gz", read_images), ("x", read_tensors)):
        os.mkfifo(tmp_path / name)
        with pytest.raises(InputError, match="it is a pipe or a device"):
            read(tmp_path / name)
    for name in ("x.npy", "x.npz"):
        with pytest.raises(InputError, match="it is a pipe or a device"):
            data.load("file", path=str(tmp_path / name))


@pytest.mark.parametrize("name", ["x", "x.gz"])
def test_images_are_those_that_were_written(tmp_path, name):
    pixels = np.random.default_rng(0).integers(0, 256, (50, 30, 20), np.uint8)
    content = idx(50, 30, 20) + pixels.tobytes()
    # of two members, as parallel programs write them
    (tmp_path / name).write_bytes(content if name == "x" else gzip.compress(content[:9]) + gzip.compress(content[9:]))
    assert np.array_equal(read_images(tmp_path / name), pixels)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            gzip.compress(idx(2**32 - 1, 2**32 - 1, 2**32 - 1)),
            "it claims 79,228,162,458,924,105,385,300,",
        ),
        (gzip.compress(idx(2, 3, 4) + bytes(23)), "23 for 24 pixels"),
        (gzip.compress(idx(2, 3, 4) + bytes(2**24)), "more bytes for 24 pixels"),  # a bomb: not unpacked
        (gzip.compress(idx(2, 3, 4) + bytes(24))[:-3], "it ends early"),
        (gzip.compress(idx(2, 3, 4) + bytes(24))[:-8] + bytes(8), "incorrect data check"),
        (gzip.compress(b""), "is not an IDX file"),
        (b"\x1f\x8b\x08\x08\0\0\0\0\0\0" + b"a" * 10**6, "it ends early"),  # a name without an end
        (idx(2, 3, 4), "incorrect header"),
    ],
    ids=["huge", "short", "bomb", "cut", "checksum", "empty", "name", "plain"],  # the content has a time stamp
)
def test_hostile_images_are_one_line(tmp_path, content, reason):
    (tmp_path / "x.gz").write_bytes(content)
    with pytest.raises(InputError, match=reason):
        read_images(tmp_path / "x.gz")


def test_what_a_bomb_unpacks_to_is_limited(tmp_path, monkeypatch):
    packed = zlib.compressobj(9, wbits=31)
    content = packed.compress(idx(2**6, 2**9, 2**9)) + packed.compress(bytes(2**24)) + packed.flush()
    (tmp_path / "x.gz").write_bytes(content)
    with pytest.raises(InputError, match="it claims 16,777,216 pixels"):
        read_images(tmp_path / "x.gz", limit=2**20)
    assert read_images(tmp_path / "x.gz").sum() == 0


def tensors(**claims):
    head = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **claims}}).encode()
    return struct.pack("<Q", len(head)) + head + bytes(8)


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 2**62) + b"{}",
        struct.pack("<Q", 0),
        b"",
        b"1234567",
        struct.pack("<Q", 50_000) + b"[" * 50_000,
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 4) + b"\xff\xfe{}",
        tensors(shape=[2**40], data_offsets=[0, 2**42]),
        tensors(shape=[2**62, 2**62]),
        tensors(data_offsets=[8, 0]),
        tensors(dtype="PICKLE"),
        tensors()[:-1],
        tensors() + b"more",
    ],
)
def test_a_hostile_file_of_tensors_is_one_line(tmp_path, content):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"cannot read the weights '.*x.safetensors': \S") as error:
        read_tensors(tmp_path / "x.safetensors", "weights")
    assert "\n" not in str(error.value)


def test_tensors_are_those_that_were_written(tmp_path):
    written = {"a": torch.randn(3, 2), "b": torch.arange(4, dtype=torch.int16)}
    (tmp_path / "x").write_bytes(save(written, {"format": "mine"}))
    found, facts = read_tensors(tmp_path / "x")
    assert facts == {"format": "mine"}
    assert found.keys() == written.keys()
    assert all(torch.equal(found[name], written[name]) for name in written)
