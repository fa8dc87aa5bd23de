"""The command restore: its files, its page, how it resumes, and what it says of bad input."""

import json
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from commands import contents, fails

import scoresde
from scoresde.cli.parser import main
from scoresde.data.conditions import Condition
from scoresde.models.targets import Gaussian
from scoresde.runs import restoration
from scoresde.runs.build import load_data
from scoresde.runs.run import load_run
from scoresde.sampling.parts import Parts
from scoresde.show import restore_page
from solvers import InputError

MASK = np.arange(64).reshape(8, 8) < 32  # the upper half is seen
SEEN = "inpaint(mask=mask.npy, sigma=0.1)"
FAST = ["--steps=6", "--samples=3"]


@pytest.fixture
def here(run, tmp_path, monkeypatch):
    """A folder with a mask, two samples and their observations, in which the commands run."""
    monkeypatch.chdir(tmp_path)
    np.save("mask.npy", MASK)
    x = load_data(load_run(run).config).test.first(2).x
    np.save("x.npy", x.numpy())
    np.save("y.npy", x[:, 0].numpy()[:, MASK])
    return tmp_path


def restore(run, *arguments, out="r"):
    return main(["restore", f"--workdir={run}", f"--out={out}", *map(str, arguments)])


def test_files_contain_the_draws_of_the_library(run, here, capsys):
    given = [f"--operator={SEEN}", "--observation=y.npy", "--truth=x.npy", "--posterior=jfps(variance=0.5)"]
    assert restore(run, *given, "--steps=6", "--samples=3,5", "--config.sampling.batch_size=3") == 0
    y, x = torch.from_numpy(np.load("y.npy")), torch.from_numpy(np.load("x.npy"))
    wanted = scoresde.restore(
        load_run(run).denoiser, SEEN, y, "jfps(variance=0.5)", seeds=[3, 5], steps=6, grid="logsnr(end=zero)",
        solver="dpmpp_2m_sde", batch_size=3,
    )  # fmt: skip
    with np.load("r/restored.npz") as found:
        assert np.array_equal(found["x"], wanted.x)
        assert np.array_equal(found["mean"], wanted.mean)
        assert np.array_equal(found["deviation"], wanted.deviation)
        assert np.array_equal(found["y"], y)
        assert found["seeds"].tolist() == [3, 5]
    record = json.loads((here / "r" / "restored.json").read_text())
    assert record["command"].startswith("scoresde restore --workdir=")
    assert (record["operator"], record["posterior"]) == ("inpaint(mask='mask.npy', sigma=0.1)", "jfps(variance=0.5)")
    assert (record["nfe"], record["forwards"], record["vjps"], record["seeds"]) == (6, 6, 0, [3, 5])
    assert record["config"]["sampling"]["operator"] == SEEN
    assert {"torch", "device", "dtype"} <= set(record["environment"])
    gaps = (wanted.x.flatten(2)[:, :, :32] - y.unsqueeze(1)).double()
    each = gaps.square().mean(2) / 0.01
    for i, scores in enumerate(record["observations"]):
        assert scores["residual"] == pytest.approx(float(each[i].mean()))
        assert (scores["least"], scores["most"]) == pytest.approx((float(each[i].min()), float(each[i].max())))
        assert scores["residual_of_truth"] == 0
        assert scores["rmse"] == pytest.approx(float((wanted.mean[i] - x[i]).square().mean().sqrt()))
    assert np.array_equal(np.load("r/observation.npy"), y)
    assert np.array_equal(np.load("r/truth.npy"), x)
    assert (here / "r" / "restored.png").read_bytes().startswith(b"\x89PNG")
    page = (here / "r" / "restore.html").read_text()
    # of each observation A^+ y, truth, mean, deviation and two draws
    assert page.count("<img") == 2 * 6
    assert f"residual {each[0].mean():.3g} ({each[0].min():.3g} to {each[0].max():.3g})" in page
    assert "exact for Gaussian data of this variance" in page
    out = capsys.readouterr().out
    assert "2 draws for 2 observations of inpaint" in out
    assert "6 NFE, 6 forwards, 0 VJPs a draw" in out
    assert not (here / "r" / "parts").exists()


