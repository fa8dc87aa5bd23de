"""The leaderboard: its rows resume and are drawn again to the bit, its slopes are the measured orders, its ties are."""

import csv
import json
import math
from pathlib import Path

import pytest
import torch

import scoresde
import solvers
from benchmarks.leaderboard import boards, programs
from benchmarks.leaderboard.boards import Board, Places
from benchmarks.tables import leaderboard as page
from benchmarks.tuning import tuned_programs
from scoresde.benchmark.runner import benchmark

SPECS = ("ddim", "ipndm", "ddpm", "rk4")
BOARD = Board("mixture", "vp")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A board of a few solvers, small, drawn by two shares and joined."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(boards.EXACT, "mixture", boards.EXACT["mixture"]._replace(samples=16, truth_steps=64))
        patch.setattr(torch, "set_num_threads", lambda _: None)
        there = Places(tmp_path_factory.mktemp("board"), Path("none"))
        for k in (1, 2):
            boards.draw(BOARD, there, SPECS, (k, 2), (3, 6))
        boards.join(BOARD, there, SPECS, (3, 6))
        yield there


def test_rows_are_drawn_again_to_the_bit(places):
    lines = boards.lines_of(BOARD, places)
    # four solvers at two budgets, ipndm on three more grids, and the program tuned at 6
    assert len(lines) == 15
    assert [(line["solver"], line["nfe_budget"]) for line in lines[:8]] == [(s, n) for s in SPECS for n in (3, 6)]
    assert [line["grid"] for line in lines[8:14:2]] == list(boards.GRIDS)
    for number in (2, 6, 7, 14, 15):
        again = boards.redrawn(BOARD, places, number)
        assert again.identical, str(again)
        assert number == 15 or again.here.solver == lines[number - 1]["solver"]
    assert [line["nfe"] for line in lines[:8]] == [3, 6, 3, 6, 3, 6, 1, 5]  # rk4 takes 4 a step, and 1 to sigma = 0


def test_a_tuned_program_is_told_apart_and_leaves_the_best_untuned_one(places):
    """Its error is near that of tuned_programs.json: of 16 samples, between the median and twice the mean of many."""
    *untuned, tuned = boards.lines_of(BOARD, places)
    known = next(row for row in programs.rows_of("mixture", "vp") if row["nfe"] == 6)
    assert (tuned["solver"], tuned["grid"], tuned["nfe"]) == ("tuned program", "its own", 6)
    assert known["tuned_median"] < tuned["error"] < known["tuned"] * 2
    assert tuned["parameters"] == 5 + 6 + 21 + 6  # nodes, labels, coefficients of predictions and of the start
    assert tuned["tuning_nfe"] == known["forwards"] + known["vjps"] + known["teacher"]
    assert tuned["teacher"] == "exact solution"
    scored = [line for line in untuned if line["nfe_budget"] == 6 and line["error"] is not None]
    least = min(scored, key=lambda line: line["error"])
    assert tuned["error"] < 0.5 * least["error"]
    assert "error" in least["best"].split()  # of the untuned ones
    assert ("error" in tuned["best_of_all"].split(), tuned["best"]) == (True, "")
    assert not any("error" in line["best_of_all"].split() for line in scored)
    assert all(line["parameters"] is None for line in untuned)


@pytest.mark.parametrize(("path", "begin"), [("ve", 50), ("flow", 999)])
def test_a_tuned_program_is_as_good_on_a_path_that_begins_at_another_noise_level(path, begin, tmp_path):
    """Of 64 samples, a few of which have most of the error: 2 times that of VP is far below every untuned error."""
    sde = scoresde.make_sde(boards.PATHS[path])
    assert sde(sde.t_max).ratio == pytest.approx(begin, rel=1e-3)
    (spec,) = programs.write("mixture", path, sde, tmp_path, (5,))
    model = boards.mixture().denoiser(sde)
    rows = benchmark(
        model, None, [spec, "ipndm", "few"], [5], boards.seeds_of(64), shape=(8,), truth_steps=128, progress=False,
        dtype=torch.float64,
    )  # fmt: skip
    known = next(row for row in programs.rows_of("mixture", "vp") if row["nfe"] == 5)
    assert rows[0].error.value < 2 * known["tuned"] < rows[1].error.value
    assert rows[0].nfe == 5
    assert known["tuned"] < rows[2].error.value < rows[1].error.value  # its grid also ends above t_min


