"""Data sets: values, splits, and every way in which a file can be bad."""

import gzip
import struct

import numpy as np
import pytest
import torch

from scoresde.data import load, spread
from solvers import InputError

pytestmark = pytest.mark.quick


def idx_bytes(images):
    return b"\0\0\x08\x03" + struct.pack(">3I", *images.shape) + images.tobytes()


def images(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 5), dtype=np.uint8)


def grey(x):
    """The float32 nearest to k / 127.5 - 1."""
    return torch.from_numpy((2 * x[:, None].astype(np.float64) - 255) / 255).float()


def both(data):
    return torch.cat([data.train.tensor(), data.test.tensor()])


def sorted_rows(x):
    return sorted(map(tuple, x.flatten(1).tolist()))


def test_digits_are_scikit_learns_images_on_seventeen_levels():
    from sklearn.datasets import load_digits

    data = load("digits")
    assert (len(data.train), len(data.test), data.card.shape) == (1497, 300, (1, 8, 8))
    assert data.train.tensor().dtype == torch.float32
    assert (data.card.bin_width, data.card.low, data.card.high) == (1 / 8, -1.0, 1.0)
    every = both(data)
    assert sorted_rows(every) == sorted_rows(torch.from_numpy(load_digits().images / 8 - 1).float())
    levels = (every + 1) / data.card.bin_width
    assert torch.equal(levels, levels.round())
    assert (levels.min(), levels.max()) == (0, 16)


def test_the_split_is_a_function_of_the_seed():
    first, again, other = load("digits", seed=3), load("digits", seed=3), load("digits", seed=4)
    assert torch.equal(first.train.tensor(), again.train.tensor())
    assert torch.equal(first.test.tensor(), again.test.tensor())
    assert not torch.equal(first.test.tensor(), other.test.tensor())


@pytest.mark.parametrize(("count", "fraction", "held"), [(2, 1e-9, 1), (2, 0.999, 1), (12, 0.25, 3), (100, 1 / 6, 17)])
def test_both_sides_of_the_split_hold_a_row(tmp_path, count, fraction, held):
    np.save(tmp_path / "x.npy", np.arange(count, dtype=np.float32)[:, None] + 0.5)
    data = load("file", str(tmp_path / "x.npy"), test_fraction=fraction)
    assert len(data.test) == held
    assert sorted(both(data)[:, 0].tolist()) == [i + 0.5 for i in range(count)]


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_train_and_t10k_are_the_splits_in_file_order(tmp_path, zipped):
    train, test = images(6), images(3, seed=1)
    for name, part in (("train-images-idx3-ubyte", train), ("t10k-images.idx3-ubyte", test)):
        content = idx_bytes(part)
        file = tmp_path / (name + ".gz" * zipped)
        file.write_bytes(gzip.compress(content) if zipped else content)
    data = load("idx", str(tmp_path))
    assert data.card.bin_width == 1 / 127.5
    assert torch.equal(data.train.tensor(), grey(train))
    assert data.test.tensor().shape == (3, 1, 3, 5)
    assert torch.equal((127.5 * (data.test.tensor() + 1)).round().byte(), torch.from_numpy(test[:, None]))


def test_a_single_idx_file_is_split_by_the_seed(tmp_path):
    file = tmp_path / "train-images-idx3-ubyte"
    file.write_bytes(idx_bytes(images(12)))
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"the plain file is read, not this one")
    for path in (tmp_path, file):
        data = load("idx", str(path), seed=1)
        assert (len(data.train), len(data.test)) == (10, 2)
        assert sorted_rows(both(data)) == sorted_rows(grey(images(12)))


