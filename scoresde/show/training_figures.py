"""The curves of a training run, as SVG that takes its colours from the page and so suits a dark one."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

_SIZE = (4.7, 2.9)  # inches; a page of 400 pixels shows a figure at about this size
_POINTS = 80  # most points of a smoothed curve
_SHOWN = 4  # most evaluations whose curves are drawn
ONE, TWO, SOFT, EDGE, _GRID = "#0072b2", "#d55e00", "#62676e", "#b4b9c0", "#e6e8eb"
_VARIABLES = {ONE: "--one", TWO: "--two", SOFT: "--soft", EDGE: "--edge", _GRID: "--grid"}
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

Lines = Sequence[Mapping[str, Any]]


def loss(lines: Lines, evaluations: Lines) -> str:
    """The loss against the step: its smoothed values over their range, and the held-out loss."""
    figure, axes = panel("loss", "updates")
    x, y = _columns(lines, "step", "loss")
    held = _columns(evaluations, "step", "loss")
    if len(x):
        _smoothed(axes, x, y, ONE, "training")
    if len(held[0]):
        axes.plot(*held, "o-", color=TWO, ms=3, lw=1.2, label="held out")
    _logarithmic(axes, np.concatenate([y, held[1]]))
    return svg(figure, axes)


def error_by_noise(evaluations: Lines) -> str:
    """The last evaluation's error of eps against log-SNR, next to that of the predictor of mean and variance."""
    figure, axes = panel("error of eps", "log-SNR (clean data right)")
    x, y, trivial, spread = _columns(evaluations[-1:], "log_snr", "error", "trivial", "error_stderr")
    if len(x):
        axes.fill_between(x, np.maximum(y - 2 * spread, y / 10), y + 2 * spread, color=ONE, alpha=0.2, lw=0)
        axes.plot(x, y, color=ONE, lw=1.6, label="model")
        axes.plot(x, trivial, "--", color=SOFT, lw=1.2, label="mean and variance")
    _logarithmic(axes, np.concatenate([y, trivial]))
    return svg(figure, axes)


def learned_by_noise(evaluations: Lines) -> str:
    """The error over that of the predictor of mean and variance, against log-SNR, as training proceeds."""
    figure, axes = panel("error over that of mean and variance", "log-SNR (clean data right)")
    places = sorted({round(p) for p in np.linspace(0, len(evaluations) - 1, _SHOWN)}) if evaluations else []
    drawn = []
    for number, place in enumerate(places, 1):
        x, y, trivial = _columns([evaluations[place]], "log_snr", "error", "trivial")
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = y / trivial
        kept = np.isfinite(ratio)
        axes.plot(
            x[kept], ratio[kept], color=ONE, lw=1.4, alpha=number / len(places),
            label=f"{int(evaluations[place]['step']):,}",
        )  # fmt: skip
        drawn.append(ratio[kept])
    axes.axhline(1, color=SOFT, lw=1, ls="--")
    _logarithmic(axes, np.concatenate(drawn) if drawn else np.zeros(0))
    return svg(figure, axes)


def likelihood(evaluations: Lines, name: str, label: str) -> str:
    """A held-out likelihood against the step, with error bars of two standard errors."""
    figure, axes = panel(label, "updates")
    x, y, spread = _columns(evaluations, "step", name, f"{name}_stderr")
    axes.errorbar(x, y, 2 * spread, fmt="o-", color=ONE, ms=3, lw=1.2, elinewidth=1, capsize=2)
    return svg(figure, axes)


def throughput(lines: Lines, evaluations: Lines, batch_size: int) -> str:
    """Samples per second against the step."""
    figure, axes = panel("samples per second", "updates")
    x, rate = rates(lines, evaluations, batch_size)
    if len(x):
        _smoothed(axes, x, rate, ONE)
        axes.set_ylim(0, 1.15 * float(rate.max()))
    return svg(figure, axes)


def gradient(lines: Lines) -> str:
    """The norm of the gradient before clipping, against the step."""
    figure, axes = panel("norm of the gradient", "updates")
    x, y = _columns(lines, "step", "grad_norm")
    if len(x):
        _smoothed(axes, x, y, ONE)
    _logarithmic(axes, y)
    return svg(figure, axes)


