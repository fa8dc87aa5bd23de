"""The page: every number is there, nothing comes from outside, nobody's text is markup; pictures to the pixel."""

import base64
import hashlib
import io
import math
import re
from html.parser import HTMLParser
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

import scoresde
import solvers
from scoresde.benchmark.metrics import Estimate
from scoresde.benchmark.rows import Row
from scoresde.likelihood.result import LogProb
from scoresde.sampling.pictures import image_grid
from scoresde.show import likelihood_page, program_view
from scoresde.show.charts import charts, number
from scoresde.show.figures import inline
from scoresde.show.page import write_report
from solvers import InputError

VOID = {"meta", "img", "br", "wbr", "link", "hr", "input"}


class Page(HTMLParser):
    """A page's cells, pictures and text; fails on tags that do not nest."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.addresses, self.text, self.tables, self.classes = [], [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "srcset", "action", "data", "poster"):
                self.addresses.append(value)
            assert not name.startswith("on")
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
            self.classes.append(dict(attributes).get("class"))
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append(["best" in dict(attributes).get("class", ""), ""])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1][1] += f" {data.strip()}"

    def table(self, name):
        return self.tables[self.classes.index(name)]

    def pictures(self):
        for address in self.addresses:
            yield Image.open(io.BytesIO(base64.b64decode(address.removeprefix("data:image/png;base64,"))))


def row(solver, asked, value, **facts):
    score = Estimate(value, value - 0.0123, value + 0.0456)
    return Row(
        solver, "karras", asked, asked - 1 if asked else 77, 5, solver == "ddpm", 31,
        **{"metrics": {"sliced_wasserstein": score, "mmd": Estimate(value - 0.3, -0.51, 0.52)},
           "seconds": 1.5, "seconds_per_sample": 0.0484, **facts},
    )  # fmt: skip


def pictures(seed):
    return torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1


ROWS = [
    row("ddim", 5, 0.777, error=Estimate(0.0987, 0.0876, 0.1098), samples=pictures(0)),
    row("ddim", 10, 0.333, error=Estimate(0.0087, 0.0076, 0.0098), samples=pictures(1)),
    row("ddpm", 5, 0.666, samples=pictures(2)),
    row("ddpm", 10, 0.444, samples=pictures(3)),
    row("rk45", None, 0.111, error=Estimate(0.0001234, 0.000111, 0.000135), samples=pictures(4)),
    Row("heun", "karras", 5, None, None, False, 31, skipped="nfe=5 is too small for <heun>"),
]


def page(tmp_path, **options):
    write_report(tmp_path / "report.html", **{"title": "T", "rows": ROWS, **options})
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    return Page(text), text


def test_every_number_is_in_its_row(tmp_path):
    found, _ = page(tmp_path)
    head, *lines = found.table("rows")
    names = [cell[1].strip() for cell in head]
    assert names[:3] == ["solver", "steps", "NFE"]
    assert len(lines) == len(ROWS)
    for cells, source in zip(lines, ROWS, strict=True):
        texts = dict(zip(names, [cell[1].split() for cell in cells], strict=False))
        assert texts["solver"] == [source.solver]
        assert texts["samples"] == ["31"]
        assert texts["kind"] == ["SDE" if source.solver == "ddpm" else "ODE"]
        if source.skipped:
            assert (texts["steps"], texts["NFE"]) == (["-"], ["-"])
            assert source.skipped in " ".join(cells[-1][1].split())
            continue
        assert texts["steps"] == ["5"]
        assert texts["NFE"] == [str(source.nfe)]
        assert texts["budget"] == [str(source.nfe_budget or "-")]
        assert texts["ms / sample"] == ["48.4"]
        for column, score in [
            ("sliced Wasserstein", source.metrics["sliced_wasserstein"]),
            ("MMD²", source.metrics["mmd"]),
            ("error", source.error),
        ]:
            if score is None:
                assert texts[column] == ["-"]
            else:
                assert texts[column] == [number(score.value), number(score.low), "to", number(score.high)]


def test_the_best_of_each_budget_is_marked(tmp_path):
    found, _ = page(tmp_path)
    column = [cell[1].strip() for cell in found.table("rows")[0]].index("sliced Wasserstein")
    marked = [line[0][1].strip() for line in found.table("rows")[1:] if len(line) > column and line[column][0]]
    assert marked == ["ddim", "ddpm"]  # at 10 and at 5; rk45 has no budget to be the best of
    head, *lines = [[cell[1].strip() for cell in line] for line in found.table("answers")]
    assert head == ["NFE", "sliced Wasserstein", "MMD²", "error"]
    assert [line[:2] for line in lines] == [["5", "ddpm (0.666)"], ["10", "ddim (0.333)"]]
    assert all(line[3] == "-" for line in lines)  # a single solver wins nothing


def scored(solver, asked, value, low, high):
    return Row(solver, "karras", asked, asked, 5, False, 31, metrics={"sliced_wasserstein": Estimate(value, low, high)})


def test_what_intervals_do_not_distinguish_is_tied_and_a_single_solver_wins_nothing(tmp_path):
    rows = [
        scored("heun", 5, 0.50, 0.44, 0.56), scored("ddim", 5, 0.55, 0.51, 0.59), scored("euler", 5, 0.60, 0.57, 0.63),
        scored("heun", 9, 0.10, 0.09, 0.11),
    ]  # fmt: skip
    found, _ = page(tmp_path, rows=rows)
    head, *lines = found.table("rows")
    column = [cell[1].strip() for cell in head].index("sliced Wasserstein")
    marked = [line[0][1].strip() for line in lines if line[column][0]]
    assert marked == ["heun", "ddim"]  # 0.55 lies in heun's interval; 0.60 does not, nor 0.50 in euler's
    assert [cell[1].strip() for cell in found.table("answers")[1]] == ["5", "heun, ddim (0.5 to 0.55, tied)"]


NUMBER = r"(-?[\d.]+)"


def points(svg):
    """The points of a chart: row, label, x and y."""
    form = rf'aria-label="([^"]*)" data-row="(\d+)" style="[^"]*" transform="translate\({NUMBER},{NUMBER}\)"'
    return [(int(row), label, float(x), float(y)) for label, row, x, y in re.findall(form, svg)]


def test_a_single_budget_is_a_line_for_each_solver():
    rows = [scored("ddim", 5, 0.75, 0.61, 0.89), scored("heun", 5, 0.50, 0.44, 0.56)]
    (chart,) = charts(rows)
    found = points(chart["svg"])
    assert [(row, label) for row, label, *_ in found] == [
        (2, "heun, 5 NFE: 0.5 (0.44 to 0.56)"), (1, "ddim, 5 NFE: 0.75 (0.61 to 0.89)"),
    ]  # fmt: skip  # best first
    reach = [
        tuple(map(float, pair))
        for pair in re.findall(rf'class="reach"[^>]*d="M{NUMBER},[\d.]+H{NUMBER}"', chart["svg"])
    ]
    low, high = math.log(0.44 / 1.15), math.log(0.89 * 1.15)  # the ends of the axis
    for (_, _, x, _), (left, right), ends in zip(found, reach, [(0.5, 0.44, 0.56), (0.75, 0.61, 0.89)], strict=True):
        for place, value in zip((x, left, right), ends, strict=True):
            assert place == pytest.approx(190 + (480 - 190 - 14) * (math.log(value) - low) / (high - low), abs=0.06)


def test_both_pages_of_a_run_show_the_same_standard_error(tmp_path):
    stderr = torch.tensor([0.1, 0.3, math.nan], dtype=torch.float64)
    result = LogProb(
        nats=torch.zeros(3), stderr=stderr, nfe=1, latent=torch.zeros(3, 2), budget={}, solver="heun", grid="logsnr",
        divergence="", seconds=1.0, stderr_of="the trace's probes",
    )  # fmt: skip
    assert "the trace's probes: 0.2 nats a sample" in likelihood_page.block(result)
    found, _ = page(tmp_path, rows=[], likelihood=result)
    assert "standard error of the estimator 0.2 nats a sample" in " ".join(" ".join(found.text).split())


def test_nothing_is_fetched_and_no_script_runs_but_its_own(tmp_path):
    found, text = page(tmp_path, reference=pictures(9), header={"command": "scoresde benchmark --out=b"})
    assert all(address.startswith("data:image/png;base64,") for address in found.addresses)
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    own = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{own}'"
    assert f'<meta http-equiv="Content-Security-Policy" content="{policy}">' in text
    assert "link" not in found.tags
    assert "http:" not in text
    assert "https:" not in text
    assert "url(" not in text
    assert "@import" not in text


def test_hostile_text_is_shown_and_not_obeyed(tmp_path):
    evil = "<script>alert('1')</script>\"><img src=x onerror=alert(2)>"
    rows = [Row(evil, evil, 5, 5, 5, False, 4, skipped=evil)]
    header = {"command": evil, evil: evil, "config": {evil: evil}}
    found, text = page(tmp_path, title=evil, rows=rows, notes=[evil], header=header)
    assert found.tags.count("script") == text.count("<script>") == 1  # the page's own
    assert "img" not in found.tags
    assert "".join(found.text).count("alert(2)") >= 8


@pytest.mark.parametrize("value", [math.nan, math.inf, -1e308, 1e308])
def test_a_number_that_no_axis_can_show_is_left_out(tmp_path, value):
    far = {"metrics": {"mmd": Estimate(value, value, value)}}
    _, text = page(tmp_path, rows=[row("ddim", 5, 0.5, **far), row("ddim", 10, 0.5, **far)])
    assert "<svg" not in text
    _, text = page(tmp_path, rows=[row("ddim", 5, 0.5, **far), row("heun", 5, 0.5), row("heun", 10, 0.4)])
    assert [number for number, *_ in points(text)] == [2, 3] * 2


@pytest.mark.parametrize("budgets", [(5,), (5, 10)])
def test_a_name_is_drawn_literally(budgets):
    evil = r"file:$\frac{$" + "\n\0\udc80" + "x" * 9000
    named = [row(name, asked, 0.5) for name in (r"$\frac{1}{2}$", r"$\no{$", evil) for asked in budgets]
    for chart in charts(named):
        ElementTree.fromstring(chart["svg"])  # well-formed
        labels = [label for _, label, *_ in points(chart["svg"])]
        assert len(labels) == 3 * len(budgets)
        assert max(map(len, labels)) < 80 + 50
    sde = scoresde.VP()
    program = solvers.trace(solvers.make("heun"), solvers.grids.make("karras").nodes(sde, 2), sde, "x0")
    picture = program_view.picture(program, evil)
    inline(picture)
    assert picture.axes[0].get_title(loc="left").startswith(r"file:$\frac{$")


def test_pictures_are_the_samples_in_their_cells(tmp_path):
    found, _ = page(tmp_path, reference=pictures(9), low=-1, high=1)
    grid = [[cell[1].strip() for cell in line] for line in found.table("pictures")]
    assert grid[0] == ["", "NFE 5", "NFE 10", "adaptive"]
    assert [line[0] for line in grid[1:]] == ["real data", "ddim", "ddpm", "rk45", "heun"]
    assert grid[5][1] == "nfe=5 is too small for <heun>"
    shown = [np.array(picture) for picture in found.pictures()]
    for array, seed in zip(shown, [9, 0, 1, 2, 3, 4], strict=False):
        assert np.array_equal(array, np.array(image_grid(pictures(seed), -1, 1, columns=4, tile=48)))
    assert len(shown) == 6


@pytest.mark.parametrize("shape", [(2,), (1,), (16,)])
def test_vectors_are_drawn(tmp_path, shape):
    """Samples as blue ink inside the axes: more of it where there are more samples."""
    generator = torch.Generator().manual_seed(0)
    few, many = (torch.randn(n, *shape, generator=generator) for n in (1, 60))
    rows = [row("ddim", 5, 0.5, samples=few), row("ddim", 10, 0.4, samples=many)]
    found, _ = page(tmp_path, rows=rows, low=-4, high=4)

    def ink(picture):
        red, _, blue = np.moveaxis(np.asarray(picture.convert("RGB"), dtype=int), 2, 0)
        return int((blue - red > 60).sum())

    first, second, *_ = (ink(picture) for picture in found.pictures())
    assert 20 < first < second


def test_likelihood_box_and_header(tmp_path):
    nats = torch.tensor([-10.0, -12.0, -11.0, -15.0], dtype=torch.float64)
    result = LogProb(
        nats=nats, stderr=torch.full((4,), 0.25), nfe=122, latent=torch.zeros(4, 1, 2, 2), budget={}, solver="heun",
        grid="logsnr", divergence="hutchinson", seconds=1.0, bin_width=0.5,
    )  # fmt: skip
    header = {
        "command": "scoresde demo",
        "seeds": list(range(3, 40)),
        "config": {"lr": 0.125},
        "torch": "9.9",
        "solvers": ["a", "b", "c"],
    }
    found, text = page(tmp_path, rows=[], likelihood=result, header=header)
    words = " ".join(" ".join(found.text).split())
    assert "log-likelihood -12 ± 1.08 nats" in words  # standard deviation sqrt(14 / 3) over sqrt(4)
    assert f"bits per dimension {12 / (4 * math.log(2)):.5g} ± {2.1602469 / 2 / (4 * math.log(2)):.3g}" in words
    assert "0.25 nats a sample solver heun NFE 122" in words
    assert len(found.addresses) == 1
    assert "scoresde demo" in words
    assert "seeds 3-39" in words
    assert "torch 9.9" in words
    assert 'solvers ["a", "b", "c"]' in words
    assert '"lr": 0.125' in words
    continuous = SimpleNamespace(nats=nats, bits_per_dim=None, stderr=torch.full((4,), math.nan), nfe=1, solver="heun")
    _, text = page(tmp_path, rows=[], likelihood=continuous)
    assert "bits per dimension" not in text
    assert "not known" in text


def test_a_failed_report_leaves_the_old_page(tmp_path, monkeypatch):
    page(tmp_path, title="first")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        page(tmp_path, title="second")
    assert "<title>first</title>" in (tmp_path / "report.html").read_text()
    assert len(list(tmp_path.iterdir())) == 1


def test_charts_draw_each_rows_numbers_against_counted_evaluations():
    found = {chart["name"]: str(chart["svg"]) for chart in charts(ROWS)}
    assert list(found) == ["sliced Wasserstein", "MMD²", "error"]
    first = {number: (label, x, y) for number, label, x, y in points(found["sliced Wasserstein"])}
    assert list(first) == [1, 2, 3, 4, 5]
    assert first[1][0] == "ddim, 4 NFE: 0.777 (0.765 to 0.823)"
    low, high = math.log(4 / 1.12), math.log(77 * 1.12)
    bottom, top = math.log(max(0.111 - 0.0123, 0.111 / 3) / 1.15), math.log((0.777 + 0.0456) * 1.15)
    for place, nfe, value in ((1, 4, 0.777), (2, 9, 0.333), (3, 4, 0.666), (4, 9, 0.444), (5, 77, 0.111)):
        _, x, y = first[place]
        assert x == pytest.approx(58 + (480 - 58 - 14) * (math.log(nfe) - low) / (high - low), abs=0.06)
        assert y == pytest.approx(34 + (320 - 34 - 46) * (1 - (math.log(value) - bottom) / (top - bottom)), abs=0.06)
    assert found["sliced Wasserstein"].count('class="line dashed"') == 1  # ddpm draws noise
    assert [number for number, *_ in points(found["error"])] == [1, 2, 5]
    far = [*ROWS, Row("bad", "karras", 5, 5, 5, False, 31, metrics={"mmd": Estimate(90.0, 80.0, 100.0)})]
    signed = str(charts(far)[1]["svg"])
    ticks = re.findall(r'<text class="tick" [^>]*>([^<]*)</text>', signed)
    assert ticks == ["0", "1", "10", "100"]  # of either sign: logarithmic beyond the noise
    assert "nan" not in signed


def test_shares_of_which_more_is_better_have_an_axis_from_zero_and_their_own_best(tmp_path):
    rows = [
        row(name, 5, 0.5, metrics={"recall": Estimate(v, v - 0.05, v + 0.05)}) for name, v in (("a", 0.2), ("b", 0.8))
    ]
    (chart,) = charts(rows)
    assert chart["higher"]
    assert "recall (more is better)" in chart["svg"]
    (best, _, high, _), (worst, _, low, _) = points(chart["svg"])
    assert (best, worst) == (2, 1)
    width = (480 - 190 - 14) / (0.85 * 1.05)
    assert (low, high) == (pytest.approx(190 + 0.2 * width, abs=0.06), pytest.approx(190 + 0.8 * width, abs=0.06))
    found, _ = page(tmp_path, rows=rows)
    assert [cell[1].strip() for cell in found.table("answers")[1]] == ["5", "b (0.8)"]


def test_image_grid_is_exact():
    grey = torch.tensor([[-1.0, 1.0], [0.0, 5.0]]).view(1, 1, 2, 2)
    array = np.array(image_grid(torch.cat([grey, -grey, 0 * grey]), -1, 1, columns=2, tile=4))
    first = np.kron([[0, 255], [128, 255]], np.ones((2, 2)))
    second = np.kron([[255, 0], [128, 0]], np.ones((2, 2)))
    assert array.shape == (10, 10)
    assert np.array_equal(array[:4, :4], first)
    assert np.array_equal(array[:4, 6:], second)
    assert np.array_equal(array[6:, :4], np.full((4, 4), 128))
    assert (array[4:6] == 255).all()
    assert (array[:, 4:6] == 255).all()
    assert (array[6:, 6:] == 255).all()


def test_image_grid_of_colours_keeps_channels_and_size():
    x = torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    array = np.array(image_grid(x, 0, 1, tile=4))  # larger than the tile: kept
    assert np.array_equal(array[:, :7], (255 * x[0].double()).round().byte().permute(1, 2, 0).numpy())
    assert np.array_equal(array[:, 9:], (255 * x[1].double()).round().byte().permute(1, 2, 0).numpy())
    x[0, :, 0, 0] = torch.tensor([math.nan, math.inf, -math.inf])
    assert np.array(image_grid(x, 0, 1, tile=4))[0, 0].tolist() == [0, 255, 0]


@pytest.mark.parametrize(
    ("samples", "limits", "message"),
    [
        (torch.zeros(2, 2), (-1, 1), r"needs samples \(N, 1, H, W\) or \(N, 3, H, W\), got \(2, 2\)"),
        (torch.zeros(2, 4, 8, 8), (-1, 1), r"got \(2, 4, 8, 8\)"),
        (torch.zeros(0, 1, 8, 8), (-1, 1), r"got \(0, 1, 8, 8\)"),
        (torch.zeros(2, 1, 8, 8), (1, 1), "low=1 must be less than high=1"),
    ],
)
def test_bad_pictures_are_one_clear_line(samples, limits, message):
    with pytest.raises(InputError, match=message):
        image_grid(samples, *limits)


def test_a_term_that_rounds_to_zero_has_no_sign():
    small = torch.tensor([-1e-5, -2e-5], dtype=torch.float64)
    made = LogProb(
        nats=small, stderr=torch.zeros(2), nfe=1, latent=torch.zeros(2, 3), solver="heun", grid="logsnr", seconds=0.0,
        budget={"truncation": small, "dequantisation": torch.zeros(2)}, divergence="exact", bin_width=0.1,
    )  # fmt: skip
    lines = str(made).splitlines()
    assert lines[0].startswith("log p = 0.000 +- 0.000 nats")
    assert re.fullmatch(r" +truncation +0\.000 nats", lines[2])
    rows = {row[0]: row for row in likelihood_page._table(made)["rows"]}
    assert rows["truncation"][1] == "0.000"
    assert rows["dequantisation"][3] == "0.0000"  # 0 nats over a negative number
