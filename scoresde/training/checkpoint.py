"""Checkpoints: the whole state of a run in a folder ``checkpoints/step_00002000``, see ``step_folders``.

model.safetensors       the network's weights and buffers
average_0.safetensors   those of the first average, which is the one that commands use; average_1, ... of others
optimizer.safetensors   the optimiser's tensors
NAME.safetensors        other tensors that the run depends on, such as those of its loss
state.json              also the averages' specs, each with its own number of updates
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from solvers import InputError

from . import step_folders
from .step_folders import StepFolder, is_count

_WHAT = "a checkpoint"
_OWN = ("model", "optimizer")  # parts that every checkpoint has in addition to its averages


class AverageState(NamedTuple):
    """The state of an average: how often it was updated, and its tensors by name."""

    updates: int
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The state of a run after ``step`` updates, on the CPU.

    Attributes:
        step: updates made.
        model: the state dictionary of the network.
        averages: those of the network's averages by their specs, in the order of the config.
        optimizer: the optimiser's tensors: ``NAME.exp_avg``, ... for the parameter NAME.
        others: named groups of further tensors, such as "loss"; a name has small letters and underscores.
    """

    step: int
    model: Mapping[str, Tensor]
    averages: Mapping[str, AverageState]
    optimizer: Mapping[str, Tensor]
    others: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)


def save(workdir: Path, checkpoint: Checkpoint, keep: int = 2, keep_every: int | None = None) -> Path:
    """Writes a checkpoint and then removes older ones, see ``remove_older``. Returns the folder of the new checkpoint.

    The caller holds the run's folder, see ``result_files.exclusive``.

    Raises:
        InputError: a checkpoint of that step exists already.
        OSError: the checkpoint cannot be written; what was written of it is removed.
    """
    parts = {
        "model": checkpoint.model,
        **{f"average_{k}": average.tensors for k, average in enumerate(checkpoint.averages.values())},
        "optimizer": checkpoint.optimizer,
    }
    if taken := sorted(set(parts) & set(checkpoint.others)):
        raise InputError(f"the name {taken[0]!r} is taken in a checkpoint")
    facts = {"averages": averages_as_facts(checkpoint.averages)}
    folder = step_folders.write(_parent(workdir), StepFolder(checkpoint.step, {**parts, **checkpoint.others}, facts))
    remove_older(workdir, keep, keep_every)
    return folder


def averages_as_facts(averages: Mapping[str, AverageState]) -> list[dict[str, Any]]:
    """The specs and the counters of averages, as values of JSON."""
    return [{"spec": spec, "updates": average.updates} for spec, average in averages.items()]


def averages_in(content: StepFolder) -> dict[str, AverageState]:
    """The averages of a folder that contains them as ``average_0``, ..."""
    parts = content.parts
    return {
        fact["spec"]: AverageState(fact["updates"], parts[f"average_{k}"])
        for k, fact in enumerate(content.facts["averages"])
    }


def has_averages(content: StepFolder) -> bool:
    """Whether the averages that a folder's facts name are there, each with a counter of at most the step."""
    facts = content.facts["averages"]
    updates = [fact["updates"] for fact in facts]
    return (
        bool(facts)
        and len({str(fact["spec"]) for fact in facts}) == len(facts)
        and all(isinstance(fact["spec"], str) for fact in facts)
        and all(is_count(count) and count <= content.step for count in updates)
        and all(f"average_{k}" in content.parts for k in range(len(facts)))
    )


def remove_older(workdir: Path, keep: int, keep_every: int | None = None) -> None:
    """Removes all checkpoints but the last ``keep`` and those whose step is a multiple of ``keep_every``.

    The caller holds the run's folder.
    """
    for step, folder in list(step_folders.listed(_parent(workdir)).items())[:-keep]:
        if not keep_every or step % keep_every:
            step_folders.remove(folder)


def remove_unfinished(workdir: Path) -> None:
    """Removes what processes that were killed left of the checkpoints they wrote or removed.

    The caller holds the run's folder, see ``result_files.exclusive``, so that no other process writes there now.
    """
    step_folders.remove_unfinished(_parent(workdir))


def latest(workdir: Path) -> Path | None:
    """The folder of the run's last checkpoint, or None."""
    return next(reversed(step_folders.listed(_parent(workdir)).values()), None)


def load_latest(workdir: Path) -> tuple[Path, Checkpoint] | None:
    """The run's last checkpoint and its folder, or None; a process that trains may write and remove others meanwhile.

    Raises:
        InputError: see ``load``.
    """
    while (folder := latest(workdir)) is not None:
        try:
            return folder, load(folder)
        except InputError:
            if latest(workdir) == folder:
                raise
    return None


def load(folder: Path) -> Checkpoint:
    """Reads a checkpoint, checks it against its digests, and that all its parts are of one step.

    Raises:
        InputError: the folder is not a checkpoint, or one of its files is missing, cut short or altered.
    """
    found = step_folders.read(folder, _WHAT, _is_whole)
    averages = averages_in(found)
    known = {*_OWN, *(f"average_{k}" for k in range(len(averages)))}
    others = {name: part for name, part in found.parts.items() if name not in known}
    return Checkpoint(found.step, found.parts["model"], averages, found.parts["optimizer"], others)


def _is_whole(content: StepFolder) -> bool:
    return all(name in content.parts for name in _OWN) and has_averages(content)


def _parent(workdir: Path) -> Path:
    return workdir / "checkpoints"
