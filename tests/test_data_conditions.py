"""Columns of a data set as conditions: classes, vectors, images, tokens, and what is wrong with the others."""

import gzip
import re
import struct

import numpy as np
import pytest
import torch

from scoresde.data import Condition, load
from solvers import InputError

pytestmark = pytest.mark.quick

RNG = np.random.default_rng(0)
X = np.arange(24, dtype=np.float32).reshape(12, 2) + 0.5
IMAGES = RNG.normal(size=(12, 3, 8, 9)).astype(np.float32)
LABELS = np.arange(12) % 4


def archive(tmp_path, **arrays):
    np.savez(tmp_path / "x.npz", **arrays)
    return str(tmp_path / "x.npz")


def pairs(rows, name):
    """The first number of each sample with its row of a condition."""
    batch = rows.first()
    return {float(x.flatten()[0]): row.tolist() for x, row in zip(batch.x, batch.conditions[name], strict=True)}


def test_digits_have_their_labels():
    from sklearn.datasets import load_digits

    plain, data = load("digits", seed=2), load("digits", seed=2, labels="label")
    assert (plain.card.conditions, plain.train.first().conditions) == ((), {})
    assert data.card.conditions == (Condition("label", "class", (), 10),)
    assert "label: 10 classes of 174 to 183 samples" in str(data)
    known = {images.tobytes(): int(label) for images, label in zip(*load_digits(return_X_y=True), strict=True)}
    for split, same in ((data.train, plain.train), (data.test, plain.test)):
        batch = split.first()
        assert torch.equal(batch.x, same.tensor())
        found = [known[(8 * (x + 1)).double().flatten().numpy().tobytes()] for x in batch.x]
        assert batch.conditions["label"].tolist() == found
    assert data.card.fingerprints != plain.card.fingerprints


@pytest.mark.parametrize("zipped", ["", ".gz"])
def test_idx_labels_lie_beside_the_images(tmp_path, zipped):
    for name, count, first in (("train", 6, 0), ("t10k", 3, 7)):
        images = struct.pack(">4I", 0x803, count, 2, 2) + bytes(range(4 * count))
        labels = struct.pack(">2I", 0x801, count) + bytes(range(first, first + count))
        (tmp_path / f"{name}-images-idx3-ubyte").write_bytes(images)
        content = gzip.compress(labels) if zipped else labels
        (tmp_path / f"{name}-labels-idx1-ubyte{zipped}").write_bytes(content)
    data = load("idx", str(tmp_path), labels="y")
    assert data.train.first().conditions["label"].tolist() == list(range(6))
    assert data.test.first().conditions["label"].tolist() == [7, 8, 9]
    assert data.card.conditions[0].classes == 10
    (tmp_path / f"t10k-labels-idx1-ubyte{zipped}").unlink()
    with pytest.raises(InputError, match=r"no labels of .*t10k-images-idx3-ubyte': expected t10k-labels-idx1-ubyte n"):
        load("idx", str(tmp_path), labels="y")
    load("idx", str(tmp_path))


@pytest.mark.parametrize("key", ["y", "label", "labels", "targets"])
def test_a_class_has_many_names_in_archives_and_one_in_a_network(tmp_path, key):
    for asked in ("label", "y", key):
        data = load("file", archive(tmp_path, x=X, **{key: LABELS}), labels=asked)
        assert data.card.conditions == (Condition("label", "class", (), 4),)
        found = {**pairs(data.train, "label"), **pairs(data.test, "label")}
        assert found == {float(x): int(label) for x, label in zip(X[:, 0], LABELS, strict=True)}
    assert load("file", archive(tmp_path, data=X, **{key: LABELS})).card.shape == (2,)  # a class is not the data


def test_every_kind_of_condition(tmp_path):
    columns = {
        "fine": LABELS[:, None],
        "angle": RNG.normal(size=12),
        "pose": RNG.normal(size=(12, 5)),
        "tags": RNG.integers(0, 2, (12, 7)),
        "text": RNG.normal(size=(12, 4, 6)),
        "mask": RNG.normal(size=(12, 8, 9)),
        "photo": RNG.integers(0, 256, (12, 8, 9, 3), dtype=np.uint8),
    }
    data = load("file", archive(tmp_path, x=IMAGES, **columns), labels=",".join(columns))
    assert data.card.conditions == (
        Condition("fine", "class", (), 4),
        Condition("angle", "vector", (1,)),
        Condition("pose", "vector", (5,)),
        Condition("tags", "vector", (7,)),
        Condition("text", "tokens", (4, 6)),
        Condition("mask", "image", (1, 8, 9)),
        Condition("photo", "image", (3, 8, 9)),
    )
    wanted = {
        "fine": torch.from_numpy(LABELS),
        "angle": torch.from_numpy(columns["angle"]).float()[:, None],
        "mask": torch.from_numpy(columns["mask"]).float()[:, None],
        "photo": torch.from_numpy(np.moveaxis(columns["photo"], -1, 1).astype(np.float64) / 127.5 - 1).float(),
    }
    batch = data.train.batch(torch.tensor([3, 3, 0]))
    place = [int(np.argmin(abs(IMAGES[:, 0, 0, 0] - float(x[0, 0, 0])))) for x in batch.x]
    assert place[0] == place[1] != place[2]
    for name, value in wanted.items():
        assert torch.allclose(batch.conditions[name], value[place], rtol=0, atol=1e-7)  # rounding of float32


