"""The figures of a restoration: draws that are points or signals, as SVG in the colours of the page."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from ..operators.base import Operator
from .training_figures import ONE, SOFT, TWO, panel, svg

_MOST = 40  # lines of draws in a figure


def drawing(operator: Operator, y: Tensor, draws: Tensor, truth: Tensor | None, back: Tensor | None) -> str:
    """Draws (S, *) given one observation y (*m): a histogram of numbers, a scatter plot of points, lines of signals.

    Args:
        truth: the sample (*) that was observed, if it is known.
        back: A^+ y (*), where it is known and what y does not show is NaN.
    """
    x = draws.flatten(1).double().numpy()
    known = None if truth is None else truth.flatten().double().numpy()
    if x.shape[1] > 2:
        return _signals(x, known, None if back is None else back.flatten().double().numpy())
    return _numbers(x[:, 0], known) if x.shape[1] == 1 else _points(operator, y, draws, x, known)


def numbers(y: Tensor) -> str:
    """An observation (*m) that is no picture, as a line."""
    figure, axes = panel("observation", "number")
    values = y.flatten().double().numpy()
    axes.plot(range(len(values)), values, color=ONE, lw=1.2, marker="o" if len(values) < 40 else None, ms=3)
    return svg(figure, axes)


def _numbers(x: np.ndarray, truth: np.ndarray | None) -> str:
    figure, axes = panel("draws", "x")
    axes.hist(x, bins=min(40, max(8, len(x) // 8)), color=ONE, alpha=0.5, label="draws")
    axes.axvline(x.mean(), color=ONE, lw=1.6, label="mean")
    if truth is not None:
        axes.axvline(truth[0], color=TWO, lw=1.6, ls="--", label="truth")
    axes.xaxis.set_major_formatter("{x:g}")
    return svg(figure, axes)


def _points(operator: Operator, y: Tensor, draws: Tensor, x: np.ndarray, truth: np.ndarray | None) -> str:
    figure, axes = panel("draws", "first coordinate")
    axes.scatter(x[:, 0], x[:, 1], s=12, color=ONE, alpha=0.6, lw=0, label="draws")
    mean = x.mean(0)
    axes.plot(*mean, marker="s", ls="", ms=5, color=ONE, label="mean")
    if truth is not None:
        axes.plot(*truth, marker="X", ls="", ms=7, color=TWO, label="truth")
    if operator.linear and (line := _line(operator, y, tuple(draws.shape[1:]))) is not None:
        axes.axline(*line, color=SOFT, lw=1, ls="--", label="A x = y")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.margins(0.15)
    return svg(figure, axes)


def _line(
    operator: Operator, y: Tensor, shape: tuple[int, ...]
) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """Two points of the line A x = y in the plane; None if the points with this observation are no line."""
    svd = operator.svd(shape)
    if svd is None or len(svd.values) != 1:
        return None
    start = operator.pinv(y.double().unsqueeze(0), shape)
    along = svd.from_right(start.new_tensor([[0.0, 1.0]]))
    one, other = start.flatten().tolist(), (start + along).flatten().tolist()
    return (one[0], one[1]), (other[0], other[1])


def _signals(x: np.ndarray, truth: np.ndarray | None, back: np.ndarray | None) -> str:
    figure, axes = panel("draws", "number")
    places = np.arange(x.shape[1])
    for number, row in enumerate(x[:_MOST]):
        axes.plot(places, row, color=ONE, lw=0.7, alpha=0.35, label="" if number else "draws")
    axes.plot(places, x.mean(0), color=ONE, lw=1.8, label="mean")
    if truth is not None:
        axes.plot(places, truth, color=TWO, lw=1.4, ls="--", label="truth")
    if back is not None:
        marker = "o" if x.shape[1] < 200 else "."
        axes.plot(places, back, ls="", marker=marker, ms=3, color=SOFT, zorder=4, label="observed, A⁺y")
    return svg(figure, axes)
