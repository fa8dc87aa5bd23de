"""Training with exact resumption.

Everything random is a function of (seed, step): the batch, the dequantisation, the times and the noise of the loss, and
the state of torch's global generator (dropout). The weights, their average, the optimiser and the step are therefore
the whole state. A run that is stopped anywhere and resumed gives the same bits as an uninterrupted run, on the CPU with
a fixed number of threads. ``step`` counts the updates made: step k of the log is the k-th update.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from solvers import InputError, generator
from solvers.errors import positive_integer
from solvers.noise.draws import Draws
from solvers.noise.seeded import global_seed

from ..data.dataset import spread
from ..inputs import Array, tensor_of
from ..models.faults import data_faults, report_faults, setting_faults
from ..models.model import as_model
from ..paths.base import ModelLike
from ..progress import bar as progress_bar
from ..result_files import exclusive
from . import checkpoint, log
from .adam import moments_of, state_from
from .ema import Average
from .losses import Loss
from .weights import load_state, plain_names, state_of, wide_copies

# labels of the random streams; sampling (0 and 1) and the data's split use different ones
_ORDER, _BINS, _DROPOUT = 30, 32, 33


@dataclass(frozen=True)
class TrainingOptions:
    """The options of ``train``.

    Attributes:
        steps: updates in total, including those before a resumption.
        batch_size: samples per update; batches run on across the ends of epochs, so that all have this size.
        learning_rate, weight_decay: AdamW's.
        warmup: updates over which the learning rate rises linearly; 0 for none.
        clip: the largest norm of the gradient; longer gradients are scaled down to it; inf for no limit.
        ema_decay: the decay of the averaged weights, see ``ema.decay_at``.
        seed: the seed of everything random.
        log_every, checkpoint_every: updates between log lines and between checkpoints; the first update is also logged,
            and the last one always writes a checkpoint.
        keep: how many checkpoints to keep.
        bin_width: spread each batch uniformly over bins of this width; None for continuous data.
        workdir: where ``train.jsonl`` and ``checkpoints/`` go; None to write nothing.
    """

    steps: int = 2000
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    warmup: int = 100
    clip: float = 1.0
    ema_decay: float = 0.999
    seed: int = 0
    log_every: int = 50
    checkpoint_every: int = 500
    keep: int = 2
    bin_width: float | None = None
    workdir: Path | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "checkpoint_every", "keep"):
            positive_integer(name, getattr(self, name))
        if self.warmup != 0:
            positive_integer("warmup", self.warmup)
        for name in ("learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be positive, got {getattr(self, name)!r}")
        if not self.weight_decay >= 0:
            raise InputError(f"weight_decay must be at least 0, got {self.weight_decay!r}")
        if self.bin_width is not None and not self.bin_width > 0:
            raise InputError(f"bin_width must be positive or None, got {self.bin_width!r}")

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of the update that follows ``step`` updates."""
        return self.learning_rate * min(1.0, (step + 1) / self.warmup if self.warmup else 1.0)


@dataclass(frozen=True, eq=False)
class TrainResult:
    """The result of ``train``.

    Attributes:
        network: the trained network, in evaluation mode.
        ema: the network with averaged weights, in evaluation mode.
        step: updates made in total.
        loss: the loss of the last update; NaN if the run was complete already.
    """

    network: nn.Module = field(repr=False)
    ema: nn.Module = field(repr=False)
    step: int
    loss: float


def train(
    denoiser: ModelLike, network: nn.Module, data: Array, loss: Loss, options: TrainingOptions, progress: bool = True
) -> TrainResult:
    """Trains the network inside a denoiser, in place, and resumes if ``workdir`` contains checkpoints.

    It warns of data on a scale that does not suit the path, and of labels that do not suit the network.

    With a ``workdir``, Ctrl-C completes the current update, writes a checkpoint and raises KeyboardInterrupt; a second
    Ctrl-C stops at once. No other process can train in this folder meanwhile.

    Args:
        denoiser: the model whose predictions enter the loss.
        network: the network inside the denoiser, on any device.
        data: (N, *), floating point; a tensor on any device, or an array.
        loss: the loss to minimise.
        options: see ``TrainingOptions``.
        progress: show a bar.

    Raises:
        InputError: data that are empty, not finite or of a scale for which the path has too little noise, a network
            that the loss does not depend on, a checkpoint that is damaged or of a different network, or a loss or
            gradient that is not finite. In the last case no checkpoint is written, and the previous one remains.
            Also a ``workdir`` in which another process trains.
    """
    with exclusive(Path(options.workdir)) if options.workdir is not None else contextlib.nullcontext():
        return prepared(denoiser, network, data, loss, options).run(progress)


