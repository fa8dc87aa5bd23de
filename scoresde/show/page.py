"""A benchmark or a likelihood as one self-contained HTML page.

Pictures are inline; the page fetches nothing and runs no code, so it can be mailed or archived. Figures use
matplotlib's objects without pyplot, so that they need no display and leave no global state.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator, ScalarFormatter
from PIL import Image
from torch import Tensor

from solvers import InputError

from ..benchmark.metrics import Estimate
from ..benchmark.runner import Row
from ..likelihood.result import LogProb
from ..result_files import environment, write_atomically

_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f3c8d", "#4d4d4d")
_MARKERS = "osD^v"  # the second eight solvers get the second marker
_REAL = "#b4b9c0"
_SOFT = "#62676e"
_NAMES = {"sliced_wasserstein": "sliced Wasserstein", "frechet": "Fréchet", "mmd": "MMD²", "error": "error"}
_TILE = 48  # smallest size of a picture in the table, in pixels


def write_report(
    path: str | Path,
    *,
    title: str,
    rows: Sequence[Row] = (),
    low: float = -1.0,
    high: float = 1.0,
    reference: Tensor | None = None,
    likelihood: LogProb | None = None,
    header: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Writes the page; a file of that name is replaced only when the new page is complete.

    Args:
        path: the HTML file.
        title: the title of the page.
        rows: the rows of a benchmark.
        low, high: the data's range: the values of black and white in a picture.
        reference: real samples (M, *), shown next to the drawn ones.
        likelihood: the result of ``log_prob``.
        header: facts shown at the bottom, after ``environment()``; ``command`` and ``config`` get their own blocks.
        notes: paragraphs below the title.

    Raises:
        InputError: low is not below high.
    """
    header = {**environment(), **(header or {})}
    command, config = header.pop("command", ""), header.pop("config", None)
    page = _template().render(
        title=title,
        notes=list(notes),
        summary=_summary(rows),
        likelihood=likelihood and _likelihood(likelihood),
        curves=inline(curves(rows)) if any(row.metrics for row in rows) else "",
        command=command,
        config=json.dumps(config, indent=2, default=str) if config else "",
        facts=[(name, _text(value)) for name, value in header.items()],
        **_table(rows),
        **_pictures(rows, low, high, reference),
    )
    write_atomically(path, page)


