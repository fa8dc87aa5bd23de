"""The figures of a page: samples and states that are not pictures, histograms.

They use matplotlib's objects without pyplot, so that they need no display and leave no global state.
"""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

_BLUE = "#0072b2"
_REAL = "#b4b9c0"
_SOFT = "#62676e"


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
        axes.hist(x[:, 0], bins, density=True, histtype="step", color=_BLUE)
        axes.set_xlim(*limits)
    elif d == 2:
        if real is not None:
            axes.scatter(real[:, 0], real[:, 1], s=3, color=_REAL, lw=0)
        axes.scatter(x[:, 0], x[:, 1], s=9, color=_BLUE, lw=0)
        axes.set(xlim=limits, ylim=limits, aspect="equal")
    else:
        axes.plot(x.T, lw=0.8, color=_BLUE, alpha=0.7)
        axes.set(xlim=(0, d - 1), ylim=limits)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_color("#dcdfe3")
    return figure


def way(states: Tensor, reference: Tensor | None, limits: tuple[float, float], places: int) -> Figure:
    """The states (K, *) of one sample: a path in one or two dimensions, a row of lines in ``places`` places in more."""
    x = states.detach().cpu().double().flatten(1).numpy()
    count, d = x.shape
    if d > 2:
        figure = Figure(figsize=(1.1 * places, 0.9), dpi=150)
        for place, state in enumerate(x):
            axes = figure.add_axes((place / places + 0.003, 0.02, 1 / places - 0.006, 0.96))
            axes.plot(state, lw=0.8, color=_BLUE)
            axes.set(xlim=(0, d - 1), ylim=limits, xticks=[], yticks=[])
            axes.spines[:].set_color("#dcdfe3")
        return figure
    real = None if reference is None else reference.detach().cpu().double().flatten(1)[:500].numpy()
    figure = Figure(figsize=(1.5, 1.5), dpi=150)
    axes = figure.add_axes((0.01, 0.01, 0.98, 0.98))
    if d == 1:
        axes.plot(x[:, 0], marker="o", ms=2.5, lw=0.8, color=_BLUE)
        axes.set(xlim=(-0.2, count - 0.8), ylim=limits)
    else:
        if real is not None:
            axes.scatter(real[:, 0], real[:, 1], s=3, color=_REAL, lw=0)
        axes.plot(x[:, 0], x[:, 1], marker="o", ms=2.5, lw=0.8, color=_BLUE)
        axes.plot(x[-1, 0], x[-1, 1], marker="o", ms=5, color=_BLUE)
        axes.set(xlim=limits, ylim=limits, aspect="equal")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_color("#dcdfe3")
    return figure


def histogram(values: Tensor, label: str) -> Figure:
    """A histogram of numbers (B,), with their mean."""
    numbers = values.detach().cpu().double().numpy()
    figure = Figure(figsize=(5.2, 2.5), dpi=160, layout="constrained")
    axes = figure.add_subplot()
    axes.hist(numbers, bins=min(40, max(8, len(numbers) // 8)), color="#9cc3dd")
    axes.axvline(numbers.mean(), color=_BLUE, lw=1.5)
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
