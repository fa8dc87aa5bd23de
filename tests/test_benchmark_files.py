"""The files of a benchmark: resumed, shared by processes, killed, damaged, drawn again, and compared."""

import json
import os
import random
import shutil
import signal
import time

import pytest
from commands import fails, forked

import scoresde
from scoresde.benchmark import runner
from scoresde.benchmark.metrics import Estimate, FewSamples
from scoresde.benchmark.rows import FILES, Row, read, write
from scoresde.benchmark.store import FOLDER
from scoresde.cli.parser import main
from scoresde.cli.readers import share_in
from scoresde.runs.run import load_run

NAMES = ["--solvers=ddim, heun, ddpm, afs, picard(window=4)", "--nfe=1,4", "--seeds=8", "--metrics=frechet"]
SAME = ("results.json", "results.csv")  # all but the times and the page, which shows them


def bench(run, *words):
    return ["benchmark", f"--workdir={run}", "--out=bench", *NAMES, *words]


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    """The results of one process."""
    folder = tmp_path_factory.mktemp("whole")
    before = os.getcwd()
    os.chdir(folder)
    try:
        assert main(bench(run)) == 0
    finally:
        os.chdir(before)
    return folder / "bench"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_row_says_what_it_needs_to_be_drawn_again(run, whole):
    header, rows = read(whole)
    found = {(row.solver, row.nfe_budget): row for row in rows}
    assert found["heun", 4].program is not None
    assert found["picard(window=4)", 4].program is None
    ddim, picard = found["ddim", 4], found["picard(window=4)", 4]
    assert (ddim.nfe, ddim.depth, ddim.free_first_step) == (4, 4, False)
    assert picard.depth < picard.nfe  # a call for a window counts once
    afs = next(row for row in rows if row.solver.startswith("afs") and row.nfe_budget == 4)
    assert afs.free_first_step
    assert len({row.program for row in rows if row.nfe_budget == 4 and row.program}) == 4
    denoiser = load_run(run).denoiser
    x = scoresde.sample(denoiser, (1, 8, 8), range(8), "heun", "karras", nfe=4).x
    assert found["heun", 4].drawn == scoresde.io.result_files.fingerprint(x)
    assert (header["path"], header["prediction"], header["dtype"]) == ("vp", "edm", "float32")
    assert header["conversion"] == "none"
    assert header["exact solution"]["steps"] == 64
    assert header["reference"].startswith("held-out digits, ")
    assert "--shards" not in header["command"]
    document = json.loads((whole / "results.json").read_text())
    assert (document["format"], document["version"]) == ("scoresde-benchmark", 1)
    assert [row["row"] for row in document["rows"]] == [*range(1, 11)]
    shared = {"seeds", "reference", "path", "step", "torch", "dtype"}
    assert not any(shared & row.keys() for row in document["rows"])  # once, in the header


@pytest.mark.parametrize("count", [pytest.param(2, marks=pytest.mark.slow), 7])
def test_shards_of_rows_merge_to_the_same_bytes(run, whole, here, count, capsys):
    for k in random.Random(count).sample(range(1, count + 1), count):
        assert not (here / "bench" / "results.json").exists()
        assert main(bench(run, f"--shards={k}/{count}")) == 0
    assert "the last process joins them" in capsys.readouterr().out
    for name in SAME:
        assert (here / "bench" / name).read_bytes() == (whole / name).read_bytes()


def test_a_second_start_computes_nothing_and_writes_the_same_bytes(run, whole, here, monkeypatch):
    shutil.copytree(whole, here / "bench")
    monkeypatch.setattr(runner, "sample", lambda *_, **__: pytest.fail("a finished row was drawn again"))
    monkeypatch.setattr(runner, "ode_solution", lambda *_, **__: pytest.fail("the exact solution was computed again"))
    assert main(bench(run)) == 0
    assert {n: (here / "bench" / n).read_bytes() for n in FILES} == {n: (whole / n).read_bytes() for n in FILES}


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 5))])
def test_killed_at_any_moment_at_most_the_row_in_progress_is_lost(run, whole, here, seed):
    rng, rows = random.Random(seed), here / "bench" / FOLDER
    done = set()
    for _ in range(4):
        child = forked(lambda: main(bench(run)))
        time.sleep(rng.uniform(0.05, 1.2))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        there = {path.name for path in rows.glob("[0-9a-f]*.npz")} if rows.exists() else set()
        assert done <= there
        done = there
    assert main(bench(run)) == 0
    for name in SAME:
        assert (here / "bench" / name).read_bytes() == (whole / name).read_bytes()
    assert not any(path.name.endswith(".tmp") for path in rows.iterdir())


