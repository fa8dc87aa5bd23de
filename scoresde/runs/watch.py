"""What a training is watched by: held-out losses, a held-out likelihood and samples, at intervals.

Each evaluation uses the averaged weights, fixed held-out samples and fixed seeds, so that its numbers can be compared
along a run. It draws nothing from the streams of the training and changes nothing of its state: a run has the same bits
with and without it.
"""

from __future__ import annotations

import io
import math
import re
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from solvers.errors import clipped
from solvers.files import write_atomically
from solvers.libraries import library, without_traces
from solvers.noise.draws import Draws
from solvers.noise.seeded import global_seed

from ..data.conditions import Condition
from ..data.dataset import spread
from ..data.rows import Batch, Rows
from ..io.result_files import writable
from ..likelihood.result import LogProb, uncertainty
from ..models.classifier import Classifier
from ..models.condition_noise import keyed
from ..models.denoiser import Denoiser
from ..models.discrete.denoiser import DiscreteDenoiser
from ..models.learned_path import with_network
from ..sampling.batches import batches_of
from ..sampling.pictures import image_grid, is_image, listing
from ..training import log
from ..training.loop import Training
from .held_out import error_by_noise

_Trained = Denoiser | DiscreteDenoiser | Classifier
GRIDS = "grids"
_ROWS = 128  # held-out samples for the losses
_PICTURES, _POINTS = 16, 500  # samples of a grid: pictures or curves, and points of one or two dimensions
_FEWEST = 4  # samples of each class
_GRID = re.compile(r"step_([0-9]{8,})\.png")


