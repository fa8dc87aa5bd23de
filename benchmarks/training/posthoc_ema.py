"""Measures reconstructions of averages against averages that were tracked: python -m benchmarks.training.posthoc_ema

Trains one network on the 8x8 digits twice, with the same bits. One run stores the averages of the relative standard
deviations 0.05 and 0.1 at 64 times; the other one tracks averages of other widths directly. Each of these is
reconstructed from 4, 8, ..., 64 of the 64 times, evenly spaced.

Karras et al. 2024 (arXiv:2312.02696) store this pair at 80 to 256 times, and call reconstructions from 0.015 to 0.25
nearly perfect (appendix C.5); of their longest runs, they published 64 of the times. They state no error but its order:
the mean squared error of the profile falls like 1 / n^4 with the number of times (figure 4), so that twice the times
give a quarter of the profile_error. tests/test_posthoc.py asserts this, and the errors at 80 and 256 times. A row has

    profile_error   |p - sum c_i p_i| / |p|, which is computed from the times alone and is what the commands print
    weights         |reconstructed - tracked| / |tracked|, over all weights
    of_the_way      |reconstructed - tracked| / |tracked - last weights|
    loss            the held-out loss with the reconstructed weights minus that with the tracked ones, at the same times
                    and noise, relative to the latter
    refused         whether the commands refuse this width because of its profile error

Writes benchmarks/training/results/posthoc_ema.json.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoresde.io.result_files import environment, write_json
from scoresde.models.denoiser import Denoiser
from scoresde.runs import build, config
from scoresde.training import checkpoint, posthoc
from scoresde.training.averages import gamma_of
from scoresde.training.checkpoint import Checkpoint
from scoresde.training.loop import train
from scoresde.training.posthoc import Profile, coefficients
from scoresde.training.weights import load_state
from solvers.noise.draws import Draws

RESULTS = Path(__file__).parent / "results"
PAIR, WIDTHS = (0.05, 0.1), (0.015, 0.02, 0.03, 0.07, 0.15, 0.2, 0.25)
STEPS, TIMES, COUNTS = 4096, 64, (4, 8, 16, 32, 64)
DRAWS = 64  # of times and noise for each held-out digit
SETTINGS = (
    "--config.model.network=mlp(width=128, depth=2)",
    f"--config.training.steps={STEPS}",
    f"--config.training.checkpoint_every={STEPS}",
)


def specs(stds: tuple[float, ...]) -> str:
    """Power averages of some widths, as the config names them."""
    return ", ".join(f"power(std={std})" for std in stds)


def trained(workdir: Path, *more: str) -> tuple[Checkpoint, Any]:
    """The last checkpoint of a run on the digits, and its held-out loss as a function of weights."""
    cfg = config.read_config("digits_vp", [*SETTINGS, *more])
    data = build.load_data(cfg)
    denoiser, network = build.build_model(cfg, data.card)
    assert isinstance(denoiser, Denoiser)
    loss = build.build_loss(cfg, data.card)
    train(denoiser, network, data.train, loss, build.build_options(cfg, data.card, workdir), progress=False)
    x = data.test.tensor().repeat(DRAWS, *[1] * len(data.card.shape))

    @torch.no_grad()
    def held_out(weights: Mapping[str, Tensor]) -> float:
        load_state(network, weights)
        network.eval()
        assert isinstance(denoiser, Denoiser)
        return float(loss(denoiser, x, Draws.of(1, 0, len(x))).double().mean())

    folder = checkpoint.latest(workdir)
    assert folder is not None
    return checkpoint.load(folder), held_out


def fewer(workdir: Path, count: int) -> None:
    """Removes all but ``count - 1`` of the stored times; the last one is that of the checkpoint."""
    gap = STEPS // count
    for folder in list((workdir / "snapshots").glob("step_*")):
        if int(folder.name.removeprefix("step_")) % gap:
            shutil.rmtree(folder)


def distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """The Euclidean distance of two state dictionaries."""
    return math.sqrt(sum(float((one[name].double() - other[name].double()).square().sum()) for name in one))


def row(workdir: Path, kept: Checkpoint, tracked: Checkpoint, held_out: Any, count: int, std: float) -> dict[str, Any]:
    """A reconstruction next to the average that was tracked."""
    times = [STEPS * k // count for k in range(1, count + 1)]
    profiles = [Profile(time, gamma_of(width)) for time in times for width in PAIR]
    error = coefficients(profiles, Profile(STEPS, gamma_of(std)))[1]
    found: dict[str, Any] = {"times": count, "std": std, "profile_error": error}
    if error > posthoc.LARGEST_ERROR:
        return {**found, "refused": True}
    weights, chosen = posthoc.average_of(workdir, kept, std)
    assert chosen.stored == len(profiles), chosen
    direct = tracked.averages[f"power(std={std})"].tensors
    off, loss = distance(weights, direct), held_out(direct)
    return {
        **found,
        "refused": False,
        "weights": off / distance(direct, {name: torch.zeros(()) for name in direct}),
        "of_the_way": off / distance(direct, tracked.model),
        "loss": held_out(weights) / loss - 1,
    }


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        pair, direct = Path(folder) / "pair", Path(folder) / "direct"
        every = f"--config.training.snapshot_every={STEPS // TIMES}"
        kept, _ = trained(pair, f"--config.training.averages={specs(PAIR)}", every)
        tracked, held_out = trained(direct, f"--config.training.averages={specs(WIDTHS)}")
        assert distance(kept.model, tracked.model) == 0
        losses = {f"power(std={std})": held_out(tracked.averages[f"power(std={std})"].tensors) for std in WIDTHS}
        losses["none"] = held_out(tracked.model)
        for count in reversed(COUNTS):
            fewer(pair, count)
            for std in WIDTHS:
                rows.append(row(pair, kept, tracked, held_out, count, std))
                print(rows[-1], flush=True)
    header = {
        **environment(),
        "command": "python -m benchmarks.training.posthoc_ema",
        "config": "digits_vp",
        "settings": list(SETTINGS),
        "stored": list(PAIR),
        "draws": DRAWS,
        "seed": 0,
        "held_out_loss": losses,
    }
    short = [{key: float(f"{v:.4g}") if isinstance(v, float) else v for key, v in r.items()} for r in rows]
    write_json(RESULTS / "posthoc_ema.json", {"header": header, "rows": short})


if __name__ == "__main__":
    main()
