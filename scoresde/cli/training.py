"""The command train: which config it trains, and the training of a config's model in a folder."""

from __future__ import annotations

import argparse
import contextlib
import copy
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from solvers import InputError
from solvers.files import write_atomically
from solvers.registry.outside import Origin
from solvers.registry.registry import outside_names

from ..data.dataset import DataCard, Dataset
from ..data.rows import Batch
from ..data.sources import source_of
from ..likelihood.log_prob import log_prob
from ..likelihood.result import LogProb
from ..models.classifier import Classifier
from ..models.discrete.denoiser import DiscreteDenoiser
from ..posterior.base import posteriors
from ..runs import build, choices, config, discrete, saved, watch
from ..runs.run import Run
from ..runs.score import options_of
from ..runs.training_page import write_page
from ..sampling.batches import check_source
from ..sampling.sample import sample
from ..training import checkpoint
from ..training.loop import Training, TrainResult, Watcher, prepared
from ..training.losses import Loss
from ..training.options import TrainingOptions
from ..training.processes import Elsewhere, Processes, launched
from .current_folder import import_drawing

UNFINISHED = 75  # the exit status after --max-minutes: that of a temporary failure, after which one tries again
TRUSTED = Origin("the config", trusted=True)  # a config is code that the user chose, or what the user typed


class Job(NamedTuple):
    """What is to be trained, and where that comes from.

    Attributes:
        config: the config.
        origin: what the names in it may import.
        chosen: what the data decided; None if they decided nothing.
    """

    config: Any
    origin: Origin = TRUSTED
    chosen: choices.Chosen | None = None


def train(arguments: argparse.Namespace, overrides: list[str], command: str) -> int:
    """Trains a model, or resumes its training; returns the exit status."""
    job = _job(arguments, overrides)
    _check_used(job.config, overrides)
    then = f"next: scoresde sample --workdir={arguments.workdir} --seeds=64 --out=samples/"
    if build.is_classifier(job.config):
        then = f"next, in Python: scoresde.load({str(arguments.workdir)!r}), a classifier of noisy samples"
    try:
        complete = fit(job, arguments.workdir, command, arguments.continue_with_other_data, then)
    except Elsewhere:  # the process that found the error reports it
        sys.exit(2)
    return 0 if complete else UNFINISHED


def _job(arguments: argparse.Namespace, overrides: list[str]) -> Job:
    """What a command line trains: a config, the run in the folder, or what suits the data.

    Raises:
        InputError: it names neither a config nor data, and the folder contains no run.
    """
    workdir: Path = arguments.workdir
    name, path = ("", "") if arguments.data is None else (source_of(str(arguments.data)), str(arguments.data))
    given = [f"--config.data.name={name}", f"--config.data.path={path}", *overrides] if name else overrides
    if arguments.config is not None:
        return Job(config.read_config(arguments.config, given))
    if (workdir / saved.NAME).exists():
        there = saved.saved(workdir).config
        typed = frozenset(n for o in overrides for n in outside_names(o.partition("=")[2]))
        origin = Origin(str(workdir / saved.NAME), typed, arguments.trust)
        return Job(config.override(copy.deepcopy(there), given), origin)
    if not name:
        raise InputError(f"{workdir} contains no run to resume: add --data=PATH, or --config=NAME")
    chosen = choices.choose(name, path, overrides)
    return Job(chosen.config, TRUSTED, chosen)


def _check_used(cfg: Any, overrides: Sequence[str]) -> None:
    """Rejects an override of ``model.sigma_data`` that neither the network's output nor the loss depends on."""
    given = any(override.startswith("--config.model.sigma_data=") for override in overrides)
    weighting = cfg.training.weighting or cfg.training.loss
    if given and cfg.model.predicts != "edm" and "edm" not in weighting:
        raise InputError(
            f"model.sigma_data is not used: predicts is {cfg.model.predicts!r} and the weighting {weighting!r}, "
            "neither is edm"
        )


def fit(job: Job, workdir: Path, command: str = "", other_data: bool = False, then: str = "") -> bool:
    """Trains a config's model in a folder, from its last checkpoint if there is one; returns whether it is complete.

    The folder is changed only after all checks, just before the first update.

    Args:
        command: the command, for the record.
        other_data: resume even if the data are not those that the run was trained on.
        then: a line to print at the end.
    """
    cfg = job.config
    with launched(build.device_of(cfg), cfg.training.precision) as processes, processes.holding(workdir):
        there, data = processes.each(lambda: _read_data(job, workdir, other_data))
        card, say = data.card, print if processes.main else _silent
        model, network, loss, options = processes.each(lambda: _build(job, card, workdir))
        say(data, *([job.chosen.summary()] if job.chosen else []), sep="\n")
        last = checkpoint.latest(workdir)
        weights = sum(p.numel() for p in network.parameters())
        start = f", resuming {last.name}" if last else ""
        start += f", {processes.count} processes" if processes.count > 1 else ""
        counts = f"{weights:,} weights; {len(data.train)} samples {card.shape}"
        say(f"{cfg.model.network}, {counts}; {cfg.process or cfg.sde}{start}")
        changes = build.changes_of(cfg, card)
        training = prepared(model, network, data.train, loss, options, processes, changes)
        complete = there is not None and training.step == options.steps
        if there and complete and there.card.differences(card):
            error = f"{workdir} is complete: to continue with other data, raise --config.training.steps"
            raise InputError(error) if processes.main else Elsewhere(error)
        # no update of a complete run uses what is given now, so its record stays as it is
        if not complete:
            processes.first(lambda: _record(job, workdir, data, there, command))
        result = _watched(training, job, data, processes)
    note = f"already complete; {saved.NAME} stays as it is" if math.isnan(result.loss) else f"loss {result.loss:.4f}"
    note += "" if result.complete else f"; the {options.max_minutes:g} minutes are over, the same command resumes"
    say(f"{workdir}: step {result.step}, {note}", *([then] if then else []), sep="\n")
    return result.complete