def test_splits_of_an_archive_have_their_own_columns(tmp_path):
    path = archive(tmp_path, x_train=X, x_test=X[:3], y_train=LABELS, y_test=LABELS[1:4])
    data = load("file", path, labels="label")
    assert data.train.first().conditions["label"].tolist() == LABELS.tolist()
    assert data.test.first().conditions["label"].tolist() == [1, 2, 3]
    with pytest.raises(InputError, match=r"no column of .* 'train_angle'"):
        load("file", path, labels="angle")


def test_labels_in_a_file_of_their_own(tmp_path):
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "labels.npy", LABELS)
    np.save(tmp_path / "angle.npy", X[:, 0])
    files = ",".join(str(tmp_path / name) for name in ("labels.npy", "angle.npy"))
    data = load("file", str(tmp_path / "x.npy"), labels=files)
    assert [condition.name for condition in data.card.conditions] == ["label", "angle"]
    assert pairs(data.train, "angle") == {x: [x] for x in pairs(data.train, "label")}
    with pytest.raises(InputError, match="has its own splits"):
        load("file", archive(tmp_path, train=X, test=X), labels=str(tmp_path / "labels.npy"))
    with pytest.raises(InputError, match="has one array and no column 'label'"):
        load("file", str(tmp_path / "x.npy"), labels="label")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS - 1, "y: classes are 0 to at most 999,999, but row 0 has -1"),
        (LABELS + 2_000_000, "classes are 0 to at most 999,999, but row 3 has 2000003"),
        (LABELS + 0.25, "y: a class is a whole number, got 0.25; for a vector of one number, give the column an"),
        (LABELS[:-1], "y has 11 rows for 12 samples; give one row per sample"),
        (np.array(["a"] * 12), "expected numbers, got an array of <U1"),
        (np.full(12, np.nan), "y: contains numbers that are not finite"),
        (np.zeros((12, 2, 3, 4)), r"y has rows \(2, 3, 4\): expected a class \(\), a vector \(n,\)"),
    ],
)
def test_labels_that_are_no_condition(tmp_path, labels, message):
    with pytest.raises(InputError, match=message):
        load("file", archive(tmp_path, x=X, y=labels), labels="y")


def test_the_number_of_classes_can_be_given_and_is_that_of_the_training(tmp_path):
    path = archive(tmp_path, x=X, y=2 * LABELS.astype(float))
    data = load("file", path, labels="y")
    assert data.card.conditions[0].classes == 7
    assert "label: 7 classes of 3 to 3 samples, 3 of them without samples" in str(data)
    assert load("file", path, labels="y", classes=9).card.conditions[0].classes == 9
    with pytest.raises(InputError, match="classes are 0 to 4, but row 3 has 6"):
        load("file", path, labels="y", classes=5)
    fewer = archive(tmp_path, x=X, y=LABELS)
    assert load("file", fewer, labels="y", card=data.card).card.conditions == data.card.conditions
    more = archive(tmp_path, x=X, y=LABELS + 4)
    with pytest.raises(InputError, match="classes are 0 to 6, but row 3 has 7"):
        load("file", more, labels="y", card=data.card)
    vectors = archive(tmp_path, x=X, angle=LABELS + 0.5)
    other = load("file", vectors, labels="angle").card
    with pytest.raises(
        InputError, match=r"angle of vectors \(2,\); the model was trained with angle of vectors \(1,\)"
    ):
        load("file", archive(tmp_path, x=X, angle=X), labels="angle", card=other)


def test_the_names_of_columns_are_checked(tmp_path):
    path = archive(tmp_path, x=X, label=LABELS, pose=X)
    for labels in ("", "label,", "label, label", "label, y", ","):
        with pytest.raises(InputError, match=re.escape(f"separated by commas, got {labels!r}")):
            load("file", path, labels=labels)
    with pytest.raises(InputError, match=r"no column of .* 'pase'; did you mean pose\?"):
        load("file", path, labels="pase")
    with pytest.raises(InputError, match="no column of digits 'angle'"):
        load("digits", labels="angle")
    assert load("file", path, labels="off").card.conditions == ()
    with pytest.raises(InputError, match="classes=4, but no class is read; labels names its column"):
        load("file", path, labels="pose", classes=4)


def test_other_labels_are_other_data(tmp_path):
    first = load("file", archive(tmp_path, x=X, y=LABELS), labels="y").card
    second = load("file", archive(tmp_path, x=X, y=(LABELS + 1) % 4), labels="y").card
    assert first.differences(second) == [
        "other numbers in the 10 training samples",
        "other numbers in the 2 test samples",
    ]
    plain = load("file", archive(tmp_path, x=X, y=LABELS)).card
    assert first.differences(plain)[0].endswith("the conditions none instead of label: 4 classes")
