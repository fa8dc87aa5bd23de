"""Every way in which the files of a data set can be bad."""

import gzip
import pickle
import struct
import sys

import numpy as np
import pytest
from test_data import saved

from scoresde.data import load
from solvers import InputError

pytestmark = pytest.mark.quick


def idx_bytes(images):
    return b"\0\0\x08\x03" + struct.pack(">3I", *images.shape) + images.tobytes()


def images(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 5), dtype=np.uint8)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((0, 3)), r"empty, its shape is \(0, 3\)"),
        (np.zeros((4, 0)), "empty"),
        (np.zeros((1, 3)), "1 row cannot be split"),
        (np.array([[1.0], [np.nan]]), "not finite"),
        (np.array([[1.0], [1e300], [np.nan]]), "not finite in float32, first in row 1$"),
        (np.zeros(5), r"expected an array \(N, \*\) of N samples, got shape \(5,\); x\[:, None\] has N samples of one"),
        (np.zeros((3, 2), complex), "real numbers, got an array of complex128"),
        (np.array([["a"], ["b"]]), "real numbers"),
        (np.array([[{}], [{}]], dtype=object), "pickled objects, which are refused"),
    ],
)
def test_bad_arrays(tmp_path, array, message):
    with pytest.raises(InputError, match=message):
        load("file", saved(tmp_path, "x.npy", array))


def test_bad_archives(tmp_path):
    objects = np.array([[{}], [{}]], dtype=object)
    with pytest.raises(InputError, match="refused"):
        load("file", saved(tmp_path, "objects.npz", x=objects))
    with pytest.raises(InputError, match="it has a, b"):
        load("file", saved(tmp_path, "two.npz", a=np.zeros((2, 2)), b=np.zeros((2, 2))))
    with pytest.raises(InputError, match=r"samples are \(2,\) in train but \(3,\) in test"):
        load("file", saved(tmp_path, "split.npz", train=np.zeros((2, 2)), test=np.zeros((2, 3))))
    with pytest.raises(InputError, match="empty"):
        load("file", saved(tmp_path, "empty.npz", train=np.zeros((2, 2)), test=np.zeros((0, 2))))


class Bomb:
    def __reduce__(self):
        return (sys.exit, ("unpickled",))


@pytest.mark.parametrize("content", [b"", b"not an array", pickle.dumps(Bomb()), b"PK\x03\x04 not a zip"])
@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_files_that_are_not_arrays(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"cannot read the data '.*{name}'"):
        load("file", str(tmp_path / name))


def test_damaged_arrays(tmp_path):
    for name in ("x.npy", "x.npz"):
        file = tmp_path / name
        x = np.random.default_rng(0).normal(size=(50, 4))
        np.save(file, x) if name == "x.npy" else np.savez_compressed(file, x=x)
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])
        with pytest.raises(InputError, match="cannot read"):
            load("file", str(file))
        file.write_bytes(content[:300] + bytes(100) + content[400:])
        if name == "x.npz":  # a .npy file has no checksum
            with pytest.raises(InputError, match="cannot read"):
                load("file", str(file))


def test_bad_idx_files(tmp_path):
    good = idx_bytes(images(4))
    file = tmp_path / "images-idx3-ubyte"
    for content, message in [
        (b"", "not an IDX file"),
        (b"\x89PNG" + good, "not an IDX file"),
        (b"\0\0\x08\x01" + good[4:], "not an IDX file of images"),
        (b"\0\0\x0d\x03" + good[4:], "unsigned bytes in three dimensions"),
        (good[:-1], r"it claims 60 pixels \(4, 3, 5\)"),
        (good + b"\0", "more bytes for 60 pixels"),
        (idx_bytes(images(0)), "empty"),
        (idx_bytes(images(1)), "1 row cannot be split"),
    ]:
        file.write_bytes(content)
        with pytest.raises(InputError, match=message):
            load("idx", str(tmp_path))
    file.unlink()
    zipped = tmp_path / "images-idx3-ubyte.gz"
    packed = gzip.compress(good)
    for content in (good, packed[:20], packed[:30] + b"\0\0\0" + packed[33:]):
        zipped.write_bytes(content)
        with pytest.raises(InputError, match=r"cannot read the data '.*images-idx3-ubyte\.gz'"):
            load("idx", str(tmp_path))


def test_folders_without_one_clear_set_of_images(tmp_path):
    with pytest.raises(InputError, match="no IDX images"):
        load("idx", str(tmp_path))
    for name in ("a-images-idx3-ubyte", "b-images-idx3-ubyte"):
        (tmp_path / name).write_bytes(idx_bytes(images(4)))
    with pytest.raises(InputError, match="name one file: a-images-idx3-ubyte, b-images-idx3-ubyte"):
        load("idx", str(tmp_path))
    for name, part in (("train", images(4)), ("t10k", images(4)[:, :2])):
        (tmp_path / "c").mkdir(exist_ok=True)
        (tmp_path / "c" / f"{name}-images-idx3-ubyte").write_bytes(idx_bytes(np.ascontiguousarray(part)))
    with pytest.raises(InputError, match=r"samples are \(1, 3, 5\) in train but \(1, 2, 5\) in test"):
        load("idx", str(tmp_path / "c"))


def test_bad_names_and_paths(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"no data set 'digit'; did you mean digits\?"):
        load("digit")
    with pytest.raises(InputError, match="takes no path"):
        load("digits", "somewhere")
    with pytest.raises(InputError, match="test_fraction must lie between 0 and 1, got 1"):
        load("digits", test_fraction=1)
    with pytest.raises(InputError, match="a seed must be an integer"):
        load("digits", seed=-1)
    for name in ("idx", "file"):
        with pytest.raises(InputError, match=f"'{name}' needs a path"):
            load(name)
        with pytest.raises(InputError, match="does not exist"):
            load(name, str(tmp_path / "missing.npy"))
    with pytest.raises(InputError, match="is a folder"):
        load("file", str(tmp_path))
    (tmp_path / "x.csv").write_text("1,2")
    with pytest.raises(InputError, match=r"expected a \.npy, \.npz or \.safetensors file"):
        load("file", str(tmp_path / "x.csv"))
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(InputError, match=r'pip install "scoresde\[metrics\]"'):
        load("digits")
