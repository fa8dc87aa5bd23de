"""The page of a restoration: each observation with its mean, deviation and draws, their residuals, and the costs.

Pictures are inline PNG, points and signals inline SVG in the colours of the page. The page fetches nothing and runs no
code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from solvers import InputError, generator

from ..operators.base import Operator
from ..sampling.pictures import image_grid, is_image
from ..sampling.restored import Restored
from . import restore_figures as figures
from .charts import number
from .figures import inline
from .page import text_of
from .pages import template

_MOST, _DRAWS = 8, 16  # the most observations on a page, and the most pictures of draws of each
_TILE = 84  # the smallest size of a picture, in pixels
_HIDDEN = (0.36, 0.44, 0.54)  # red, green and blue of the numbers of A^+ y that y does not show


@dataclass(frozen=True)
class Shown:
    """What a page shows.

    Attributes:
        operator: A, with its noise.
        found: the draws.
        truth: the samples (n, *) that were observed, if they are known.
        scores: of each observation, see ``scoresde.runs.restoration.scores``.
        limits: the values of black and white in a picture.
        exact: the data and operators for which the method is exact; empty if there are none.
    """

    operator: Operator
    found: Restored
    truth: Tensor | None
    scores: Sequence[Mapping[str, float]]
    limits: tuple[float, float]
    exact: str


def page(title: str, shown: Shown, facts: Mapping[str, Any], command: str, config: Mapping[str, Any]) -> str:
    """The HTML page of a restoration.

    Args:
        facts: shown at the end, such as the versions of the software.
        command: the command that drew the samples.
        config: the run's settings.
    """
    found, operator = shown.found, shown.operator
    n, draws = found.x.shape[:2]
    backs = _backs(operator, found.y[:_MOST].cpu(), tuple(found.x.shape[2:]))
    return template("restore.html").render(
        title=title,
        summary=f"{draws} draws of p(x | y) for each of {n} observations" if n > 1 else f"{draws} draws of p(x | y)",
        exact=shown.exact,
        posterior=found.posterior,
        operator=found.operator,
        noisy=operator.sigma > 0,
        numbers=found.y[0].numel(),
        usual=f"{(2 / found.y[0].numel()) ** 0.5:.2g}",
        left_out=max(0, n - _MOST),
        total=n,
        failed=len(found.failures),
        observations=[_observation(shown, i, None if backs is None else backs[i]) for i in range(min(n, _MOST))],
        costs=_costs(found),
        facts=[(name, text_of(value)) for name, value in facts.items()],
        command=command,
        config=json.dumps(config, indent=2, default=str),
    )


def _observation(shown: Shown, i: int, back: Tensor | None) -> dict[str, Any]:
    """What the page says of one observation; ``back`` is A^+ y (*), NaN where y does not show anything."""
    found, truth = shown.found, None if shown.truth is None else shown.truth[i]
    y, x = found.y[i].cpu(), found.x[i].cpu()
    draws = x[torch.isfinite(x.flatten(1)).all(1)]
    made: dict[str, Any] = {"label": f"Observation {i + 1}", "facts": _facts(shown.scores[i])}
    made |= {"pictures": [], "draws": None, "figures": []}
    if not is_image(draws):
        made["figures"] = [figures.drawing(shown.operator, y, draws, truth, back)]
        if back is None and y.numel() > 2:
            made["figures"].append(figures.numbers(y))
        return made
    pictures = []
    if is_image(y.unsqueeze(0)):
        pictures.append(_picture(y, _limits(y, shown.limits), "y"))
    if back is not None:
        pictures.append(_picture(_painted(back, shown.limits), shown.limits, "A⁺y" if pictures else "y, as A⁺y"))
    elif not pictures:
        made["figures"] = [figures.numbers(y)]
    if truth is not None:
        pictures.append(_picture(truth, shown.limits, "truth"))
    pictures.append(_picture(draws.mean(0), shown.limits, "mean"))
    if len(draws) > 1:
        deviation = draws.double().var(0).mean(0, keepdim=True).sqrt()
        pictures.append(_picture(deviation, (0.0, _largest_deviation(shown)), "deviation"))
    made["pictures"] = pictures
    more = f", {_DRAWS} of {len(draws)}" if len(draws) > _DRAWS else ""
    single = [_picture(draw, shown.limits, f"draw {k + 1}") for k, draw in enumerate(draws[:_DRAWS])]
    made["draws"] = {"pictures": single, "text": f"draws{more}"}
    return made


def _largest_deviation(shown: Shown) -> float:
    """The deviation that is white in a picture: the largest of the observations on the page."""
    found = shown.found.deviation[:_MOST].cpu().double().square().mean(1).sqrt()
    return float(found.nan_to_num(0.0).max()) or 1.0


def _picture(x: Tensor, limits: tuple[float, float], text: str) -> dict[str, Any]:
    picture = image_grid(x.unsqueeze(0), *limits, tile=_TILE)
    return {"image": inline(picture), "width": picture.width, "text": text}


def _limits(y: Tensor, limits: tuple[float, float]) -> tuple[float, float]:
    """The values of black and white in a picture of y: those of the data, or its own if they are others."""
    low, high = float(y.min()), float(y.max())
    margin = 0.5 * (limits[1] - limits[0])
    return (low, high) if low < high and (low < limits[0] - margin or high > limits[1] + margin) else limits


def _painted(back: Tensor, limits: tuple[float, float]) -> Tensor:
    """A picture (3, H, W) with a colour where back (1 or 3, H, W) is NaN."""
    color = back.new_tensor(_HIDDEN).view(3, 1, 1) * (limits[1] - limits[0]) + limits[0]
    return torch.where(back.isnan(), color, back.expand(3, *back.shape[1:]))


def _backs(operator: Operator, y: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    """A^+ y (n, *) of observations (n, *m), NaN where no observation shows anything; None if A^+ is not known."""
    if not operator.linear:
        return None
    probe = torch.randn(1, *shape, dtype=torch.float64, generator=generator(0))
    try:
        back, seen = operator.pinv(y, shape), operator.pinv(operator(probe), shape)
    except InputError:
        return None
    return torch.where(seen.abs() < 1e-12, torch.nan, back)


def _facts(scores: Mapping[str, float]) -> list[str]:
    """What is known about the draws of one observation, in words."""
    found = [f"residual {number(scores['residual'])} ({number(scores['least'])} to {number(scores['most'])})"]
    found.append(f"of the mean {number(scores['residual_of_mean'])}")
    if "residual_of_truth" in scores:
        found.append(f"of the truth {number(scores['residual_of_truth'])}")
        found.append(f"distance from the truth: mean {number(scores['rmse'])}, draws {number(scores['draw_rmse'])}")
    if "log_evidence" in scores:
        found.append(f"log p(y) = {scores['log_evidence']:.2f} nats")
    if "effective" in scores:
        found.append(f"at least {number(scores['effective'])} effective particles")
    return found


def _costs(found: Restored) -> list[tuple[str, str]]:
    return [
        ("NFE", f"{found.nfe} a draw: evaluations that the solver asked for"),
        ("forwards", f"{found.forwards:g} a draw: evaluations of the network"),
        ("VJPs", f"{found.vjps:g} a draw: vector-Jacobian products through the network"),
        ("solver", f"{found.solver} on {found.grid}, {found.steps} steps"),
        ("time", f"{found.seconds:.1f} s for {found.x.shape[0] * found.x.shape[1]} draws"),
    ]