def image_grid(samples: Tensor, low: float, high: float, columns: int | None = None, tile: int = 64) -> Image.Image:
    """Pictures in a grid on white, two pixels apart, each enlarged by the largest integer that fits ``tile``.

    Args:
        samples: (N, 1, H, W) or (N, 3, H, W); values outside [low, high] are clamped, NaN is black.
        low, high: the values of black and white.
        columns: pictures in a row; by default the square root of N, rounded up.
        tile: the target size of a picture in pixels; larger pictures keep their size.

    >>> import torch
    >>> image_grid(torch.zeros(5, 1, 8, 8), -1, 1).size
    (196, 130)

    Raises:
        InputError: samples of a different shape, no samples, or low not below high.
    """
    if not is_image(samples) or not len(samples):
        raise InputError(f"a picture grid needs samples (N, 1, H, W) or (N, 3, H, W), got {tuple(samples.shape)}")
    if not low < high:
        raise InputError(f"low={low:g} must be less than high={high:g}")
    scaled = (samples.detach().cpu().double() - low) * (255 / (high - low))
    pixels = scaled.nan_to_num(nan=0.0).clamp(0, 255).round().byte().movedim(1, 3).numpy()
    count, height, width, channels = pixels.shape
    factor = max(1, tile // max(height, width))
    pixels = pixels.repeat(factor, 1).repeat(factor, 2)
    columns = min(columns or math.ceil(math.sqrt(count)), count)
    step = (height * factor + 2, width * factor + 2)
    canvas = np.full((math.ceil(count / columns) * step[0] - 2, columns * step[1] - 2, channels), 255, np.uint8)
    for i, picture in enumerate(pixels):
        top, left = i // columns * step[0], i % columns * step[1]
        canvas[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return Image.fromarray(canvas[:, :, 0] if channels == 1 else canvas)


def is_image(samples: Tensor) -> bool:
    """Whether samples (N, *) are grey or colour pictures."""
    return samples.ndim == 4 and samples.shape[1] in (1, 3)


def number(value: float | None) -> str:
    """A number formatted for the page: three significant digits, a dash for None."""
    return "-" if value is None else f"{value:.3g}"


def curves(rows: Sequence[Row]) -> Figure:
    """A figure of each metric, and of the error, against the counted NFE; logarithmic axes, shaded intervals."""
    groups = _groups(rows)
    names = _scores(rows)
    across = min(2, len(names))
    down = math.ceil(len(names) / across)
    figure = Figure(figsize=(5.6 * across, 3.7 * down + 0.5), dpi=160, layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).ravel()
    for name, axes in zip(names, panels, strict=False):
        floor = _dress(axes, name, [row for row in rows if _score(row, name)])
        for i, (label, members) in enumerate(groups.items()):
            points = sorted((row.nfe, score) for row in members if (score := _score(row, name)) and row.nfe)
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
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    return figure


def _dress(axes: Any, name: str, rows: Sequence[Row]) -> float:
    """Sets scales, ticks and title of a panel; returns the lower limit of its axis, at which bands are cut off."""
    scores = [score for row in rows if (score := _score(row, name))]
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
    axes.set_title(_NAMES.get(name, name), fontsize=11, loc="left")
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


def _template() -> jinja2.Template:
    source = resources.files("scoresde.show").joinpath("report.html").read_text(encoding="utf-8")
    return jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(source)


def inline(picture: Figure | Image.Image) -> str:
    """A picture as a data URL."""
    buffer = io.BytesIO()
    if isinstance(picture, Figure):
        picture.savefig(buffer, format="png")
        picture = Image.open(buffer).convert("RGB").quantize(128, dither=Image.Dither.NONE)
        buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _score(row: Row, name: str) -> Estimate | None:
    return row.error if name == "error" else row.metrics.get(name)


def _scores(rows: Iterable[Row]) -> list[str]:
    """The metrics that occur, in order, and "error" if a row has one."""
    names = dict.fromkeys(name for row in rows for name in row.metrics)
    return [*names, *(["error"] if any(row.error for row in rows) else [])]


def _groups(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by solver, and by grid where one solver has several."""
    grids = {solver: {row.grid for row in rows if row.solver == solver} for solver in {row.solver for row in rows}}
    groups: dict[str, list[Row]] = {}
    for row in rows:
        label = row.solver if len(grids[row.solver]) == 1 else f"{row.solver}, {row.grid}"
        groups.setdefault(label, []).append(row)
    return groups


def _best(rows: Sequence[Row], name: str) -> dict[int, float]:
    """The smallest value at each budget."""
    best: dict[int, float] = {}
    for row in rows:
        score = _score(row, name)
        if score and row.nfe_budget is not None:
            best[row.nfe_budget] = min(score.value, best.get(row.nfe_budget, math.inf))
    return best


def _summary(rows: Sequence[Row]) -> str:
    names = _scores(rows)
    if not names:
        return ""
    best = _best(rows, names[0])
    parts = []
    for budget, value in sorted(best.items()):
        winner = next(
            r for r in rows if r.nfe_budget == budget and names[0] in r.metrics and r.metrics[names[0]].value == value
        )
        parts.append(f"{winner.solver} with {budget} evaluations ({number(value)})")
    return f"Best {_NAMES.get(names[0], names[0])} distance: {'; '.join(parts)}." if parts else ""


def _table(rows: Sequence[Row]) -> dict[str, Any]:
    names = _scores(rows)
    best = {name: _best(rows, name) for name in names}
    lines = []
    for row in rows:
        facts = [row.steps, row.nfe, row.nfe_budget, row.grid, "SDE" if row.stochastic else "ODE", row.n_samples]
        cells = []
        for name in names:
            score = _score(row, name)
            marked = score is not None and row.nfe_budget is not None and score.value == best[name][row.nfe_budget]
            interval = f"{number(score.low)} to {number(score.high)}" if score else ""
            cells.append({"value": number(score.value if score else None), "interval": interval, "best": marked})
        time = None if row.seconds_per_sample is None else 1e3 * row.seconds_per_sample
        cells.append({"value": number(time), "interval": "", "best": False})
        shown = ["-" if fact is None else str(fact) for fact in facts]
        lines.append({"solver": row.solver, "facts": shown, "scores": cells, "skipped": row.skipped})
    columns = ["steps", "NFE", "budget", "grid", "kind", "samples", *(_NAMES.get(n, n) for n in names), "ms / sample"]
    return {"table_rows": lines, "columns": columns, "scores": len(names) + 1, "has_error": "error" in names}


def _pictures(rows: Sequence[Row], low: float, high: float, reference: Tensor | None) -> dict[str, Any]:
    shown = [row.samples for row in rows if row.samples is not None and len(row.samples)]
    if not shown:
        return {"picture_rows": []}
    pixels = is_image(shown[0])
    ends = (low, high) if reference is None else (float(reference.min()), float(reference.max()))
    margin = 0.08 * (ends[1] - ends[0]) or 1.0
    limits = ends[0] - margin, ends[1] + margin

    def draw(samples: Tensor, behind: Tensor | None) -> dict[str, Any]:
        if pixels:
            picture = image_grid(samples, low, high, columns=4, tile=_TILE)
            return {"image": inline(picture), "width": picture.width, "text": "samples"}
        figure = drawing(samples, behind, limits)
        return {"image": inline(figure), "width": round(100 * figure.get_figwidth()), "text": "samples"}

    def cell(row: Row | None) -> dict[str, Any]:
        if row is None:
            return {"image": "", "text": ""}
        if row.samples is None or not len(row.samples):
            return {"image": "", "text": row.skipped}
        return draw(row.samples, reference)

    budgets = sorted({row.nfe_budget for row in rows if row.nfe_budget is not None})
    own = [None] if any(row.nfe_budget is None for row in rows) else []
    lines = []
    if reference is not None:
        blank = [{"image": "", "text": ""}] * (len(budgets) + len(own) - 1)
        lines.append({"label": "real data", "cells": [draw(reference[: len(shown[0])], None), *blank]})
    for label, members in _groups(rows).items():
        at = {row.nfe_budget: row for row in members}
        lines.append({"label": label, "cells": [cell(at.get(budget)) for budget in [*budgets, *own]]})
    caption = "A row for each solver, a column for each budget of evaluations (NFE); all start from the same noise."
    if not pixels and reference is not None and shown[0][0].numel() <= 2:
        caption += " Grey: real data."
    columns = [f"NFE {budget}" for budget in budgets] + ["adaptive" for _ in own]
    facts = {"picture_columns": columns, "picture_class": "pixels" if pixels else "figure", "picture_caption": caption}
    return {"picture_rows": lines, **facts}


def _likelihood(result: LogProb) -> dict[str, Any]:
    per_dim: Tensor | None
    try:
        per_dim = result.bits_per_dim
    except InputError:  # continuous data have no bits
        per_dim = None
    noise = float(result.stderr.detach().double().square().mean().sqrt())
    facts = [("samples", str(len(result.nats))), ("log-likelihood", f"{_mean(result.nats)} nats")]
    if per_dim is not None:
        facts.append(("bits per dimension", _mean(per_dim)))
    facts += [
        ("standard error of the estimator", "not known" if math.isnan(noise) else f"{number(noise)} nats a sample"),
        ("solver", result.solver),
        ("NFE", str(result.nfe)),
    ]
    shown, label = (result.nats, "log-likelihood, nats") if per_dim is None else (per_dim, "bits per dimension")
    return {"facts": facts, "histogram": inline(histogram(shown, label))}


def _mean(values: Tensor) -> str:
    """The mean with its standard error over samples."""
    v = values.detach().cpu().double()
    spread = f" ± {number(float(v.std()) / math.sqrt(len(v)))}" if len(v) > 1 else ""
    return f"{float(v.mean()):.5g}{spread}"


def _text(value: Any) -> str:
    """A header's value on one line; consecutive integers as "first-last"."""
    if isinstance(value, (list, tuple, range)):
        value = list(value)
        integers = len(value) > 2 and all(type(item) is int for item in value)
        if integers and value == [*range(value[0], value[-1] + 1)]:
            return f"{value[0]}-{value[-1]}"
    return value if isinstance(value, str) else json.dumps(value, default=str)