@dataclass(eq=False)
class Watcher:
    """Writes a line of ``evaluations.jsonl`` and a picture ``grids/step_XXXXXXXX.png`` at every call.

    Attributes:
        workdir: the run's folder.
        held_out: the samples that the network is not trained on; None if there are none, and so no losses.
        limits: the values of black and white in a picture, and the range of a drawing.
        width: the bin width over which the training spreads levels; None if it does not.
        draw: draws samples (n, *) of seeds 0 .. n - 1 from a denoiser, with conditions (n, *); None for no pictures.
        score: the likelihood of samples under a denoiser; None for none.
        rows: how many held-out samples ``score`` receives.
        texts: the texts of tokens (n, L); None if they stand for no letters.
        known: what the conditions are; samples of a few classes get a row of the picture for each class.
        start: the updates that were made when the training began; what was written after them is of lost work.
    """

    workdir: Path
    held_out: Rows | None
    limits: tuple[float, float]
    width: float | None
    draw: Callable[[Any, int, Mapping[str, Tensor]], Tensor] | None
    score: Callable[[Any, Batch], LogProb] | None
    rows: int
    start: int
    known: Sequence[Condition] = ()
    texts: Callable[[Tensor], list[str]] | None = None
    _writer: Any = field(default=None, init=False, repr=False)
    _logged: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        self._logged = self.start

    def __call__(self, training: Training) -> None:
        """Evaluates the averaged weights; a step that was evaluated before is left out."""
        began, step = time.perf_counter(), training.step
        there = log.remove_later(self.workdir, self.start, log.EVALUATIONS)
        if any(line["step"] == step for line in there):
            return
        model = _averaged(training)
        record: dict[str, Any] = {"step": step}
        with global_seed(training.options.seed, training.device):  # for networks that draw in evaluation mode as well
            for part in (self._losses, self._likelihood, self._picture):
                try:
                    record |= part(training, model)
                except Exception as error:  # of any kind: the training itself may be sound
                    record["fault"] = clipped(" ".join(str(error).split()) or type(error).__name__, 300)
                    warnings.warn(f"the evaluation of step {step} is incomplete: {record['fault']}", stacklevel=2)
        record["seconds"] = round(time.perf_counter() - began, 3)
        log.append(self.workdir, record, log.EVALUATIONS)
        self.start = step
        self._report(record)

    def _batch(self, training: Training, count: int) -> Batch:
        """Held-out samples, or of those trained on, evenly spaced, on the device of the network."""
        return (training.rows if self.held_out is None else self.held_out).some(count).to(training.device)

    def _losses(self, training: Training, model: _Trained) -> dict[str, Any]:
        """The run's own loss and the error of eps by the noise level, on spread data if the training spreads them."""
        if self.held_out is None:
            return {}
        options, batch = training.options, self._batch(training, _ROWS)
        draws = Draws.of(options.seed, 0, len(batch))
        if self.width is not None:
            noise = torch.special.ndtr(draws.normal_like(batch.x, "bins"))
            batch = Batch(spread(batch.x, self.width, noise), batch.conditions)
        own = keyed(model.condition_noise, range(len(batch)), training.device)
        batch = Batch(batch.x, {**batch.conditions, **own})
        parts = []
        for rows in batches_of(len(batch), options.batch_size):
            part = batch.part(rows)
            with torch.enable_grad():  # a loss may contain derivatives
                value = training.loss(
                    model, part.x, draws.part(rows), training.objective.learned, **part.conditions
                )  # fmt: skip
            parts.append(value.detach().double())
        losses = torch.cat(parts)
        record = {
            "loss": float(losses.mean()),
            "loss_stderr": float(losses.std()) / math.sqrt(len(losses)),
            "samples": len(batch),
        }
        if not isinstance(model, Denoiser):  # which alone has noise levels
            return record
        found = error_by_noise(model, batch, options.seed, batch_size=options.batch_size)
        return record | {
            "log_snr": found.log_snr,
            "error": found.error,
            "error_stderr": found.stderr,
            "trivial": found.trivial,
        }

    def _likelihood(self, training: Training, model: _Trained) -> dict[str, Any]:
        """The mean likelihood, in bits/dim of levels and else in nats, with its standard error over the samples.

        They are the first ones, as in ``scoresde likelihood --limit``.
        """
        if self.score is None or self.rows < 1 or self.held_out is None or isinstance(model, Classifier):
            return {}
        result = self.score(model, self.held_out.first(self.rows).to(training.device)).finite
        error, bits = uncertainty(result)["samples"], result.dimensions * math.log(2)
        if result.bin_width is None:
            found = {"nats": float(result.nats.mean()), "nats_stderr": error}
        else:
            found = {"bits_per_dim": float(result.bits_per_dim.mean()), "bits_per_dim_stderr": error / bits}
        return {**found, "scored": len(result.nats)}

    def _picture(self, training: Training, model: _Trained) -> dict[str, Any]:
        """Draws samples and writes their picture."""
        if self.draw is None or isinstance(model, Classifier):
            return {}
        count = _PICTURES if math.prod(training.rows.shape) > 2 else _POINTS
        given, columns = self._batch(training, count), None
        conditions = dict(given.conditions)
        if len(self.known) == 1 and 1 < self.known[0].classes <= _PICTURES:
            name, classes = self.known[0].name, self.known[0].classes
            columns = max(_FEWEST, count // classes)
            conditions = {name: torch.arange(classes, device=training.device).repeat_interleave(columns)}
        count = len(next(iter(conditions.values()))) if conditions else count
        x = self.draw(model, count, conditions).detach().cpu()
        folder = writable(self.workdir / GRIDS)
        for step, path in pictures(self.workdir):
            if step > self.start:
                path.unlink()
        if self.texts is not None:
            write_atomically(folder / f"step_{training.step:08d}.txt", listing(self.texts(x), range(count)))
            return {}
        write_atomically(folder / f"step_{training.step:08d}.png", self._png(x, given.x, columns))
        return {}

    def _png(self, x: Tensor, real: Tensor, columns: int | None) -> bytes:
        """Samples as the bytes of a PNG file."""
        buffer, (low, high) = io.BytesIO(), self.limits
        if is_image(x):
            image_grid(x, low, high, columns, tile=48).save(buffer, "PNG")
            return buffer.getvalue()
        with without_traces():
            from ..show.figures import drawing  # here, because matplotlib takes a second

        margin = 0.08 * (high - low) or 1.0
        drawing(x.float(), real.float(), (low - margin, high + margin)).savefig(buffer, format="png")
        return buffer.getvalue()

    def _report(self, record: Mapping[str, Any]) -> None:
        """Passes what is new in the folder on to TensorBoard, if it is installed."""
        if self._writer is None:
            self._writer = _tensorboard(self.workdir, self._logged) or False
        if not self._writer:
            return
        step, writer = record["step"], self._writer
        for line in log.records(self.workdir):
            if self._logged < line["step"] <= step:
                for name in ("loss", "grad_norm", "lr"):
                    if isinstance(value := line.get(name), (int, float)):
                        writer.add_scalar(f"train/{name}", value, line["step"])
        for name in ("loss", "bits_per_dim", "nats"):
            if isinstance(value := record.get(name), (int, float)):
                writer.add_scalar(f"held_out/{name}", value, step)
        for place, path in pictures(self.workdir):
            if place == step:
                from PIL import Image  # here, so that those without TensorBoard do not wait for it

                with Image.open(path) as picture:
                    writer.add_image("samples", np.array(picture.convert("RGB")), step, dataformats="HWC")
        writer.flush()
        self._logged = step


def _averaged(training: Training) -> _Trained:
    """The model of a training with its averaged weights, as it is after the updates made."""
    network = training.averages.first.module.eval()
    if isinstance(training.denoiser, (Classifier, DiscreteDenoiser)):
        return replace(training.denoiser, network=network)
    assert isinstance(training.denoiser, Denoiser)
    denoiser = with_network(training.denoiser, network)
    noise = denoiser.condition_noise
    return denoiser if noise is None else replace(denoiser, condition_noise=noise.after(training.step))


def _tensorboard(workdir: Path, step: int) -> Any:
    """A writer of TensorBoard's files that hides what was written after ``step``; None if it is not installed."""
    try:
        return library("torch.utils.tensorboard").SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)
    except ImportError:
        return None


def pictures(workdir: Path) -> list[tuple[int, Path]]:
    """The pictures of samples in a run's folder, with their steps, ascending."""
    found = [(int(m[1]), path) for path in (workdir / GRIDS).glob("*.png") if (m := _GRID.fullmatch(path.name))]
    return sorted(found)
