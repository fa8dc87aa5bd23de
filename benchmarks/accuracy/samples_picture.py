"""Draws the README's picture: samples of one network with few evaluations:
python -m benchmarks.accuracy.samples_picture

Trains ``digits_vp`` on scikit-learn's 8x8 digits (some minutes on one core), and draws the same seeds with the default
solver and with ``ddim``, at 5, 10 and 20 evaluations. The last line is the exact solution of the probability-flow ODE
from the same starts, which all of them approximate; the number at a line is the root-mean-square distance to it per
pixel, for pixels in [-1, 1], over all seeds.

Writes benchmarks/accuracy/results/samples_picture.{png,json}. The network is kept in --workdir, or in a temporary
folder.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

import scoresde
from scoresde.benchmark.truth import ode_solution
from scoresde.cli.training import Job, fit
from scoresde.io.result_files import environment, fingerprint, write_figure, write_json
from scoresde.runs import config
from scoresde.runs.run import load_run

RESULTS = Path(__file__).parent / "results"
NFE = (5, 10, 20)
SEEDS, SHOWN = range(256), 20


def draw(lines: list[tuple[str, Tensor]]) -> Figure:
    """A line of images for each name."""
    figure = Figure(figsize=(10, 0.55 * len(lines)), layout="constrained")
    for axes, (name, x) in zip(figure.subplots(len(lines), 1), lines, strict=True):
        tiles = torch.nn.functional.pad(x[:SHOWN, 0], (0, 1, 0, 0), value=-1.0)
        axes.imshow(torch.cat(list(tiles), 1).numpy(), cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
        axes.set_yticks([3.5], [name], fontsize=9)
        axes.set_xticks([])
        axes.tick_params(length=0)
        for side in axes.spines.values():
            side.set_visible(False)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, default=None)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        workdir = arguments.workdir or Path(folder)
        fit(Job(config.read_config("digits_vp")), workdir)
        run = load_run(workdir)
    shape, denoiser = tuple(run.card.shape), run.denoiser
    exact = ode_solution(denoiser, shape, SEEDS, 128, dtype=torch.float32).x
    lines: list[tuple[str, Tensor]] = []
    rows: list[dict[str, Any]] = []
    for nfe in NFE:
        for solver in ("ddim", None):
            result = scoresde.sample(denoiser, shape, SEEDS, solver, nfe=nfe)
            error = float((result.x - exact).double().square().mean().sqrt())
            rows.append({"solver": result.solver, "grid": result.grid, "nfe": result.nfe, "error": error})
            lines.append((f"{result.solver}, {result.nfe} NFE: {error:.3f}", result.x))
    lines.append(("exact solution", exact))
    weights = torch.cat([p.detach().flatten() for p in denoiser.network.parameters()])
    header = {
        **environment(),
        "command": "python -m benchmarks.accuracy.samples_picture",
        "model": f"digits_vp, {run.step} steps, seed {run.config.seed}, weights {fingerprint(weights)}",
        "seeds": f"0..{len(SEEDS) - 1}",
    }
    write_json(RESULTS / "samples_picture.json", {"header": header, "rows": rows})
    write_figure(RESULTS / "samples_picture.png", draw(lines))


if __name__ == "__main__":
    main()