def rates(lines: Lines, evaluations: Lines, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """The steps (N,) and the samples per second (N,) between neighbouring lines of a log, without evaluations.

    An evaluation after an update comes after the line of this update, and so belongs to the next interval.
    """
    x, seconds = _columns(lines, "step", "seconds")
    evaluated, duration = _columns(evaluations, "step", "seconds")
    steps, times = np.diff(x), np.diff(seconds)
    for k, (first, last) in enumerate(pairwise(x)):
        times[k] -= duration[(first <= evaluated) & (evaluated < last)].sum()
    kept = (steps > 0) & (times > 0)
    return x[1:][kept], batch_size * steps[kept] / times[kept]


def _columns(records: Lines, *names: str) -> tuple[np.ndarray, ...]:
    """The numbers of records under some names: (N,) each. Lists are joined; a record that lacks one is left out."""
    columns: list[list[float]] = [[] for _ in names]
    for record in records:
        cells = [value if isinstance(value := record.get(name), list) else [value] for name in names]
        if len({len(cell) for cell in cells}) != 1:
            continue
        for row in zip(*cells, strict=True):
            if all(type(value) in (int, float) and abs(value) < 1e100 for value in row):
                for column, value in zip(columns, row, strict=True):
                    column.append(float(value))
    return tuple(np.asarray(column) for column in columns)


def _smoothed(axes: Any, x: np.ndarray, y: np.ndarray, color: str, label: str = "") -> None:
    """Draws the means of neighbouring values, over the range of these values."""
    parts = max(1, min(_POINTS, len(x) // 4)) if len(x) > 20 else len(x)
    groups = list(zip(np.array_split(x, parts), np.array_split(y, parts), strict=True))
    places = [float(a.mean()) for a, _ in groups]
    low, high = [float(b.min()) for _, b in groups], [float(b.max()) for _, b in groups]
    axes.fill_between(places, low, high, color=color, alpha=0.2, lw=0)
    marker = "o" if len(x) == 1 else None
    axes.plot(places, [float(b.mean()) for _, b in groups], color=color, lw=1.4, marker=marker, ms=3, label=label)


def panel(title: str, label: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=_SIZE)  # with fixed margins: a layout engine draws everything twice
    figure.patch.set_alpha(0)
    axes = figure.add_axes((0.13, 0.16, 0.84, 0.74))
    axes.patch.set_alpha(0)
    axes.set_title(title, fontsize=10, loc="left", color=SOFT)
    axes.set_xlabel(label, fontsize=9, color=SOFT)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(True, which="major", color=_GRID, lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8.5, color=SOFT, labelcolor=SOFT, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(EDGE)
    return figure, axes


def _logarithmic(axes: Any, values: np.ndarray) -> None:
    """A logarithmic axis, if all values are positive and no axis of few ticks suits them."""
    if len(values) and values.min() > 0 and values.max() > 2 * values.min():
        axes.set_yscale("log")
        if values.max() < 100 * values.min():
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
        else:
            axes.yaxis.set_major_formatter(lambda value, _: _power(value))
        axes.yaxis.set_minor_locator(NullLocator())


def _power(value: float) -> str:
    """A power of ten as plain text; matplotlib would lay out a formula, which takes longer than the figure."""
    return "10" + f"{round(math.log10(value))}".translate(_SUPERSCRIPTS)


def svg(figure: Figure, axes: Any) -> str:
    """The figure as an element of a page: its size and colours are those of the page, its text is text."""
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, fontsize=8.5, labelcolor=SOFT)
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": axes.get_title(loc="left")}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    head, _, body = text.partition(">")
    head = re.sub(r' (xmlns(:\w+)?|width|height|version)="[^"]*"', "", head)
    body = re.sub(r'<g id="[^"]*">', "<g>", body)
    for color, variable in _VARIABLES.items():
        body = body.replace(color, f"var({variable})")
    return f'{head} role="img" aria-label="{axes.get_title(loc="left")}">{body}'
