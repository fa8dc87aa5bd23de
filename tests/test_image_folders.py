"""Folders of images: pixels, colours, sizes, splits, classes, and files that are damaged."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from scoresde.data import load
from scoresde.data.images import size_of
from scoresde.data.storage import ImageOptions
from solvers import InputError

pytestmark = pytest.mark.quick

RNG = np.random.default_rng(0)


def pixels(*shape):
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def write(folder, name, array, mode=None, **options):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    (image if mode is None else image.convert(mode)).save(path, **options)
    return path


def some(folder, count=6, shape=(8, 9, 3), start=0, **options):
    """Writes images; returns their pixels by name."""
    found = {f"{start + i:03d}.png": pixels(*shape) for i in range(count)}
    for name, array in found.items():
        write(folder, name, array, **options)
    return found


def images(**options):
    return ImageOptions(**options)


def seen(data):
    """The samples of both splits as bytes (N, H, W, C) in the order of the files, if their first numbers are."""
    x = torch.cat([data.train.tensor(), data.test.tensor()])
    levels = (127.5 * (x + 1)).round().byte().numpy()
    return np.moveaxis(levels, 1, -1)


def same(found, wanted):
    return sorted(x.tobytes() for x in found) == sorted(x.tobytes() for x in wanted)


def test_the_pixels_are_those_of_the_files(tmp_path):
    wanted = some(tmp_path / "colour")
    data = load("images", str(tmp_path / "colour"), seed=3)
    assert (data.card.shape, data.card.levels, data.card.bin_width) == ((3, 8, 9), (0, 255), 2 / 255)
    assert (len(data.train), len(data.test)) == (5, 1)
    assert same(seen(data), wanted.values())
    grey = some(tmp_path / "grey", shape=(8, 9))
    found = load("auto", str(tmp_path / "grey"))
    assert (found.name, found.card.shape) == ("images", (1, 8, 9))
    assert same(seen(found)[..., 0], grey.values())
    other = load("images", str(tmp_path / "grey"), seed=1)
    assert same(seen(other), seen(found))
    assert not torch.equal(other.train.tensor(), found.train.tensor())
    x = np.stack([wanted[f"{i:03d}.png"] for i in range(6)]).astype(np.float64) / 127.5 - 1
    held = [float(sample[0, 0, 0]) for sample in data.test.tensor()]
    trained = np.stack([sample for sample in x if not np.isclose(sample[0, 0, 0], held, atol=1e-6).any()])
    # rounding of float32, 1e-7 for each number
    assert data.card.mean == pytest.approx(trained.mean(), abs=1e-6)
    assert data.card.deviation == pytest.approx(trained.std(), abs=1e-6)


def test_images_are_read_in_a_process_that_has_not_imported_pillow(tmp_path):
    some(tmp_path, 30)
    script = f"from scoresde.data import load; print(len(load('images', {str(tmp_path)!r}).train))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "25\n"


def test_formats_and_ways_to_store_colours(tmp_path):
    array = pixels(8, 8, 3)
    palette = Image.fromarray(array).quantize(4)
    wanted = [array, np.asarray(palette.convert("RGB"))]
    for i, ending in enumerate(("png", "bmp", "tiff", "webp", "ppm", "PNG")):
        write(tmp_path, f"{i}.{ending}", array, **({"lossless": True} if ending == "webp" else {}))
    write(tmp_path, "p.png", palette)
    write(tmp_path, "q.gif", palette)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_text("no image")
    assert same(seen(load("images", str(tmp_path))), [*[wanted[0]] * 6, *[wanted[1]] * 2])
    bits = RNG.integers(0, 2, (8, 8), dtype=np.uint8) * 255
    for i in range(3):
        write(tmp_path / "bits", f"{i}.png", bits, "1")
    data = load("images", str(tmp_path / "bits"))
    assert data.card.levels == (0, 255)
    assert same(seen(data), [bits] * 3)


def test_grey_and_colours_together_are_an_error_unless_they_are_converted_on_purpose(tmp_path):
    colour = some(tmp_path, 4)
    grey = some(tmp_path, 2, (8, 9), start=4)
    with pytest.raises(
        InputError, match=r"4 with colours \(such as 000.png\), 2 with grey \(such as 004.png\): --config.data.ch"
    ):
        load("images", str(tmp_path))
    data = load("images", str(tmp_path), images=images(channels=3))
    assert same(seen(data), [*colour.values(), *(np.repeat(x[..., None], 3, -1) for x in grey.values())])
    luma = load("images", str(tmp_path), images=images(channels=1))
    assert same(
        seen(luma)[..., 0], [*(np.asarray(Image.fromarray(x).convert("L")) for x in colour.values()), *grey.values()]
    )
    with pytest.raises(InputError, match=r"data.channels must be 1 \(grey\), 3 \(colours\) or 4 .* got 2"):
        load("images", str(tmp_path), images=images(channels=2))
    write(tmp_path / "print", "a.jpg", pixels(8, 8, 3), "CMYK")
    with pytest.raises(InputError, match=r"1 with CMYK colours \(such as a.jpg\): --config.data.channels=1 makes all"):
        load("images", str(tmp_path / "print"))


def test_opacity_is_kept_or_put_on_white_only_if_told_so(tmp_path):
    opaque = np.concatenate([pixels(8, 8, 3), np.full((8, 8, 1), 255, np.uint8)], -1)
    write(tmp_path, "a.png", opaque)
    write(tmp_path, "b.png", opaque[..., :3])
    assert same(seen(load("images", str(tmp_path))), [opaque[..., :3].copy()] * 2)  # nothing is lost
    clear = opaque.copy()
    clear[:4, :, 3] = 0
    write(tmp_path, "b.png", clear)
    with pytest.raises(InputError, match=r"b.png' is transparent: --config.data.channels=4 keeps the opacity"):
        load("images", str(tmp_path))
    assert same(seen(load("images", str(tmp_path), images=images(channels=4))), [opaque, clear])
    white = opaque[..., :3].copy()
    white[:4] = 255
    assert same(seen(load("images", str(tmp_path), images=images(channels=3))), [opaque[..., :3].copy(), white])
    key = Image.fromarray(opaque[..., :3].copy())
    write(tmp_path, "b.png", key, transparency=tuple(int(c) for c in opaque[2, 3, :3]))  # one colour is clear
    with pytest.raises(InputError, match=r"b.png' is transparent"):
        load("images", str(tmp_path))


def test_sixteen_bits_are_levels_of_their_own(tmp_path):
    deep = RNG.integers(0, 65536, (4, 8, 8), dtype=np.uint16)
    for i, array in enumerate(deep):
        write(tmp_path, f"{i}.png", array)
    data = load("images", str(tmp_path))
    assert (data.card.shape, data.card.levels, data.card.bin_width) == ((1, 8, 8), (0, 65535), 2 / 65535)
    x = torch.cat([data.train.tensor(), data.test.tensor()]).double()
    assert same(((x + 1) * 32767.5).round().to(torch.int32).numpy().astype(np.uint16)[:, 0], deep)
    small = load("images", str(tmp_path), images=images(size=(4, 4), resize="box"))
    means = deep.reshape(4, 4, 2, 4, 2).mean((2, 4))  # a box filter of half the size
    got = (torch.cat([small.train.tensor(), small.test.tensor()]).double() + 1) * 32767.5
    order = [int(np.argmin([abs(means[i] - g[0].numpy()).max() for i in range(4)])) for g in got]
    assert sorted(order) == [0, 1, 2, 3]
    assert abs(got[:, 0].numpy() - means[order]).max() <= 0.51  # rounded to a level
    some(tmp_path, 2, (8, 8), start=7)
    with pytest.raises(InputError, match=r"4 with grey of 16 bits .*, 2 with grey .*: grey of 16 bits cannot be mixed"):
        load("images", str(tmp_path))


def test_colours_of_sixteen_bits_are_not_reduced_to_eight(tmp_path):
    import struct
    import zlib

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    rows = b"".join(b"\0" + bytes(range(48)) for _ in range(8))
    header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    with pytest.raises(
        InputError, match=r"2 with colours of 16 bits \(such as a.png\): Pillow reads colours of 16 bits"
    ):
        load("images", str(tmp_path))


def test_different_sizes_are_an_error_that_says_how_to_resize(tmp_path):
    write(tmp_path, "a.png", pixels(8, 8, 3))
    tall = np.zeros((20, 10, 3), np.uint8)
    tall[5:15] = 200  # the square in the middle
    write(tmp_path, "b.png", tall)
    with pytest.raises(
        InputError,
        match=r"2 different sizes, height x width from 8x8 \(a.png\) to 20x10 \(b.png\): --config.data.size=64",
    ):
        load("images", str(tmp_path))
    data = load("images", str(tmp_path), images=images(size=(10, 10)))
    assert data.card.shape == (3, 10, 10)
    assert (200 * np.ones((10, 10, 3), np.uint8)).tobytes() in [x.tobytes() for x in seen(data)]
    assert (
        "2 images resized to 10x10 by bicubic, the middle of each; they were 8x8 to 20x10, 1 of them enlarged"
        in str(data)
    )
    whole = load("images", str(tmp_path), images=images(size=(10, 10), crop="none", resize="box"))
    bars = np.repeat(np.array([0, 0, 100, 200, 200, 200, 200, 100, 0, 0], np.uint8), 30).reshape(10, 10, 3)
    assert bars.tobytes() in [x.tobytes() for x in seen(whole)]
    with pytest.raises(InputError, match=r"no filter for data.resize 'bicubik'; did you mean bicubic\?"):
        load("images", str(tmp_path), images=images(resize="bicubik"))
    with pytest.raises(InputError, match=r"no way of data.crop 'centre'; did you mean center\?"):
        load("images", str(tmp_path), images=images(crop="centre"))
    np.save(tmp_path / "x.npy", np.zeros((4, 3)))
    with pytest.raises(InputError, match=r"data.channels is for the data set 'images', folders of images; 'file' does"):
        load("file", str(tmp_path / "x.npy"), images=images(channels=3))
    for text in ("0", "64x", "x64", "6.4", "64x48x3", "-3", "123456", "", "½", "1e3"):
        with pytest.raises(InputError, match=r"data.size must be a height and width such as 64 or 64x48, got"):
            size_of(text)


def test_images_are_turned_as_their_cameras_say(tmp_path):
    array = np.zeros((8, 12, 3), np.uint8)
    array[:, :6] = 255  # the left half is white
    for i, orientation in enumerate((1, 3)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        write(tmp_path, f"{i}.png", array, exif=exif)
    data = load("images", str(tmp_path))
    assert same(seen(data), [array, array[:, ::-1].copy()])
    assert "1 images turned as their EXIF orientation says" in str(data)
    exif[0x0112] = 6  # a quarter: height and width change places
    write(tmp_path, "0.png", array, exif=exif)
    with pytest.raises(InputError, match=r"8x12 \(1.png\) to 12x8 \(0.png\)"):
        load("images", str(tmp_path))


def test_a_damaged_image_in_the_middle_is_named_and_left_out_only_if_told_so(tmp_path):
    wanted = some(tmp_path, 9)
    whole = load("images", str(tmp_path), seed=5)
    path = tmp_path / "004.png"
    for content, reason in (
        (path.read_bytes()[:120], ""),  # its header is whole
        (b"", "it is not an image"),
        (b"no image", "it is not an image"),
    ):
        path.write_bytes(content)
        with pytest.raises(
            InputError,
            match=rf"cannot read the image '.*004.png': .*{reason}.*; --config.data.skip_corrupt=True,",
        ):
            load("images", str(tmp_path))
        data = load("images", str(tmp_path), seed=5, images=images(skip_corrupt=True))
        assert len(data.train) + len(data.test) == 8
        assert same(seen(data), [x for name, x in wanted.items() if name != "004.png"])
        assert "left out: " in str(data)
        assert "004.png" in str(data)
    assert whole.card.differences(data.card)
    for file in tmp_path.iterdir():
        file.write_bytes(b"")
    with pytest.raises(InputError, match=r"none of the 9 files in .* that end like images can be read"):
        load("images", str(tmp_path), images=images(skip_corrupt=True))


def test_a_file_that_is_no_file_is_no_image(tmp_path):
    some(tmp_path, 2)
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "lost.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert len(load("images", str(tmp_path)).train) == 1


def test_an_empty_folder_and_one_without_images(tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(InputError, match=r"no images in .*photos'; expected files that end with \.png, \.jpg"):
        load("images", str(tmp_path / "photos"))
    with pytest.raises(InputError, match=r"the folder .*photos' contains no data that can be read; expected images"):
        load("auto", str(tmp_path / "photos"))
    some(tmp_path / "photos", 1)
    with pytest.raises(InputError, match="1 row cannot be split into train and test"):
        load("images", str(tmp_path / "photos"))
    with pytest.raises(InputError, match="is a file; the data set 'images' needs a folder"):
        load("images", str(tmp_path / "photos" / "000.png"))


def test_folders_are_classes_if_there_is_nothing_else_or_if_asked(tmp_path):
    wanted = {name: some(tmp_path / name, 4, start=4 * i) for i, name in enumerate(("cat", "dog", "emu"))}
    data = load("images", str(tmp_path))
    assert data.card.conditions[0].classes == 3
    assert "classes: cat, dog, emu; label: 3 classes of 4 to 4 samples" in str(data)
    for rows in (data.train, data.test):
        batch = rows.first()
        for x, label in zip(batch.x, batch.conditions["label"].tolist(), strict=True):
            levels = np.moveaxis((127.5 * (x + 1)).round().byte().numpy(), 0, -1)
            assert any(levels.tobytes() == array.tobytes() for array in list(wanted.values())[label].values())
    assert load("images", str(tmp_path), labels="off").card.conditions == ()
    some(tmp_path, 1, start=50)
    assert load("images", str(tmp_path)).card.conditions == ()
    with pytest.raises(InputError, match=r"1 images, such as '050.png', lie in .* and in none of its sub-folders"):
        load("images", str(tmp_path), labels="label")
    with pytest.raises(InputError, match="no column of a folder of images"):
        load("images", str(tmp_path), labels="colour")


@pytest.mark.parametrize("held", ["test", "val"])
def test_folders_train_and_test_are_the_splits(tmp_path, held):
    train = {name: some(tmp_path / "train" / name, 3) for name in ("a", "b")}
    test = some(tmp_path / held / "b", 2)
    data = load("images", str(tmp_path))
    assert (len(data.train), len(data.test)) == (6, 2)
    assert same(np.moveaxis((127.5 * (data.test.tensor() + 1)).round().byte().numpy(), 1, -1), test.values())
    assert data.train.first().conditions["label"].tolist() == [0, 0, 0, 1, 1, 1]
    assert data.test.first().conditions["label"].tolist() == [1, 1]
    assert len(train["a"]) == 3
    for file in (tmp_path / held / "b").iterdir():
        file.unlink()
    with pytest.raises(InputError, match=f"no images in '.*{held}'"):
        load("images", str(tmp_path))


def test_the_fingerprint_is_of_the_content_and_not_of_names_and_times(tmp_path):
    some(tmp_path / "a", 5)
    first = load("images", str(tmp_path / "a")).card
    (tmp_path / "b").mkdir()
    for i, file in enumerate(sorted((tmp_path / "a").iterdir())):
        (tmp_path / "b" / f"other{i}.png").write_bytes(file.read_bytes())
    assert load("images", str(tmp_path / "b")).card == first
    resized = load("images", str(tmp_path / "b"), images=images(size=(8, 8))).card
    assert resized.fingerprints != first.fingerprints
    write(tmp_path / "b", "other2.png", pixels(8, 9, 3))
    changed = load("images", str(tmp_path / "b")).card
    assert changed.fingerprints != first.fingerprints