def test_a_damaged_row_is_set_aside_and_computed_again(run, whole, here):
    shutil.copytree(whole, here / "bench")
    path = sorted((here / "bench" / FOLDER).glob("[0-9a-f]*.npz"))[3]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.warns(UserWarning, match=rf"{path.name} is damaged .* it is now {path.name}\.damaged"):
        assert main(bench(run)) == 0
    assert path.with_name(f"{path.name}.damaged").read_bytes() == bytes(data)
    assert (here / "bench" / "results.json").read_bytes() == (whole / "results.json").read_bytes()


def test_damaged_results_are_set_aside(run, whole, here, capsys):
    shutil.copytree(whole, here / "bench")
    (here / "bench" / "results.json").write_text('{"format": "scoresde-benchmark", "ver')
    fails(capsys, ["rerun", "bench"], "is not a benchmark's result file")
    assert main(bench(run)) == 0
    assert "results.json.damaged" in capsys.readouterr().err
    assert (here / "bench" / "results.json.damaged").exists()
    assert (here / "bench" / "results.json").read_bytes() == (whole / "results.json").read_bytes()


def test_another_benchmark_in_the_folder_is_refused(run, whole, here, capsys):
    shutil.copytree(whole, here / "bench")
    fewer = ["benchmark", f"--workdir={run}", "--out=bench", "--solvers=ddim", "--nfe=4", "--seeds=8"]
    fails(
        capsys,
        fewer,
        "results.json with 9 rows that this command leaves out, such as ddim on karras, NFE 1",
        "--overwrite",
    )
    seeds = [word.replace("--seeds=8", "--seeds=9") for word in bench(run)]
    fails(capsys, seeds, "contains rows of a different benchmark", "seeds is [0, 1, 2, 3, 4, 5, 6, 7] there")
    assert main([*fewer, "--seeds=5", "--overwrite"]) == 0
    header, rows = read("bench")
    assert (header["seeds"], len(rows)) == ([*range(5)], 1)


def test_a_file_of_a_newer_version_is_refused_in_one_line(run, whole, here, capsys):
    shutil.copytree(whole, here / "bench")
    path = here / "bench" / "results.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "version": 2, "rows": {"of": "another kind"}}))
    line = "results.json' is a benchmark's result file of version 2, and this scoresde reads versions up to 1: update"
    fails(capsys, ["rerun", "bench"], line)
    fails(capsys, ["compare", "bench", str(whole)], line)
    fails(capsys, bench(run), line)
    path.write_text(json.dumps({**document, "format": "other"}))
    fails(capsys, ["rerun", "bench"], "is not a benchmark's result file: TypeError format is 'other'")


