"""Rows against an exact denoiser: counted evaluations, measured errors, result files."""

import csv
import json
import math

import pytest
import torch

import scoresde
import solvers
from scoresde.benchmark.metrics import Estimate, compare
from scoresde.benchmark.rows import Row, read, write
from scoresde.benchmark.runner import benchmark
from scoresde.benchmark.truth import Truth, ode_solution
from scoresde.io.result_files import environment, fingerprint
from solvers import InputError, generator

TARGET = scoresde.targets.GaussianMixture(torch.tensor([[1.0, 1.0], [-1.0, 0.5], [0.3, -1.0]]), 0.05)
SEEDS = range(40)


class Counting:
    """The exact denoiser, which counts the samples it is shown."""

    def __init__(self, sde):
        self.exact, self.sde, self.seen = TARGET.denoiser(sde), sde, 0

    def predict(self, x, node, **conditions):
        self.seen += len(x)
        return self.exact.predict(x, node)


@pytest.fixture(scope="module")
def reference():
    return TARGET.sample(200, generator(0, 7))


def run(names, nfe, reference, sde=None, **options):
    model = TARGET.denoiser(sde or scoresde.VP())
    return benchmark(model, reference, names, nfe, SEEDS, shape=(2,), **{"progress": False, "metrics": (), **options})


def test_the_exact_solution_of_a_gaussian_is_its_closed_form():
    """From x_T the ODE of N(m, v) goes to x_t = alpha_t m + (x_T - alpha_T m) s_t / s_T, s^2 = alpha^2 v + sigma^2."""
    mean, v, sde = torch.tensor([0.7, -0.4], dtype=torch.float64), 0.3, scoresde.VP()
    model = scoresde.targets.Gaussian(mean, v).denoiser(sde)
    truth = ode_solution(model, (2,), SEEDS, batch_size=16)
    start, end = sde(sde.t_max), sde(sde.t_min)
    noise = solvers.SeededNoise(SEEDS, (2,), torch.float64).initial()
    x = math.hypot(start.alpha, start.sigma) * noise

    def scale(node):
        return math.sqrt(node.alpha**2 * v + node.sigma**2)

    exact = end.alpha * mean + (x - start.alpha * mean) * scale(end) / scale(start)
    distance = float((truth.at_t_min - exact).square().mean().sqrt())
    assert distance < truth.error < 2e-4
    denoised = mean + end.alpha * v / scale(end) ** 2 * (exact - end.alpha * mean)
    assert torch.allclose(truth.x, denoised, atol=2 * truth.error, rtol=0)
    assert truth.nfe == 2 * (128 + 64 + 32) + 1
    finer = ode_solution(model, (2,), SEEDS, steps=256)
    assert float((finer.at_t_min - exact).square().mean().sqrt()) < distance / 6  # order 3 after extrapolation: 8


def test_evaluations_are_measured_and_rows_paired(reference):
    model = Counting(scoresde.VP())
    counts = []
    for name, asked in [("ddim", 7), ("heun", 8), ("ddpm", 7), ("pc", 8)]:
        model.seen = 0
        (row,) = benchmark(model, reference, [name], [asked], SEEDS, shape=(2,), truth_steps=0, progress=False)
        # one sample is drawn again for its states
        assert row.nfe == model.seen / (len(SEEDS) + 1) <= asked == row.nfe_budget
        assert row.error is None
        counts.append((row.nfe, row.steps, row.stochastic))
        alone = scoresde.sample(model, (2,), SEEDS, name, "karras", row.steps)
        assert torch.equal(row.samples, alone.x[:8])
        assert row.metrics == compare(alone.x, reference)
    assert counts == [(7, 7, False), (7, 4, False), (7, 7, True), (7, 4, True)]


@pytest.mark.parametrize("sde", [scoresde.VP(), scoresde.VE()])
def test_errors_fall_at_each_solvers_order(sde, reference):
    """Down to t_min: a last step to sigma = 0 is of order one for every solver, but the truth takes that step too."""
    rows = run(["ddim", "heun"], [80, 160, 320], reference, sde, grid="logsnr", dtype=torch.float64)
    errors = {name: [row.error.value for row in rows if row.solver == name] for name in ("ddim", "heun")}
    steps = {row.nfe_budget: row.steps for row in rows if row.solver == "heun"}
    assert steps == {80: 40, 160: 80, 320: 160}
    for name, order in (("ddim", 1), ("heun", 2)):
        first, second, third = errors[name]
        assert math.log2(first / second) == pytest.approx(order, abs=0.25)
        assert math.log2(second / third) == pytest.approx(order, abs=0.15)


