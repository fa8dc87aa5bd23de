"""Training with exact resumption.

Everything random is a function of (seed, step): the batch, the dequantisation, the times and the noise of the loss, and
the state of torch's global generator (dropout). So weights, average, optimiser and step are the whole state, and a
run that is stopped anywhere and resumed ends, on the CPU with a fixed number of threads, bit for bit where the
uninterrupted run ends. ``step`` counts the updates made: step k of the log is the k-th update.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import AveragedModel
from tqdm.auto import tqdm

from solvers import InputError, generator
from solvers.errors import positive_integer

from ..data import spread
from ..paths.base import Denoises
from . import checkpoint, ema
from .losses import Loss

# labels of the generators' streams, apart from those of sampling (0 and 1) and of the data's split
_ORDER, _NOISE, _BINS, _DROPOUT = 30, 31, 32, 33


@dataclass(frozen=True)
class TrainingOptions:
    """How to train.

    Attributes:
        steps: updates in all, those before a resumption included.
        batch_size: samples per update; batches run on across the ends of epochs, so that all have this size.
        learning_rate, weight_decay: AdamW's.
        warmup: updates over which the learning rate rises linearly; 0 for none.
        clip: the largest norm of the gradient, longer ones are shortened to it; inf for none.
        ema_decay: of the average of the weights, see ``ema.decay_at``.
        seed: of everything random.
        log_every, checkpoint_every: updates between log lines and between checkpoints; the first update is logged too,
            and the last one leaves a checkpoint.
        keep: how many checkpoints to keep.
        bin_width: spread each batch uniformly over bins of this width; None for data that are continuous.
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
    """What ``train`` returns.

    Attributes:
        network: the trained network, in evaluation mode.
        ema: its average, a network of the same kind, in evaluation mode.
        step: updates made in all.
        loss: of the last update; NaN if the run was complete already.
    """

    network: nn.Module
    ema: nn.Module
    step: int
    loss: float


def train(
    denoiser: Denoises, network: nn.Module, data: Tensor, loss: Loss, options: TrainingOptions, progress: bool = True
) -> TrainResult:
    """Trains the network inside a denoiser, in place, and resumes if ``workdir`` holds checkpoints.

    Ctrl-C ends the update under way, writes a checkpoint (given a ``workdir``) and raises KeyboardInterrupt; a second
    one stops at once.

    Args:
        denoiser: whose predictions are trained.
        network: its network, on any device.
        data: (N, *), floating point; may lie on the CPU.
        progress: show a bar.

    Raises:
        InputError: data that are empty or not finite, a network that the loss does not depend on, a checkpoint that is
            damaged or of another network, or a loss or gradient that is not finite: then no checkpoint is written, and
            the last one stays.
    """
    if not data.is_floating_point() or data.ndim < 2 or not data.numel():
        raise InputError(f"training data must be floats (N, *), got {data.dtype} of shape {tuple(data.shape)}")
    if not torch.isfinite(data).all():
        raise InputError("the training data hold numbers that are not finite")
    run = _Run(denoiser, network, data, loss, options)
    run.resume()
    last = math.nan
    network.train()
    bar = tqdm(initial=run.step, total=options.steps, desc="train", disable=not progress, leave=False)
    with bar, _Log(options.workdir, run.step) as log, _interrupts(options.workdir is not None) as interrupts:
        while run.step < options.steps:
            record = run.update()
            last = record["loss"]
            bar.set_postfix(loss=f"{last:.4g}", refresh=False)
            bar.update()
            if run.step % options.log_every == 0 or run.step == 1:
                log.write(record)
            stop = interrupts.pending  # read once: what comes later waits for the next update
            if run.step % options.checkpoint_every == 0 or run.step == options.steps or stop:
                log.sync()
                run.save()
            if stop:
                raise KeyboardInterrupt
    return TrainResult(network.eval(), run.average.module.eval(), run.step, last)


