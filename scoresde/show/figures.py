"""The figures of a page: curves of a benchmark, samples that are not pictures, histograms.

They use matplotlib's objects without pyplot, so that they need no display and leave no global state.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator, ScalarFormatter
from PIL import Image
from torch import Tensor

from solvers.errors import clipped

from ..benchmark.metrics import Estimate
from ..benchmark.rows import Row

_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f3c8d", "#4d4d4d")
_MARKERS = "osD^v"  # the second eight solvers get the second marker
_REAL = "#b4b9c0"
_SOFT = "#62676e"
NAMES = {
    "sliced_wasserstein": "sliced Wasserstein",
    "frechet": "Fréchet",
    "mmd": "MMD²",
    "error": "error",
    "invalid": "share of invalid samples",
    "unigrams": "total variation of 1 token",
    "bigrams": "total variation of 2 tokens",
    "trigrams": "total variation of 3 tokens",
}


def curves(rows: Sequence[Row]) -> Figure:
    """A figure of each metric, and of the error, against the counted NFE; logarithmic axes, shaded intervals.

    With a single budget there are no curves: a line for each solver shows its value and interval instead.
    """
    groups = groups_of(rows)
    if all(len([row for row in members if row.metrics or row.error]) < 2 for members in groups.values()):
        return ranking(rows)
    names = scores_of(rows)
    across = min(2, len(names))
    down = math.ceil(len(names) / across)
    figure = Figure(figsize=(5.6 * across, 3.7 * down + 0.5), dpi=160, layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).ravel()
    for name, axes in zip(names, panels, strict=False):
        floor = _dress(axes, name, [row for row in rows if score_of(row, name)])
        for i, (label, members) in enumerate(groups.items()):
            points = sorted((row.nfe, score) for row in members if (score := score_of(row, name)) and row.nfe)
            if not points:
                continue
            x = [nfe for nfe, _ in points]
            low, high = [max(e.low, floor) for _, e in points], [max(e.high, floor) for _, e in points]
            color, style = _COLORS[i % len(_COLORS)], "--" if members[0].stochastic else "-"
            marker = _MARKERS[i // len(_COLORS) % len(_MARKERS)]
            axes.fill_between(x, low, high, color=color, alpha=0.13, lw=0)
            if len(x) == 1:
                axes.vlines(x, low, high, color=color, lw=1.5, alpha=0.5)
            axes.plot(x, [e.value for _, e in points], style, color=color, marker=marker, ms=4, lw=1.5, label=label)
    for axes in panels[len(names) :]:
        axes.remove()
    lines = {
        line.get_label(): line for axes in panels[: len(names)] for line in axes.lines if line.get_marker() != "None"
    }
    columns = min(4, len(lines))
    labels = [drawn(label) for label in lines]
    legend = figure.legend(lines.values(), labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def ranking(rows: Sequence[Row]) -> Figure:
    """A figure of each metric, and of the error, with a line for each row: its value and its interval."""
    names, rows = scores_of(rows), [row for row in rows if row.metrics or row.error]
    across = min(2, len(names))
    down = math.ceil(len(names) / across)
    figure = Figure(figsize=(6.4 * across, (0.3 * len(rows) + 1) * down), dpi=160, layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).ravel()
    for name, axes in zip(names, panels, strict=False):
        scores = [score_of(row, name) for row in rows]
        known = [score for score in scores if score]
        least, low = min(score.value for score in known), min(score.low for score in known)
        floor = max(low, least / 3) / 1.15 if least > 0 else low
        for place, score in enumerate(scores):
            if score:
                color = _COLORS[place % len(_COLORS)]
                axes.hlines(place, max(score.low, floor), score.high, color=color, lw=3, alpha=0.3)
                axes.plot(score.value, place, "o", color=color, ms=5)
        axes.set_xscale("log" if least > 0 else "linear")
        axes.set_yticks(range(len(rows)), [drawn(f"{row.solver}, {row.nfe} NFE") for row in rows], parse_math=False)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_title(NAMES.get(name, name), fontsize=11, loc="left")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(True, axis="x", which="major", color="#e6e8eb", lw=0.8)
        _plain(axes)
    for axes in panels[len(names) :]:
        axes.remove()
    return figure


def _dress(axes: Any, name: str, rows: Sequence[Row]) -> float:
    """Sets scales, ticks and title of a panel; returns the lower limit of its axis, at which bands are cut off."""
    scores = [score for row in rows if (score := score_of(row, name))]
    floor, top = min(score.low for score in scores), max(score.high for score in scores)
    axes.set_xscale("log")
    if (least := min(score.value for score in scores)) > 0:
        # an interval that reaches 0 would stretch a logarithmic axis over many decades
        floor = max(floor, least / 3) / 1.15
        axes.set_yscale("log")
        axes.set_ylim(floor, top * 1.15)
        if top < 100 * floor:
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_minor_locator(NullLocator())
    else:
        # estimates of either sign: logarithmic beyond the noise, linear within it
        noise = max(float(np.median([s.high - s.value for s in scores])), 1e-12)
        floor = least - 3 * noise
        if top > 10 * noise:
            axes.set_yscale("symlog", linthresh=noise)
            powers = range(math.ceil(math.log10(2 * noise)), math.floor(math.log10(top)) + 1)
            axes.set_yticks([0.0, *(10.0**k for k in powers[:: len(powers) // 8 + 1])])
        axes.set_ylim(floor, 1.15 * top if top > 0 else noise)
        axes.axhline(0, color=_SOFT, lw=0.6)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    ticks = sorted({row.nfe_budget for row in rows if row.nfe_budget})
    if 1 < len(ticks) <= 10:
        axes.set_xticks(ticks)
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_title(NAMES.get(name, name), fontsize=11, loc="left")
    axes.set_xlabel("model evaluations per sample", fontsize=9)
    axes.grid(True, which="major", color="#e6e8eb", lw=0.8)
    _plain(axes)
    return floor


def _plain(axes: Any) -> None:
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8.5, color=_SOFT, labelcolor=_SOFT, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#b4b9c0")


def drawing(samples: Tensor, reference: Tensor | None, limits: tuple[float, float]) -> Figure:
    """Samples drawn as a histogram in one dimension, a scatter plot in two, and a line per sample in more."""
    x = samples.detach().cpu().double().flatten(1).numpy()
    real = None if reference is None else reference.detach().cpu().double().flatten(1)[:500].numpy()
    d = x.shape[1]
    figure = Figure(figsize=(1.5, 1.5) if d <= 2 else (2.2, 1.2), dpi=150)
    axes = figure.add_axes((0.01, 0.01, 0.98, 0.98))
    if d == 1:
        bins = np.linspace(*limits, 25).tolist()
        if real is not None:
            axes.hist(real[:, 0], bins, density=True, color=_REAL)
        axes.hist(x[:, 0], bins, density=True, histtype="step", color=_COLORS[0])
        axes.set_xlim(*limits)
    elif d == 2:
        if real is not None:
            axes.scatter(real[:, 0], real[:, 1], s=3, color=_REAL, lw=0)
        axes.scatter(x[:, 0], x[:, 1], s=9, color=_COLORS[0], lw=0)
        axes.set(xlim=limits, ylim=limits, aspect="equal")
    else:
        axes.plot(x.T, lw=0.8, color=_COLORS[0], alpha=0.7)
        axes.set(xlim=(0, d - 1), ylim=limits)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_color("#dcdfe3")
    return figure


def histogram(values: Tensor, label: str) -> Figure:
    """A histogram of numbers (B,), with their mean."""
    numbers = values.detach().cpu().double().numpy()
    figure = Figure(figsize=(5.2, 2.5), dpi=160, layout="constrained")
    axes = figure.add_subplot()
    axes.hist(numbers, bins=min(40, max(8, len(numbers) // 8)), color="#9cc3dd")
    axes.axvline(numbers.mean(), color=_COLORS[0], lw=1.5)
    axes.set_xlabel(label, fontsize=9)
    axes.set_ylabel("samples", fontsize=9)
    _plain(axes)
    return figure


def inline(picture: Figure | Image.Image) -> str:
    """A picture as a data URL."""
    buffer = io.BytesIO()
    if isinstance(picture, Figure):
        picture.savefig(buffer, format="png")
        picture = Image.open(buffer).convert("RGB").quantize(128, dither=Image.Dither.NONE)
        buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def drawn(name: str, most: int = 80) -> str:
    """A name as it is drawn: cut to ``most`` characters, and with a sign for each character that is not printable.

    The name may come from a file. Where it is drawn, ``parse_math=False`` keeps a dollar a dollar.
    """
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in clipped(name, most))


def score_of(row: Row, name: str) -> Estimate | None:
    """A metric of a row, or its "error"; None if there is none, or if no axis can show it (NaN, inf, 1e200)."""
    found = row.error if name == "error" else row.metrics.get(name)
    return found if found and all(abs(part) < 1e100 for part in (found.value, found.low, found.high)) else None


def scores_of(rows: Sequence[Row]) -> list[str]:
    """The metrics that a row can show, in order, and "error" if a row can show one."""
    names = dict.fromkeys([*(name for row in rows for name in row.metrics), "error"])
    return [name for name in names if any(score_of(row, name) for row in rows)]


def groups_of(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by solver, and by grid where one solver has several."""
    grids = {solver: {row.grid for row in rows if row.solver == solver} for solver in {row.solver for row in rows}}
    groups: dict[str, list[Row]] = {}
    for row in rows:
        label = row.solver if len(grids[row.solver]) == 1 else f"{row.solver}, {row.grid}"
        groups.setdefault(label, []).append(row)
    return groups


def number(value: float | None) -> str:
    """A number formatted for the page: three significant digits, a dash for None."""
    return "-" if value is None else f"{value:.3g}"
