"""The scripts that measure trained models: their features, distances, readings, and that a stopped script resumes."""

import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.conditions import mnist_conditions
from benchmarks.features import mnist_classifier, resnet20
from benchmarks.training import cifar10, mnist, trained
from scoresde.benchmark.metrics import frechet
from scoresde.cli import main
from solvers import InputError, generator

ROOT = Path(__file__).parent.parent

# MNIST, 4,000 images of CIFAR-10 and the weights of a ResNet-20 are not part of the repository
DATA = Path(os.environ.get("SCORESDE_DATA", ROOT.parent / "shared" / "data"))


def there(name):
    path = DATA / name
    return pytest.param(path, marks=pytest.mark.skipif(not path.exists(), reason=f"no {name} in SCORESDE_DATA"))


def normal(n, d, seed):
    return torch.randn(n, d, generator=generator(seed, 9), dtype=torch.float64)


def test_resnet20_has_the_weights_of_the_paper():
    network = resnet20.ResNet20()
    # 3x3 convolutions, two numbers a channel of each normalisation, the last layer; no weights in shortcuts
    convolutions = 9 * (3 * 16 + 6 * 16 * 16 + 16 * 32 + 5 * 32 * 32 + 32 * 64 + 5 * 64 * 64)
    others = 2 * (16 + 6 * 16 + 6 * 32 + 6 * 64) + 64 * 10 + 10
    assert sum(p.numel() for p in network.parameters()) == convolutions + others == 269_722  # 0.27M in table 6
    weighted = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    assert len(weighted) == 20


def test_a_shortcut_takes_every_second_place_and_new_channels_are_zero():
    block = resnet20.Block(16, 32, 2).eval()
    torch.nn.init.zeros_(block.bn2.weight)  # so that only the shortcut remains
    x = torch.rand(2, 16, 8, 8, generator=generator(0, 1))
    out = block(x)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert torch.equal(out[:, :8], torch.zeros(2, 8, 4, 4))
    assert torch.equal(out[:, 24:], torch.zeros(2, 8, 4, 4))


@pytest.mark.parametrize("folder", [there("features")])
@pytest.mark.parametrize("images", [there("cifar10/cifar10_4000.npz")])
def test_resnet20_knows_the_images_that_it_was_trained_on(folder, images):
    """With them it is sure, and sees no difference between halves. Wrong channels or a wrong scale change both."""
    network = resnet20.load(folder / "resnet20-12fca82f.th")
    x = torch.from_numpy(np.load(images)["x"][:400]).movedim(3, 1).float() / 127.5 - 1

    def looked_at(y):
        found = mnist_classifier.in_batches(network.features, y)
        return found, network.linear(found).softmax(1)

    found, shares = looked_at(x)
    assert found.shape == (400, 64)
    assert shares.max(1).values.mean() > 0.98  # 0.995; trained to 91.7 % on others, and nearly 100 % on these
    counts = shares.argmax(1).bincount(minlength=10)
    assert ((counts - 40).abs() < 4 * 6).all()  # ten equal classes: 40 each, with a standard deviation of 6
    halves = frechet(found[:200], found[200:])
    for other in (x.flip(1), (x + 1) / 2, x.flip(2)):  # blue first, in [0, 1], upside down
        changed, sure = looked_at(other)
        assert sure.max(1).values.mean() < shares.max(1).values.mean() - 0.03
        assert frechet(found[:200], changed[200:]) > 1.2 * halves


def test_a_wrong_file_of_weights_is_one_clear_line(tmp_path):
    with pytest.raises(InputError, match=r"expected the state dict resnet20-12fca82f\.th"):
        resnet20.load(tmp_path / "no.th")
    (tmp_path / "other.th").write_bytes(b"other")
    with pytest.raises(InputError, match=r"is not resnet20-12fca82f\.th: its SHA-256 is"):
        resnet20.load(tmp_path / "other.th")


@pytest.mark.parametrize("folder", [there("mnist")])
def test_the_committed_classifier_reads_what_its_record_says(folder):
    record = json.loads((mnist_classifier.RESULTS / "mnist_classifier.json").read_text())
    network, files = mnist_classifier.load(), mnist_classifier.files_of(folder)
    assert record["accuracy"] >= 0.99
    images = mnist_classifier.images_of(files["t10k-images-idx3-ubyte"])[:2000]
    labels = mnist_classifier.labels_of(files["t10k-labels-idx1-ubyte"])
    right = (mnist_classifier.in_batches(network, images).argmax(1) == labels[:2000]).double().mean()
    # the first half of the held-out digits is the harder one; 2,000 digits have a standard error of 0.2 %
    assert abs(float(right) - record["accuracy"]) < 0.01


