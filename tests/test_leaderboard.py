"""The leaderboard: its rows resume and are drawn again to the bit, its slopes are the measured orders, its ties are."""

import csv
import json
import math
import sys
from pathlib import Path

import pytest
import torch

import solvers

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "benchmarks"))

import leaderboard  # noqa: E402
import tables.leaderboard as page  # noqa: E402
from leaderboard import Board, Places  # noqa: E402

SPECS = ("ddim", "ipndm", "ddpm", "rk4")
BOARD = Board("mixture", "vp")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A board of a few solvers, small, drawn by two shares and joined."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(leaderboard.EXACT, "mixture", leaderboard.EXACT["mixture"]._replace(samples=16, truth_steps=64))
        patch.setattr(torch, "set_num_threads", lambda _: None)
        there = Places(tmp_path_factory.mktemp("board"), Path("none"))
        for k in (1, 2):
            leaderboard.draw(BOARD, there, SPECS, (k, 2), (3, 6))
        leaderboard.join(BOARD, there, SPECS, (3, 6))
        yield there


def test_rows_are_drawn_again_to_the_bit(places):
    lines = leaderboard.lines_of(BOARD, places)
    # four solvers at two budgets, and ipndm on three more grids
    assert [(line["solver"], line["nfe_budget"]) for line in lines[:8]] == [(s, n) for s in SPECS for n in (3, 6)]
    assert [line["grid"] for line in lines[8::2]] == list(leaderboard.GRIDS)
    for number in (2, 6, 7, 14):
        again = leaderboard.redrawn(BOARD, places, number)
        assert again.identical, str(again)
        assert again.here.solver == lines[number - 1]["solver"]
    assert [line["nfe"] for line in lines[:8]] == [3, 6, 3, 6, 3, 6, 1, 5]  # rk4 takes 4 a step, and 1 to sigma = 0


def test_a_changed_number_is_reported(places):
    path = places.out / BOARD.name / "results.json"
    text = path.read_text()
    document = json.loads(text)
    document["rows"][1]["error"] *= 1.5
    path.write_text(json.dumps(document))
    try:
        again = leaderboard.redrawn(BOARD, places, 2)
    finally:
        path.write_text(text)
    assert not again.identical
    assert "error is" in str(again)


def test_finished_rows_are_not_drawn_again(places, monkeypatch):
    before = leaderboard.lines_of(BOARD, places)
    monkeypatch.setattr("scoresde.benchmark.runner.sample", None)  # a call would be an error
    leaderboard.join(BOARD, places, SPECS, (3, 6))
    assert leaderboard.lines_of(BOARD, places) == before


def test_a_board_is_replaced_and_the_others_are_kept(places, tmp_path, monkeypatch):
    monkeypatch.setattr(leaderboard, "slopes", list)
    other = dict.fromkeys(("problem", "path", *leaderboard.COLUMNS), "") | {"problem": "trained", "path": "ve"}
    first = leaderboard.commit([BOARD], {BOARD.name: {}}, places, tmp_path)
    assert first == "0 of 14 rows have the samples of the earlier file, bit for bit"
    with (tmp_path / "leaderboard.csv").open("a", newline="") as file:
        csv.DictWriter(file, list(other)).writerow(other)
    again = leaderboard.commit([BOARD], {BOARD.name: {}}, places, tmp_path)
    assert again == "14 of 14 rows have the samples of the earlier file, bit for bit"
    boards = page.boards_of(tmp_path / "leaderboard.csv")
    assert {key: len(rows) for key, rows in boards.items()} == {("mixture", "vp"): 14, ("trained", "ve"): 1}


@pytest.mark.quick
def test_every_solver_has_rows_or_a_reason():
    names = {spec.partition("(")[0] for spec in leaderboard.contenders()}
    reasons = leaderboard.without_rows()
    assert names | set(reasons) == set(solvers.names("gaussian"))
    assert not names & set(reasons)
    assert reasons["rk45"] == "they choose their own evaluations"
    assert reasons["euler"] == "the same method as `ddim`"
    document = {"without rows": reasons}
    rows = {("a", ""): [{"solver": spec} for spec in leaderboard.contenders()]}
    assert "not drawn yet" not in page.absent(document, rows)
    rows["a", ""] = rows["a", ""][1:]
    assert f"- `{leaderboard.contenders()[0]}`: not drawn yet." in page.absent(document, rows).splitlines()


def test_errors_on_the_mixture_fall_at_the_measured_orders():
    """From 20 to 160 evaluations. Orders are measured at 42 steps and more, so the first errors are not yet asymptotic.

    0.4 is below half of the distance between two whole orders: a slope distinguishes an order from its neighbours.
    """
    found = leaderboard.slopes(48, ("ddim", "ipndm", "deis", "rk4"), truth_steps=1024)
    for row in found:
        assert row["slope"] == pytest.approx(row["order"], abs=0.4), row["solver"]
    at_five = {row["solver"]: row["points"][0][1] for row in found}
    at_160 = {row["solver"]: row["points"][-1][1] for row in found}
    assert min(at_five, key=at_five.get) != min(at_160, key=at_160.get)  # which the page says


def made(values, budget=5):
    """A board of rows with an error each."""
    return [
        {"solver": name, "grid": "karras", "nfe_budget": str(budget), "error": str(value)}
        for name, value in values.items()
    ]


@pytest.mark.quick
def test_what_boards_do_not_distinguish_is_tied():
    boards = {("a", ""): made({"x": 1.0, "y": 1.3, "z": 3.0, "w": 1.0}),
              ("b", ""): made({"x": 2.0, "y": 1.8, "z": 5.9, "w": 2.0}),
              ("c", ""): made({"x": 1.0, "y": 1.1, "z": 3.1})}  # fmt: skip
    found = page.standings(boards, "error", 5)
    assert [(each.label, each.tied) for each in found] == [("`x`", True), ("`y`", True), ("`z`", False)]
    assert found[0].times == pytest.approx((2.0 / 1.8) ** (1 / 3))
    # x and y: logarithms apart by .262, -.105 and .095: the mean .084 is within 4.30 times .184 / sqrt(3)
    apart = [math.log(1.3), math.log(0.9), math.log(1.1)]
    mean = sum(apart) / 3
    spread = (sum((a - mean) ** 2 for a in apart) / 2) ** 0.5
    assert mean < 4.303 * spread / 3**0.5
