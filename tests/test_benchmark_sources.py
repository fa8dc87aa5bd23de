"""What a benchmark measures besides a run: targets, factories and pipelines of diffusers; and several grids at once."""

import json
import shutil

import numpy as np
import pytest
import torch
from commands import fails

import scoresde
import solvers
from scoresde.benchmark.rows import read
from scoresde.benchmark.runner import Terms, benchmark
from scoresde.cli.parser import main
from scoresde.io.result_files import fingerprint
from scoresde.runs.benchmarks.sources import Source, subject_of

MIXTURE = "mixture(means=[[2, 0], [-2, 0]], covariances=0.05, weights=[1, 3])"
LAW = scoresde.targets.GaussianMixture(torch.tensor([[2.0, 0.0], [-2.0, 0.0]]), 0.05, [1, 3])
SMALL = ["--seeds=16", "--nfe=1,6", "--metrics=frechet"]
LAWS = """
import torch
import scoresde
from scoresde.models.targets import GaussianMixture

def law(gap=2.0):
    return GaussianMixture(torch.tensor([[gap, 0.0], [-gap, 0.0]]), 0.05, [1, 3])
def exact():
    return law().denoiser(scoresde.VP())
def tokens():
    return scoresde.targets.DiscreteEmpirical(torch.tensor([[0, 1], [1, 1]]))
def masked():
    return tokens().denoiser(scoresde.Absorbing(2))
def number():
    return 3
def broken():
    raise RuntimeError("no weights")
class Net(torch.nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(scale))
    def forward(self, x, t):
        return self.scale * torch.tanh(x)
def net(scale=0.5, shape=None):
    return scoresde.Denoiser(Net(scale), scoresde.VP(), "eps", "t", shape=shape)
"""
OWN = """
from solvers.one_step.ancestral import DDIM

class Own(DDIM):
    @property
    def own_grid(self):
        return "uniform"
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "laws.py").write_text(LAWS)
    return tmp_path


def bench(*words):
    return ["benchmark", "--out=bench", "--solvers=ddim, heun, ddpm", *SMALL, *words]


def same(row, other):
    """All numbers of a row of a file are those of one in memory: JSON keeps every bit of a float."""
    parts = [(s.value, s.low, s.high) for one in (row, other) for s in [*one.metrics.values(), one.error] if s]
    half = len(parts) // 2
    return parts[:half] == parts[half:] and (row.drawn, row.program) == (other.drawn, other.program)


@pytest.mark.parametrize("name", [MIXTURE, "laws:law", "laws:exact"])
def test_a_row_of_a_target_is_what_the_python_api_computes(here, name):
    assert main(bench(f"--target={name}")) == 0
    header, rows = read("bench")
    reference = LAW.sample(2000, solvers.generator(0, 30))
    wanted = benchmark(
        LAW.denoiser(scoresde.VP()), reference, ["ddim", "heun", "ddpm"], [1, 6], 16, shape=(2,), truth_steps=64,
        metrics=["frechet"], dtype=torch.float64, progress=False,
    )  # fmt: skip
    assert [same(row, other) for row, other in zip(rows, wanted, strict=True)] == [True] * 6
    assert rows[0].error.value > 0
    assert header["reference"] == f"2000 draws of the target, {fingerprint(reference)}"
    assert header["source"] == {"target": name}
    assert (header["dtype"], header["prediction"], header["path"]) == ("float64", "exact score", "vp")


def test_grids_shards_and_rerun_of_a_target(here, capsys):
    words = bench(f"--target={MIXTURE}", "--sde=ve", "--grids=logsnr, kl_optimal")
    assert main(words) == 0
    whole = {name: (here / "bench" / name).read_bytes() for name in ("results.json", "results.csv")}
    shutil.rmtree("bench")
    for k in (2, 3, 1):
        assert not (here / "bench" / "results.json").exists()
        assert main([*words, f"--shards={k}/3"]) == 0
    assert {name: (here / "bench" / name).read_bytes() for name in whole} == whole
    capsys.readouterr()
    assert main(["rerun", "bench"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 12
    assert all(line.endswith(": identical") for line in lines)
    assert lines[1].startswith("row 2, ddim on logsnr, NFE 6")
    assert lines[3].startswith("row 4, ddim on kl_optimal, NFE 6")


def test_every_solver_is_on_every_grid_but_for_those_with_a_grid_of_their_own(here, capsys):
    (here / "owner.py").write_text(OWN)
    assert main(["solvers", "heun", "--steps=3", "--sde=vp", "--json=p.json"]) == 0
    names = "--solvers=ddim, heun, DPM++ 2M Karras, owner:Own, file:p.json"
    words = ["benchmark", f"--target={MIXTURE}", "--out=bench", *SMALL, "--nfe=6", names]
    assert main([*words, "--grids=logsnr,kl_optimal"]) == 0
    shown = capsys.readouterr().out
    rows = read("bench")[1]
    assert [(row.solver.rpartition(":")[2], row.grid) for row in rows] == [
        ("ddim", "logsnr"), ("ddim", "kl_optimal"), ("heun", "logsnr"), ("heun", "kl_optimal"),
        ("dpmpp_2m", "karras"), ("Own", "uniform"), ("p.json", "its own"),
    ]  # fmt: skip
    reference = LAW.sample(2000, solvers.generator(0, 30))
    for row in rows[:2]:
        (one,) = benchmark(
            LAW.denoiser(scoresde.VP()), reference, ["ddim"], [6], 16, shape=(2,), grid=row.grid, truth_steps=64,
            metrics=["frechet"], dtype=torch.float64, progress=False,
        )  # fmt: skip
        assert same(row, one)
    page = (here / "bench" / "report.html").read_text()
    for label in ("ddim, logsnr", "ddim, kl_optimal"):  # the table on the terminal, charts and answers of the page
        assert f"\n{label} " in shown
        assert f"<span>{label}</span>" in page
    best = [row["solver"] for row in json.loads((here / "bench/results.json").read_text())["rows"] if row["best"]]
    assert best
    assert main([*words, "--grids=logsnr", "--overwrite"]) == 0  # one grid in --grids: own grids stay
    assert [row.grid for row in read("bench")[1]] == ["logsnr", "logsnr", "karras", "uniform", "its own"]
    assert main([*words, "--grid=logsnr", "--overwrite"]) == 0  # --grid is that of all solvers, as ever
    assert [row.grid for row in read("bench")[1]] == ["logsnr"] * 4 + ["its own"]
    fewer = [word for word in words if word != names]
    message = "5 rows that this command leaves out, such as ddim on logsnr, NFE 6"
    fails(capsys, [*fewer, "--solvers=ddim", "--grid=karras"], message)


def test_settings_with_the_same_steps_are_measured_once():
    terms = Terms.of(LAW.denoiser(scoresde.VP()), None, 4, (2,), truth_steps=8, keep=0)
    rows = scoresde.benchmark.runner.measure(terms, terms.jobs(["ddim"], ["karras", "kl_optimal"], [1, 3]))
    assert isinstance(rows, list)
    assert [(row.grid, row.nfe_budget, row.skipped) for row in rows] == [
        ("karras", 1, ""), ("karras", 3, ""), ("kl_optimal", 1, "the same steps as on karras"), ("kl_optimal", 3, ""),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8,), norm_num_groups=4,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("pipes") / "pipe"
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(folder)
    return folder


def test_a_pipeline_is_compared_with_a_file_scaled_as_data_are(here, pipe, capsys):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), dtype=np.uint8)
    np.save("real.npy", pixels)
    assert main(bench(f"--diffusers={pipe}", "--reference=real.npy", "--round", "--nfe=6")) == 0
    header, rows = read("bench")
    denoiser = scoresde.load(f"diffusers:{pipe}")
    x = scoresde.sample(denoiser, (1, 8, 8), range(16), "ddim", "karras", nfe=6).x
    assert rows[0].drawn == fingerprint(x)
    real = torch.from_numpy(pixels).permute(0, 3, 1, 2).double() / 127.5 - 1
    x = ((x.double() + 1) * 127.5).round().clamp(0, 255) / 127.5 - 1
    wanted = scoresde.benchmark.metrics.frechet(x.float(), real.float())
    # the levels are scaled in float32 there: 1e-7 of the pixels, which a Frechet distance of some tens multiplies
    assert rows[0].metrics["frechet"].value == pytest.approx(wanted, rel=1e-5)
    assert header["conversion"] == "rounded to 256 levels from -1 to 1"
    assert header["source"] == {"diffusers": str(pipe), "reference": "real.npy"}
    moved = shutil.copytree(pipe, here / "moved")
    header["source"]["diffusers"] = "gone"
    document = json.loads((here / "bench/results.json").read_text()) | {"header": header}
    (here / "bench/results.json").write_text(json.dumps(document))
    fails(capsys, ["rerun", "bench"], "gone is not a pipeline of diffusers")
    fails(capsys, ["rerun", "bench", "--workdir=x"], "has no workdir that could have moved: it was measured on gone")
    capsys.readouterr()
    assert main(["rerun", "bench", f"--diffusers={moved}"]) == 0
    assert capsys.readouterr().out.count(": identical") == 3
    np.save("real.npy", pixels[:39])
    fails(capsys, ["rerun", "bench", f"--diffusers={moved}"], "was measured with the reference", "40 samples of a file")


def test_without_real_samples_a_row_has_the_distance_to_its_own_limit_alone(here, pipe, capsys):
    assert main(["benchmark", f"--diffusers={pipe}", "--out=bench", "--solvers=ddim, ddpm", *SMALL[:2]]) == 0
    header, rows = read("bench")
    assert [(row.solver, sorted(row.metrics), row.error is None) for row in rows] == [
        ("ddim", [], False), ("ddim", [], False), ("ddpm", [], True), ("ddpm", [], True)
    ]  # fmt: skip
    assert rows[2].skipped == "it draws noise, and there are no real samples to compare its samples with"
    assert (header["reference"], header["metrics"]) == ("none", [])
    assert 0 < rows[1].error.value < rows[0].error.value
    note = "There are no real samples to compare with"
    assert note in capsys.readouterr().out
    assert note in (here / "bench" / "report.html").read_text()
    assert main(["rerun", "bench", "--row=2"]) == 0
    alone = ["benchmark", f"--diffusers={pipe}", "--out=other", *SMALL[:2]]
    fails(capsys, [*alone, "--solvers=ddpm"], "no row can be computed: it draws noise")
    fails(capsys, [*alone, "--metrics=frechet"], "need real samples to compare with: add --reference=FILE")


def test_a_factory_of_a_file_is_imported_only_with_consent(here, capsys):
    assert main(bench("--target=laws:net(scale=0.25)", "--reference=real.npz", "--nfe=6")) == 2  # no such file
    np.savez("real.npz", x=np.random.default_rng(0).normal(size=(50, 2)))
    assert main(bench("--target=laws:net(scale=0.25)", "--reference=real.npz", "--nfe=6")) == 0
    header, rows = read("bench")
    assert header["weights"] is not None
    assert (header["dtype"], header["prediction"]) == ("float32", "eps")
    fails(capsys, bench("--target=laws:net", "--reference=real.npz", "--nfe=6"), "rows of a different benchmark")
    fails(capsys, ["rerun", "bench"], "names the class laws:net", "--trust")
    capsys.readouterr()
    assert main(["rerun", "bench", "--trust"]) == 0
    assert capsys.readouterr().out.count(": identical") == len(rows) == 3


def test_a_target_of_data_and_one_of_tokens(here):
    np.save("x.npy", np.arange(24.0).reshape(12, 2) / 30)
    subject = subject_of(Source(target="empirical('x.npy', rows=4)", sde="flow"))
    rows = torch.arange(24.0).reshape(12, 2)[::3] / 30
    assert torch.equal(subject.denoiser.target.data, rows.double())  # float32 in the data, exact in float64
    assert subject_of(Source(target="empirical(digits)")).denoiser.target.data.shape == (1797, 1, 8, 8)
    assert main(["benchmark", "--target=laws:masked", "--solvers=tweedie", "--nfe=2", "--seeds=8", "--out=bench"]) == 0
    header, (row,) = read("bench")
    assert header["path"].startswith("absorbing(")
    assert list(row.metrics) == ["invalid", "bigrams"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "one of the arguments --workdir --diffusers --target is required"),
        (["--workdir=x", f"--target={MIXTURE}"], "argument --target: not allowed with argument --workdir"),
        (["--target=mixtur"], "no target 'mixtur'; did you mean mixture?"),
        (["--target=mixture"], "cannot make the target 'mixture': GaussianMixture.__init__() missing 2 required"),
        (["--target=gaussian(0, varance=1)"], "got an unexpected keyword argument 'varance'"),
        (["--target=empirical(digts)"], "no file or data set 'digts'; did you mean digits?"),
        ([f"--target={MIXTURE}", "--sde=vpp"], "no SDE 'vpp'; did you mean vp?"),
        ([f"--target={MIXTURE}", "--grids=logsnr,karas"], "no grid 'karas'; did you mean karras?"),
        ([f"--target={MIXTURE}", "--grids=logsnr", "--grid=karras"], "--grid=karras is the grid of all solvers"),
        ([f"--target={MIXTURE}", "--config.training.steps=3"], "training.steps cannot be set without a run"),
        ([f"--target={MIXTURE}", "--config.sampling.gird=x"], "sampling.gird cannot be set without a run"),
        ([f"--target={MIXTURE}", "--round"], "--round rounds samples to the levels of the data, and these data"),
        ([f"--target={MIXTURE}", "--reference=three.npy"], "samples of shape (3,), the model's are (2,)"),
        (["--target=laws:number"], "'laws:number' makes neither a target nor a denoiser: a denoiser needs .sde"),
        (["--target=laws:broken"], "cannot make the target 'laws:broken': no weights"),
        (["--target=laws:nothing"], "cannot make the target 'laws:nothing': module 'laws' has no attribute"),
        (["--target=laws:exact", "--sde=ve"], "'laws:exact' makes a denoiser, which has its own path"),
        (["--target=laws:tokens"], "has discrete states: its factory must return target.denoiser(process)"),
        (["--target=laws:net"], "laws:net states no shape of its samples: add --reference=FILE"),
        (["--diffusers=gone"], "gone is not a pipeline of diffusers"),
        (["--diffusers=gone", "--sde=vp"], "--sde=vp is the path of a target; gone has its own"),
        (["--workdir=gone", "--reference=three.npy"], "--reference does not belong to a run"),
    ],
    ids=str,
)  # fmt: skip
def test_what_does_not_fit_is_one_line(here, capsys, words, message):
    np.save("three.npy", np.zeros((5, 3)) + np.arange(5)[:, None])
    fails(capsys, ["benchmark", "--out=bench", "--solvers=ddim", "--nfe=4", "--seeds=4", *words], message)