def test_distances_of_equal_laws_are_the_floor_and_of_a_shift_its_square():
    """d = |delta|^2 for equal covariances; n samples add the same bias to the distance and to its floor."""
    x, real = normal(1200, 8, 0), normal(2400, 8, 1)
    same, moved = trained.distances(x, real), trained.distances(x + 0.5, real)
    assert [row["n"] for row in same] == [100, 200, 500, 1000, 1200]
    for row, other in zip(same, moved, strict=True):
        # the standard deviations are over draws from the same sets, so the means have about that error
        spread = row["distance"]["stdev"] + row["floor"]["stdev"]
        assert abs(row["distance"]["mean"] - row["floor"]["mean"]) < 3 * spread
        # + |delta|^2 = 8 / 4, and 2 delta times the difference of the means, of deviation 0.5 sqrt(8 * 2 / n) * 2
        added = other["distance"]["mean"] - row["distance"]["mean"]
        assert abs(added - 2) < 4 * 4 / row["n"] ** 0.5
    floors = [row["floor"]["mean"] for row in same]
    assert floors == sorted(floors, reverse=True)
    # the bias of the floor falls like 1 / n: from n = 100 to 1000 by a factor of 10, here within its noise
    assert 5 < floors[0] / floors[3] < 20


def test_readings_count_and_compare():
    asked = trained.classes_of(20, 10)
    assert asked.tolist() == [k // 2 for k in range(20)]
    read = asked.clone()
    read[:3] = 9
    found = trained.readings(read, asked)
    assert found["counts"] == [0, 1, *[2] * 7, 5]
    assert found["as_requested"] == {"share": 0.85, "stderr": pytest.approx((0.85 * 0.15 / 20) ** 0.5)}
    assert found["by_class"] == [0, 0.5, *[1] * 8]
    assert trained.readings(read, None) == {"counts": found["counts"]}
    with pytest.raises(InputError, match="--samples=25 is not a multiple of the 10 classes"):
        trained.classes_of(25, 10)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Sixty-four digits of noise to train and forty held out, as IDX files."""
    place = tmp_path_factory.mktemp("idx")
    draws = np.random.default_rng(0)
    for half, count in (("train", 64), ("t10k", 40)):
        pixels = draws.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        (place / f"{half}-images-idx3-ubyte").write_bytes(
            b"\0\0\x08\x03" + struct.pack(">3I", *pixels.shape) + bytes(pixels)
        )
        (place / f"{half}-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + struct.pack(">I", count) + bytes(count))
    return place


SMALL = ("--config.model.network=mlp(width=8, depth=1)", "--config.training.batch_size=8", "--samples=24", "--scored=4")


def test_one_command_measures_and_resumes(folder, tmp_path, capsys):
    runs, out = tmp_path / "runs", tmp_path / "out"
    out.mkdir()
    places = (f"--data={folder}", f"--workdir={runs}", f"--out={out}", "--model=mnist_vp")
    mnist.main([*places, "--steps=3", *SMALL])
    first = json.loads((out / "mnist.json").read_text())
    drawn = runs / "mnist_vp" / "samples_3" / "0-23" / "samples.npz"
    before = drawn.stat().st_mtime_ns
    assert (out / "mnist_mnist_vp.png").read_bytes()[:4] == b"\x89PNG"

    mnist.main([*places, "--steps=3", *SMALL])  # everything is there: nothing is trained or drawn again
    assert drawn.stat().st_mtime_ns == before
    again = json.loads((out / "mnist.json").read_text())
    assert again == first

    (row,) = first["rows"]
    assert str(tmp_path) not in json.dumps(first)
    assert str(folder) not in json.dumps(first)
    assert [text.split()[:2] for text in row["commands"]] == [
        ["scoresde", c] for c in ("train", "sample", "likelihood")
    ]
    assert sum(row["read_as"]["counts"]) == row["samples"]["count"] == 24
    assert set(first["header"]["sha256"]) == {
        *(f"{half}-{kind}-ubyte" for half in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")),
        "mnist_classifier.safetensors",
    }
    # the figures are those of the files
    x = torch.from_numpy(np.load(drawn)["x"])
    network = mnist_classifier.load()
    images = ((x.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
    features = mnist_classifier.in_batches(network.features, images)
    assert row["read_as"]["counts"] == network.head(features).argmax(1).bincount(minlength=10).tolist()
    held = mnist_classifier.in_batches(network.features, mnist_classifier.images_of(folder / "t10k-images-idx3-ubyte"))
    (found,) = (one for one in row["frechet"] if one["against"] == "held out")
    (expected,) = trained.distances(features, held)
    assert found["n"] == 20  # half of those that are held out
    assert found["floor"] == expected["floor"]
    # pixels half-way between two levels may be rounded either way
    assert found["distance"]["mean"] == pytest.approx(expected["distance"]["mean"], rel=1e-3)
    scores = np.load(runs / "mnist_vp" / "likelihood_3" / "likelihood.npz")["bits_per_dim"]
    assert row["bits_per_dim"]["mean"] == pytest.approx(scores.mean())
    assert row["bits_per_dim"]["stderr"] == pytest.approx(scores.std(ddof=1) / 2)

    mnist.main([*places, "--steps=5", *SMALL])  # trained further: its own samples and likelihood
    assert (runs / "mnist_vp" / "samples_5").is_dir()
    assert json.loads((out / "mnist.json").read_text())["rows"][0]["training"]["steps"] == 5

    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:  # an error of a command is the script's
        mnist.main([*places, "--steps=5", "--config.training.learning_rat=1", *SMALL])
    assert caught.value.code == 2
    assert "no config field 'training.learning_rat'" in capsys.readouterr().err


@pytest.mark.parametrize("folder", [there("features")])
def test_the_other_script_measures_colour_images(folder, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (80, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", x=pixels)
    weights = f"--features={folder / 'resnet20-12fca82f.th'}"
    places = (f"--data={tmp_path / 'images.npz'}", weights, f"--workdir={tmp_path / 'runs'}", f"--out={tmp_path}")
    cifar10.main([*places, "--steps=2", *SMALL])
    (row,) = json.loads((tmp_path / "cifar10.json").read_text())["rows"]
    # 72 to train and 8 held out; 24 samples
    assert [(one["against"], one["n"]) for one in row["frechet"]] == [("held out", 4), ("train", 24)], row["frechet"]
    assert row["bits_per_dim"]["samples"] == 4
    assert (tmp_path / row["picture"]).exists()


def test_scores_of_draws_are_those_of_a_gaussian():
    """Draws of N(0, I), of which the truth is one more: error / deviation = sqrt(1 + 1 / S), as the docstring says."""
    x, y = normal(60 * 6, 784, 2).view(60, 6, 1, 28, 28).float(), normal(60, 392, 3).float()
    digits = mnist_conditions.Digits(normal(60, 784, 4).view(60, 1, 28, 28).float(), torch.zeros(60).long())
    operator = mnist_conditions.problems()["upper half"]
    found = mnist_conditions.scores(operator, y, x, digits, mnist_classifier.load())
    assert found["error"] / found["deviation"] == pytest.approx((1 + 1 / 6) ** 0.5, rel=0.01)  # 47,040 numbers
    # y and A x are independent and of variance 1
    assert found["residual"] * mnist_conditions.SIGMA**2 == pytest.approx(2, rel=0.02)
    rows = [(operator(x[i]) - y[i]).square().mean(1).max() for i in range(60)]
    assert found["residual_max"] == pytest.approx(float(max(rows)) / mnist_conditions.SIGMA**2)
    exact = mnist_conditions.scores(operator, operator(x[:, 0]), x[:, :1].expand(-1, 2, -1, -1, -1), digits,
                                    mnist_classifier.load())  # fmt: skip
    assert (exact["residual"], exact["deviation"]) == (0, 0)


@pytest.mark.slow  # 80 commands; the functions that it calls have tests of their own
@pytest.mark.filterwarnings("ignore")  # of networks that were trained for 2 steps
def test_conditions_are_measured_by_one_command_that_resumes(tmp_path):
    place, runs = tmp_path / "idx", tmp_path / "runs"
    place.mkdir()
    draws = np.random.default_rng(0)
    for half, count in (("train", 64), ("t10k", 40)):
        pixels, labels = draws.integers(0, 256, (count, 28, 28), dtype=np.uint8), np.arange(count, dtype=np.uint8) % 10
        (place / f"{half}-images-idx3-ubyte").write_bytes(
            b"\0\0\x08\x03" + struct.pack(">3I", *pixels.shape) + bytes(pixels)
        )
        (place / f"{half}-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + struct.pack(">I", count) + bytes(labels))
    places = [f"--data={place}", f"--workdir={runs}"]
    for name in ("mnist_vp", "mnist_class"):
        assert main(["train", f"--config={name}", f"--workdir={runs / name}", f"--config.data.path={place}",
                     "--config.training.steps=2", *SMALL[:2]]) == 0  # fmt: skip
    asked = [*places, f"--out={tmp_path}", "--samples=20", "--tilted=0", "--digits=2", "--draws=2", "--steps=3",
             "--particle-draws=0", "--scored=3"]  # fmt: skip
    mnist_conditions.main(asked)
    text = (tmp_path / "mnist_conditions.json").read_text()
    (tmp_path / "mnist_restored.png").unlink()
    mnist_conditions.main(asked)  # nothing is drawn again
    assert (tmp_path / "mnist_conditions.json").read_text() == text
    assert str(tmp_path) not in text
    found = json.loads(text)
    assert [row["guidance"] for row in found["guided"]] == [rule for _, rule in mnist_conditions.SCALES]
    assert [row["samples"]["forwards"] for row in found["guided"]][:3] == [20, 40, 40]  # the interval: fewer
    assert 20 < found["guided"][3]["samples"]["forwards"] < 40
    assert {row["problem"] for row in found["restored"]} == set(mnist_conditions.problems())
    with np.load(runs / "mnist_class" / "classes_2" / "classes.npz") as file:
        assert found["held_out"]["accuracy"] == pytest.approx((file["predicted"] == [0, 1, 2]).mean())


def test_arguments_that_nobody_reads_are_refused(folder, tmp_path, capsys):
    with pytest.raises(SystemExit):
        mnist.main([f"--data={folder}", f"--workdir={tmp_path}", "--step=3"])
    assert "unrecognized arguments: --step=3" in capsys.readouterr().err
    with pytest.raises(InputError, match="no train-images-idx3-ubyte, plain or"):
        mnist.main([f"--data={tmp_path}", f"--workdir={tmp_path}"])