def prepared(denoiser: ModelLike, network: nn.Module, data: Array, loss: Loss, options: TrainingOptions) -> Training:
    """A training run that has passed all checks before the first update, with the state of the last checkpoint.

    It writes nothing. The caller holds the ``workdir``, see ``result_files.exclusive``, and then calls ``run``.

    Raises:
        InputError: see ``train``.
    """
    data = tensor_of("the training data", data)
    if not data.is_floating_point() or data.ndim < 2 or not data.numel():
        raise InputError(f"training data must be floats (N, *), got {data.dtype} of shape {tuple(data.shape)}")
    if not torch.isfinite(data).all():
        raise InputError("the training data contain numbers that are not finite")
    model = as_model(denoiser)
    report_faults([*data_faults(model, data, options.bin_width), *setting_faults(model)])
    run = Training(denoiser, network, data, loss, options)
    run.resume()
    if run.workdir is not None:
        log.read(run.workdir)
    return run


@contextlib.contextmanager
def _training_mode(network: nn.Module) -> Iterator[None]:
    """A block in which the network is in training mode; if it fails, every part gets its mode back.

    No gradient remains after it.
    """
    modes = [(part, part.training) for part in network.modules()]
    network.train()
    try:
        yield
    except BaseException:
        for part, mode in modes:
            part.training = mode
        raise
    finally:
        for p in network.parameters():
            p.grad = None