def test_the_error_is_the_distance_to_the_truth_it_is_given(reference):
    model = TARGET.denoiser(scoresde.VP())
    zero, one = torch.zeros(40, 2), torch.ones(40, 2)
    rows = run(["ddim", "ddpm"], [10], reference, truth=Truth(zero, one, 0.0, 0))
    x = scoresde.sample(model, (2,), SEEDS, "ddim", nfe=10).x.double()
    assert rows[0].error.value == pytest.approx(float(x.square().mean().sqrt()), rel=1e-12)
    assert rows[0].error.low < rows[0].error.value < rows[0].error.high
    assert rows[1].stochastic
    assert rows[1].error is None
    (row,) = run(["ddim"], [10], reference, truth=Truth(zero, one, 0.0, 0), grid="uniform")  # stops at t_min
    x = scoresde.sample(model, (2,), SEEDS, "ddim", "uniform", nfe=10).x.double()
    assert row.error.value == pytest.approx(float((x - 1).square().mean().sqrt()), rel=1e-12)
    # the interval: of the mean of squares, by the delta method, half-width 1.96 sd / (2 rms sqrt(n))
    squares = (x - 1).square().mean(1)
    reach = 1.96 * float(squares.std()) / (2 * row.error.value * math.sqrt(40))
    assert (row.error.high - row.error.low) / 2 == pytest.approx(reach, rel=0.2)


def test_an_adaptive_solver_has_one_row_at_its_own_cost(reference):
    rows = run(["rk45(rtol=1e-4, atol=1e-4)", "ddim"], [5, 10], reference)
    assert [(row.nfe_budget, row.solver) for row in rows[1:]] == [(5, "ddim"), (10, "ddim")]
    adaptive = rows[0]
    assert adaptive.nfe_budget is None
    assert adaptive.nfe % 6 == 2  # one evaluation at the start, six for each inner step, one to sigma = 0
    assert 20 < adaptive.nfe < 500
    assert adaptive.error.value < 2e-3 < rows[2].error.value


def test_budgets_that_cannot_be_met_are_rows_with_a_reason(reference):
    rows = run(["heun", "DPM++ 2M", "ddim", "DDIM"], [1, 5], reference, grid="uniform")
    skipped = [row for row in rows if row.skipped]
    assert [(row.solver, row.nfe_budget) for row in skipped] == [("heun", 1)]
    assert skipped[0].skipped == "nfe=1 is too small for heun: one step takes 2"
    assert (skipped[0].nfe, skipped[0].error, skipped[0].seconds, skipped[0].metrics) == (None, None, None, {})
    assert [row.solver for row in rows] == ["heun", "heun", "dpmpp_2m", "dpmpp_2m", "ddim", "ddim"]  # DDIM is ddim


def test_samples_that_are_not_finite_are_a_row_with_a_reason(reference):
    class Broken(Counting):
        def predict(self, x, node, **conditions):
            prediction = super().predict(x, node)
            prediction.x0[1] = math.nan
            return prediction

    (row,) = benchmark(
        Broken(scoresde.VP()), reference, ["ddim"], [3], SEEDS, shape=(2,), truth_steps=0, progress=False
    )
    reason = "sample 1 not finite after step 1 of 3, at sigma / alpha = "
    assert row.skipped.startswith(f"1 of 40 samples of ddim on karras are not finite: {reason}")
    assert (row.nfe, row.metrics) == (None, {})


def test_rounding_and_features_reach_the_metrics_but_not_the_error(reference):
    options = {"metrics": ("frechet",), "truth_steps": 32}
    (plain,) = run(["ddim"], [10], reference, **options)
    (rounded,) = run(["ddim"], [10], reference, rounding=torch.round, features=lambda v: v[:, :1], **options)
    x = scoresde.sample(TARGET.denoiser(scoresde.VP()), (2,), SEEDS, "ddim", nfe=10).x
    assert rounded.metrics == compare(x.round()[:, :1], reference[:, :1], ["frechet"])
    assert rounded.error == plain.error
    assert rounded.metrics != plain.metrics


