"""Publishing one solver: its rows alone are written anew, in the places of a whole run."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import only, publish
from benchmarks.accuracy import solver_orders, steps_vs_quality
from scoresde.io.result_files import write_json
from solvers import InputError

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.quick

RESULTS = ROOT / "benchmarks" / "accuracy" / "results"
ORDERS, QUALITY = RESULTS / "solver_orders.json", RESULTS / "steps_vs_quality.json"


def rows(path, name):
    return [row for row in json.loads(path.read_text())["rows"] if only.name_of(row["solver"]) == name]


def header(path):
    return json.loads(path.read_text())["header"]


ORDER = [(spec,) for spec in solver_orders.specs()]
OF_ORDERS = ["heun"], ("solver",), ORDER
OF_QUALITY = ["heun"], steps_vs_quality.COLUMNS, steps_vs_quality.order(), steps_vs_quality.TIMINGS


@pytest.mark.parametrize(("path", "how"), [(ORDERS, OF_ORDERS), (QUALITY, OF_QUALITY)], ids=["orders", "quality"])
def test_the_same_numbers_leave_the_file_as_it_is(path, how, tmp_path):
    fresh = rows(path, "heun")
    assert len(fresh) > 1
    for row in fresh:  # another processor rounds differently, and nothing takes the same time twice
        row.update({key: value * (1 + 1e-11) for key, value in row.items() if key in ("error", "sliced_wasserstein")})
        row.update({key: 1.0 for key in row if key in steps_vs_quality.TIMINGS})
    document = only.merged(path, {**header(path), "platform": "elsewhere"}, fresh[::-1], *how)
    write_json(tmp_path / path.name, document)
    assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_what_the_package_carries_comes_from_the_rows():
    document = json.loads(ORDERS.read_text())
    text = solver_orders.compact(document["rows"], document["header"])
    assert text == (ROOT / "solvers" / "conformance" / "orders.json").read_text()


def test_a_changed_row_takes_its_place_and_every_other_stays():
    fresh, before = rows(QUALITY, "heun"), json.loads(QUALITY.read_text())["rows"]
    fresh[0]["error"] *= 1.01
    after = only.merged(QUALITY, header(QUALITY), fresh, *OF_QUALITY)
    changed = [place for place, (old, new) in enumerate(zip(before, after["rows"], strict=True)) if old != new]
    assert [after["rows"][place] for place in changed] == [fresh[0]]


def test_a_new_solver_stands_where_a_whole_run_puts_it_and_an_old_row_of_its_name_goes(tmp_path):
    document = json.loads(ORDERS.read_text())
    without = [row for row in document["rows"] if row["solver"] != "heun"]
    stale = {**without[0], "solver": "heun(quantity=gone)"}
    path = tmp_path / "solver_orders.json"
    path.write_text(json.dumps({"header": document["header"], "rows": [*without, stale]}))
    assert only.merged(path, document["header"], rows(ORDERS, "heun"), *OF_ORDERS) == document


@pytest.mark.parametrize("key", ["torch", "numpy", "command"])
def test_rows_of_other_versions_are_not_mixed(key):
    with pytest.raises(InputError, match=f"has {key} .*, this run has '0.1': measure all solvers again"):
        only.merged(ORDERS, {**header(ORDERS), key: "0.1"}, rows(ORDERS, "heun"), *OF_ORDERS)


@pytest.mark.parametrize("main", [publish.main, solver_orders.main, steps_vs_quality.main])
def test_an_unknown_name_is_one_line_with_the_nearest_match(main, monkeypatch, capsys):
    option = [] if main is publish.main else ["--only"]
    monkeypatch.setattr(sys, "argv", ["script", *option, "heun", "huen"])
    with pytest.raises(SystemExit) as ended:
        only.run(main)
    assert ended.value.code == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("error: no solver 'huen'; did you mean heun")
    assert told.err.count("\n") == 1


@pytest.mark.parametrize(("name", "words"), [("euler", "it is the same method as ddim"), ("dopri5", "see --help")])
def test_a_solver_without_rows_of_its_own_says_why(name, words, capsys):
    before = QUALITY.read_bytes()
    steps_vs_quality.main(["--only", name])
    assert words in capsys.readouterr().out
    assert QUALITY.read_bytes() == before
