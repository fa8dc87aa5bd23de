"""A benchmark or a likelihood as one self-contained HTML page.

Pictures and charts are inline; the page fetches nothing and can be mailed or archived. It runs one script, its own, for
sorting, filtering, labels and export: a policy in the page names the script's hash, and browsers run nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from torch import Tensor

from solvers import InputError
from solvers.files import write_atomically

from ..benchmark.metrics import Estimate
from ..benchmark.rows import Row, labels_of
from ..benchmark.states import STATES
from ..benchmark.ties import leaders
from ..benchmark.token_metrics import TOKEN_METRICS
from ..io.result_files import environment
from ..likelihood.result import LogProb, typical_error
from ..sampling.pictures import image_grid, is_image
from .charts import NAMES, charts, groups_of, legend, number, score_of, scores_of
from .figures import drawing, histogram, inline, way
from .pages import source, template

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
    script = source("report.js.html")
    page = template("report.html").render(
        title=title,
        notes=list(notes),
        answers=_answers(rows),
        likelihood=likelihood and _likelihood(likelihood),
        charts=charts(rows),
        legend=legend(rows),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        command=command,
        config=json.dumps(config, indent=2, default=str) if config else "",
        facts=[(name, text_of(value)) for name, value in header.items()],
        **_table(rows),
        **_pictures(rows, low, high, reference, texts),
        **_ways(rows, low, high, reference),
    )
    write_atomically(path, page)


def _answers(rows: Sequence[Row]) -> dict[str, Any]:
    """For every budget and metric the best solver and those tied with it, with their values."""
    names, labels = scores_of(rows), labels_of(rows)
    several = any(label != row.solver for label, row in zip(labels, rows, strict=True))
    best = {name: leaders(rows, name) for name in names}
    budgets = sorted({budget for found in best.values() for budget in found})

    def cell(places: Sequence[int], name: str) -> str:
        members = [rows[place] for place in places]
        settings = dict.fromkeys(labels[place] for place in places)
        values = [number(score.value) for row in members if (score := score_of(row, name))]
        ends = " to ".join(dict.fromkeys([values[0], values[-1]]))
        shown = ends if len(values) == 1 else f"{ends}, tied"
        return f"{'; '.join(settings) if several else ', '.join(settings)} ({shown})"

    lines = [
        {"budget": budget, "cells": [cell(best[n][budget], n) if budget in best[n] else "-" for n in names]}
        for budget in budgets
    ]
    return {"heads": [NAMES.get(name, name) for name in names], "lines": lines}


def _table(rows: Sequence[Row]) -> dict[str, Any]:
    names = scores_of(rows)
    best = {name: {place for places in leaders(rows, name).values() for place in places} for name in names}
    lines = []
    for place, row in enumerate(rows):
        tuned = "-" if row.parameters is None else f"{row.parameters} numbers"
        facts = [row.steps, row.nfe, row.nfe_budget, row.depth, row.grid, _kind(row, names), tuned, row.n_samples]
        cells = [_score_cell(score_of(row, name), place in best[name]) for name in names]
        time = None if row.seconds_per_sample is None else 1e3 * row.seconds_per_sample
        cells.append({"value": number(time), "raw": _raw(time), "interval": "", "best": False})
        shown = ["-" if fact is None else str(fact) for fact in facts]
        text = " ".join([row.solver, *shown, row.skipped and "skipped"])
        line = {"number": place + 1, "solver": row.solver, "facts": shown, "scores": cells, "text": text}
        lines.append({**line, "skipped": row.skipped})
    heads = ["steps", "NFE", "budget", "depth", "grid", "kind", "tuned", "samples"]
    columns = [{"name": name, "score": False} for name in heads]
    columns += [{"name": NAMES.get(name, name), "score": True} for name in names]
    columns.append({"name": "ms / sample", "score": False})
    return {"table_rows": lines, "columns": columns, "scores": len(names) + 1, "has_error": "error" in names}


def _score_cell(score: Estimate | None, best: bool) -> dict[str, Any]:
    if score is None:
        return {"value": "-", "raw": "", "interval": "", "best": False}
    low, high = number(score.low), number(score.high)
    ends = {"low": low, "high": high, "interval": f"{low} to {high}"}
    return {"value": number(score.value), "raw": _raw(score.value), "best": best, **ends}


def _raw(value: float | None) -> str:
    return "" if value is None else f"{value:.9g}"


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


def _ways(rows: Sequence[Row], low: float, high: float, reference: Tensor | None) -> dict[str, Any]:
    """For every solver the states of its first sample, at its least budget."""
    chosen = []
    for label, members in groups_of(rows).items():
        known = [row for row in members if row.states is not None]
        if known:
            chosen.append((label, min(known, key=lambda row: row.nfe_budget or 0)))
    if not chosen:
        return {"ways": []}
    states = [row.states for _, row in chosen if row.states is not None]
    pixels, dots = is_image(states[0]), states[0][0].numel() <= 2
    # a solver that leaves the range of the noise and the data is cut off, so that it does not flatten all others
    inside = [part[0] for part in states] + ([part[-1] for part in states] if reference is None else [reference])
    ends = [float(end) for part in inside for end in part.aminmax()]
    margin = 0.05 * (max(ends) - min(ends)) or 1.0
    limits = min(ends) - margin, max(ends) + margin
    lines = []
    for (label, row), shown in zip(chosen, states, strict=True):
        if pixels:
            picture: Any = image_grid(shown, low, high, columns=len(shown), tile=_TILE)
            width = picture.width
        else:
            picture = way(shown, reference, limits, max(map(len, states)))
            width = round(100 * picture.get_figwidth())
        text = f"{len(shown)} states of a sample, from noise to data"
        kind = "pixels" if pixels else "figure"
        lines.append(
            {"label": label, "nfe": row.nfe, "image": inline(picture), "width": width, "kind": kind, "text": text}
        )  # fmt: skip
    how = "The points are its states; the large one is the sample." if dots else "Each picture is a state."
    caption = (
        f"The first sample of each solver at its least budget, from noise, the same for all, to data. {how} States are "
        f"divided by the square root of alpha² + sigma²; of a solve with more than {STATES}, so many are shown."
    )
    return {"ways": lines, "way_caption": caption}


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