def _watched(training: Training, job: Job, data: Dataset, processes: Processes) -> TrainResult:
    """Runs a training with its evaluations and its page, unless the config wants none."""
    workdir = training.workdir
    assert workdir is not None
    watchers: list[Watcher] = []
    if job.config.training.evaluate_every:
        if processes.main:
            import_drawing()
        watchers = [_watcher(job, data, training), lambda _: write_page(workdir)]
    try:
        return training.run(watchers=watchers)
    except KeyboardInterrupt:
        last = checkpoint.latest(workdir)
        note = f"{last.name} is written; the same command resumes" if last else ""
        raise KeyboardInterrupt(note) from None
    finally:
        if watchers and processes.main and 0 < training.step < training.options.steps:  # it was stopped
            with contextlib.suppress(InputError, OSError):  # the reason of the stop matters more
                write_page(workdir)


def _watcher(job: Job, data: Dataset, training: Training) -> watch.Watcher:
    """Evaluates a run: a denoiser samples and scores as the sections of its config say."""
    cfg, card, most = job.config, data.card, training.options.batch_size
    assert training.workdir is not None

    def drawn(denoiser: Any, count: int, conditions: Mapping[str, Tensor]) -> Tensor:
        section = cfg.sampling
        with job.origin.limits():
            plan = build.plan_of(denoiser, section)
        return sample(
            denoiser, card.shape, range(count), plan=plan, noise=section.noise, condition=conditions or None,
            batch_size=min(section.batch_size, most), device=training.device, on_failure="keep",
        ).x  # fmt: skip

    def scored(denoiser: Any, batch: Batch) -> LogProb:
        options = options_of(Run(cfg, denoiser, card, training.step, job.origin))
        if isinstance(denoiser, DiscreteDenoiser):
            return discrete.bound_of(denoiser, batch.x, range(len(batch)), batch.conditions, options, card)
        options |= {"error": False} if "plan" in options else {}  # its coarser solves would not change the value
        return log_prob(
            denoiser, batch.x, seeds=range(len(batch)), batch_size=cfg.likelihood.batch_size,
            condition=batch.conditions or None, on_failure="keep", **options,
        )  # fmt: skip

    alone = isinstance(training.denoiser, Classifier)  # which draws and scores nothing
    return watch.Watcher(
        workdir=training.workdir,
        held_out=data.test,
        limits=(card.low, card.high),
        width=training.options.bin_width,
        draw=None if alone else drawn,
        score=None if alone else scored,
        rows=cfg.training.evaluate_likelihood,
        start=training.step,
        known=card.conditions,
        texts=card.texts if card.symbols else None,
    )


def _silent(*_: object, sep: str = "") -> None:
    """Prints nothing: the main process prints for all."""


def _read_data(job: Job, workdir: Path, other_data: bool) -> tuple[saved.Saved | None, Dataset]:
    """What the folder contains, and the config's data."""
    there = saved.of_run(workdir, job.config)
    data = job.chosen.data if job.chosen else build.load_data(job.config, there and there.card)
    if there and not other_data:
        saved.refuse_other_data(workdir, there.card, data.card)
    return there, data


def _build(job: Job, card: DataCard, workdir: Path) -> tuple[Any, nn.Module, Loss, TrainingOptions]:
    """What the training needs, the model first; also checks what only later commands need."""
    cfg = job.config
    with job.origin.limits():
        model, network = build.build_model(cfg, card)
        loss, options = build.build_loss(cfg, card), build.build_options(cfg, card, workdir)
        if not isinstance(model, Classifier):
            _check_later(Run(cfg, model, card, 0, job.origin))
    return model, network, loss, options


def _record(job: Job, workdir: Path, data: Dataset, there: saved.Saved | None, command: str) -> None:
    """Writes ``config.json``, says what it changes, and writes the config that the data decided."""
    if changes := saved.write(workdir, job.config, data.card, there, command):
        print(f"this run resumes with {', '.join(changes)}; {workdir / saved.NAME} records it")
    if job.chosen is not None:
        path = workdir / choices.NAME
        write_atomically(path, job.chosen.text(command))
        print(f"written to {path}")


def _check_later(run: Run) -> None:
    """Checks the sections of the config that only later commands use: a typing error is found before the training.

    Raises:
        InputError: a name or an option in ``sampling`` or ``likelihood`` is invalid.
    """
    for section, check in (("sampling", _check_sampling), ("likelihood", options_of)):
        try:
            check(run)
        except InputError as error:
            raise InputError(f"config.{section}, which later commands use: {error}") from None


def _check_sampling(run: Run) -> None:
    if run.config.sampling.posterior:
        posteriors.make(run.config.sampling.posterior)
    build.plan_of(run.denoiser, run.config.sampling)
    check_source(run.config.sampling.noise, run.denoiser.space)