def test_arrays_of_any_shape_and_real_dtype(tmp_path):
    x = np.random.default_rng(0).normal(size=(10, 2, 3))
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "one.npz", anything=x)
    np.savez(tmp_path / "x.npz", x=x, labels=np.arange(10))
    parts = [load("file", str(tmp_path / name)) for name in ("x.npy", "one.npz", "x.npz")]
    for part in parts:
        assert torch.equal(part.train.tensor(), parts[0].train.tensor())
        assert sorted_rows(both(part)) == sorted_rows(torch.from_numpy(x).float())
        assert part.card.bin_width is None
        x_train = part.train.tensor()
        assert (part.card.low, part.card.high) == (float(x_train.min()), float(x_train.max()))
    np.savez(tmp_path / "split.npz", train=np.arange(6).reshape(3, 2), test=[[7, 8]])
    split = load("file", str(tmp_path / "split.npz"))  # levels 0 to 8 of both splits
    assert split.train.tensor().tolist() == [[-1, -0.75], [-0.5, -0.25], [0, 0.25]]
    assert split.test.tensor().tolist() == [[0.75, 1]]
    assert (split.card.bin_width, split.card.low, split.card.high) == (0.25, -1.0, 1.0)


RNG = np.random.default_rng(1)


@pytest.mark.parametrize(
    ("array", "first", "levels"),
    [
        (RNG.integers(0, 200, (6, 3, 8, 8), dtype=np.uint8), 0, 255),  # 8 bits, though none is white
        (RNG.integers(0, 256, (6, 3, 8, 8)).astype(np.float64), 0, 255),  # converted to floats and not scaled
        (RNG.integers(0, 17, (6, 1, 8, 8)), 0, 16),
        (RNG.integers(0, 2, (6, 1, 9, 9)).astype(bool), 0, 1),
        (RNG.integers(0, 4096, (6, 40), dtype=np.uint16), 0, None),
        (RNG.integers(0, 40, (60, 8)), 0, None),  # no images: the levels that occur
        (RNG.integers(0, 201, (60, 8), dtype=np.uint8), 0, None),
        (RNG.integers(-7, 8, (60, 4)), -7, 14),
    ],
)
def test_whole_numbers_are_levels_in_the_unit_range(tmp_path, array, first, levels):
    data = load("file", saved(tmp_path, "x.npy", array))
    levels = int(array.max()) if levels is None else levels
    wanted = torch.from_numpy((2 * (array.astype(np.float64) - first) - levels) / levels).float()
    assert sorted_rows(both(data)) == sorted_rows(wanted)
    assert data.card.bin_width == 2 / levels
    assert (data.card.low, data.card.high) == (-1.0, 1.0)
    assert f"whole numbers from {first} to {first + levels}, scaled to [-1, 1]" in str(data)


def test_images_that_use_a_small_part_of_8_bits_get_a_warning(tmp_path, recwarn):
    dark = RNG.integers(0, 40, (20, 1, 8, 8))
    with pytest.warns(
        UserWarning, match=r"only 0 to 39 occur, which become \[-1, -0\.69\]; if 39 is the largest level"
    ):
        data = load("file", saved(tmp_path, "dark.npy", dark))
    assert data.card.levels == (0, 255)
    recwarn.clear()
    remedy = load("file", saved(tmp_path, "floats.npy", (2 * dark - 39) / 39), bin_width=2 / 39)  # what it says
    assert (remedy.card.bin_width, float(remedy.train.tensor().max())) == (2 / 39, 1.0)
    for array in (
        RNG.integers(0, 256, (20, 1, 8, 8)),
        RNG.integers(0, 17, (20, 1, 8, 8)),
        RNG.integers(0, 40, (20, 8)),
    ):
        data = load("file", saved(tmp_path, "x.npy", array))
    assert "whole numbers from 0 to 39, scaled to [-1, 1]: the levels that occur" in str(data)
    load("file", saved(tmp_path, "dark.npy", dark), card=data.card)
    assert recwarn.list == []


def test_numbers_that_are_not_whole_or_already_in_range_stay(tmp_path):
    for array in (RNG.normal(size=(6, 4)) * 100, RNG.integers(-1, 2, (6, 4)).astype(float), np.zeros((4, 2))):
        data = load("file", saved(tmp_path, "x.npy", array))
        assert data.card.bin_width is None
        assert sorted_rows(both(data)) == sorted_rows(torch.from_numpy(array).float())
    with pytest.raises(InputError, match="integers from 0 to 1000000000 are not exact in float32; scale them"):
        load("file", saved(tmp_path, "x.npy", np.array([[0], [10**9]])))


