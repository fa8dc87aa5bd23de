"""The charts of a benchmark as SVG: each metric against the counted evaluations, with intervals.

Their colours, as variables, and their size are those of the page. Every point is labelled with its row and can be
focused; the page's script shows the label at the pointer and moves the focus by the arrow keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from solvers.errors import clipped

from ..benchmark.metrics import HIGHER, Estimate
from ..benchmark.rows import Row, labels_of
from ..benchmark.ties import finite

COLOURS = 8  # of the page: --c0 to --c7; the ninth solver has the first colour and the second marker
NAMES = {
    "sliced_wasserstein": "sliced Wasserstein",
    "wasserstein": "Wasserstein",
    "frechet": "Fréchet",
    "mmd": "MMD²",
    "classifier": "accuracy of a classifier",
    "error": "error",
    "invalid": "share of invalid samples",
    "unigrams": "total variation of 1 token",
    "bigrams": "total variation of 2 tokens",
    "trigrams": "total variation of 3 tokens",
}
_WIDTH, _HEIGHT = 480, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 34, 46
_NAME = 190  # of a ranking: the width of the names
_LINE = 26  # of a ranking: the height of a row
_SHAPES = (
    "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0z",  # a circle
    "M-4,-4H4V4H-4z",
    "M0,-5L5,0L0,5L-5,0z",
    "M0,-5L5,4H-5z",
)


@dataclass(frozen=True)
class Scale:
    """Maps numbers to places in [0, 1], and has ticks.

    Attributes:
        low, high: the ends, as numbers.
        shape: a function that grows: the logarithm, the identity, or asinh(v / noise).
    """

    low: float
    high: float
    shape: Callable[[float], float]
    ticks: tuple[float, ...]

    def place(self, value: float) -> float:
        """The place of a number, cut off at the ends."""
        low, high = self.shape(self.low), self.shape(self.high)
        return min(max((self.shape(min(max(value, self.low), self.high)) - low) / (high - low), 0.0), 1.0)


def of_scores(scores: Sequence[Estimate], linear: bool = False) -> Scale:
    """The scale of a metric: logarithmic; for values of either sign logarithmic beyond the noise, linear within it.

    Args:
        linear: from 0, for shares of which more is better.
    """
    floor, top = min(s.low for s in scores), max(s.high for s in scores)
    least = min(s.value for s in scores)
    if linear:
        high = 1.05 * top if top > 0 else 1.0
        return Scale(0.0, high, lambda v: v, _even(0.0, high))
    if least > 0:
        # an interval that reaches 0 would stretch a logarithmic axis over many decades
        low, high = max(floor, least / 3) / 1.15, top * 1.15
        return Scale(low, high, math.log, _decades(low, high))
    spreads = sorted(s.high - s.value for s in scores)
    noise = max(spreads[len(spreads) // 2], 1e-12)
    low, high = min(least - 3 * noise, -noise), max(1.15 * top, noise)
    powers = range(math.ceil(math.log10(2 * noise)), math.floor(math.log10(high)) + 1) if high > 10 * noise else []
    ticks = (0.0, *(10.0**k for k in powers[:: len(powers) // 5 + 1])) if powers else _even(low, high)
    return Scale(low, high, lambda v: math.asinh(v / noise), ticks)


def of_budgets(nfe: Sequence[int]) -> Scale:
    """The logarithmic scale of counted evaluations; 0 of them are drawn at a half."""
    low, high = max(min(nfe), 0.5) / 1.12, max(max(nfe), 0.6) * 1.12
    own = sorted(set(nfe))
    ticks = tuple(float(n) for n in own) if len(own) <= 7 else _decades(low, high)
    return Scale(low, high, lambda v: math.log(max(v, 0.5)), _apart(ticks, low, high))


def _apart(ticks: Sequence[float], low: float, high: float) -> tuple[float, ...]:
    """Ticks whose labels do not touch."""
    kept: list[float] = []
    for tick in sorted(ticks, reverse=True):
        gap = math.log(kept[-1] / max(tick, 0.5)) / math.log(high / low) if kept else 1.0
        kept += [tick] if gap > 0.07 else []
    return tuple(kept[::-1])


def _decades(low: float, high: float) -> tuple[float, ...]:
    """Ticks of a logarithmic scale: powers of ten, with twos and fives where there are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    parts = (1.0,) if math.log10(high / low) > 2.5 else (1.0, 2.0, 5.0)
    ticks = [part * 10.0**k for k in powers for part in parts if low <= part * 10.0**k <= high]
    return tuple(ticks[:: len(ticks) // 8 + 1]) if len(ticks) > 1 else _even(low, high)


def _even(low: float, high: float) -> tuple[float, ...]:
    """About four round numbers between two."""
    rough = (high - low) / 4
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(part * unit for part in (1, 2, 5, 10) if part * unit >= rough)
    return tuple(step * k for k in range(math.ceil(low / step), math.floor(high / step) + 1))


def charts(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A chart for each metric, and for the error: its name, whether more is better, and the SVG element.

    With a single budget there are no curves: a line for each row shows its value and interval instead.
    """
    groups = groups_of(rows)
    single = all(len([row for row in members if row.metrics or row.error]) < 2 for members in groups.values())
    draw = _ranking if single else _curves
    return [
        {"name": NAMES.get(name, name), "higher": name in HIGHER, "svg": draw(rows, groups, name)}
        for name in scores_of(rows)
    ]


def legend(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The solvers with their markers, as elements of the page."""
    return [
        {"label": label, "number": i, "marker": Markup('<svg viewBox="-9 -6 18 12">{}{}</svg>').format(
            Markup('<path class="line{}" style="stroke:{}" d="M-9,0H9"/>').format(_dashed(members), _colour(i)),
            Markup('<path style="fill:{}" d="{}"/>').format(_colour(i), _shape(i)),
        )}
        for i, (label, members) in enumerate(groups_of(rows).items())
        if any(row.metrics or row.error for row in members)
    ]  # fmt: skip


def _curves(rows: Sequence[Row], groups: dict[str, list[Row]], name: str) -> Markup:
    number_of = {id(row): k for k, row in enumerate(rows, 1)}
    shown = [(row, score) for row in rows if (score := score_of(row, name)) and row.nfe is not None]
    y_scale, x_scale = (
        of_scores([score for _, score in shown], name in HIGHER),
        of_budgets([row.nfe or 0 for row, _ in shown]),
    )

    def across(nfe: float) -> float:
        return _LEFT + x_scale.place(nfe) * (_WIDTH - _LEFT - _RIGHT)

    def down(value: float) -> float:
        return _TOP + (1 - y_scale.place(value)) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [
        Markup('<path class="grid" d="M{:.1f},{:.1f}H{}"/><text class="tick" x="{}" y="{:.1f}">{}</text>').format(
            _LEFT, down(tick), _WIDTH - _RIGHT, _LEFT - 6, down(tick) + 4, number(tick)
        )
        for tick in y_scale.ticks
    ]
    parts += [
        Markup('<text class="tick middle" x="{:.1f}" y="{}">{}</text>').format(across(t), _HEIGHT - 26, number(t))
        for t in x_scale.ticks
    ]
    for i, (label, members) in enumerate(groups.items()):
        points = sorted(
            ((row.nfe, score, row) for row in members if (score := score_of(row, name)) and row.nfe is not None),
            key=lambda point: point[0],
        )
        if points:
            parts.append(_series(i, label, points, number_of, across, down))
    parts.append(
        Markup('<text class="label middle" x="{}" y="{}">model evaluations per sample (NFE)</text>').format(
            (_LEFT + _WIDTH) / 2, _HEIGHT - 6
        )
    )
    return _svg(name, _HEIGHT, parts)


def _series(
    i: int,
    label: str,
    points: list[tuple[int, Estimate, Row]],
    number_of: dict[int, int],
    across: Callable[[float], float],
    down: Callable[[float], float],
) -> Markup:
    """The band, the line and the points of a solver."""
    there = [f"{across(nfe):.1f},{down(score.high):.1f}" for nfe, score, _ in points]
    back = [f"{across(nfe):.1f},{down(score.low):.1f}" for nfe, score, _ in reversed(points)]
    line = [f"{across(nfe):.1f},{down(score.value):.1f}" for nfe, score, _ in points]
    colour = _colour(i)
    band = Markup('<path class="band" style="fill:{0};stroke:{0}" d="M{1}z"/>').format(
        colour, "L".join([*there, *back])
    )
    curve = Markup('<path class="line{}" style="stroke:{}" d="M{}"/>').format(
        _dashed([points[0][2]]), colour, "L".join(line)
    )
    marks = [
        _point(across(nfe), down(score.value), i, number_of[id(row)], label, row, score) for nfe, score, row in points
    ]
    return Markup('<g class="series" data-series="{}">{}{}{}</g>').format(i, band, curve, Markup("").join(marks))


def _ranking(rows: Sequence[Row], groups: dict[str, list[Row]], name: str) -> Markup:
    number_of = {id(row): k for k, row in enumerate(rows, 1)}
    place_of = {id(row): i for i, members in enumerate(groups.values()) for row in members}
    shown = [(row, score) for row in rows if (score := score_of(row, name))]
    scale = of_scores([score for _, score in shown], name in HIGHER)
    shown.sort(key=lambda pair: pair[1].value, reverse=name in HIGHER)
    height = _TOP + _LINE * len(shown) + 30

    def across(value: float) -> float:
        return _NAME + scale.place(value) * (_WIDTH - _NAME - _RIGHT)

    parts = [
        Markup('<path class="grid" d="M{:.1f},{}V{}"/><text class="tick middle" x="{:.1f}" y="{}">{}</text>').format(
            across(tick), _TOP, height - 26, across(tick), height - 8, number(tick)
        )
        for tick in scale.ticks[:: len(scale.ticks) // 6 + 1]
    ]
    for line, (row, score) in enumerate(shown):
        i, y = place_of[id(row)], _TOP + _LINE * (line + 0.5)
        text = Markup('<text class="tick" x="{}" y="{}">{}</text>').format(_NAME - 10, y + 4, drawn(row.solver, 26))
        reach = Markup('<path class="reach" style="stroke:{}" d="M{:.1f},{}H{:.1f}"/>').format(
            _colour(i), across(score.low), y, across(score.high)
        )
        point = _point(across(score.value), y, i, number_of[id(row)], row.solver, row, score)
        parts.append(Markup('<g class="series" data-series="{}">{}{}{}</g>').format(i, text, reach, point))
    return _svg(name, height, parts)


def _point(x: float, y: float, i: int, place: int, label: str, row: Row, score: Estimate) -> Markup:
    """A marker that can be focused, with the row's number and its text."""
    text = f"{drawn(label)}, {row.nfe} NFE: {number(score.value)} ({number(score.low)} to {number(score.high)})"
    return Markup(
        '<path class="point" tabindex="-1" role="img" aria-label="{}" data-row="{}" style="fill:{}" '
        'transform="translate({:.1f},{:.1f})" d="{}"/>'
    ).format(text, place, _colour(i), x, y, _shape(i))


def _svg(name: str, height: float, parts: Sequence[Markup]) -> Markup:
    title = NAMES.get(name, name) + (" (more is better)" if name in HIGHER else "")
    head = Markup('<svg class="chart" viewBox="0 0 {} {}" role="group" aria-label="{}">').format(_WIDTH, height, title)
    return (
        head
        + Markup('<text class="title" x="2" y="16">{}</text>').format(title)
        + Markup("").join(parts)
        + Markup("</svg>")
    )


def _colour(i: int) -> str:
    return f"var(--c{i % COLOURS})"


def _shape(i: int) -> str:
    return _SHAPES[i // COLOURS % len(_SHAPES)]


def _dashed(members: Sequence[Row]) -> str:
    return " dashed" if members[0].stochastic else ""


def drawn(name: str, most: int = 80) -> str:
    """A name as it is drawn: cut to ``most`` characters, and with a sign for each character that is not printable."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in clipped(name, most))


def score_of(row: Row, name: str) -> Estimate | None:
    """A metric of a row, or its "error"; None if there is none, or if no axis can show it (NaN, inf, 1e200)."""
    return finite(row.score(name))


def scores_of(rows: Sequence[Row]) -> list[str]:
    """The metrics that a row can show, in order, and "error" if a row can show one."""
    names = dict.fromkeys([*(name for row in rows for name in row.metrics), "error"])
    return [name for name in names if any(score_of(row, name) for row in rows)]


def groups_of(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by solver, and by grid where one solver has several."""
    groups: dict[str, list[Row]] = {}
    for label, row in zip(labels_of(rows), rows, strict=True):
        groups.setdefault(label, []).append(row)
    return groups


def number(value: float | None) -> str:
    """A number formatted for the page: three significant digits, a dash for None."""
    return "-" if value is None else f"{value:.3g}"
