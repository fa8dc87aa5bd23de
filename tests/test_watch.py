"""The evaluations of a training: they change no bit of it, agree with the commands, and forget lost work."""

import json
import os
import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import torch
from commands import SMALL, contents
from PIL import Image
from torch import nn

import scoresde
from scoresde import InputError
from scoresde.cli.parser import main
from scoresde.data.rows import TensorRows
from scoresde.runs import watch
from scoresde.runs.watch import Watcher
from scoresde.training import log
from scoresde.training.loop import prepared
from scoresde.training.losses import DSM
from scoresde.training.options import TrainingOptions

SDE = scoresde.VP()
TRAIN = ["train", "--config=digits_vp", *SMALL, "--config.training.log_every=10"]


def evaluations(folder):
    return log.records(folder, log.EVALUATIONS)


class Noisy(nn.Module):
    """Dropout, and a random number of its own in evaluation mode too."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.SiLU(), nn.Dropout(0.3), nn.Linear(16, 3))

    def forward(self, x, label):
        return self.layers(torch.cat([x, label[:, None]], 1)) + 0.01 * torch.rand(())


def rows(count=40):
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(1))


def training(folder, steps=12, watched=True, **options):
    torch.manual_seed(0)
    network = Noisy()
    denoiser = scoresde.Denoiser(network, SDE, "v", "t")
    given = TrainingOptions(
        steps=steps, batch_size=8, checkpoint_every=4, evaluate_every=3, log_every=1, workdir=folder, **options
    )
    folder.mkdir(exist_ok=True)
    run = prepared(denoiser, network, rows(), DSM(), given)

    def draw(model, count, conditions):
        return scoresde.sample(model, (3,), count, "ddpm", steps=4).x

    def score(model, batch):
        return scoresde.log_prob(model, batch.x, nfe=8)

    watcher = Watcher(folder, TensorRows(rows(9)), (-3.0, 3.0), None, draw, score, 4, run.step)
    run.run(progress=False, watchers=[watcher] if watched else ())
    return run


def test_a_run_has_the_same_bits_with_and_without_evaluations(tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, two = training(tmp_path / "with"), training(tmp_path / "without", watched=False)
    for name in ("checkpoints/step_00000008", "checkpoints/step_00000012"):
        first, second = contents(tmp_path / "with" / name), contents(tmp_path / "without" / name)
        assert [p.name for p in first] == [p.name for p in second]
        assert list(first.values()) == list(second.values())
    assert all(p.training is False for p in one.network.modules())
    steps = [
        [{k: v for k, v in line.items() if k != "seconds"} for line in log.records(tmp_path / name)]
        for name in ("with", "without")
    ]
    assert steps[0] == steps[1]
    assert len(steps[0]) == 12
    assert two.step == 12
    torch.manual_seed(5)
    assert torch.equal(torch.get_rng_state(), before)
    assert [line["step"] for line in evaluations(tmp_path / "with")] == [3, 6, 9, 12]
    assert "fault" not in evaluations(tmp_path / "with")[-1]
    assert evaluations(tmp_path / "without") == []


def test_an_interrupted_run_has_the_evaluations_of_an_uninterrupted_one(tmp_path):
    """A run ends at step 10 with evaluations to step 9, is set back to its checkpoint of step 8, and resumes."""
    training(tmp_path / "whole")
    halves = tmp_path / "halves"
    training(halves, steps=10)
    for name in os.listdir(halves / "checkpoints"):
        if name > "step_00000008":
            os.rename(halves / "checkpoints" / name, tmp_path / name)
    (halves / "grids" / "step_00000010.png").rename(halves / "grids" / "step_00000011.png")  # of lost work
    training(halves)
    whole, found = evaluations(tmp_path / "whole"), evaluations(halves)
    assert [{**line, "seconds": 0} for line in found] == [{**line, "seconds": 0} for line in whole]
    assert [step for step, _ in watch.pictures(halves)] == [3, 6, 9, 12]
    for (_, a), (_, b) in zip(watch.pictures(halves), watch.pictures(tmp_path / "whole"), strict=True):
        assert a.read_bytes() == b.read_bytes()
    training(halves)  # complete: nothing is evaluated again
    assert len(evaluations(halves)) == 4


def test_the_numbers_are_those_of_the_averaged_weights(tmp_path):
    """With an average that keeps the first weights, evaluations do not change while the network does."""
    run = training(tmp_path, averages="ema(decay=0)")
    fresh = scoresde.Denoiser(run.averages.first.module, SDE, "v", "t")
    (last,) = evaluations(tmp_path)[-1:]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        run.averages.first.module.eval()
        again = training(tmp_path / "again", averages="ema(decay=0)")
    assert evaluations(tmp_path / "again")[-1]["loss"] == last["loss"]
    pairs = zip(fresh.network.parameters(), again.network.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_the_held_out_loss_is_that_of_all_parts_of_sorted_data(tmp_path):
    """A source with its own split may sort it by class: the first samples are then all of one class."""
    run = training(tmp_path / "run", watched=False)
    one, other = rows(200), 5 + rows(200)
    found = []
    for number, held in enumerate((torch.cat([one, other]), torch.cat([other, one]))):
        folder = tmp_path / str(number)
        folder.mkdir()
        Watcher(folder, TensorRows(held), (-3.0, 3.0), None, None, None, 0, 0)(run)
        found.append(evaluations(folder)[0]["loss"])
    # the samples are equal and the times are not; the loss of the far samples alone is several times that of the others
    assert max(found) < 1.5 * min(found)


def test_a_fault_is_recorded_and_the_training_continues(tmp_path):
    def broken(model, batch):
        raise InputError("all samples\nfail")

    torch.manual_seed(0)
    network = Noisy()
    denoiser = scoresde.Denoiser(network, SDE, "v", "t")
    options = TrainingOptions(steps=4, batch_size=8, evaluate_every=2, workdir=tmp_path)
    run = prepared(denoiser, network, rows(), DSM(), options)
    watcher = Watcher(tmp_path, TensorRows(rows(9)), (-3.0, 3.0), None, None, broken, 4, 0)
    with pytest.warns(UserWarning, match="the evaluation of step . is incomplete: all samples fail"):
        run.run(progress=False, watchers=[watcher])
    assert [line["fault"] for line in evaluations(tmp_path)] == ["all samples fail"] * 2
    assert all(line["loss"] > 0 for line in evaluations(tmp_path))
    assert run.step == 4


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("watched") / "digits"
    options = ["--config.training.steps=40", "--config.training.evaluate_every=20"]
    scored = ["--config.training.evaluate_likelihood=6", "--config.likelihood.nfe=12"]
    assert main([*TRAIN, f"--workdir={folder}", *options, *scored]) == 0
    return folder


def test_the_likelihood_is_that_of_the_command(digits, tmp_path):
    last = evaluations(digits)[-1]
    assert last["step"] == 40
    assert main(["likelihood", f"--workdir={digits}", "--limit=6", f"--out={tmp_path}"]) == 0
    found = json.loads((tmp_path / "likelihood.json").read_text())
    # the same function of the same weights; a mean of other batches is rounded differently
    assert last["bits_per_dim"] == pytest.approx(found["means"]["bits_per_dim"], rel=1e-6)
    assert last["bits_per_dim_stderr"] == pytest.approx(found["standard_errors"]["bits_per_dim"], rel=1e-6)
    assert last["scored"] == 6


def test_the_picture_is_that_of_the_command(digits, tmp_path):
    assert main(["sample", f"--workdir={digits}", "--seeds=16", f"--out={tmp_path}"]) == 0
    x = np.load(tmp_path / "samples.npz")["x"]
    shown = np.array(Image.open(digits / "grids" / "step_00000040.png"))
    # four rows of tiles of 48 pixels, two apart: the middle of each of the 8 x 8 squares of 6 pixels
    for k in range(16):
        top, left = k // 4 * 50, k % 4 * 50
        tile = shown[top + 3 : top + 48 : 6, left + 3 : left + 48 : 6]
        assert np.abs(tile / 127.5 - 1 - x[k, 0].clip(-1, 1)).max() < 0.01  # half a level of 256, and rounding


def test_the_page_is_made_from_the_folder_alone(digits, tmp_path):
    from scoresde.runs.training_page import write_page

    before = (digits / "training.html").read_text(encoding="utf-8")
    copy = tmp_path / "moved"
    copy.mkdir()
    for path, data in contents(digits).items():
        place = copy / path.relative_to(digits)
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.name != "training.html" and "checkpoints" not in place.parts:
            place.write_bytes(data)
    text = write_page(copy).read_text(encoding="utf-8")
    assert text.replace(str(copy), str(digits)) == before
    for words in ("40 updates of 128 samples", "1,497 to train, 300 held out", "scoresde train --config=digits_vp"):
        assert words in text


@pytest.mark.parametrize("name", ["evaluations.jsonl", "train.jsonl", "grids/step_00000040.png"])
def test_the_page_of_a_damaged_folder_leaves_out_what_is_damaged(digits, tmp_path, name):
    from scoresde.runs.training_page import write_page

    for path, data in contents(digits).items():
        place = tmp_path / path.relative_to(digits)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data if place != tmp_path / name else b'{"step": 40, "loss": [[]], "log_snr": {}}\n\0\xff{')
    assert "updates" in write_page(tmp_path).read_text(encoding="utf-8")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="damaged"):
        write_page(tmp_path)


def test_every_loss_of_the_library_can_be_evaluated(tmp_path):
    options = [
        "--config.training.steps=2", "--config.training.batch_size=16", "--config.model.network=mlp(width=16, depth=1)"
    ]  # fmt: skip
    for name in ("digits_vdm", "digits_ddpm", "digits_edm"):
        folder = tmp_path / name
        assert main(["train", f"--config={name}", f"--workdir={folder}", *options]) == 0
        (line,) = evaluations(folder)
        assert "fault" not in line
        assert line["loss"] > 0


def test_classes_get_a_row_of_the_picture_each(tmp_path):
    """A network that draws its class as a grey: each row of the picture is of one grey."""
    shades = torch.tensor([-1.0, 0.0, 1.0])

    class Grey(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, x, label, kind):
            return shades[kind.clamp(max=2)].view(-1, 1, 1, 1).expand_as(x) + 0 * self.weight * label.view(-1, 1, 1, 1)

    network = Grey()
    known = (scoresde.data.Condition("kind", "class", classes=3),)
    denoiser = scoresde.Denoiser(network, SDE, "x0", "t", conditions=known)
    kinds = torch.arange(12) % 3
    data = TensorRows(shades[kinds].view(-1, 1, 1, 1).expand(12, 1, 8, 8).contiguous(), {"kind": kinds})
    options = TrainingOptions(steps=1, batch_size=4, workdir=tmp_path)
    with pytest.warns(UserWarning, match="ignores its time label"):
        run = prepared(denoiser, network, data, DSM(), options)
    watcher = Watcher(
        tmp_path, data, (-1.0, 1.0), None,
        lambda model, count, given: scoresde.sample(model, (1, 8, 8), count, "ddim", steps=2, condition=given).x,
        None, 0, 0, known,
    )  # fmt: skip
    run.run(progress=False, watchers=[watcher])
    shown = np.array(Image.open(tmp_path / "grids" / "step_00000001.png"))
    assert shown.shape == (3 * 50 - 2, 5 * 50 - 2)
    for row, shade in enumerate((0, 128, 255)):
        tiles = shown[row * 50 : row * 50 + 48]
        assert {int(v) for k in range(5) for v in np.unique(tiles[:, k * 50 : k * 50 + 48])} <= {shade, shade - 1}


def test_tensorboard_gets_the_losses_and_the_pictures_once(tmp_path, monkeypatch):
    """A stand-in for the writer, since TensorBoard is an extra."""
    calls = []

    class Writer:
        def __init__(self, folder, purge_step):
            calls.append(("open", os.path.basename(folder), purge_step))

        def add_scalar(self, name, value, step):
            calls.append((name, step))

        def add_image(self, name, picture, step, dataformats):
            assert picture.ndim == 3
            calls.append((name, step))

        def flush(self):
            pass

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    training(tmp_path, steps=6)
    assert calls[0] == ("open", "tensorboard", 1)
    assert [step for name, step, *_ in calls if name == "train/loss"] == [1, 2, 3, 4, 5, 6]
    assert [step for name, step, *_ in calls if name == "held_out/loss"] == [3, 6]
    assert [step for name, step, *_ in calls if name == "samples"] == [3, 6]
    calls.clear()
    training(tmp_path, steps=9)
    assert calls[0] == ("open", "tensorboard", 7)  # what came after step 6 would be of lost work
    assert [step for name, step, *_ in calls if name == "train/loss"] == [7, 8, 9]


def test_without_tensorboard_there_is_no_folder_of_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    training(tmp_path, steps=3)
    assert not (tmp_path / "tensorboard").exists()
    assert replace(TrainingOptions(), evaluate_every=0).evaluate_every == 0