def test_channels_come_first(tmp_path):
    first = RNG.integers(0, 256, (7, 3, 8, 9), dtype=np.uint8)
    wanted = load("file", saved(tmp_path, "first.npy", first))
    assert len(wanted.notes) == 1
    assert wanted.notes[0].startswith(
        "whole numbers from 0 to 255, scaled to [-1, 1]: samples (3, 8, 9) are images, read as 8 bits; "
    )
    last = load("file", saved(tmp_path, "last.npy", np.moveaxis(first, 1, -1)))
    assert torch.equal(last.train.tensor(), wanted.train.tensor())
    assert last.notes[1] == "channels moved first, samples were (8, 9, 3)"
    floats = load("file", saved(tmp_path, "floats.npy", np.moveaxis(first, 1, -1) / 255))
    assert floats.card.shape == (3, 8, 9)
    grey = load("file", saved(tmp_path, "grey.npy", first[:, 0]))
    assert torch.equal(grey.train.tensor(), wanted.train.tensor()[:, :1])
    assert grey.notes[1] == "one channel added, samples were (8, 9)"
    for shape in ((6, 4, 4, 3), (6, 8, 2), (6, 3, 8, 5)):  # too small, a table, channels first
        assert load("file", saved(tmp_path, "other.npy", RNG.normal(size=shape))).card.shape == shape[1:]


def test_data_are_scaled_as_those_of_the_training(tmp_path):
    levels = np.arange(24).reshape(12, 2) % 12
    first = load("file", saved(tmp_path, "train.npy", levels))
    card = first.card
    part = load("file", saved(tmp_path, "part.npz", train=levels, test=levels[:2]), card=card)
    assert torch.allclose(part.test.tensor(), torch.from_numpy(2 * levels[:2] / 11 - 1).float(), atol=1e-7)
    wider = load("file", saved(tmp_path, "wider.npz", train=levels, test=[[22, 0]]), card=card)
    assert wider.test.tensor().tolist() == [[3, -1]]  # outside, not scaled again
    own = load("file", saved(tmp_path, "own.npy", levels), bin_width=1.0)
    assert (own.card.bin_width, own.card.low, own.card.high, own.card.levels) == (1.0, 0.0, 11.0, None)
    with pytest.raises(InputError, match=r"digits data are levels 0\.125 apart in \[-1, 1\]; leave out bin_width"):
        load("digits", bin_width=1.0)


def test_what_was_read_is_printed(tmp_path):
    x = np.array([[0.0, 3.0], [1.0, 0.5], [2.0, -1.0]])
    data = load("file", saved(tmp_path, "x.npz", train=x, test=x[:1]))
    assert str(data) == (
        "file: 3 + 1 samples (2,) to train and test; numbers from -1 to 3, mean 0.9167, standard deviation 1.304"
    )
    assert data.card.deviation == pytest.approx(x.std(), rel=1e-12)
    assert str(load("digits")).endswith("standard deviation 0.7526; levels, 0.125 apart")


def saved(tmp_path, name, *args, **arrays):
    file = tmp_path / name
    if arrays:
        np.savez(file, **arrays)
    else:
        np.save(file, args[0], allow_pickle=True)
    return str(file)


def test_dequantisation_fills_each_bin_uniformly():
    x = torch.tensor([-1.0, 0.0, 1.0]).double().repeat(40_000, 1)
    u = torch.rand(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    moved = (spread(x, 0.125, u) - x) / 0.125
    assert torch.allclose(moved, u - 0.5, rtol=0, atol=1e-14)
    assert moved.min() >= -0.5
    assert moved.max() < 0.5
    assert spread(x, 0.125, torch.zeros_like(x))[0].tolist() == [-1.0625, -0.0625, 0.9375]
    assert abs(moved.mean()) < 5 * (1 / 12 / moved.numel()) ** 0.5
    assert abs(moved.var() - 1 / 12) < 5 * (1 / 180 / moved.numel()) ** 0.5


def test_dequantisation_refuses_noise_that_does_not_fit():
    with pytest.raises(InputError, match=r"noise has shape \(1, 2\), but x has shape \(3, 2\)"):
        spread(torch.zeros(3, 2), 0.1, torch.zeros(1, 2))
    for width in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="bin_width must be positive"):
            spread(torch.zeros(3, 2), width, torch.zeros(3, 2))
