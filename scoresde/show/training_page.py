"""The page of a training run: its loss, what it has learned at which noise level, samples over time, its settings.

Curves are inline SVG in the colours of the page, samples inline PNG. The page fetches nothing and runs no code.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import training_figures as figures
from .charts import number
from .pages import template
from .training_figures import Lines

_GRIDS, _ROWS = 8, 12  # the most grids of samples and rows of evaluations on a page
_UNITS = {"bits_per_dim": "bits/dim", "nats": "nats"}


@dataclass(frozen=True)
class Grid:
    """A picture of samples after ``step`` updates, as the bytes of a PNG file, with its width in pixels."""

    step: int
    png: bytes
    width: int
    pixels: bool


def page(
    title: str,
    lines: Lines,
    evaluations: Lines,
    grids: Sequence[Grid] = (),
    *,
    batch_size: int,
    blocks: Mapping[str, Mapping[str, Any]] | None = None,
    command: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
) -> str:
    """The HTML page of a training run.

    Args:
        lines: those of ``train.jsonl``.
        evaluations: those of ``evaluations.jsonl``.
        grids: pictures of samples, by step; at most eight are shown, the last one among them.
        batch_size: samples per update.
        blocks: facts under a heading each, such as those about the data.
        command: the commands that trained the run.
        config: its settings.
    """
    name = next((name for name in _UNITS if any(name in line for line in evaluations)), "")
    label = {"bits_per_dim": "held-out bits per dimension", "nats": "held-out log-likelihood, nats"}.get(name, "")
    progress = [
        _figure(figures.loss(lines, evaluations), "The mean of neighbouring updates over their range."),
        *([_figure(figures.likelihood(evaluations, name, label), "Bars: two standard errors.")] if name else []),
        _figure(figures.throughput(lines, evaluations, batch_size), "Without the evaluations."),
        _figure(figures.gradient(lines), "Before it is clipped."),
    ]
    levels = [
        _figure(figures.error_by_noise(evaluations), "After the last evaluation, with two standard errors."),
        _figure(figures.learned_by_noise(evaluations), "After several numbers of updates, the last one strongest."),
    ]
    return template("training.html").render(
        title=title,
        summary=_summary(lines, evaluations, batch_size),
        fault=str(evaluations[-1].get("fault", "")) if evaluations else "",
        progress=progress,
        levels=levels if any("log_snr" in line for line in evaluations) else [],
        grids=[_shown(grid) for grid in _some(grids, _GRIDS)],
        columns=["updates", "held-out loss", *([_UNITS[name]] if name else [])],
        rows=[_row(line, name) for line in _some(evaluations, _ROWS)],
        blocks=[
            (head, [(key, _text(value)) for key, value in facts.items()]) for head, facts in (blocks or {}).items()
        ],
        command=list(command),
        config=json.dumps(config, indent=2, default=str) if config else "",
    )


def _summary(lines: Lines, evaluations: Lines, batch_size: int) -> str:
    """The state of the run in a sentence."""
    if not lines:
        return "No updates are logged yet."
    last = lines[-1]
    step = max(int(line["step"]) for line in [last, *evaluations[-1:]])
    parts = [f"{step:,} updates of {batch_size} samples", f"loss {_text(last.get('loss'))}"]
    if evaluations:
        parts += [f"held out {shown} {_UNITS[name]}" for name in _UNITS if (shown := _value(evaluations[-1], name))]
    _, rate = figures.rates(lines, evaluations, batch_size)
    if len(rate):
        parts.append(f"{_rate(float(np.median(rate)))} samples per second")
    if isinstance(seconds := last.get("seconds"), (int, float)):
        parts.append(f"{_duration(float(seconds))} in all")
    return "; ".join(parts) + "."


def _rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else number(rate)


def _duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes:.0f} min" if minutes < 90 else f"{hours:.1f} h"


def _value(line: Mapping[str, Any], name: str) -> str:
    """A number with its standard error; empty if the record lacks it."""
    value, error = line.get(name), line.get(f"{name}_stderr")
    if not isinstance(value, (int, float)):
        return ""
    return f"{value:.4g}" + (f" ± {error:.2g}" if isinstance(error, (int, float)) else "")


def _row(line: Mapping[str, Any], name: str) -> list[str]:
    return [f"{int(line['step']):,}", _value(line, "loss"), *([_value(line, name)] if name else [])]


def _some(given: Sequence[Any], most: int) -> list[Any]:
    """At most so many of a sequence, evenly spaced, the first and the last among them."""
    if len(given) <= most:
        return list(given)
    return [given[round(place)] for place in np.linspace(0, len(given) - 1, most)]


def _figure(svg: str, caption: str) -> dict[str, str]:
    return {"svg": svg, "caption": caption}


def _shown(grid: Grid) -> dict[str, Any]:
    image = "data:image/png;base64," + base64.b64encode(grid.png).decode()
    kind = "pixels" if grid.pixels else "drawing"
    return {"step": f"{grid.step:,}", "image": image, "width": grid.width, "kind": kind}


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    return value if isinstance(value, str) else json.dumps(value, default=str)