def test_a_program_whose_second_state_has_more_noise_than_a_path_has_no_row_there(tmp_path, capsys):
    sde = scoresde.make_sde(boards.PATHS["ve"])
    specs = programs.write("mnist", "ve", sde, tmp_path, (5, 8, 10))
    assert [spec.rpartition("_")[2] for spec in specs] == ["nfe5.json", "nfe10.json"]
    assert "mnist_ve: no program of 8 evaluations" in capsys.readouterr().out
    table = programs.table_of(next(row for row in programs.rows_of("mnist", "ve") if row["nfe"] == 8))
    assert table.ratios[1] > 50


def test_no_program_was_tuned_on_a_seed_of_the_boards():
    known = {seed for exact in boards.EXACT.values() for seed in boards.seeds_of(max(exact.samples, 512))}
    for target in tuned_programs.TARGETS:
        for part in range(3):
            assert not known & set(tuned_programs.seeds_of(target, part))


def test_a_network_with_other_weights_has_no_tuned_programs(monkeypatch, capsys):
    run, known = object(), programs.rows_of("trained", "vp")
    assert {row["nfe"] for row in known} == {5, 6, 8, 10}
    assert programs.rows_of("trained", "ve") == []
    monkeypatch.setattr(tuned_programs, "words_of", lambda _: "digits_vp, 4500 steps, seed 1, weights 0")
    assert programs.rows_of("trained", "vp", run) == []
    assert "trained_vp: no tuned programs, which are of digits_vp, 4500 steps, seed 0" in capsys.readouterr().out
    words = json.loads(tuned_programs.RESULTS.read_text())["header"]["models"]["trained"]
    monkeypatch.setattr(tuned_programs, "words_of", lambda _: words)
    assert programs.rows_of("trained", "vp", run) == known


def test_a_changed_number_is_reported(places):
    path = places.out / BOARD.name / "results.json"
    text = path.read_text()
    document = json.loads(text)
    document["rows"][1]["error"] *= 1.5
    path.write_text(json.dumps(document))
    try:
        again = boards.redrawn(BOARD, places, 2)
    finally:
        path.write_text(text)
    assert not again.identical
    assert "error is" in str(again)


def test_finished_rows_are_not_drawn_again(places, monkeypatch):
    before = boards.lines_of(BOARD, places)
    monkeypatch.setattr("scoresde.benchmark.runner.sample", None)  # a call would be an error
    boards.join(BOARD, places, SPECS, (3, 6))
    assert boards.lines_of(BOARD, places) == before


def test_a_board_is_replaced_and_the_others_are_kept(places, tmp_path, monkeypatch):
    monkeypatch.setattr(boards, "slopes", list)
    other = dict.fromkeys(("problem", "path", *boards.COLUMNS), "") | {"problem": "trained", "path": "ve"}
    first = boards.commit([BOARD], {BOARD.name: {}}, places, tmp_path)
    assert first == "0 of 15 rows have the samples of the earlier file, bit for bit"
    with (tmp_path / "boards.csv").open("a", newline="") as file:
        csv.DictWriter(file, list(other)).writerow(other)
    again = boards.commit([BOARD], {BOARD.name: {}}, places, tmp_path)
    assert again == "15 of 15 rows have the samples of the earlier file, bit for bit"
    known = page.boards_of(tmp_path / "boards.csv")
    assert {key: len(rows) for key, rows in known.items()} == {("mixture", "vp"): 14, ("trained", "ve"): 1}
    tuned = page.boards_of(tmp_path / "boards.csv", tuned=True)
    assert {key: len(rows) for key, rows in tuned.items()} == {("mixture", "vp"): 1}


@pytest.mark.quick
def test_every_solver_has_rows_or_a_reason():
    names = {spec.partition("(")[0] for spec in boards.contenders()}
    reasons = boards.without_rows()
    assert names | set(reasons) == set(solvers.names("gaussian"))
    assert not names & set(reasons)
    assert reasons["rk45"] == "they choose their own evaluations"
    assert reasons["euler"] == "the same method as `ddim`"
    document = {"without rows": reasons}
    rows = {("a", ""): [{"solver": spec} for spec in boards.contenders()]}
    assert "not drawn yet" not in page.absent(document, rows)
    rows["a", ""] = rows["a", ""][1:]
    assert f"- `{boards.contenders()[0]}`: not drawn yet." in page.absent(document, rows).splitlines()


