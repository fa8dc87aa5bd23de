"""A benchmark or a likelihood as one self-contained HTML page.

Pictures are inline; the page fetches nothing and runs no code, so it can be mailed or archived.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from solvers import InputError
from solvers.files import write_atomically

from ..benchmark.rows import Row
from ..benchmark.token_metrics import TOKEN_METRICS
from ..io.result_files import environment
from ..likelihood.result import LogProb, typical_error
from ..sampling.pictures import image_grid, is_image
from .figures import NAMES, curves, drawing, groups_of, histogram, inline, number, score_of, scores_of
from .pages import template

_TEXTS = 4  # texts of a row and budget
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
    texts: Callable[[Tensor], list[str]] | None = None,
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
        texts: the texts of samples (N, *) of tokens, which are shown instead of pictures.

    Raises:
        InputError: low is not below high.
    """
    header = {**environment(), **(header or {})}
    command, config = header.pop("command", ""), header.pop("config", None)
    page = template("report.html").render(
        title=title,
        notes=list(notes),
        summary=_summary(rows),
        likelihood=likelihood and _likelihood(likelihood),
        curves=inline(curves(rows)) if scores_of(rows) else "",
        command=command,
        config=json.dumps(config, indent=2, default=str) if config else "",
        facts=[(name, text_of(value)) for name, value in header.items()],
        **_table(rows),
        **_pictures(rows, low, high, reference, texts),
    )
    write_atomically(path, page)


def leaders(rows: Sequence[Row], name: str) -> dict[int, list[Row]]:
    """The rows with the smallest value at each budget that several rows have: the best, then those tied with it.

    A row is tied with the best one if the value of either lies in the interval of the other.
    """
    found: dict[int, list[Row]] = {}
    for budget in dict.fromkeys(row.nfe_budget for row in rows if row.nfe_budget is not None):
        scored = [(score, row) for row in rows if row.nfe_budget == budget and (score := score_of(row, name))]
        if len(scored) < 2:
            continue
        scored.sort(key=lambda pair: pair[0].value)
        best = scored[0][0]
        found[budget] = [row for score, row in scored if score.low <= best.value or score.value <= best.high]
    return found


def _summary(rows: Sequence[Row]) -> str:
    """The leaders in the first metric, in a sentence."""
    names = scores_of(rows)
    if not names:
        return ""
    parts = []
    for budget, members in sorted(leaders(rows, names[0]).items()):
        values = [number(score.value) for row in members if (score := score_of(row, names[0]))]
        shown = values[0] if len(values) == 1 else f"{values[0]} to {values[-1]}, tied"
        parts.append(f"{', '.join(row.solver for row in members)} with {budget} evaluations ({shown})")
    what = NAMES.get(names[0], names[0]) + ("" if names[0] in TOKEN_METRICS else " distance")
    return f"Least {what}: {'; '.join(parts)}." if parts else ""


def _table(rows: Sequence[Row]) -> dict[str, Any]:
    names = scores_of(rows)
    best = {name: leaders(rows, name) for name in names}
    lines = []
    for row in rows:
        facts = [row.steps, row.nfe, row.nfe_budget, row.grid, _kind(row, names), row.n_samples]
        cells = []
        for name in names:
            score = score_of(row, name)
            marked = any(row is leader for leader in best[name].get(row.nfe_budget or 0, ()))
            interval = f"{number(score.low)} to {number(score.high)}" if score else ""
            cells.append({"value": number(score.value if score else None), "interval": interval, "best": marked})
        time = None if row.seconds_per_sample is None else 1e3 * row.seconds_per_sample
        cells.append({"value": number(time), "interval": "", "best": False})
        shown = ["-" if fact is None else str(fact) for fact in facts]
        lines.append({"solver": row.solver, "facts": shown, "scores": cells, "skipped": row.skipped})
    columns = ["steps", "NFE", "budget", "grid", "kind", "samples", *(NAMES.get(n, n) for n in names), "ms / sample"]
    return {"table_rows": lines, "columns": columns, "scores": len(names) + 1, "has_error": "error" in names}


def _kind(row: Row, names: Sequence[str]) -> str:
    if any(name in TOKEN_METRICS for name in names):
        return "discrete"
    return "SDE" if row.stochastic else "ODE"


def _pictures(
    rows: Sequence[Row],
    low: float,
    high: float,
    reference: Tensor | None,
    texts: Callable[[Tensor], list[str]] | None = None,
) -> dict[str, Any]:
    shown = [row.samples for row in rows if row.samples is not None and len(row.samples)]
    if not shown:
        return {"picture_rows": []}
    pixels = is_image(shown[0])
    ends = (low, high) if reference is None else (float(reference.min()), float(reference.max()))
    margin = 0.08 * (ends[1] - ends[0]) or 1.0
    limits = ends[0] - margin, ends[1] + margin

    def draw(samples: Tensor, behind: Tensor | None) -> dict[str, Any]:
        if texts is not None:
            return {"image": "", "text": "", "lines": [_line(text) for text in texts(samples[:_TEXTS])]}
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
    for label, members in groups_of(rows).items():
        at = {row.nfe_budget: row for row in members}
        lines.append({"label": label, "cells": [cell(at.get(budget)) for budget in [*budgets, *own]]})
    caption = "A row for each solver, a column for each budget of evaluations (NFE); all start from the same noise."
    if texts is None and not pixels and reference is not None and shown[0][0].numel() <= 2:
        caption += " Grey: real data."
    columns = [f"NFE {budget}" for budget in budgets] + ["adaptive" for _ in own]
    facts = {"picture_columns": columns, "picture_class": "pixels" if pixels else "figure", "picture_caption": caption}
    return {"picture_rows": lines, **facts}


def _line(text: str) -> str:
    """A text in one line; its line ends are visible."""
    return text.replace("\n", "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}")


def _likelihood(result: LogProb) -> dict[str, Any]:
    per_dim: Tensor | None
    try:
        per_dim = result.bits_per_dim
    except InputError:  # continuous data have no bits
        per_dim = None
    noise = typical_error(result.stderr)
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


def text_of(value: Any) -> str:
    """A header's value on one line; consecutive integers as "first-last"."""
    if isinstance(value, (list, tuple, range)):
        value = list(value)
        integers = len(value) > 2 and all(type(item) is int for item in value)
        if integers and value == [*range(value[0], value[-1] + 1)]:
            return f"{value[0]}-{value[-1]}"
    return value if isinstance(value, str) else json.dumps(value, default=str)
