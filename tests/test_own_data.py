"""Your own data from the command line alone: trained, sampled, scored; and what is said when they are bad."""

import json

import numpy as np
import pytest
from PIL import Image

from scoresde.cli import main
from scoresde.data import assembly

RNG = np.random.default_rng(0)
FAST = [
    *("--config.model.network=mlp(width=16, depth=1)", "--config.training.steps=3", "--config.training.batch_size=8"),
    *("--config.likelihood.steps=2", "--config.likelihood.error=False"),
]


@pytest.fixture
def photos(tmp_path):
    """A folder of coloured images of three classes."""
    for name, colour in (("blue", 2), ("green", 1), ("red", 0)):
        for i in range(8):
            pixels = RNG.integers(0, 60, (16, 16, 3), dtype=np.uint8)
            pixels[..., colour] += 180
            (tmp_path / "photos" / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    return tmp_path / "photos"


def train(tmp_path, *arguments):
    return main(["train", "--config=digits_edm", f"--workdir={tmp_path / 'run'}", *FAST, *arguments])


def trained(tmp_path, *arguments):
    assert train(tmp_path, *arguments) == 0
    return json.loads((tmp_path / "run" / "config.json").read_text())["data"]


def used(tmp_path):
    """Samples and scores, by the folder alone."""
    run = f"--workdir={tmp_path / 'run'}"
    assert main(["sample", run, f"--out={tmp_path / 'samples'}", "--seeds=6", "--steps=2"]) == 0
    assert main(["likelihood", run, "--limit=2"]) == 0
    scores = json.loads((tmp_path / "run" / "likelihood" / "likelihood.json").read_text())
    return np.load(tmp_path / "samples" / "samples.npz")["x"], scores


@pytest.mark.quick
def test_a_folder_of_images_in_three_classes(tmp_path, photos, capsys, monkeypatch):
    card = trained(tmp_path, "--config.data.name=auto", f"--config.data.path={photos}")
    assert card["conditions"] == [{"name": "label", "kind": "class", "shape": [], "classes": 3}]
    assert (card["shape"], card["levels"], card["samples"]) == ([3, 16, 16], [0, 255], [20, 4])
    out = capsys.readouterr().out
    assert "images: 20 + 4 samples (3, 16, 16) to train and test; numbers from " in out
    assert "classes: blue, green, red; label: 3 classes of 8 to 8 samples" in out
    x, scores = used(tmp_path)
    assert x.shape == (6, 3, 16, 16)
    assert np.isfinite(scores["means"]["bits_per_dim"])
    monkeypatch.setattr(assembly, "IN_MEMORY", 0)  # decoded again for each batch: the same data
    again = trained(tmp_path, "--config.data.name=auto", f"--config.data.path={photos}", "--config.training.steps=5")
    assert again == card


def test_augmented_images_with_the_label_of_what_was_done(tmp_path, photos, capsys):
    more = ["--config.data.augmentation=edm(probability=0.5)", "--config.data.labels=off"]
    card = trained(tmp_path, "--config.data.name=images", f"--config.data.path={photos}", *more)
    assert card["conditions"] == []
    x, _ = used(tmp_path)
    assert np.isfinite(x).all()
    np.save(tmp_path / "x.npy", RNG.normal(size=(30, 4)))
    other = tmp_path / "other"
    other.mkdir()
    bad = ["--config.data.name=file", f"--config.data.path={tmp_path / 'x.npy'}", "--config.data.augmentation=flip"]
    assert train(other, *bad) == 2
    assert "the augmentation flip changes images (C, H, W); the samples have shape (4,)" in capsys.readouterr().err


def test_fewer_samples_than_a_batch_are_used_several_times(tmp_path):
    np.save(tmp_path / "x.npy", RNG.normal(size=(5, 2)))
    card = trained(tmp_path, "--config.data.name=auto", f"--config.data.path={tmp_path / 'x.npy'}")
    assert card["samples"] == [4, 1]  # batches of 8 run on across the ends of epochs


@pytest.mark.quick
def test_bad_data_are_one_line_and_status_2(tmp_path, photos, capsys):
    named = [f"--config.data.path={photos}", "--config.data.name=auto"]
    odd = photos / "red" / "3.png"
    whole = odd.read_bytes()

    def error(*arguments):
        assert train(tmp_path, *named, *arguments) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert lines[0].startswith("error: ")
        return lines[0]

    odd.write_bytes(whole[:200])
    assert f"cannot read the image '{odd}'" in error()
    assert "--config.data.skip_corrupt=True, in Python ImageOptions(skip_corrupt=True), leaves out" in error()
    assert "the augmentation" not in error()
    Image.fromarray(np.zeros((8, 16, 3), np.uint8)).save(odd)
    assert "--config.data.size=64 (or 64x48) resizes" in error()
    assert "no filter for data.resize 'cubic'" in error("--config.data.resize=cubic")
    assert "data.size must be a height and width such as 64 or 64x48, got 'big'" in error("--config.data.size=big")
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(odd)
    assert "23 with colours (such as 0.png), 1 with grey (such as 3.png): --config.data.channels=1 makes" in error()
    odd.write_bytes(whole)
    assert "classes are 0 to 1, but row 16 has 2" in error("--config.data.classes=2")
    assert "no augmentation 'flop'; did you mean flip?" in error("--config.data.augmentation=flop")
    for file in photos.rglob("*.png"):
        file.unlink()
    assert "contains no data that can be read" in error()
    np.save(tmp_path / "same.npy", np.full((9, 2), 0.5))
    named[0] = f"--config.data.path={tmp_path / 'same.npy'}"
    assert "all numbers of the training data are equal, 0.5 after scaling: nothing to learn" in error()
    assert not (tmp_path / "run" / "config.json").exists()
