"""The page of a training run: its numbers, hostile texts, and a browser that shows it in several ways."""

import io
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from browser import CHROMIUM, browser, check_page
from PIL import Image

from scoresde.show import training_figures
from scoresde.show.training_page import Grid, page

LEVELS = [-10.0 + k for k in range(20)]
EVIL = "<script>alert('1')</script>\"><img src=x onerror=alert(2)>"


def lines(count=120):
    return [
        {
            "step": 50 * k,
            "loss": 0.3 + 1 / k,
            "grad_norm": 0.5 + 0.4 * math.sin(k),
            "lr": 1e-3,
            "seconds": 2.5 * k + 1.5 * ((k - 1) // 10),
        }
        for k in range(1, count + 1)
    ]


def evaluation(step):
    trivial = [1 / (1 + 4 * math.exp(-level)) for level in LEVELS]
    error = [value * (0.1 + 0.9 * math.exp(-step / 1000)) for value in trivial]
    return {
        "step": step, "loss": 0.3 + 50 / step, "loss_stderr": 0.02, "log_snr": LEVELS, "trivial": trivial,
        "error": error, "error_stderr": [0.05 * e for e in error], "bits_per_dim": 3 + 500 / step,
        "bits_per_dim_stderr": 0.03, "seconds": 1.5,
    }  # fmt: skip


def grid(step, shade):
    buffer = io.BytesIO()
    Image.fromarray(np.full((66, 66), shade, np.uint8)).save(buffer, "PNG")
    return Grid(step, buffer.getvalue(), 66, True)


EVALUATIONS = [evaluation(step) for step in range(500, 6001, 500)]
GRIDS = [grid(500 * k, 10 * k) for k in range(1, 13)]


def made(**options):
    facts = {"samples": "4000 + 800", "shape": "(1, 8, 8)"}
    given = {
        "batch_size": 128, "blocks": {"Data": facts}, "command": ["scoresde train --workdir=runs/x"],
        "config": {"sde": "vp", "training": {"steps": 6000}}, **options,
    }  # fmt: skip
    return page("Training: runs/x", lines(), EVALUATIONS, GRIDS, **given)


class Text(HTMLParser):
    """The tags of a page, the addresses of its pictures, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_has_the_numbers_of_the_folder():
    found = Text(made())
    words = " ".join(" ".join(found.words).split())
    # 50 updates of 128 samples in 2.5 s; after every tenth line an evaluation of 1.5 s
    assert "6,000 updates of 128 samples; loss 0.30833; held out 3.083 ± 0.03 bits/dim; 2,560 samples" in words
    assert "in all" in words
    assert "updates held-out loss bits/dim 500 0.4 ± 0.02 4 ± 0.03 1,000" in words
    assert "6,000 0.3083 ± 0.02 3.083 ± 0.03 Data" in words
    assert "scoresde train --workdir=runs/x" in words
    assert '"steps": 6000' in words
    assert "samples 4000 + 800 shape (1, 8, 8)" in words


def test_the_first_and_the_last_samples_are_shown():
    addresses = Text(made()).addresses
    assert len(addresses) == 8
    assert addresses[0] != addresses[-1]
    captions = re.findall(r"<figcaption>([\d,]+) updates</figcaption>", made())
    assert captions[0] == "500"
    assert captions[-1] == "6,000"
    assert captions == sorted(captions, key=lambda text: int(text.replace(",", "")))


def test_a_run_without_evaluations_has_a_page():
    found = Text(page("T", lines(3), [], batch_size=4))
    words = " ".join(found.words)
    assert "noise level" not in words
    assert found.tags.count("svg") == 3  # loss, throughput, gradient
    assert "No updates are logged yet." in page("T", [], [], batch_size=4)


def test_what_no_axis_can_show_is_left_out():
    bad = [
        {"step": 1, "loss": math.nan, "seconds": 1}, {"step": 2, "loss": "1", "seconds": 2}, {"step": 3, "loss": True},
        {"step": 4, "loss": 1e300, "seconds": "x"}, {"step": 10**400, "loss": 1.0}, {"step": 5},
    ]  # fmt: skip
    odd = [{"step": 1, "log_snr": [1, 2], "error": [1], "trivial": [1, 2], "bits_per_dim": None, "loss": []}]
    assert Text(page("T", bad, odd, batch_size=4)).tags.count("svg") == 5 + 1


def test_nothing_is_fetched_and_hostile_text_is_shown_and_not_obeyed():
    text = made(blocks={EVIL: {EVIL: EVIL}}, command=[EVIL], config={EVIL: EVIL})
    found = Text(text)
    assert "script" not in found.tags
    assert found.tags.count("img") == 8
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in found.addresses)
    assert "".join(found.words).count("alert(2)") >= 6
    assert re.search(r"https?:|@import", text) is None
    assert re.findall(r"url\((?!#)", text) == []


def test_a_curve_goes_through_the_means_of_its_lines():
    """Of 24 lines in 6 groups, the means and the range of each."""
    x = np.arange(24.0)
    figure, axes = training_figures.panel("t", "x")
    training_figures._smoothed(axes, x, x**2, "#0072b2")
    means = [float(part.mean()) for part in np.split(x**2, 6)]
    assert axes.lines[0].get_ydata() == pytest.approx(means)
    reach = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert (reach.min(), reach.max()) == (0, 23**2)
    assert figure.axes == [axes]


def test_throughput_is_that_between_two_lines_without_the_evaluations():
    lines = [{"step": 10, "seconds": 1.0}, {"step": 30, "seconds": 3.0}, {"step": 50, "seconds": 10.0}]
    lines += [{"step": 50, "seconds": 11.0}, {"step": 60}]
    steps, rates = training_figures.rates(lines, [{"step": 30, "seconds": 6.0}, {"step": 50, "seconds": 2.0}], 8)
    assert steps.tolist() == [30, 50]
    assert rates.tolist() == [80, 160]  # 20 updates of 8 samples in 2 s, and in 7 s of which 6 were an evaluation's


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    folder = tmp_path_factory.mktemp("page")
    (folder / "training.html").write_text(made(config={"name": "x" * 300}), encoding="utf-8")
    with browser(folder / "profile") as opened:
        yield opened, folder / "training.html"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [400, 1200])
def test_a_browser_shows_the_page(shown, width, dark):
    opened, path = shown
    check_page(opened, path, width, dark)
    # side by side where there is room
    tops = opened.value("[...document.querySelectorAll('.tiles:first-of-type figure')].map(e => e.offsetTop)")
    assert (len(set(tops[:2])) == 1) == (width == 1200)


def test_the_colours_of_curves_are_those_of_the_page(shown):
    opened, path = shown
    inks = []
    for dark in (False, True):
        opened.open(path, 1200, dark)
        inks.append(opened.value("getComputedStyle(document.querySelector('svg path[style*=\"--one\"]')).stroke"))
    assert inks == ["rgb(0, 114, 178)", "rgb(92, 179, 232)"]


def test_the_page_is_the_same_every_time():
    assert made() == made()