def test_errors_on_the_mixture_fall_at_the_measured_orders():
    """From 20 to 160 evaluations. Orders are measured at 42 steps and more, so the first errors are not yet asymptotic.

    0.4 is below half of the distance between two whole orders: a slope distinguishes an order from its neighbours.
    """
    found = boards.slopes(48, ("ddim", "ipndm", "deis", "rk4"), truth_steps=1024)
    for row in found:
        assert row["slope"] == pytest.approx(row["order"], abs=0.4), row["solver"]
    at_five = {row["solver"]: row["points"][0][1] for row in found}
    at_160 = {row["solver"]: row["points"][-1][1] for row in found}
    assert min(at_five, key=at_five.get) != min(at_160, key=at_160.get)  # which the page says


def made(values, low=0.9):
    """A board of rows with an error each, whose interval begins at so many times the error."""
    return [
        {"solver": name, "grid": "karras", "nfe_budget": "5", "error": str(value), "error_low": str(low * value)}
        for name, value in values.items()
    ]


@pytest.mark.quick
def test_what_boards_do_not_distinguish_is_tied():
    known = {("a", ""): made({"x": 1.0, "y": 1.3, "z": 3.0, "w": 1.0}),
              ("b", ""): made({"x": 2.0, "y": 1.8, "z": 5.9, "w": 2.0}),
              ("c", ""): made({"x": 1.0, "y": 1.1, "z": 3.1})}  # fmt: skip
    known["d", ""] = made(
        {"x": 3.0, "y": 1.0, "z": 0.1, "w": 2.0}, low=0
    )  # its least error may be 0: it does not count
    found = page.standings(known, "error", 5)
    assert [(each.label, each.tied) for each in found] == [("`x`", True), ("`y`", True), ("`z`", False)]
    assert found[0].times == pytest.approx((2.0 / 1.8) ** (1 / 3))
    # x and y: logarithms apart by .262, -.105 and .095: the mean .084 is within 4.30 times .184 / sqrt(3)
    apart = [math.log(1.3), math.log(0.9), math.log(1.1)]
    mean = sum(apart) / 3
    spread = (sum((a - mean) ** 2 for a in apart) / 2) ** 0.5
    assert mean < 4.303 * spread / 3**0.5


@pytest.mark.quick
def test_tables_say_what_a_tuned_program_reaches_next_to_the_untuned_best():
    def row(solver, error, data, best, best_of_all, millions=""):
        return {
            "solver": solver, "grid": "karras", "nfe_budget": "5", "error": error, "sliced_wasserstein": data,
            "best": best, "best_of_all": best_of_all, "tuning_nfe": millions, "error_low": error,
            "sliced_wasserstein_low": data,
        }  # fmt: skip

    board = ("mixture", "vp")
    untuned = {board: [row("x", "0.2", "0.09", "error", ""), row("y", "0.3", "0.08", "sliced_wasserstein",
                                                                 "sliced_wasserstein")]}  # fmt: skip
    tuned = {board: [row("tuned program", "0.05", "0.1", "", "error", "2500000.0")]}
    assert page.best_of(untuned[board], tuned[board], "error", 5) == "**`x`** 0.2; tuned: **0.05**"
    assert page.best_of(untuned[board], tuned[board], "sliced_wasserstein", 5) == "**`y`** 0.08; tuned: 0.1"
    last = page.gains(untuned, tuned).splitlines()[-1]
    assert last == "| 12 Gaussians, exact, vp | **0.05** (0.25) | 0.1 (1.25) | 2.5 |"
    untuned[board][0]["best_of_all"] = "error"
    assert "| **0.05** (0.25, tied) | 0.1 (1.25) |" in page.gains(untuned, tuned)
    assert [each.label for each in page.standings(untuned, "error", 5)] == ["`x`", "`y`"]


def test_a_board_without_a_program_of_a_budget_has_an_empty_cell():
    one = {"solver": "x", "grid": "karras", "nfe_budget": "5", "error": "0.2", "sliced_wasserstein": "0.1",
           "best": "error sliced_wasserstein", "best_of_all": "error sliced_wasserstein"}  # fmt: skip
    own = {**one, "solver": "tuned program", "error": "0.1", "best_of_all": "error", "tuning_nfe": "1e6"}
    rows, programs_of = [one, {**one, "nfe_budget": "8"}], [own, {**own, "nfe_budget": "8", "tuning_nfe": "2e6"}]
    boards_of = {("mnist", "vp"): rows, ("mnist", "ve"): rows}
    lines = page.gains(boards_of, {("mnist", "vp"): programs_of, ("mnist", "ve"): programs_of[1:]}).splitlines()
    assert lines[-2].endswith("| 1.0, 2.0 |")
    assert [cell.strip() for cell in lines[-1].split("|")[2:6]] == ["", "**0.1** (0.50, tied)", "", "0.1 (1.00)"]
    assert lines[-1].endswith("| 2.0 |")
