"""``scoresde.train``: a network and data, without a config.

>>> import scoresde, torch
>>> data = scoresde.targets.Gaussian(torch.tensor([1.0, -1.0]), 0.25).sample(500).float()
>>> network = MLP(width=16, depth=1).build((2,))
>>> result = train(network, data, steps=20, progress=False)
>>> samples = scoresde.sample(result.denoiser, seeds=4, nfe=10)
>>> samples.x.shape, result.step, result.complete
(torch.Size([4, 2]), 20, True)
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset as TorchDataset

from solvers import InputError
from solvers.errors import positive_integer, unknown

from ..data.conditions import Condition, condition_of
from ..data.loading import load
from ..data.rows import Batch, Rows, TensorRows
from ..io.inputs import Array, conditions_of, device_of, samples_of, shown
from ..io.result_files import fingerprint, write_json
from ..likelihood.log_prob import log_prob
from ..likelihood.result import LogProb
from ..models.condition_noise import ConditionNoise, noise_of
from ..models.denoiser import Denoiser
from ..models.learned_path import with_network, with_schedule
from ..models.networks.mlp import MLP  # noqa: F401  (of the example above)
from ..paths.base import SDE, as_sde
from ..sampling.sample import sample
from ..training import checkpoint, loop
from ..training.loop import Training, TrainResult, prepared
from ..training.losses import Loss, losses
from ..training.objective import Conditioning
from ..training.options import TrainingOptions
from ..training.processes import launched
from . import settings as saved
from .watch import Watcher

Data = Array | Rows | TorchDataset[Any] | str | os.PathLike[str]
# the loss that is the plain error of the network's output, at uniform times; EDM's at its own
_PLAIN = {
    "eps": "dsm",
    "score": "dsm",
    "x0": "dsm(weighting=uniform)",
    "v": "dsm(weighting=v)",
    "velocity": "dsm(weighting=flow)",
    "edm": "dsm(weighting=edm, times=lognormal(mean=-1.2, std=1.2))",
}
_FREE = ("steps", "learning_rate", "schedule", "clip")  # settings that may change when a run is resumed
_MEASURED = 10_000  # samples from which the deviation of the data is measured


class ConditionOptions(NamedTuple):
    """What happens to the conditions of the samples in ``scoresde.train``.

    Attributes:
        condition_dropout: the probability that a sample loses its conditions, as guidance needs: 0.1 to 0.2. The
            network receives empty rows for them: of classes 0 .. n - 1 the class n, else NaN throughout.
        condition_dropout_each: the probability that it loses one of several conditions alone, as composition needs.
        condition_noise: of vectors and images: "none", "same", "scaled(0.1)" or "decay(...)", see ``condition_noises``.
    """

    condition_dropout: float = 0.0
    condition_dropout_each: float = 0.0
    condition_noise: str | ConditionNoise = "none"

    def applied(self, denoiser: Denoiser, given: _Given) -> tuple[Denoiser, Conditioning]:
        """The denoiser that knows its conditions and their noise, and what a batch loses.

        Raises:
            InputError: there are no conditions; see also ``Conditioning``.
        """
        dropout, each, noise = self.condition_dropout, self.condition_dropout_each, noise_of(self.condition_noise)
        known = given.known() if dropout or each or noise is not None else ()
        if noise is not None and not known:
            raise InputError(f"condition_noise={noise}, but the data have no conditions: pass condition=")
        lost = Conditioning(known, dropout, dropout_each=each)
        return replace(denoiser, conditions=known, condition_noise=noise), lost


_OPTIONS = (
    *(option.name for option in fields(TrainingOptions) if option.name not in ("steps", "workdir")),
    *ConditionOptions._fields,
)


@dataclass(frozen=True, eq=False)
class Trained:
    """The result of ``scoresde.train``.

    Attributes:
        denoiser: the model with averaged weights, in evaluation mode, for ``sample``, ``log_prob`` and the benchmark.
        network: the network with its last weights, the same object that was given, in evaluation mode.
        step: updates made in total.
        loss: the loss of the last update; NaN if the run was complete already.
        complete: all updates are made; False if ``max_minutes`` ended the call before.
    """

    denoiser: Denoiser
    network: nn.Module = field(repr=False)
    step: int
    loss: float
    complete: bool


def train(
    network: nn.Module,
    data: Data,
    sde: SDE | str = "vp",
    predicts: str = "v",
    steps: int = 20_000,
    workdir: str | os.PathLike[str] | None = None,
    *,
    loss: Loss | str | None = None,
    condition: Mapping[str, Array] | None = None,
    labels: str = "auto",
    held_out: Array | Rows | None = None,
    evaluate_likelihood: int = 0,
    time_label: str | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
    **options: Any,
) -> Trained:
    """Trains a network as a denoiser, in place.

    With a ``workdir``, the same call resumes where an earlier one ended, Ctrl-C and SIGTERM write a checkpoint and
    raise KeyboardInterrupt, and the folder gets ``train.jsonl``, ``evaluations.jsonl``, pictures of samples and the
    page ``training.html``.

    Args:
        network: called as ``network(x, label, **conditions)`` with x (B, *) and label (B,); returns (B, *).
        data: (N, *), floats of order 1, in a tensor or an array; ``Rows``; a data set of torch or of Hugging Face's
            library; or the path of a file or folder. Of the last two, a sixth is held out, as by the command.
        sde: the path, or its spec such as "ve".
        predicts: the network's output: "v", "eps", "x0", "score", "velocity" or "edm".
        steps: updates in total, including those of earlier calls.
        workdir: a folder of this run alone; None to write nothing.
        loss: a loss or its spec; by default the plain error of the network's output.
        condition: of an array: arguments of the network, one row per sample, such as ``{"label": labels}``.
        labels: of a path or a data set: the columns that are arguments of the network, see ``scoresde.data.load``.
        held_out: of an array or ``Rows``: samples for the evaluations, which are not trained on.
        evaluate_likelihood: how many held-out samples get a log-likelihood at each evaluation.
        time_label: see ``Denoiser``.
        device: where to train; by default where the network is.
        progress: show a bar, and first what was read of a path or a data set.
        options: of ``TrainingOptions``, such as ``averages``, and ``ConditionOptions``, such as ``condition_dropout``.

    Raises:
        InputError: data or options that are invalid, a ``workdir`` with a run of other settings, or a loss that is not
            finite; see also ``scoresde.training.train``.
    """
    if unknowns := [name for name in options if name not in _OPTIONS]:
        raise unknown("option of train", unknowns[0], _OPTIONS)
    dropping = ConditionOptions(**{name: options.pop(name) for name in ConditionOptions._fields if name in options})
    if not isinstance(network, nn.Module):
        raise InputError(f"train needs a network that is a torch.nn.Module, got {shown(network)}")
    given = _given(data, condition, held_out, labels, int(options.get("seed", 0)))
    if evaluate_likelihood != 0:
        positive_integer("evaluate_likelihood", evaluate_likelihood)
    settings = TrainingOptions(**{"bin_width": given.bin_width, **options}, steps=steps, workdir=_folder(workdir))
    denoiser, module = _denoiser(network, given.rows, as_sde(sde), predicts, time_label, device)
    denoiser, lost = dropping.applied(denoiser, given)
    chosen = losses.make(_PLAIN[predicts] if loss is None else loss)
    result = _trained(denoiser, module, given, chosen, settings, evaluate_likelihood, progress, lost)
    return Trained(_averaged(denoiser, result), network, result.step, result.loss, result.complete)


def _averaged(denoiser: Denoiser, result: TrainResult) -> Denoiser:
    """The denoiser with averaged weights, and the noise of conditions that the last update had."""
    if (noise := denoiser.condition_noise) is not None:
        denoiser = replace(denoiser, condition_noise=noise.after(result.step))
    return with_network(denoiser, result.ema.eval().requires_grad_(False))


def _folder(workdir: object) -> Path | None:
    if workdir is None:
        return None
    if not isinstance(workdir, (str, os.PathLike)):
        raise InputError(f"workdir must be the path of a folder, got {shown(workdir)}")
    return Path(workdir)


class _Given(NamedTuple):
    """The rows to train on, those held out if there are any, the bin width, and what identifies the data.

    The last two are a report of what was read, empty of data that are trained on as they are, and the conditions of
    data that state them.
    """

    rows: Rows
    held_out: Rows | None
    bin_width: float | None
    identity: str
    report: str = ""
    conditions: tuple[Condition, ...] | None = None

    def known(self) -> tuple[Condition, ...]:
        """What each condition is: as the data state it, or as its rows look."""
        if self.conditions is not None:
            return self.conditions
        rows = self.rows.conditions if isinstance(self.rows, TensorRows) else self.rows.some(_MEASURED).conditions
        return tuple(condition_of(name, value) for name, value in rows.items())


def _given(
    data: Data, condition: Mapping[str, Array] | None, held_out: Array | Rows | None, labels: str, seed: int
) -> _Given:
    """The data in the form in which they are trained on."""
    if not isinstance(data, (Rows, Tensor, np.ndarray)):
        if condition is not None:
            raise InputError("condition belongs to data in an array; of other data, labels names the columns")
        if held_out is not None:
            raise InputError("held_out belongs to data in an array; of other data, a sixth is held out")
        found = load(Path(data) if isinstance(data, (str, os.PathLike)) else data, seed=seed, labels=labels)
        card = found.card
        return _Given(
            found.train, found.test, card.bin_width, ", ".join(card.fingerprints), str(found), card.conditions
        )
    test = held_out if held_out is None or isinstance(held_out, Rows) else TensorRows(samples_of("held_out", held_out))
    if not isinstance(data, Rows):
        x = samples_of("the training data", data).float()
        data = TensorRows(x, conditions_of(condition, len(x), x.device))
    elif condition is not None:
        raise InputError("condition belongs to data in an array; rows contain their conditions")
    parts = [data.x, *data.conditions.values()] if isinstance(data, TensorRows) else []
    return _Given(data, test, None, ", ".join([f"{len(data)} samples {data.shape}", *map(fingerprint, parts)]))


def _denoiser(
    network: nn.Module, rows: Rows, sde: SDE, predicts: str, label: str | None, device: torch.device | str | None
) -> tuple[Denoiser, nn.Module]:
    """The denoiser of a network, and the module that is trained: the network, with the schedule of a learned path."""
    if predicts not in _PLAIN:
        raise unknown("network output", predicts, _PLAIN)
    some = rows.some(_MEASURED).x
    seen = rows.x if isinstance(rows, TensorRows) else some
    module = with_schedule(network, sde)
    if device is not None:
        module.to(device_of(device))
    denoiser = Denoiser(
        module,
        sde,
        predicts,
        label,
        sigma_data=float(f"{float(some.double().std(correction=0)):.2g}") or 1.0,
        shape=rows.shape,
        data_range=(float(seen.min()), float(seen.max())),
    )
    return denoiser, module


def _facts(denoiser: Denoiser, loss: Loss, options: TrainingOptions, lost: Conditioning) -> dict[str, Any]:
    """The settings that decide what a run computes, as plain JSON types."""
    network = denoiser.network
    weights = sum(p.numel() for p in network.parameters()) if isinstance(network, nn.Module) else 0
    names = ("batch_size", "learning_rate", "weight_decay", "warmup", "schedule", "clip", "seed", "bin_width", "steps")
    return {
        "network": f"{type(network).__name__}, {weights:,} weights",
        "sde": str(denoiser.sde),
        "predicts": denoiser.predicts,
        "time_label": denoiser.label,
        **({"sigma_data": denoiser.sigma_data} if denoiser.predicts == "edm" else {}),
        "loss": str(loss),
        "condition_dropout": lost.dropout,
        "condition_dropout_each": lost.dropout_each,
        "condition_noise": str(denoiser.condition_noise or "none"),
        "averages": options.averages if isinstance(options.averages, str) else ", ".join(map(str, options.averages)),
        **{name: getattr(options, name) for name in names},
    }


def _refuse_other(folder: Path, facts: Mapping[str, Any]) -> None:
    """Refuses a folder whose run has other settings.

    Raises:
        InputError: a setting differs; the message names the first one.
    """
    if checkpoint.latest(folder) is None:
        return
    there = saved.read_settings(folder)
    if there is None:
        raise InputError(f"{folder} contains checkpoints but no {saved.NAME}: use a different workdir")
    for name, value in facts.items():
        if name not in _FREE and there.get(name) != value:
            raise InputError(
                f"{folder} contains a run with another setting: {name} is {there.get(name)!r} there and {value!r} "
                "here; use a different workdir"
            )


def _trained(
    denoiser: Denoiser,
    module: nn.Module,
    given: _Given,
    loss: Loss,
    options: TrainingOptions,
    scored: int,
    progress: bool,
    lost: Conditioning,
) -> TrainResult:
    """Trains; with a folder, the run is resumed, evaluated and gets its page."""
    folder, facts = options.workdir, {**_facts(denoiser, loss, options, lost), "data": given.identity}
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    changes = [lost] if lost.dropout or lost.dropout_each else []
    with launched(device, options.precision) as processes, contextlib.ExitStack() as held:
        if progress and processes.main and given.report:
            print(given.report, file=sys.stderr)
        if folder is None:
            return prepared(denoiser, module, given.rows, loss, options, processes, changes).run(progress)
        from .training_page import write_page  # here, because it imports the packages of the command line

        held.enter_context(processes.holding(folder))
        processes.each(lambda: _refuse_other(folder, facts))
        training = prepared(denoiser, module, given.rows, loss, options, processes, changes)
        processes.first(lambda: write_json(folder / saved.NAME, facts))
        watchers: list[loop.Watcher] = [
            _watcher(training, denoiser, given, folder, scored),
            lambda _: write_page(folder),
        ]
        return training.run(progress, watchers if options.evaluate_every else ())


def _watcher(training: Training, denoiser: Denoiser, given: _Given, folder: Path, scored: int) -> Watcher:
    """Samples and scores with the defaults of ``sample`` and ``log_prob``."""
    size, width = training.options.batch_size, training.options.bin_width

    def drawn(model: Denoiser, count: int, conditions: Mapping[str, Tensor]) -> Tensor:
        return sample(
            model, given.rows.shape, count, condition=conditions or None, device=training.device, batch_size=size,
            on_failure="keep",
        ).x  # fmt: skip

    def density(model: Denoiser, batch: Batch) -> LogProb:
        return log_prob(
            model, batch.x, seeds=len(batch), condition=batch.conditions or None, bin_width=width,
            dequantiser=None if width is None else "uniform", batch_size=size, on_failure="keep",
        )  # fmt: skip

    limits = denoiser.data_range or (-1.0, 1.0)
    return Watcher(folder, given.held_out, limits, width, drawn, density, scored, training.step)
