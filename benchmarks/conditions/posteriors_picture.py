"""Draws digits inpainted by twelve methods next to the truth: python -m benchmarks.conditions.posteriors_picture

The prior is the exact score of 1500 of scikit-learn's digits; the top half is observed with noise of deviation 0.6, for
pixels in [-1, 1]. Three of the observations of ``benchmarks/conditions/posteriors.py``, six draws for each; the number
at a line is the method's sliced distance in posteriors.json, a mean over ten observations. Takes a minute.

Writes benchmarks/conditions/results/posteriors.png.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.conditions.posteriors import DIGITS_VARIANCE, PROBLEMS, Run, draw, same
from scoresde.benchmark.posterior_problems import PosteriorProblem, digits_problem
from scoresde.io.result_files import write_figure
from scoresde.posterior.base import posteriors as registry

RESULTS = Path(__file__).parent / "results"
PROBLEM, OBSERVATIONS, DRAWS = "digits, inpaint", (2, 0, 7), 6
TDS = f"tds(particles=200, variance={DIGITS_VARIANCE})"
METHODS = (
    TDS,
    "naive_dps",
    "dps",
    "mmps(iterations=1)",
    "ddrm(renoise=fixed)",
    f"pigdm(variance={DIGITS_VARIANCE})",
    "split_gibbs(sweeps=40, rho_min=0.15, inner=12)",
    "tmpd",
    "daps(outer=60)",
    "diffpir",
    "repaint(jump=1)",
    "ddnm",
)  # by their distance


def strip(images: Sequence[Tensor]) -> Tensor:
    """Images (H, W) side by side, with a white line between."""
    padded = [torch.nn.functional.pad(image, (0, 1, 0, 1), value=1.0) for image in images]
    return torch.cat(padded, 1)


def line(x: Tensor) -> Tensor:
    """The draws (n, S, 1, 8, 8) of n observations in one line."""
    gap = torch.ones(9, 4, dtype=x.dtype)
    return torch.cat([part for own in x for part in (strip(list(own[:, 0])), gap)], 1)[:, :-4]


def drawing(lines: Sequence[tuple[str, Tensor]]) -> Figure:
    """A line of images for each name."""
    tall = 11  # pixels of a line, of which 3 are white
    whole = torch.cat([torch.nn.functional.pad(image, (0, 0, 0, tall - len(image)), value=1.0) for _, image in lines])
    wide, left = 7.6, 0.16  # inches, and the share of the names
    figure = Figure(figsize=(wide, wide * (1 - left) * whole.shape[0] / whole.shape[1]))
    axes = figure.add_axes((left, 0, 1 - left, 1))
    axes.imshow(whole.numpy(), cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
    axes.set_yticks([tall * i + 4 for i in range(len(lines))], [name for name, _ in lines], fontsize=9)
    axes.set_xticks([])
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    return figure


def seen(problem: PosteriorProblem) -> Tensor:
    """The observations (n, 1, 8, 8) as images, gray where nothing is observed."""
    return problem.operator.pinv(problem.y, (1, 8, 8))


def main() -> None:
    torch.set_num_threads(1)
    rows = json.loads((RESULTS / "posteriors.json").read_text(encoding="utf-8"))["rows"]
    whole, places = digits_problem("inpaint"), list(OBSERVATIONS)
    problem = replace(whole, x=whole.x[places], y=whole.y[places])
    _, runs, _ = PROBLEMS[PROBLEM]

    def shown(name: str, run: Run) -> tuple[str, Tensor]:
        (row,) = (row for row in rows if same(row, PROBLEM, run))
        return f"{name}  {row['scores']['sw']:.2f}", line(draw(problem, run._replace(shared=False), DRAWS, 1.0).x)

    repeat = [1, DRAWS, 1, 1, 1]
    lines = [
        ("true digit", line(problem.x.unsqueeze(1).repeat(repeat))),
        ("observed", line(seen(problem).unsqueeze(1).repeat(repeat))),
        shown("exact draws", Run("truth")),
    ]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "tmpd counts negative variances")
        for method in METHODS:
            run = next(run for run in runs if run.method == method)
            lines.append(shown(registry.info_of(registry.make(method)).name, run))
    write_figure(RESULTS / "posteriors.png", drawing(lines))


if __name__ == "__main__":
    main()