def test_result_files_hold_the_same_numbers(tmp_path, reference):
    rows = run(["heun", "ddpm"], [1, 9], reference, metrics=("mmd", "frechet"), grid="uniform", truth_steps=32)
    assert any(row.skipped for row in rows)
    write(rows, tmp_path / "new", {"command": "scoresde benchmark", "seeds": [*SEEDS], "dtype": torch.float64})
    header, back = read(tmp_path / "new")
    assert back == rows
    assert all(row.samples is None for row in back)
    assert header["command"] == "scoresde benchmark"
    assert header["seeds"] == [*SEEDS]
    assert header["torch"] == torch.__version__
    assert header["dtype"] == "torch.float64"  # the caller's word replaces the default's
    with open(tmp_path / "new" / "results.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    records = json.loads((tmp_path / "new" / "results.json").read_text())["rows"]
    for line, record, row in zip(lines, records, rows, strict=True):
        for key, value in record.items():
            assert line[key] == ("" if value is None else str(value))
        if not row.skipped:
            assert Estimate(*(float(line[key]) for key in ("mmd", "mmd_low", "mmd_high"))) == row.metrics["mmd"]
    times = json.loads((tmp_path / "new" / "times.json").read_text())  # apart: all else has the same bytes on every run
    assert times["seconds"] == [row.seconds for row in rows]
    assert not any({"seconds", "seconds_per_sample"} & record.keys() for record in records)
    names = ["results.csv", "results.json", "times.json"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == names


def test_a_failed_write_leaves_the_old_file(tmp_path, reference, monkeypatch):
    rows = run(["ddim"], [2], reference, truth_steps=0)
    write(rows, tmp_path, {"run": 1})
    before = (tmp_path / "results.json").read_text()

    def broken(source, target):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", broken)
    with pytest.raises(OSError, match="disk full"):
        write(rows, tmp_path, {"run": 2})
    assert (tmp_path / "results.json").read_text() == before
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": ["huen"]}, "no solver 'huen'; did you mean heun"),
        ({"grid": "karas"}, "no grid 'karas'; did you mean karras"),
        (
            {"metrics": ("fid",)},
            "no metric 'fid'; accepted: bigrams, classifier, coverage, density, frechet, invalid, mmd, precision",
        ),
        ({"nfe": [5, 0]}, "nfe must be a positive integer, got 0"),
        ({"reference": torch.zeros(9, 3)}, r"shape \(3,\), the model's are \(2,\)"),
        ({"reference": torch.zeros(3, 2)}, "at least four samples"),
        ({"truth": Truth(torch.zeros(3, 2), torch.zeros(3, 2), 0.0, 0)}, "3 samples for 40 seeds"),
        ({"truth_steps": 30}, "multiple of four, got 30"),
    ],
)
def test_bad_input_is_one_clear_line(options, message, reference):
    options = {"names": ["ddim"], "nfe": [5], "reference": reference, **options}
    with pytest.raises(InputError, match=message) as caught:
        run(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"solver": None}, "solver is None"),
        ({"nfe": "5"}, "nfe is '5'"),
        ({"nfe": True}, "nfe is True"),
        ({"depth": []}, r"depth is \[\]"),
        ({"tuning_nfe": 10**400}, "tuning_nfe is 1000"),
        ({"environment": [1]}, r"environment is \[1\]"),
        ({"nfe_budget": 10**30}, "nfe_budget is 1000"),
        ({"frechet": "x"}, "frechet is 'x'"),
        ({"error_low": {}}, "error_low is {}"),
    ],
)
def test_numbers_of_another_type_are_refused_where_they_are_read(tmp_path, change, reason):
    known = Row("heun", "karras", 5, 5, 5, False, 3, metrics={"frechet": Estimate(1.0, 0.5, 2.0)}, seconds=1.0)
    write([known], tmp_path, {})
    path = tmp_path / "results.json"
    document = json.loads(path.read_text())
    assert read(tmp_path)[1] == [known]
    document["rows"][0].update(change)
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match=f"results.json' is not a benchmark's result file: .*{reason}"):
        read(tmp_path)


def test_reading_something_else_is_one_clear_line(tmp_path):
    (tmp_path / "results.json").write_text('{"rows": 3}')
    with pytest.raises(InputError, match=r"results.json' is not a benchmark's result file"):
        read(tmp_path)
    with pytest.raises(InputError, match=r"cannot read the benchmark's result file '.*results.json': No such file"):
        read(tmp_path / "nowhere")


def test_fingerprints_tell_tensors_apart():
    x = torch.arange(6.0)
    assert fingerprint(x) == fingerprint(x.clone())
    others = [x + 1e-6, x.double(), x.view(2, 3), x.flip(0)]
    assert len({fingerprint(y) for y in [x, *others]}) == 5
    assert environment(dtype=torch.float64)["dtype"] == "float64"
