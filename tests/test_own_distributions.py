"""Data of known distribution from the command line alone: what is trained, sampled and scored has that distribution."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import forked
from PIL import Image

from scoresde.cli import main

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="other systems do not enforce RLIMIT_AS, or cannot fork")
QUICK = [  # an average over the last fifty updates: the runs have a few hundred
    "--config.training.warmup=20", "--config.training.averages=ema(decay=0.98)",
]  # fmt: skip
COARSE = ["--steps=20", "--config.likelihood.error=False"]
CLASSES = ("columns", "rows", "squares")  # in the order of their names, which is that of the classes


def command(*arguments):
    assert main([str(each) for each in arguments]) == 0


def drawn(out):
    return np.load(out / "samples.npz")["x"].astype(np.float64)


def scored(folder):
    return json.loads((folder / "likelihood.json").read_text())


def patterns():
    """The mean image of each class, (3, 3, 16, 16): green columns, red rows, blue squares, four pixels wide."""
    y, x = np.mgrid[:16, :16] // 4
    means = np.full((3, 3, 16, 16), 64.0)
    means[0, 1] += 128 * (x % 2)
    means[1, 0] += 128 * (y % 2)
    means[2, 2] += 128 * ((x + y) % 2)
    return means


@pytest.mark.long
@pytest.mark.quick
def test_images_of_three_classes_are_drawn_by_class_and_scored(tmp_path):
    rng, means, deviation = np.random.default_rng(0), patterns(), 12.0
    for name, mean in zip(CLASSES, means, strict=True):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(40):  # a class's pattern, lighter or darker as a whole
            pixels = np.rint(mean + deviation * rng.normal()).astype(np.uint8)
            Image.fromarray(pixels.transpose(1, 2, 0)).save(tmp_path / "photos" / name / f"{number}.png")
    run = tmp_path / "run"
    command(
        "train", f"--data={tmp_path / 'photos'}", f"--workdir={run}", "--config.training.steps=600",
        "--config.model.network=mlp(width=64, depth=1)", "--config.model.predicts=x0",
        "--config.training.batch_size=32", "--config.training.evaluate_every=600", *QUICK,
    )  # fmt: skip
    assert "<html" in (run / "training.html").read_text()
    for k, mean in enumerate(means):
        out = tmp_path / f"samples{k}"
        command("sample", f"--workdir={run}", f"--class={k}", "--seeds=25", f"--out={out}")
        x = drawn(out)
        levels = (x + 1) * 127.5
        distances = ((levels[:, None] - means) ** 2).mean((2, 3, 4))
        # another pattern is 74 levels away, four deviations of the brightness are 48; by chance a third is right
        assert (distances.argmin(1) == k).mean() > 0.9
        levels = levels[distances.argmin(1) == k]
        light = (levels - mean).mean((1, 2, 3))
        # 25 samples of 40 images: the standard errors of the mean are 2.4 and 1.9, four together 12; a deviation of
        # 12 has 5 of its 25 samples as 99.9% interval, and the network's own error is as large
        assert abs(light.mean()) < 12
        assert 4 < light.std() < 24
        assert (levels - mean - light[:, None, None, None]).std() < deviation  # the pixels of a sample agree
        assert written(out / "grid.png", x)
    command("likelihood", f"--workdir={run}", "--split=test", "--limit=15", *COARSE)
    found = scored(run / "likelihood")
    bits, error = found["means"]["bits_per_dim"], found["standard_errors"]["bits_per_dim"]
    assert (found["samples"], found["split"]) == (15, "test")
    # levels with equal probability have 8 bits; independent Gaussian pixels around the class's pattern 5.6
    independent = math.log2(deviation * math.sqrt(2 * math.pi * math.e))
    assert 0 < bits + 3 * error < independent < 8
    assert 0 < error < 1


def written(path, x):
    """Whether a picture of samples (25, 3, 16, 16) has them, each pixel as four by four, two pixels apart."""
    with Image.open(path) as image:
        assert (image.mode, image.size) == ("RGB", (5 * 66 - 2, 5 * 66 - 2))
        whole = np.asarray(image)
    tiles = [whole[top : top + 64 : 4, left : left + 64 : 4] for top in range(0, 330, 66) for left in range(0, 330, 66)]
    levels = np.rint(np.clip((x + 1) * 127.5, 0, 255)).transpose(0, 2, 3, 1)
    return all(Image.fromarray(tile).size == (16, 16) for tile in tiles) and np.abs(tiles - levels).max() <= 1


@pytest.mark.quick
def test_signals_have_the_covariance_and_the_entropy_of_their_distribution(tmp_path):
    """x = a cos + b sin + 0.25 z, a wave of random phase and amplitude with noise: a Gaussian of known covariance."""
    rng, length, count = np.random.default_rng(0), 16, 512
    phase = 2 * math.pi * np.arange(length) / length
    a, b, z = rng.normal(size=(2000, 1, 1)), rng.normal(size=(2000, 1, 1)), rng.normal(size=(2000, 1, length))
    np.save(tmp_path / "signals.npy", (a * np.cos(phase) + b * np.sin(phase) + 0.25 * z).astype(np.float32))
    covariance = np.cos(phase[:, None] - phase) + 0.25**2 * np.eye(length)

    def distance(x):
        """Relative, of the second moments."""
        return np.linalg.norm(x[:, 0].T @ x[:, 0] / len(x) - covariance) / np.linalg.norm(covariance)

    def used(name, steps):
        run, out = tmp_path / name, tmp_path / f"{name}_samples"
        command(
            "train", f"--data={tmp_path / 'signals.npy'}", f"--workdir={run}", f"--config.training.steps={steps}",
            "--config.model.network=mlp(width=64, depth=1)", "--config.training.evaluate_every=0",
            "--config.training.batch_size=64", "--config.training.learning_rate=4e-3", *QUICK,
        )  # fmt: skip
        command("sample", f"--workdir={run}", f"--seeds={count}", f"--out={out}")
        command("likelihood", f"--workdir={run}", "--limit=64", *COARSE)
        found = scored(run / "likelihood")
        return distance(drawn(out)), found["means"]["nats"] / length, found["uncertainty"]["total"] / length

    entropy = np.linalg.slogdet(2 * math.pi * math.e * covariance)[1] / 2 / length
    independent = math.log(2 * math.pi * math.e * (1 + 0.25**2)) / 2
    far, nats, error = used("trained", 400)
    # 512 samples of the true distribution are 0.05 away, a network that was not trained 0.9
    assert distance(np.load(tmp_path / "signals.npy")[:count]) < 0.1
    assert far < 0.35
    # no model has a larger mean than minus the entropy (Gibbs), up to the draw of the test samples; independent
    # Gaussians with the right deviation have 1.1 less
    assert -entropy - 0.3 < nats < -entropy + 4 * error
    assert error < 0.1
    far, nats, _ = used("untrained", 1)
    assert far > 0.7
    assert nats < 0.2 - independent


def written_modes(path, size):
    """A file of about ``size`` bytes: signals (N, 1, 32) around 1, three of four, or around -1, with deviation 0.25."""
    rng, rows = np.random.default_rng(0), size // (4 * 32)
    noise = 0.25 * rng.normal(size=(4096, 1, 32)).astype(np.float32)
    array = np.lib.format.open_memmap(path, "w+", np.float32, (rows, 1, 32))
    for start in range(0, rows, len(noise)):
        mode = np.where(rng.random((min(len(noise), rows - start), 1, 1)) < 0.75, 1, -1)
        array[start : start + len(mode)] = mode + np.roll(noise, start // len(noise), axis=0)[: len(mode)]
    array.flush()


def memory():
    """The bytes of address space of this process, and the most that it had."""
    facts = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return tuple(1024 * int(facts[name].split()[0]) for name in ("VmSize", "VmPeak"))


def limit(most):
    import resource  # Windows has none

    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def in_fork(room, *arguments):
    """The exit status of a command in a process that may use so many more bytes than this one has."""

    def act():
        limit(memory()[0] + room)
        return main([str(each) for each in arguments])

    return os.waitstatus_to_exitcode(os.waitpid(forked(act), 0)[1])


TRAIN = [
    "--config.model.network=mlp(width=128, depth=1)", "--config.training.steps=300",
    "--config.training.batch_size=128", "--config.training.learning_rate=4e-3",
    "--config.training.evaluate_likelihood=0", *QUICK,
]  # fmt: skip


def of_modes(folder, run):
    """Trains, samples and scores the two modes; ``run`` runs a command."""
    assert run("train", f"--data={folder / 'large.npy'}", f"--workdir={folder / 'run'}", *TRAIN) == 0
    assert run("sample", f"--workdir={folder / 'run'}", "--seeds=1000", f"--out={folder / 'samples'}") == 0
    assert run("likelihood", f"--workdir={folder / 'run'}", "--limit=64", *COARSE) == 0
    x, found = drawn(folder / "samples")[:, 0], scored(folder / "run" / "likelihood")
    means = x.mean(1)
    # a network that was not trained has 0.5; 1000 samples have a standard error of 0.014
    assert 0.625 < (means > 0).mean() < 0.875
    # each mode has the deviation 0.25; both together have 0.9
    assert 0.2 < (x - np.sign(means)[:, None]).std() < 0.5
    entropy = -0.75 * math.log(0.75) - 0.25 * math.log(0.25) + 16 * math.log(2 * math.pi * math.e / 16)
    nats, error = found["means"]["nats"] / 32, found["uncertainty"]["total"] / 32
    # at most minus the entropy, see above; a Gaussian with the right mean and deviation has 1.27 less
    assert -entropy / 32 - 0.4 < nats < -entropy / 32 + 4 * error


def loads(path):
    """0 if an array can be read as a whole, 3 if there is no memory for it."""
    try:
        np.load(path)
    except MemoryError:
        return 3
    return 0


@LINUX
@pytest.mark.long
def test_an_array_larger_than_the_memory(tmp_path, capfd):
    file, room = tmp_path / "large.npy", 100 * 2**20
    written_modes(file, 2**14)
    first = tmp_path / "first"  # what the commands import takes memory once, before the limits
    command("train", f"--data={file}", f"--workdir={first}", *TRAIN, "--config.training.steps=2")
    command("likelihood", f"--workdir={first}", "--limit=2", *COARSE)
    written_modes(file, 300 * 2**20)

    def control():
        limit(memory()[0] + room)
        return loads(file)

    assert os.waitstatus_to_exitcode(os.waitpid(forked(control), 0)[1]) == 3
    of_modes(tmp_path, lambda *arguments: in_fork(room, *arguments))
    capfd.readouterr()
    assert in_fork(room, "likelihood", f"--workdir={tmp_path / 'run'}", "--split=train") == 2
    assert (
        "the train split has 2,048,000 samples, for all of which there is no memory: --limit=" in capfd.readouterr().err
    )
    file.unlink()


@LINUX
@pytest.mark.slow  # four starts of Python; the test above forks instead
def test_an_array_larger_than_the_memory_of_a_command_of_its_own(tmp_path):
    import_all = f"import {Path(__file__).stem} as here; from scoresde.cli import main; "
    file, small, run = tmp_path / "large.npy", tmp_path / "small.npy", tmp_path / "first"
    written_modes(small, 2**14)
    written_modes(file, 600 * 2**20)

    def python(program, *arguments, most=None):
        return subprocess.run(
            [sys.executable, "-c", program, *map(str, arguments)], cwd=Path(__file__).parent, text=True,
            stdout=subprocess.PIPE, preexec_fn=None if most is None else lambda: limit(most),
        )  # fmt: skip

    train = ["train", f"--data={small}", f"--workdir={run}", *TRAIN, "--config.training.steps=2"]
    score = ["likelihood", f"--workdir={run}", "--limit=2", *COARSE]
    used = python(import_all + f"main({train!r}); main({score!r}); print(here.memory()[1])").stdout
    most = int(used.splitlines()[-1]) + 100 * 2**20
    whole = import_all + f"main({score!r}); raise SystemExit(here.loads({str(file)!r}))"
    assert python(whole, most=most).returncode == 3
    start = "import sys; from scoresde.cli import main; sys.exit(main())"
    of_modes(tmp_path, lambda *arguments: python(start, *arguments, most=most).returncode)
    file.unlink()
