"""Training with exact resumption.

Everything random is a function of (seed, step, place in the batch): which rows an update sees, their dequantisation,
the times and the noise of the loss. What the network draws itself (dropout) starts in each update from a seed of the
process. The weights, their averages, the optimiser and the step are therefore the whole state. ``step`` counts the
updates made: step k of the log is the k-th update.

A run that is stopped anywhere and resumed gives the same bits as an uninterrupted run, on the CPU with a fixed number
of threads and processes. Where equality of bits ends:

- another number of processes sees the same rows, times and noise, but adds up the gradient in another order, and each
  process has its own dropout and its own statistics in a batch normalisation: equal to rounding without these two;
- another number of threads or parts of a batch, another device or version of torch, ``torch.compile``: equal to
  rounding;
- on a GPU some sums have no fixed order: equal to rounding even without a stop.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from solvers import InputError
from solvers.noise.draws import Draws
from solvers.noise.seeded import global_seed

from ..data.dataset import spread
from ..data.rows import Batch, Rows, TensorRows
from ..io.inputs import Array
from ..io.progress import bar as progress_bar
from ..io.progress import memory_of
from ..models.faults import Fault, report_faults, setting_faults, time_faults
from ..models.model import as_model
from ..paths.base import ModelLike
from . import checkpoint, log, posthoc
from .averages import Averages
from .losses import Loss
from .objective import Objective, buffers_kept, faults_of, not_finite, numbers_of, parts_of, training_mode
from .optimiser import Optimiser
from .options import PRECISIONS, TrainingOptions
from .order import Ahead, Order
from .processes import Elsewhere, Processes, launched
from .state import State, last_of
from .stop import INTERRUPT, TIME, Stop
from .weights import plain_names

Change = Callable[[Batch, Draws], Batch]
"""A change of a batch, such as an augmentation, as a function of the random numbers of its rows."""
Watcher = Callable[["Training"], object]
"""What looks at a training at intervals, and changes nothing of it."""
_DROPOUT = 33  # label of the random stream
_CHECKED = 1024  # rows whose scale is checked, where the data are not in memory


class Updated(NamedTuple):
    """What an update returns: its line of the log, and why the training should end after it (0 if it should not)."""

    record: dict[str, Any]
    reason: int


@dataclass(frozen=True, eq=False)
class TrainResult:
    """The result of ``train``.

    Attributes:
        network: the trained network, in evaluation mode.
        ema: the network with the weights of the first average, in evaluation mode.
        step: updates made in total.
        loss: the loss of the last update; NaN if the run was complete already.
        complete: all updates are made; False if ``max_minutes`` ended the call before.
    """

    network: nn.Module = field(repr=False)
    ema: nn.Module = field(repr=False)
    step: int
    loss: float
    complete: bool = True


def train(
    denoiser: ModelLike,
    network: nn.Module,
    data: Array | Rows,
    loss: Loss,
    options: TrainingOptions,
    progress: bool = True,
) -> TrainResult:
    """Trains the network inside a denoiser, in place, and resumes if ``workdir`` contains checkpoints.

    It warns of data on a scale that does not suit the path, and of labels that do not suit the network.

    With a ``workdir``, Ctrl-C completes the current update, writes a checkpoint and raises KeyboardInterrupt; a second
    Ctrl-C stops at once. So does SIGTERM, unless the caller handles it. No other process can train in this folder
    meanwhile, but those of the same launcher.

    Args:
        denoiser: the model whose predictions enter the loss.
        network: the network inside the denoiser, on any device.
        data: (N, *), floating point, or whole numbers for a model of discrete states; a tensor on any device, or an
            array; or ``Rows``.
        loss: the loss to minimise.
        options: see ``TrainingOptions``.
        progress: show a bar.

    Raises:
        InputError: data that are empty, not finite or of a scale for which the path has too little noise, a network
            that the loss does not depend on, a checkpoint that is damaged or of a different network, or a loss or
            gradient that is not finite. In the last case no checkpoint is written, and the previous one remains.
            Also a ``workdir`` in which another process trains, or more processes than samples.
    """
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    with launched(device, options.precision) as processes:
        if options.workdir is None:
            return prepared(denoiser, network, data, loss, options, processes).run(progress)
        with processes.holding(Path(options.workdir)):
            return prepared(denoiser, network, data, loss, options, processes).run(progress)


def prepared(
    denoiser: ModelLike,
    network: nn.Module,
    data: Array | Rows,
    loss: Loss,
    options: TrainingOptions,
    processes: Processes | None = None,
    changes: Sequence[Change] = (),
) -> Training:
    """A training run that has passed all checks before the first update, with the state of the last checkpoint.

    It writes nothing. The caller holds the ``workdir``, see ``Processes.holding``, and then calls ``run``.

    Args:
        denoiser, network, data, loss, options: see ``train``.
        processes: those that train together, see ``launched``; by default this one alone.
        changes: made to each batch, one after the other, after it is spread over its bins.

    Raises:
        InputError: see ``train``.
    """
    processes = processes or Processes()

    def checked() -> tuple[Training, list[Fault], Mapping[str, Tensor]]:
        model = as_model(denoiser, None)
        rows = data if isinstance(data, Rows) else TensorRows(numbers_of(model, data))
        some = rows.first() if isinstance(rows, TensorRows) else rows.some(_CHECKED)
        faults = [*faults_of(model, some.x, options.bin_width), *setting_faults(model)]
        run = Training(denoiser, network, rows, loss, options, processes, changes)
        if run.workdir is not None and processes.main:
            log.read(run.workdir)
        return run, faults, some.part(slice(1)).conditions

    run, faults, given = processes.each(checked)
    if processes.main:
        report_faults(faults)
    elif fatal := next((fault.text for fault in faults if fault.fatal), None):
        raise Elsewhere(fatal)
    run.resume()
    if processes.main and run.step == 0:
        report_faults(time_faults(as_model(denoiser, None), run.rows.shape, given))
    return run


class Training:
    """The state of a training run, and the update that advances it; see ``prepared``."""

    def __init__(
        self,
        denoiser: ModelLike,
        network: nn.Module,
        rows: Rows,
        loss: Loss,
        options: TrainingOptions,
        processes: Processes | None = None,
        changes: Sequence[Change] = (),
    ) -> None:
        self.processes = processes or Processes()
        self.processes.refuse_more_than(len(rows), "data of")
        self.processes.refuse_more_than(options.batch_size // options.accumulate, "a batch (or a part of one) of")
        self.denoiser, self.network, self.rows, self.loss, self.options = denoiser, network, rows, loss, options
        self.changes, self.workdir = changes, None if options.workdir is None else Path(options.workdir)
        if self.processes.count > 1:
            network.to(self.processes.accelerator.device)
        plain = plain_names(network)
        named = {plain.get(name, name): p for name, p in network.named_parameters() if p.requires_grad}
        if not named:
            raise InputError("the network has no parameters to train")
        self.objective = Objective(denoiser, network, loss, PRECISIONS[options.precision])
        learned = self.objective.learned
        if learned is not None:
            named |= {f"loss/{name}": p for name, p in learned.named_parameters()}
        self.optimiser = Optimiser(named, options)
        self.device = self.optimiser.device
        self.averages = Averages(network, options.averages, options.batch_size, self.optimiser.masters)
        self.state = State(network, learned, self.optimiser, self.averages)
        self.order = Order(len(rows), options.batch_size, options.seed)
        self.step, self.stop = 0, Stop.after(options.max_minutes)
        self._called: nn.Module | None = None  # the objective as it is called, once it is ready
        self._ahead, self._failing = self._reader(), True

    def run(self, progress: bool = True, watchers: Sequence[Watcher] = ()) -> TrainResult:
        """Makes the remaining updates; see ``train``.

        Args:
            progress: show a bar.
            watchers: called by the main process with this object after every ``evaluate_every`` updates and at the
                end, before the checkpoint of that step; they change nothing of it. The other processes wait.
        """
        options, last, reason = self.options, math.nan, 0
        folder = self.workdir if self.processes.main else None
        if folder is not None:
            posthoc.remove_after(folder, self.step)
            checkpoint.remove_unfinished(folder)
            checkpoint.remove_older(folder, options.keep, options.keep_every)  # it may be killed before it removes them
        quiet = not (progress and self.processes.main)
        bar = progress_bar(initial=self.step, total=options.steps, desc="train", disable=quiet)
        with (
            contextlib.closing(self),
            training_mode(self.network, options.compile),
            bar,
            log.Log(folder, self.step) as lines,
            self.stop.listening(self.workdir is not None),
            self.processes.connected(),
        ):
            while self.step < options.steps and not reason:
                record, reason = self.update()
                last, end = record["loss"], self.step == options.steps
                if bar.update():  # it was drawn: the next time, with this loss
                    bar.set_postfix(loss=f"{last:.4g}", **memory_of(self.device), refresh=False)
                if self.step % options.log_every == 0 or self.step == 1 or "skipped" in record:
                    lines.write(record)
                if watchers and options.evaluate_every and (end or not (reason or self.step % options.evaluate_every)):
                    self.processes.first(lambda: [watcher(self) for watcher in watchers])
                if options.snapshot_every and self.step % options.snapshot_every == 0:
                    self.processes.first(self.save_snapshot)
                if self.step % options.checkpoint_every == 0 or end or reason:
                    lines.sync()
                    self.processes.first(self.save)
                if reason == INTERRUPT:
                    raise KeyboardInterrupt
        complete = self.step == options.steps
        return TrainResult(self.network.eval(), self.averages.first.module.eval(), self.step, last, complete)

    def update(self) -> Updated:
        """One step of AdamW and of the averaged weights."""
        options, step, first = self.options, self.step, self._called is None
        called = self._called = self._called or self._wrapped()
        batch = self._batch()
        self.optimiser.clear()
        own = self._backward(called, batch)
        if first:
            self._check_gradients()
        norm = self.optimiser.clipped()
        if step + 1 < options.steps:
            self._ahead.look()  # while a GPU still computes
        losses, (value, length), reason = self._agreed(own, norm)
        skip = math.isfinite(value) and not math.isfinite(length) and self.optimiser.overflows()
        for name, number in (("loss", value), ("gradient", length)):
            if not (math.isfinite(number) or skip):
                raise self._not_finite(name, losses)
        rate = options.learning_rate_at(step)
        self.optimiser.step(rate, skip)
        self.averages.update()
        if self.objective.learned is not None:
            whole = Draws.of(options.seed, step, options.batch_size)
            self.loss.remember(self.objective.learned, whole, losses)
        self.step = step + 1
        record: dict[str, Any] = {"step": self.step, "loss": value, "grad_norm": length, "lr": rate}
        if skip:
            record |= {"grad_norm": None, "skipped": True, "scale": self.optimiser.scale}
        return Updated(record, reason)

    def _wrapped(self) -> nn.Module:
        """The objective as it is called: several processes first find out whether the loss uses all parameters."""
        if self.processes.count == 1:
            return self.objective
        unused = torch.tensor(float(self.processes.each(self._rehearse)), device=self.device)
        return self.processes.wrapped(self.objective, unused=bool(self.processes.total(unused)))

    def _rehearse(self) -> bool:
        """Computes a gradient alone and forgets it; returns whether a parameter has none."""
        with buffers_kept(self.objective):
            self._backward(self.objective, self._batch())
        self._ahead.close()  # this batch is yet to be trained on: it is read again
        self._check_gradients()
        unused = any(p.grad is None for p in self.optimiser.parameters)
        self.optimiser.clear()
        return unused

    def _check_gradients(self) -> None:
        if all(p.grad is None for p in self.objective.network.parameters()):
            raise InputError("the loss does not depend on the network: is it the one inside the denoiser?")

    def _batch(self) -> Batch:
        """The rows of this process in this update."""
        if self._ahead.step != self.step:
            self._ahead.close()
            self._ahead, self._failing = self._reader(), True
        # an error that one process had while it looked ahead, or may have now, is raised in all
        return self.processes.each(self._ahead.take) if self._failing else self._ahead.take()

    def _reader(self) -> Ahead:
        return Ahead(self.rows, self.order, self.processes, self.step, self.device.type == "cuda")

    def _backward(self, called: nn.Module, batch: Batch) -> Tensor:
        """Computes the gradient of the mean loss of the whole batch; returns the losses of the rows of this process."""
        options, processes = self.options, self.processes
        draws = Draws(options.seed, self.step, processes.places(options.batch_size), options.batch_size)
        batch = batch.to(self.device)
        if options.bin_width is not None:
            u = torch.special.ndtr(draws.normal_like(batch.x, "bins"))
            batch = Batch(spread(batch.x, options.bin_width, u), batch.conditions)
        for change in self.changes:
            batch = change(batch, draws)
        # processes average their gradients
        factor, found = processes.count / options.batch_size, list[Tensor]()
        parts = parts_of(len(batch), options.accumulate)
        with global_seed(self._dropout_seed(), self.device):
            for number, rows in enumerate(parts, 1):
                last = number == len(parts)
                part = batch if len(parts) == 1 else batch.part(rows)
                with contextlib.nullcontext() if last else processes.without_exchange(called):
                    losses = called(part.x, part.conditions, draws if len(parts) == 1 else draws.part(rows))
                    self.optimiser.backward(losses.sum() * factor)
                found.append(losses.detach())
        return found[0] if len(found) == 1 else torch.cat(found)

    def _agreed(self, own: Tensor, norm: Tensor) -> tuple[Tensor, list[float], int]:
        """What all processes agree on: the losses of the whole batch, their mean and the gradient's norm, and an end.

        It exchanges one tensor, and waits once for the device.
        """
        count, failed = self.processes.count, self._ahead.failed
        if count == 1:
            self._failing = failed
            return own, torch.stack([own.mean().to(norm), norm]).tolist(), self.stop.reason
        flags = [float(self.stop.reason == reason) for reason in (INTERRUPT, TIME)] + [float(failed)]
        numbers = torch.zeros(len(flags) + self.options.batch_size, dtype=own.dtype, device=own.device)
        numbers[: len(flags)] = torch.tensor(flags, dtype=own.dtype)
        numbers[len(flags) + self.processes.index :: count] = own
        losses = self.processes.total(numbers)[len(flags) :]
        *sums, value, length = torch.cat([numbers[: len(flags)], losses.mean()[None], norm.to(own)[None]]).tolist()
        self._failing = sums[2] > 0
        return losses, [value, length], INTERRUPT if sums[0] else TIME if sums[1] else 0

    def _not_finite(self, what: str, losses: Tensor) -> InputError:
        """The error of this update, which is not made; every process has it, and the main process says it."""
        whole = Draws.of(self.options.seed, self.step, self.options.batch_size)
        levels = self.objective.levels(whole)
        folder = None if self.workdir is None else checkpoint.latest(self.workdir)
        error = not_finite(
            what, self.step + 1, self.order.rows(self.step).tolist(), levels, losses.tolist(),
            "" if folder is None else folder.name, self.objective.level,
        )  # fmt: skip
        return error if self.processes.main else Elsewhere(str(error))

    def _dropout_seed(self) -> int:
        """The seed of torch's global generators in an update."""
        text = f"{self.options.seed} {_DROPOUT} {self.step} {self.processes.index}".encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "big")

    def close(self) -> None:
        """Ends the threads that read data; a later update begins new ones."""
        self._ahead.close()

    def save(self) -> None:
        """Writes a checkpoint, if there is a ``workdir``."""
        if self.workdir is not None:
            checkpoint.save(self.workdir, self.state.saved(self.step), self.options.keep, self.options.keep_every)

    def save_snapshot(self) -> None:
        """Stores the power averages, if there is a ``workdir``."""
        if self.workdir is not None:
            posthoc.save(self.workdir, self.step, self.averages.states())

    def resume(self) -> None:
        """Loads the last checkpoint, if there is one."""
        if self.workdir is None:
            return
        if (found := last_of(self.workdir, self.options.steps, self.processes)) is not None:
            self.processes.each(lambda: self.state.load(*found))
            self.step = found[1].step