def test_every_row_is_drawn_again_to_the_bit(whole, capsys):
    assert main(["rerun", str(whole)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    assert all(line.endswith(": identical") for line in lines)


def test_a_changed_number_is_named_with_its_size(whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "bench")
    path = tmp_path / "bench" / "results.json"
    document = json.loads(path.read_text())
    document["rows"][1]["frechet"] -= 0.5
    document["header"]["torch"] = "1.0"
    path.write_text(json.dumps(document))
    assert main(["rerun", str(tmp_path / "bench"), "--row=2"]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("row 2, ddim on karras, NFE 4: frechet is ")
    assert ", +0.5; torch was 1.0 and is " in line
    assert "error" not in line
    fails(capsys, ["rerun", str(whole), "--row=11"], "has the rows 1 to 10, and no row 11")
    document["header"]["reference"] = "held-out digits, 5 samples, 0123456789abcdef"
    path.write_text(json.dumps(document))
    fails(capsys, ["rerun", str(tmp_path / "bench")], "was measured with the reference", "0123456789abcdef")


def test_a_result_file_cannot_name_code_unless_it_is_trusted(whole, tmp_path, capsys, monkeypatch):
    shutil.copytree(whole, tmp_path / "bench")
    (tmp_path / "evil.py").write_text("import pathlib; pathlib.Path('ran').touch()\nclass Net: pass\n")
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bench" / "results.json"
    plain = json.loads(path.read_text())
    for change in ("solver", "override", "features", "target", "sde"):
        document = json.loads(path.read_text()) | {"header": dict(plain["header"]), "rows": [dict(plain["rows"][0])]}
        if change == "solver":
            document["rows"][0]["solver"] = "evil:Net"
        elif change == "override":
            document["header"]["source"] = {"workdir": "run", "overrides": ["--config.sampling.solver=evil:Net"]}
        elif change == "target":
            document["header"]["source"] = {"target": "evil:Net"}
        elif change == "sde":
            document["header"]["source"] = {"target": "gaussian(0)", "sde": "evil:Net"}
        else:
            document["header"]["scoring"] = {"metrics": None, "features": "evil:Net", "round": False}
        path.write_text(json.dumps(document))
        fails(capsys, ["rerun", "bench"], "bench/results.json names the class evil:Net", "--trust")
        assert not (tmp_path / "ran").exists()


def test_two_benchmarks_are_compared_by_pairs(run, whole, here, capsys):
    grid = ["benchmark", f"--workdir={run}", "--out=other", "--solvers=ddim, heun", "--nfe=4", "--seeds=8"]
    assert main([*grid, "--metrics=frechet"]) == 0
    capsys.readouterr()
    assert main(["compare", str(whole), "other"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("ddim", "heun"))]
    assert len(lines) == 4  # a distance and the error of each
    assert all(line.endswith("+0 [+0, +0], tied") for line in lines)
    shutil.rmtree(here / "other" / FOLDER)  # results alone: not paired
    assert main(["compare", str(whole), "other"]) == 0
    assert all(", not paired" in line for line in capsys.readouterr().out.splitlines() if line.startswith("ddim"))
    path = here / "other" / "results.json"
    document = json.loads(path.read_text())
    document["header"]["reference"] = "held-out letters"
    path.write_text(json.dumps(document))
    fails(capsys, ["compare", str(whole), "other"], "cannot be compared: reference is 'held-out digits, ", "letters'")


def test_a_biased_distance_is_not_compared_between_different_numbers_of_samples(run, whole, here, capsys):
    """The Frechet distance of more samples is smaller for the same law; the error and the kernel distance are not."""
    words = ["benchmark", f"--workdir={run}", "--solvers=ddim", "--nfe=4", "--metrics=frechet, mmd"]
    for count in (8, 64):
        assert main([*words, f"--out=of{count}", f"--seeds={count}"]) == 0
    capsys.readouterr()
    assert main(["compare", "of8", "of64"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("ddim")]
    verdicts = {line[2]: " ".join(line[8:]) for line in lines}
    assert verdicts["frechet"].startswith("not comparable: it depends on the number of samples, 8 and 64")
    assert verdicts["mmd"].startswith("tied")
    assert verdicts["error"].startswith("tied")


def test_a_budget_below_every_solver_is_an_error_and_else_a_row(run, here, capsys):
    words = ["benchmark", f"--workdir={run}", "--out=bench", "--seeds=4", "--nfe=1", "--grid=uniform"]
    fails(capsys, [*words, "--solvers=heun"], "no row can be computed: nfe=1 is too small for heun: one step takes 2")
    assert main([*words, "--solvers=heun, ddim"]) == 0
    assert [row.skipped for row in read("bench")[1]] == ["nfe=1 is too small for heun: one step takes 2", ""]


def test_a_program_of_another_path_is_one_line(run, here, capsys):
    words = ["benchmark", f"--workdir={run}", "--out=bench", "--seeds=4", "--nfe=3", "--solvers=file:p.json"]
    assert main(["solvers", "heun", "--steps=2", "--sde=ve", "--json=p.json"]) == 0
    fails(capsys, words, "file:p.json was made for a different path")
    assert main(["solvers", "heun", "--steps=2", "--sde=vp", "--output=v", "--json=p.json"]) == 0
    document = json.loads((here / "p.json").read_text())
    costs = {"forwards": 9000, "vjps": 500, "teacher": 500, "seconds": 3}
    tuning = {"parameters": 7, "costs": costs, "teacher": "heun in 64 steps"}
    (here / "p.json").write_text(json.dumps({**document, "tuning": tuning}))
    assert main(words) == 0
    (row,) = read("bench")[1]
    assert (row.solver, row.nfe_budget, row.nfe) == ("file:p.json", 3, 3)
    assert (row.parameters, row.tuning_nfe, row.tuning_seconds) == (7, 1e4, 3.0)
    assert row.teacher == "heun in 64 steps"
    assert main(["rerun", "bench"]) == 0
    assert main(["solvers", "dpm_2", "--steps=2", "--sde=vp", "--output=v", "--json=p.json"]) == 0
    assert main(words) == 0  # the file has another program now: its row is drawn again
    (other,) = read("bench")[1]
    assert other.drawn != row.drawn
    assert other.program != row.program


def test_the_hash_of_a_program_does_not_depend_on_where_its_file_is(run, here):
    words = ["benchmark", f"--workdir={run}", "--out=bench", "--seeds=4", "--nfe=3"]
    assert main(["solvers", "heun", "--steps=2", "--sde=vp", "--output=v", "--json=p.json"]) == 0
    (here / "other").mkdir()
    shutil.copy("p.json", "other/p.json")
    specs = ["file:p.json", "file:other/p.json", "final(solver=file:p.json)", "final(solver='file:other/p.json')"]
    assert main([*words, f"--solvers={', '.join(specs)}"]) == 0
    one, moved, wrapped, both = (row.program for row in read("bench")[1])
    assert one == moved != wrapped == both


FEATURES = """
def corner(size=2):
    return lambda x: x[:, 0, :size, :size].flatten(1)
def uneven():
    return lambda x: x.flatten(1)[:, : 3 + (len(x) == 8)]
def broken():
    raise RuntimeError("no weights")
"""


def test_features_of_the_users_own(run, here, capsys):
    (here / "mine.py").write_text(FEATURES)
    words = ["benchmark", f"--workdir={run}", "--out=bench", "--solvers=ddim", "--nfe=4", "--seeds=8", "--round"]
    with pytest.warns(FewSamples, match="from 8 samples and 300 real ones: a published FID or KID uses 50,000"):
        assert main([*words, "--metrics=frechet", "--features=mine:corner(size=3)"]) == 0
    header, (row,) = read("bench")
    assert header["features"] == "mine:corner(size=3)"
    assert header["caution"].startswith("frechet of features, from 8 samples and 300 real ones")
    capsys.readouterr()
    assert main([*words, "--metrics=frechet", "--features=mine:corner(size=3)"]) == 0  # all rows are there already
    assert header["caution"] in capsys.readouterr().out
    assert header["caution"] in (here / "bench" / "report.html").read_text()
    assert header["conversion"] == "rounded to 17 levels from -1 to 1"
    loaded = load_run(run)
    x = scoresde.sample(loaded.denoiser, (1, 8, 8), range(8), "ddim", "karras", nfe=4).x
    x = ((x.double() + 1) * 8).round().clamp(0, 16) / 8 - 1
    reference = scoresde.runs.build.load_data(loaded.config, loaded.card).test.first(10_000).x
    wanted = scoresde.benchmark.metrics.frechet(x[:, 0, :3, :3].float(), reference[:, 0, :3, :3])
    assert row.metrics["frechet"].value == pytest.approx(wanted, rel=1e-9)
    fails(capsys, ["rerun", "bench"], "names the class mine:corner", "--trust")
    with pytest.warns(FewSamples):
        assert main(["rerun", "bench", "--trust"]) == 0
    fresh = [*words, "--overwrite", "--out=other"]
    fails(capsys, [*fresh, "--features=mine:uneven"], "the samples have different sizes: 4 numbers in x, 3 in y")
    fails(capsys, [*fresh, "--features=mine:broken"], "cannot make the features 'mine:broken': no weights")
    fails(capsys, [*fresh, "--features=corner"], "features must be module:factory")
    fails(capsys, [*fresh, "--features=mine:corners"], "cannot make the features 'mine:corners'")


def test_the_share_of_a_process_as_torchrun_and_slurm_name_it():
    task = {"SLURM_ARRAY_TASK_ID": "6", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "2"}
    assert share_in({**task, "SLURM_ARRAY_TASK_STEP": "2"}) == (3, 4)
    ranks = {"RANK": "1", "WORLD_SIZE": "2"}
    shares = [
        share_in({**task, **ranks, "SLURM_ARRAY_TASK_ID": str(2 + k), "RANK": str(r)}) for k in range(4) for r in (0, 1)
    ]
    assert shares == [(k, 8) for k in range(1, 9)]
    for wrong in ({}, {"RANK": "1"}, {"RANK": "2", "WORLD_SIZE": "2"}, {"SLURM_ARRAY_TASK_ID": "1"}):
        with pytest.raises(Exception, match=r"auto needs|torchrun sets|does not exist|count of an array"):
            share_in(wrong)


def test_rows_of_another_machine_say_so(tmp_path):
    rows = [
        Row(
            "ddim",
            "karras",
            n,
            n,
            n,
            False,
            4,
            metrics={"mmd": Estimate(1.0, 0.5, 2.0)},
            environment={"torch": version},
        )
        for n, version in ((1, "9.1"), (2, "9.2"), (3, "9.1"))
    ]
    write(rows, tmp_path, {"seeds": [0, 1]})
    header, back = read(tmp_path)
    assert header["torch"] == "9.1"
    assert [row.environment for row in back] == [{}, {"torch": "9.2"}, {}]
