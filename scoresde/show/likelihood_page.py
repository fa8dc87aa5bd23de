"""The page of a likelihood: text, budget, histogram, and the least and the most likely samples."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..data.dataset import DataCard
from ..likelihood.result import LogProb, error_of_mean, uncertainty
from ..sampling.pictures import image_grid, is_image
from .charts import number
from .figures import histogram, inline
from .pages import template

SHOWN = 12  # how many of the least and of the most likely samples the page shows


def block(result: LogProb) -> str:
    """A likelihood as text, with its uncertainties."""
    parts, bits = uncertainty(result), result.dimensions * math.log(2)

    def shown(name: str) -> str:
        also = "" if result.bin_width is None else f" = {number(parts[name] / bits)} bits/{result.unit}"
        return f"{number(parts[name])} nats{also}"

    lines = [str(result)]
    if result.nfe_per_sample is not None:
        lines.append(f"  NFE per sample: {float(result.nfe_per_sample.double().mean()):.1f}, at most {result.nfe}")
    solved, measured = bool(result.divergence), result.solver_error is not None  # a bound solves no equation
    how = f"{'trace' if solved else 'draws'} {number(parts['trace'])}"
    how += f", solver {number(parts['solver'])}" if measured else ""
    lines.append(f"  uncertainty of the mean of these samples: {shown('of_these')} ({how})")
    if math.isnan(parts["samples"]):
        lines.append("  uncertainty of the mean of their distribution: unknown from a single sample")
    else:
        lines.append(
            f"  uncertainty of the mean of their distribution: {shown('total')} (samples {number(parts['samples'])})"
        )
    if solved and not measured:
        lines.append("  not included: the solver error, which was not measured")
    return "\n".join(lines)


def page(
    title: str,
    text: str,
    found: Mapping[str, LogProb],
    x: Tensor,
    card: DataCard,
    document: Mapping[str, Any],
) -> str:
    """The HTML page of a likelihood of data (N, *)."""
    result = found.get("ode") or found["bound"]
    discrete = result.bin_width is not None
    values = result.bits_per_dim if discrete else result.nats
    label = f"bits per {'dimension' if result.unit == 'dim' else result.unit}" if discrete else "log-likelihood, nats"
    order = [i for i in torch.argsort(result.nats, stable=True).tolist() if math.isfinite(result.nats[i])]

    def shown(places: Sequence[int]) -> Iterator[dict[str, str]]:
        for i in places:
            picture = inline(image_grid(x[i : i + 1], card.low, card.high)) if is_image(x) else ""
            yield {"image": picture, "value": f"{float(values[i]):.4g}", "place": str(i)}

    facts = [(k, str(v)) for k, v in {**document["environment"], **document["evaluation"]}.items()]
    return template("likelihood.html").render(
        title=title,
        text=text,
        discrete=discrete,
        unit=result.unit,
        label=label,
        tables=[_table(part.finite) for part in found.values()],
        histogram=inline(histogram(values[values.isfinite()], label)),
        ends=[("least", list(shown(order[:SHOWN]))), ("most", list(shown(order[::-1][:SHOWN])))],
        command=document["command"],
        facts=facts,
        config=json.dumps(document["config"], indent=2, default=str),
    )


def _table(result: LogProb) -> dict[str, Any]:
    """The budget: means and standard errors in nats and, for discrete data, in bits/dim."""
    bits = -result.dimensions * math.log(2)

    def row(name: str, part: Tensor) -> list[str]:
        mean, error = float(part.double().mean()), error_of_mean(part)
        cells = [name, f"{mean:z.3f}", number(error)]
        return cells if result.bin_width is None else [*cells, f"{mean / bits:z.4f}", number(-error / bits)]

    rows = [row(name, part) for name, part in result.budget.items()]
    return {
        "kind": result.kind,
        "rows": rows,
        "total": row("log p, at least" if result.is_bound else "log p", result.nats),
    }
