"""The page of a benchmark in a browser: sorted, filtered, pointed at, used by keyboard, and exported."""

import csv
import io

import pytest
from browser import CHROMIUM, browser, check_page
from test_report import ROWS, Page, page, pictures, row

from scoresde.show.page import write_report


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    folder = tmp_path_factory.mktemp("page")
    name = "x" * 60
    write_report(
        folder / "report.html", title="a/long/folder/" * 9, rows=[*ROWS, row(name, 5, 0.9)], reference=pictures(9),
        header={"command": "scoresde benchmark", "config": {"name": "x" * 300}},
    )  # fmt: skip
    with browser(folder / "profile") as opened:
        yield opened, folder / "report.html"


ORDER = "[...document.querySelectorAll('table.rows tbody tr')].filter(r => !r.hidden).map(r => r.dataset.row).join()"
DRAWN = """[...document.querySelectorAll('svg.chart')].map(c => [...c.querySelectorAll('.point')]
    .filter(p => p.getBoundingClientRect().width).map(p => p.dataset.row).join())"""
CLICK = "document.querySelectorAll('table.rows thead button')[{}].click()"
SAVED = """(() => {{
    const kept = window.kept = [], make = URL.createObjectURL;
    URL.createObjectURL = blob => {{ kept.push(blob.text()); return make.call(URL, blob); }};
    HTMLAnchorElement.prototype.click = function () {{ window.file = this.download; }};
    document.querySelector('button[data-form={}]').click();
    return Promise.all(kept).then(texts => texts[0]);
}})()"""


def saved(opened, form):
    found = opened.call("Runtime.evaluate", expression=SAVED.format(form), returnByValue=True, awaitPromise=True)
    assert opened.value("window.file") == f"benchmark.{form}"
    return found["result"]["value"]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [400, 1200])
def test_a_browser_shows_the_page(shown, width, dark):
    opened, path = shown
    check_page(opened, path, width, dark)


def test_the_table_sorts_and_filters_and_the_charts_follow(shown):
    opened, path = shown
    opened.open(path, 1200)
    assert opened.value(ORDER) == "1,2,3,4,5,6,7"
    sliced = [cell[1].strip() for cell in Page(path.read_text()).table("rows")[0]].index("sliced Wasserstein")
    opened.value(CLICK.format(sliced))
    assert opened.value(ORDER) == "5,2,4,3,1,7,6"  # the least first, a row without a number last
    opened.value(CLICK.format(sliced))
    assert opened.value(ORDER) == "7,1,3,4,2,5,6"
    assert opened.value("document.querySelector('th[aria-sort]').getAttribute('aria-sort')") == "descending"
    opened.value(CLICK.format(2))  # NFE, as numbers: 4 before 9 before 77
    assert opened.value(ORDER) == "7,1,3,4,2,5,6"
    type_in = "(b => { b.value = 'dDp'; b.dispatchEvent(new Event('input')); })(document.getElementById('filter'))"
    assert opened.value(DRAWN) == ["1,2,3,4,5,7", "1,2,3,4,5,7", "1,2,5"]
    opened.value(type_in)
    assert opened.value(ORDER) == "3,4"
    assert opened.value(DRAWN) == ["3,4", "3,4", ""]
    assert opened.value("document.getElementById('count').textContent") == "2 of 7 rows"
    opened.value(type_in.replace("dDp", ""))
    opened.value("document.querySelectorAll('button.key')[1].click()")  # the legend hides ddpm
    assert opened.value(DRAWN) == ["1,2,5,7", "1,2,5,7", "1,2,5"]
    assert opened.complaints == []


def test_the_pointer_and_the_keyboard_show_a_points_label(shown):
    opened, path = shown
    opened.open(path, 1200)
    tip = "document.getElementById('tip').hidden ? '' : document.getElementById('tip').textContent"
    assert opened.value(tip) == ""
    place = opened.value("(r => [r.x + r.width / 2, r.y + r.height / 2])(document.querySelector("
                         "'svg.chart .point[data-row=\"2\"]').getBoundingClientRect())")  # fmt: skip
    opened.call("Input.dispatchMouseEvent", type="mouseMoved", x=place[0], y=place[1])
    assert opened.value(tip) == "ddim, 9 NFE: 0.333 (0.321 to 0.379)"
    assert opened.value("document.querySelector('tr.marked').dataset.row") == "2"
    opened.call("Input.dispatchMouseEvent", type="mouseMoved", x=2, y=2)
    assert opened.value(tip) == ""
    opened.value("document.querySelector('svg.chart .point[tabindex=\"0\"]').focus()")
    assert opened.value(tip).startswith("ddim, 4 NFE: 0.777")
    for key, label in (("ArrowRight", "ddim, 9 NFE"), ("ArrowDown", "ddpm, 9 NFE"), ("ArrowLeft", "ddpm, 4 NFE")):
        opened.call("Input.dispatchKeyEvent", type="keyDown", key=key)
        assert opened.value(tip).startswith(label)
    assert (
        opened.value("document.querySelectorAll('svg.chart')[0].querySelectorAll('.point[tabindex=\"0\"]').length") == 1
    )
    opened.call("Input.dispatchKeyEvent", type="keyDown", key="Escape")
    assert opened.value(tip) == ""


def test_the_visible_rows_are_exported(shown):
    opened, path = shown
    opened.open(path, 1200)
    lines = list(csv.DictReader(io.StringIO(saved(opened, "csv"))))
    assert [line["solver"] for line in lines] == [row.solver for row in [*ROWS, row("x" * 60, 5, 0.9)]]
    assert [lines[0][f"error{part}"] for part in ("", " low", " high")] == ["0.0987", "0.0876", "0.11"]
    assert lines[2]["error"] == ""
    assert lines[5]["sliced Wasserstein"] == "skipped: nfe=5 is too small for <heun>"
    opened.open(path, 1200)
    head, rule, first, *_ = saved(opened, "md").splitlines()
    assert head.startswith("| solver | steps | NFE |")
    assert rule.startswith("| --- | ---: |")
    assert first.startswith("| ddim | 5 | 4 | 5 |")
    assert "| 0.777 (0.765 to 0.823) |" in first
    opened.open(path, 1200)
    text = saved(opened, "tex")
    assert text.startswith("\\begin{tabular}{lrr")
    assert "& \\textbf{0.333} &" in text
    assert "MMD\\textsuperscript{2}" in text
    assert opened.complaints == []


# the words of row labels that a browser shows on several lines
BROKEN = r"""[...document.querySelectorAll('table.pictures th.name')].flatMap(c => [...c.childNodes]).flatMap(node =>
    [...node.textContent.matchAll(/[\w=]+/g)].filter(word => {
        const range = document.createRange();
        range.setStart(node, word.index);
        range.setEnd(node, word.index + word[0].length);
        return range.getClientRects().length > 1;
    }).map(word => word[0]))"""


def test_row_labels_break_between_words_only(tmp_path):
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    name = "theta_trapezoidal(clock=rate, kernel=euler)"
    rows = [row(name, nfe, 0.5, samples=pictures(0)) for nfe in (4, 8, 16, 32, 64)]
    page(tmp_path, rows=rows, reference=pictures(9))
    with browser(tmp_path / "profile") as opened:
        for width in (1200, 390):
            opened.open(tmp_path / "report.html", width)
            shown = opened.value("[...document.querySelectorAll('th.name')].map(e => e.textContent)")
            assert name in shown
            assert opened.value(BROKEN) == []