class Training:
    """The state of a training run, and the update that advances it."""

    def __init__(
        self, denoiser: ModelLike, network: nn.Module, data: Tensor, loss: Loss, options: TrainingOptions
    ) -> None:
        self.denoiser, self.network, self.data, self.loss, self.options = denoiser, network, data, loss, options
        self.workdir = None if options.workdir is None else Path(options.workdir)
        plain = plain_names(network)
        named = {plain.get(name, name): p for name, p in network.named_parameters() if p.requires_grad}
        self.names, self.parameters = list(named), list[Tensor](named.values())
        if not self.parameters:
            raise InputError("the network has no parameters to train")
        self.device = self.parameters[0].device
        self.masters = wide_copies(self.parameters)
        self.updated = [self.masters.get(p, p) for p in self.parameters]
        # one kernel for all parameters instead of a loop over them; complex parameters do not have it
        self.fused = not any(p.is_complex() for p in self.updated) and self.device.type in ("cpu", "cuda", "mps")
        self.optimizer = torch.optim.AdamW(
            self.updated, lr=options.learning_rate, weight_decay=options.weight_decay, fused=self.fused
        )
        self.average = Average(network, options.ema_decay, self.masters)
        self.step, self.checked = 0, False

    def run(self, progress: bool = True) -> TrainResult:
        """Makes the remaining updates; see ``train``."""
        options, last = self.options, math.nan
        if self.workdir is not None:
            checkpoint.remove_unfinished(self.workdir)
            checkpoint.remove_older(self.workdir, options.keep)  # a process may be killed before it removes them
        bar = progress_bar(initial=self.step, total=options.steps, desc="train", disable=not progress)
        with (
            _training_mode(self.network),
            bar,
            log.Log(self.workdir, self.step) as lines,
            _interrupts(self.workdir is not None) as interrupts,
        ):
            while self.step < options.steps:
                record = self.update()
                last = record["loss"]
                if bar.update():  # it was drawn: the next time, with this loss
                    bar.set_postfix(loss=f"{last:.4g}", refresh=False)
                if self.step % options.log_every == 0 or self.step == 1:
                    lines.write(record)
                stop = interrupts.pending  # read once: a later Ctrl-C waits for the next update
                if self.step % options.checkpoint_every == 0 or self.step == options.steps or stop:
                    lines.sync()
                    self.save()
                if stop:
                    raise KeyboardInterrupt
        return TrainResult(self.network.eval(), self.average.module.eval(), self.step, last)

    def update(self) -> dict[str, Any]:
        """One step of AdamW and of the averaged weights; returns its line of the log."""
        options, step = self.options, self.step
        rate = options.learning_rate_at(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        x0 = self._batch(step)
        for p in self.parameters:
            p.grad = None
        with global_seed(self._dropout_seed(step), self.device):
            loss = self.loss(self.denoiser, x0, Draws.of(options.seed, step, len(x0))).mean()
            loss.backward()  # type: ignore[no-untyped-call]
        if not self.checked and all(p.grad is None for p in self.parameters):
            raise InputError("the loss does not depend on the network: is it the one inside the denoiser?")
        self.checked = True
        for p, master in self.masters.items():
            master.grad = None if p.grad is None else p.grad.to(master.dtype)
        norm = clip_grad_norm_(self.updated, options.clip)
        value, length = torch.stack([loss.detach().to(norm), norm]).tolist()  # a single synchronisation with the device
        for name, number in (("loss", value), ("gradient", length)):
            if not math.isfinite(number):
                raise InputError(f"the {name} is not finite at step {step + 1}; try a lower learning_rate or clip")
        self.optimizer.step()
        if self.masters:
            with torch.no_grad():
                for p, master in self.masters.items():
                    p.copy_(master)
        self.average.update()
        self.step = step + 1
        return {"step": self.step, "loss": value, "grad_norm": length, "lr": rate}

    def _batch(self, step: int) -> Tensor:
        """The batch of an update: rows of the shuffled epochs, spread over their bins, on the network's device."""
        options, count = self.options, len(self.data)
        first, rows = step * options.batch_size, []
        last = first + options.batch_size
        while first < last:
            epoch, offset = divmod(first, count)
            rows.append(_permutation(count, options.seed, epoch)[offset : offset + last - first])
            first += len(rows[-1])
        x = self.data[torch.cat(rows).to(self.data.device)].to(self.device)
        if options.bin_width is None:
            return x
        u = torch.rand(x.shape, generator=generator(options.seed, _BINS, step), dtype=torch.float64)
        return spread(x, options.bin_width, u.to(x))

    def _dropout_seed(self, step: int) -> int:
        """The seed of torch's global generators in an update."""
        text = f"{self.options.seed} {_DROPOUT} {step}".encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "big")

    def save(self) -> None:
        """Writes a checkpoint, if there is a ``workdir``."""
        if self.workdir is None:
            return
        state = checkpoint.Checkpoint(
            step=self.step,
            model=state_of(self.network, self.masters),
            ema=self.average.state(),
            optimizer=moments_of(self.optimizer, self.names),
            ema_updates=self.average.updates,
        )
        checkpoint.save(self.workdir, state, self.options.keep)

    def resume(self) -> None:
        """Loads the last checkpoint, if there is one."""
        folder = None if self.workdir is None else checkpoint.latest(self.workdir)
        if folder is None:
            return
        try:
            state = checkpoint.load(folder)
        except InputError as error:
            raise InputError(f"cannot resume: {error}; remove {folder.name} to resume from the one before") from None
        if state.step > self.options.steps:
            raise InputError(f"{str(folder)!r} is already past steps={self.options.steps}")
        try:
            load_state(self.network, state.model, self.masters)
            self.average.load(state.ema, state.ema_updates)
            moments = state_from(state.optimizer, dict(zip(self.names, self.updated, strict=True)), state.step)
        except (RuntimeError, ValueError, KeyError) as error:
            line = " ".join(str(error).split())
            raise InputError(f"{str(folder)!r} is a checkpoint of a different network: {line[:200]}") from None
        # the settings of this run, not those of the checkpoint
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        self.step = state.step


@lru_cache(maxsize=2)
def _permutation(count: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(count, generator=generator(seed, _ORDER, epoch))


@dataclass
class _Interrupts:
    """Whether Ctrl-C was pressed or SIGTERM arrived."""

    pending: bool = field(default=False)


@contextlib.contextmanager
def _interrupts(hold: bool) -> Iterator[_Interrupts]:
    """Delays the first Ctrl-C until the update is complete, so that weights, average and buffers stay consistent.

    The same for SIGTERM if it has the handler of Ctrl-C, as in the command line. Other handlers, which the caller
    installed, stay in place.
    """
    seen = _Interrupts()
    main = threading.current_thread() is threading.main_thread()
    ours = [s for s in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(s) is signal.default_int_handler]

    def restore() -> None:
        for number in ours if hold and main else ():
            signal.signal(number, signal.default_int_handler)

    def handle(number: int, frame: Any) -> None:
        seen.pending = True
        restore()

    for number in ours if hold and main else ():
        signal.signal(number, handle)
    try:
        yield seen
    finally:
        restore()