def test_measured_observations_are_saved_and_give_the_same_draws(run, here):
    made = ["--operator=downsample(2, sigma=0.2)", "--posterior=ddrm", *FAST]
    assert restore(run, *made, "--measure=x.npy", "--measure-seed=3") == 0
    x = torch.from_numpy(np.load("x.npy"))
    operator = scoresde.operators.make("downsample(2, sigma=0.2)")
    wanted = scoresde.operators.measure(operator, x.double(), 3).float()
    assert np.array_equal(np.load("r/observation.npy"), wanted)
    assert restore(run, *made, "--observation=r/observation.npy", out="again") == 0
    with np.load("r/restored.npz") as one, np.load("again/restored.npz") as other:
        assert np.array_equal(one["x"], other["x"])
    assert restore(run, *made, "--measure=test", "--limit=2", "--measure-seed=3", out="held") == 0
    assert np.array_equal(np.load("held/observation.npy"), wanted)  # x.npy has the first held-out samples
    record = json.loads((here / "held" / "restored.json").read_text())
    assert record["observed"] == "measured from test, noise of seed 3"


def test_particles_report_their_evidence_and_number(run, here, capsys):
    given = ["--operator=sense(3, sigma=0.5)", "--measure=test", "--limit=1", "--posterior=tds(particles=4)", *FAST]
    assert restore(run, *given, "--samples=1") == 0
    out = capsys.readouterr().out
    assert "1 draw for an observation" in out
    record = json.loads((here / "r" / "restored.json").read_text())
    (scores,) = record["observations"]
    assert (record["solver"], record["forwards"]) == ("ddpm", 4 * 6)
    with np.load("r/restored.npz") as found:
        assert scores["log_evidence"] == pytest.approx(float(found["log_evidence"][0]))
        assert scores["effective"] == pytest.approx(float(found["effective"][0]))
        assert 1 <= scores["effective"] <= 4
        assert f"; at least {scores['effective']:.1f} effective particles; " in out
    page = (here / "r" / "restore.html").read_text()
    assert f"log p(y) = {scores['log_evidence']:.2f} nats" in page
    assert "effective particles" in page


def test_a_stopped_command_resumes(run, here, monkeypatch, capsys):
    given = [f"--operator={SEEN}", "--observation=y.npy", "--posterior=ddnm", *FAST, "--config.sampling.batch_size=2"]
    assert restore(run, *given, out="whole") == 0
    write, numbers = Parts.write, []

    def stopping(self, number, part):
        write(self, number, part)
        numbers.append(number)
        if number == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(Parts, "write", stopping)
    assert restore(run, *given) == 130
    assert "stopped: 2 finished batches are in r/parts; the same command resumes" in capsys.readouterr().err
    assert [path.name for path in (here / "r").iterdir()] == ["parts"]
    fails(capsys, ["restore", f"--workdir={run}", "--out=r", *given, "--steps=7"], "another restoration", "7 steps")
    assert restore(run, *given) == 0
    assert numbers == [0, 1, 2]  # of six draws; the third batch alone is drawn again
    with np.load("r/restored.npz") as one, np.load("whole/restored.npz") as other:
        assert np.array_equal(one["x"], other["x"])
    before = contents(here / "r")
    fails(capsys, ["restore", f"--workdir={run}", "--out=r", *given], "r already contains restored.npz", "--overwrite")
    assert contents(here / "r") == before
    numbers.clear()
    monkeypatch.setattr(Parts, "write", lambda self, number, part: (write(self, number, part), numbers.append(number)))
    (here / "r" / "parts").mkdir()
    (here / "r" / "parts" / "00000.npz").write_bytes(b"of another")
    assert restore(run, *given, "--overwrite", "--steps=7") == 0
    assert numbers == [0, 1, 2]
    assert json.loads((here / "r" / "restored.json").read_text())["steps"] == 7
    assert not (here / "r" / "parts").exists()