class _Run:
    """The state of a run and its one operation, the update."""

    def __init__(
        self, denoiser: Denoises, network: nn.Module, data: Tensor, loss: Loss, options: TrainingOptions
    ) -> None:
        self.denoiser, self.network, self.data, self.loss, self.options = denoiser, network, data, loss, options
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        if not self.parameters:
            raise InputError("the network has no parameters to train")
        self.device = self.parameters[0].device
        self.optimizer = torch.optim.AdamW(self.parameters, lr=options.learning_rate, weight_decay=options.weight_decay)
        self.average: AveragedModel = ema.averaged(network, options.ema_decay)
        self.step = 0

    def update(self) -> dict[str, Any]:
        """One step of AdamW and of the average; returns its line of the log."""
        options, step = self.options, self.step
        rate = options.learning_rate_at(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        x0 = self._batch(step)
        self.optimizer.zero_grad()
        with self._global_seed(step):
            loss = self.loss(self.denoiser, x0, generator(options.seed, _NOISE, step)).mean()
            loss.backward()  # type: ignore[no-untyped-call]
        if all(p.grad is None for p in self.parameters):
            raise InputError("the loss does not depend on the network: is it the one inside the denoiser?")
        norm = clip_grad_norm_(self.parameters, options.clip)
        value, length = torch.stack([loss.detach().to(norm), norm]).tolist()  # one wait for the device
        for name, number in (("loss", value), ("gradient", length)):
            if not math.isfinite(number):
                raise InputError(f"the {name} is not finite at step {step + 1}; try a lower learning_rate or clip")
        self.optimizer.step()
        self.average.update_parameters(self.network)
        self.step = step + 1
        return {"step": self.step, "loss": value, "grad_norm": length, "lr": rate}

    def _batch(self, step: int) -> Tensor:
        """Rows of the endless sequence of shuffled epochs, spread over their bins, on the network's device."""
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

    @contextlib.contextmanager
    def _global_seed(self, step: int) -> Iterator[None]:
        """torch's global generators as a function of the step; they are put back afterwards."""
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(generator(self.options.seed, _DROPOUT, step).initial_seed())
            yield

    def save(self) -> None:
        """Writes a checkpoint of the state between two updates."""
        if self.options.workdir is None:
            return
        state = checkpoint.Checkpoint(
            step=self.step,
            model=self.network.state_dict(),
            ema=self.average.module.state_dict(),
            optimizer=self.optimizer.state_dict(),
            ema_updates=int(self.average.n_averaged),
        )
        checkpoint.save(Path(self.options.workdir), state, self.options.keep)

    def resume(self) -> None:
        """Takes over the last checkpoint, if there is one."""
        folder = checkpoint.latest(Path(self.options.workdir)) if self.options.workdir is not None else None
        if folder is None:
            return
        try:
            state = checkpoint.load(folder)
        except InputError as error:
            raise InputError(f"cannot resume: {error}; remove {folder.name} to go on from the one before") from None
        if state.step > self.options.steps:
            raise InputError(f"{str(folder)!r} is already past steps={self.options.steps}")
        try:
            self.network.load_state_dict(state.model)
            self.average.module.load_state_dict(state.ema)
            self.optimizer.load_state_dict(dict(state.optimizer))
        except (RuntimeError, ValueError, KeyError) as error:
            line = " ".join(str(error).split())
            raise InputError(f"{str(folder)!r} is a checkpoint of another network: {line[:200]}") from None
        for group in self.optimizer.param_groups:
            group["weight_decay"] = self.options.weight_decay  # the options' word counts, not the checkpoint's
        self.average.n_averaged.fill_(state.ema_updates)
        self.step = state.step


@lru_cache(maxsize=2)
def _permutation(count: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(count, generator=generator(seed, _ORDER, epoch))


class _Log:
    """``train.jsonl``: step, loss, grad_norm, lr, seconds. Lines past ``step`` belong to work that was lost and go."""

    def __init__(self, workdir: Path | None, step: int) -> None:
        self.file: IO[str] | None = None
        self.before = 0.0  # seconds of earlier runs
        self.began = time.perf_counter()
        if workdir is None:
            return
        path = Path(workdir) / "train.jsonl"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make the folder {str(workdir)!r}: {error.strerror}") from None
        kept = [line for line in _lines(path) if line["step"] <= step]
        if kept:
            self.before = float(kept[-1].get("seconds", 0.0))
        aside = path.with_name(".tmp_train.jsonl")
        aside.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        aside.replace(path)
        self.file = path.open("a", encoding="utf-8")

    def write(self, record: dict[str, Any]) -> None:
        """Appends a line and hands it to the system."""
        if self.file is not None:
            seconds = self.before + time.perf_counter() - self.began
            self.file.write(json.dumps({**record, "seconds": round(seconds, 3)}) + "\n")
            self.file.flush()

    def sync(self) -> None:
        """Makes the lines durable: before a checkpoint that vouches for them."""
        if self.file is not None:
            os.fsync(self.file.fileno())

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *reason: object) -> None:
        if self.file is not None:
            self.file.close()


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The log's lines; one that a kill cut short is passed over."""
    if path.exists():
        for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                line = json.loads(text)
                if isinstance(line, dict) and isinstance(line.get("step"), int):
                    yield line


@dataclass
class _Interrupts:
    """Whether Ctrl-C was pressed."""

    pending: bool = field(default=False)


@contextlib.contextmanager
def _interrupts(hold: bool) -> Iterator[_Interrupts]:
    """Holds back the first Ctrl-C, so that an update (weights, average, buffers) is never left half done."""
    seen = _Interrupts()
    main = threading.current_thread() is threading.main_thread()
    # a handler of the caller's own stays in charge
    if not (hold and main and signal.getsignal(signal.SIGINT) is signal.default_int_handler):
        yield seen
        return

    def handle(number: int, frame: Any) -> None:
        seen.pending = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, handle)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