BAD = {
    "no operator": ([], ["no operator: add --operator"]),
    "no observation": ([f"--operator={SEEN}"], ["no observation: add --observation=FILE.npy"]),
    "another shape": (["--observation=short.npy"], ["observes samples (1, 8, 8) as y (32,)", "got the shape (5,)"]),
    "not finite": (["--observation=inf.npy"], ["finite real numbers only"]),
    "a file that is not there": (["--observation=gone.npy"], ["cannot read the observation 'gone.npy'"]),
    "a damaged file": (["--observation=text.npy"], ["cannot read the observation 'text.npy'", "NumPy's format"]),
    "a pickle": (["--observation=pickle.npy"], ["cannot read the observation 'pickle.npy'"]),
    "pickled objects": (["--observation=objects.npy"], ["it contains pickled objects, which are refused"]),
    "text": (["--observation=words.npy"], ["the observation"]),
    "a mask of numbers": (["--operator=inpaint(mask=floats.npy)"], ["mask must be boolean", "got numbers"]),
    "a pickled mask": (["--operator=inpaint(mask=objects.npy)"], ["cannot read the mask", "pickled objects"]),
    "a mask of another shape": (["--operator=inpaint(mask=small.npy)"], ["the mask has the shape (3, 3)"]),
    "no mask": (["--operator=inpaint(sigma=0.1)"], ["inpaint needs the option 'mask'"]),
    "a path without quotes": (["--operator=inpaint(mask=a/b.npy)"], ["write the path of a file in quotes"]),
    "an unknown operator": (["--operator=inpant(mask=mask.npy)"], ["no operator 'inpant'; did you mean inpaint?"]),
    "an unknown method": (["--posterior=mmsp"], ["no posterior 'mmsp'; did you mean mmps?"]),
    "an unknown option": (["--posterior=tds(particle=9)"], ["no option of tds 'particle'", "particles"]),
    "no noise": (
        ["--operator=inpaint(mask=mask.npy)", "--posterior=tds"],
        ["tds divides by the noise of the observation", "a sigma above 0"],
    ),
    "one particle": (["--posterior=tds(particles=1)"], ["particles must be an integer of at least 2"]),
    "a solver without noise": (["--posterior=tds", "--solver=heun"], ["tds needs a solver that draws noise", "heun"]),
    "a budget of a loop": (["--posterior=daps", "--nfe=50"], ["evaluations of its own"]),
    "dead particles": (
        ["--observation=far.npy", "--posterior=tds(particles=3)"],
        ["of tds(particles=3) with ddpm", "lost all 3 particles at sigma / alpha = "],
    ),
    "gradients of rounding": (
        ["--operator=quantise(3, sigma=0.1)", "--observation=x1.npy", "--posterior=dps"],
        ["dps follows the gradient of the residual, which is 0 for quantise"],
    ),
    "truth of another number": (["--truth=three.npy"], ["three.npy has 3 samples for 2 observations"]),
    "truth of another shape": (["--truth=y.npy"], ["samples of this run have the shape (1, 8, 8)", "got (2, 32)"]),
    "data of another scale": (["--measure=bytes.npy"], ["ranges from 0 to 252", "-1 to 1", "scale it"]),
    "two sources": (["--measure=x.npy", "--truth=x.npy"], ["--measure knows the truth"]),
    "both": (["--measure=x.npy", "--observation=y.npy"], ["--measure makes the observation"]),
    "conditions": (["--condition", "z=3"], ["condition of this run 'z'"]),
    "noise of another kind": (["--config.sampling.noise=brownian"], ["sampling.noise=brownian cannot be set"]),
    **{
        f"{method} of a nonlinear operator": (
            ["--operator=tanh(32, sigma=0.1)", f"--posterior={method}"],
            [f"{method}", "not linear" if method == "mmps" else "needs a linear operator"],
        )
        for method in ("ddrm", "ddnm", "pigdm", "mmps")
    },
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(name, run, here, capsys):
    np.save("short.npy", np.zeros(5))
    np.save("inf.npy", np.full((2, 32), np.inf))
    np.save("far.npy", np.full(32, 1e30))
    np.save("small.npy", np.ones((3, 3), bool))
    np.save("floats.npy", MASK.astype(float))
    np.save("objects.npy", np.array([{}]), allow_pickle=True)
    np.save("words.npy", np.array(["a"] * 32))
    np.save("x1.npy", np.zeros((1, 8, 8)))
    np.save("three.npy", np.zeros((3, 1, 8, 8)))
    np.save("bytes.npy", (4 * np.arange(64)).reshape(1, 8, 8).astype(np.uint8))
    (here / "text.npy").write_text("no array")
    (here / "pickle.npy").write_bytes(pickle.dumps(np.zeros(32)))
    given, words = BAD[name]
    flags, fast = " ".join(given), [] if "--nfe=50" in given else FAST
    common = [] if name.startswith("no op") or "--operator" in flags else [f"--operator={SEEN}"]
    if not any(flag in flags for flag in ("--observation", "--measure")) and name != "no observation":
        common.append("--observation=y.npy")
    fails(capsys, ["restore", f"--workdir={run}", "--out=r", *fast, *common, *given], *words)
    assert not list((here / "r").glob("*.*")) if (here / "r").exists() else True


def test_sample_names_the_command_that_observes(run, tmp_path, capsys):
    sample = ["sample", f"--workdir={run}", f"--out={tmp_path}"]
    fails(capsys, [*sample, f"--operator={SEEN}"], "use scoresde restore")
    fails(capsys, [*sample, "--config.sampling.posterior=dps"], "sampling.posterior is used by scoresde restore")


def test_conditions_that_are_not_given_are_left_out():
    known = (Condition("y", "class", (), 10), Condition("angle", "vector", (2,)))

    def of(dropout):
        model = SimpleNamespace(condition_dropout=dropout)
        return SimpleNamespace(card=SimpleNamespace(conditions=known), config=SimpleNamespace(model=model))

    found = restoration.conditions_of(of(0.1), 2, None, None).rows
    assert found["y"].tolist() == [10, 10]  # the class after the last stands for none
    assert torch.equal(found["angle"].isnan(), torch.ones(2, 2, dtype=torch.bool))
    found = restoration.conditions_of(of(0.1), 2, [3], "angle=1,2").rows
    assert (found["y"].tolist(), found["angle"].tolist()) == ([3, 3], [[1, 2], [1, 2]])
    with pytest.raises(InputError, match=r"trained with the condition y for every sample.* --condition y=VALUE"):
        restoration.conditions_of(of(0.0), 2, None, None)


@pytest.mark.parametrize(
    ("shape", "operator", "words"),
    [
        ((1,), "matrix", ["draws", "truth"]),
        ((2,), "inpaint", ["A x = y", "draws", "truth"]),
        ((2,), "tanh(1, sigma=0.1)", ["draws"]),
        ((12,), "inpaint", ["observed, A⁺y", "truth"]),
        ((2, 6), "tanh(4, sigma=0.1)", ["observation"]),
    ],
)
def test_points_and_signals_get_plots(shape, operator, words):
    numbers = int(np.prod(shape))
    made = {
        "matrix": scoresde.operators.Matrix(torch.ones(1, numbers), sigma=0.1),
        "inpaint": scoresde.operators.Inpaint((torch.arange(numbers) < numbers / 2).view(shape), sigma=0.1),
    }.get(operator) or scoresde.operators.make(operator)
    prior = Gaussian(torch.zeros(shape), 1.0).denoiser(scoresde.VP())
    truth = torch.full((1, *shape), 0.3)
    seen = restoration.Observed(made, scoresde.operators.measure(made, truth), truth, "x")
    found = scoresde.restore(prior, made, seen.y, "dps", samples=8, steps=5)
    shown = restore_page.Shown(made, found, truth, restoration.scores(seen, found), (-1.0, 1.0), "")
    page = restore_page.page("<script>", shown, {"a": "<b>"}, "command", {})
    assert page.count("<svg") == (2 if shape == (2, 6) else 1)
    assert "<img" not in page
    assert "<script>" not in page
    assert "exact for no data" in page
    assert [word for word in words if word not in page] == []


def test_draws_that_failed_are_left_out_of_the_page():
    operator = scoresde.operators.make("downsample(2, sigma=0.1)")
    x = torch.zeros(1, 3, 1, 4, 4)
    x[0, 1] = torch.nan
    x[0, 2] = 0.2
    facts = {"posterior": "p", "operator": "o", "solver": "s", "grid": "g", "steps": 1, "seconds": 1.0}
    found = scoresde.Restored(x, torch.zeros(1, 1, 2, 2), (0, 1, 2), 1, 1.0, 0.0, **facts, failures=((1, "", 1),))
    scores = restoration.scores(restoration.Observed(operator, found.y, None, ""), found)
    assert scores[0]["residual"] == pytest.approx((0 + 0.2**2 / 0.01) / 2)
    page = restore_page.page("t", restore_page.Shown(operator, found, None, scores, (-1.0, 1.0), ""), {}, "c", {})
    assert page.count('alt="draw ') == 2
    assert "1 draws failed" in page
