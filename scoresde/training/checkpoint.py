"""Checkpoints, written atomically: a checkpoint is complete or absent.

A checkpoint is a folder ``checkpoints/step_00002000`` of a run:

    model.safetensors  ema.safetensors  optimizer.safetensors    the tensors; each file also says its step
    state.json          step, EMA updates, SHA-256 and size of each other file, format, SHA-256 of all this

It is written under a temporary name, flushed to the disk and then renamed, so that a run killed at any moment leaves
only complete checkpoints. Loading verifies the digests first, and then that every part is of the same step. A file that
was altered on purpose can have the right digest; what it contains is then tensors, which run no code.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save as write_tensors
from torch import Tensor

from solvers import InputError
from solvers.files import flush_folder, read_bytes, read_json

from ..array_files import LARGEST, tensors_in

FORMAT = 2
_FILES = ("model.safetensors", "ema.safetensors", "optimizer.safetensors")
_LARGEST_STATE = 2**20  # bytes of state.json, which has a thousandth of it
_STEPS = 2**53  # more updates than this are not counted exactly everywhere
_TEMPORARY = re.compile(r"\.tmp_step_[0-9]{8,}\.[0-9]+")  # the last number is the process that makes it


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The state of a run after ``step`` updates, on the CPU.

    Attributes:
        step: updates made.
        model, ema: state dictionaries of the network and of its average.
        optimizer: the optimiser's tensors: ``NAME.exp_avg``, ... for the parameter NAME.
        ema_updates: how often the average was updated: as often as the network.
    """

    step: int
    model: Mapping[str, Tensor]
    ema: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    ema_updates: int


def save(workdir: Path, checkpoint: Checkpoint, keep: int = 2) -> Path:
    """Writes a checkpoint and then removes all but the last ``keep``. Returns the folder of the new checkpoint.

    The caller holds the run's folder, see ``result_files.exclusive``.

    Raises:
        InputError: a checkpoint of that step exists already.
        OSError: the checkpoint cannot be written; what was written of it is removed.
    """
    parent = workdir / "checkpoints"
    final = parent / _name(checkpoint.step)
    if final.exists():
        raise InputError(f"{str(final)!r} exists already")
    parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(final)
    try:
        temporary.mkdir()
        for name, data in _contents(checkpoint).items():
            with (temporary / name).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        flush_folder(temporary)
        temporary.rename(final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    flush_folder(parent)
    remove_older(workdir, keep)
    return final


def remove_older(workdir: Path, keep: int) -> None:
    """Removes all checkpoints but the last ``keep``; the caller holds the run's folder."""
    for old in _folders(workdir)[:-keep]:
        # renamed first: a folder with a checkpoint's name is never half removed
        _remove(old.rename(_temporary(old)))


def _remove(path: Path) -> None:
    """Removes a folder, or the link to a checkpoint that was moved to another disk."""
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path)


def remove_unfinished(workdir: Path) -> None:
    """Removes what processes that were killed left of the checkpoints they wrote or removed.

    The caller holds the run's folder, see ``result_files.exclusive``, so that no other process writes there now.
    """
    for path in (workdir / "checkpoints").glob(".tmp_step_*"):
        if _TEMPORARY.fullmatch(path.name) and (path.is_dir() or path.is_symlink()):
            _remove(path)


def latest(workdir: Path) -> Path | None:
    """The folder of the run's last checkpoint, or None."""
    return next(reversed(_folders(workdir)), None)


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
    state = _read_state(folder)
    parts = []
    for name in _FILES:
        path, recorded = folder / name, state["files"][name]
        try:
            there = path.stat().st_size if path.is_file() else recorded["bytes"]  # read_bytes reports what is no file
        except OSError as error:
            raise InputError(f"cannot read {str(path)!r}: {error.strerror}") from None
        if there != recorded["bytes"]:
            raise InputError(f"{str(path)!r} is damaged: {there} bytes instead of {recorded['bytes']}")
        data = read_bytes(path, "checkpoint's file", min(recorded["bytes"], LARGEST))
        if _digest(data) != recorded["sha256"]:
            raise InputError(f"{str(path)!r} is damaged: its SHA-256 is not the recorded one")
        parts.append(_unpack(path, data, state["step"]))
    model, ema, optimizer = parts
    return Checkpoint(state["step"], model, ema, optimizer, state["ema_updates"])


def _contents(checkpoint: Checkpoint) -> dict[str, bytes]:
    """The files of a checkpoint."""
    tensors = (checkpoint.model, checkpoint.ema, checkpoint.optimizer)
    contents = {name: _pack(part, checkpoint.step) for name, part in zip(_FILES, tensors, strict=True)}
    state = {
        "format": FORMAT,
        "step": checkpoint.step,
        "ema_updates": checkpoint.ema_updates,
        "files": {name: {"bytes": len(data), "sha256": _digest(data)} for name, data in contents.items()},
    }
    return {**contents, "state.json": json.dumps({**state, "sha256": _digest_of(state)}, indent=2).encode()}


def _read_state(folder: Path) -> dict[str, Any]:
    file = folder / "state.json"
    if not file.exists():
        raise InputError(f"{str(folder)!r} is not a checkpoint: it has no state.json")
    try:
        state = read_json(file, "checkpoint's state", _LARGEST_STATE)
    except InputError as error:
        raise InputError(f"{str(file)!r} is damaged: {error}") from None
    if not isinstance(state, dict):
        raise InputError(f"{str(file)!r} is damaged: it is not an object")
    if state.get("format") != FORMAT:
        raise InputError(f"{str(file)!r} has format {state.get('format')!r}; this version reads {FORMAT}")
    if state.pop("sha256", None) != _digest_of(state):
        raise InputError(f"{str(file)!r} is damaged: its SHA-256 is not the recorded one")
    try:
        files = [state["files"][name] for name in _FILES]
        whole = all(_count(part["bytes"]) and isinstance(part["sha256"], str) for part in files)
        whole = whole and _count(state["step"]) and _count(state["ema_updates"])
    except (KeyError, TypeError):
        whole = False
    if not whole:
        raise InputError(f"{str(file)!r} is damaged: a field is missing or of the wrong type")
    if _name(state["step"]) != folder.name:
        raise InputError(f"{str(file)!r} is damaged: it is of step {state['step']}")
    if state["ema_updates"] != state["step"]:
        raise InputError(
            f"{str(file)!r} is damaged: {state['ema_updates']} updates of the average, not {state['step']}"
        )
    return state


def _folders(workdir: Path) -> list[Path]:
    """The run's checkpoint folders, by step. All else in ``checkpoints``, such as copies, is ignored."""
    names = re.compile(r"step_([0-9]{8,})")
    found = [
        (int(match[1]), folder)
        for folder in (workdir / "checkpoints").glob("step_*")
        if (match := names.fullmatch(folder.name)) and folder.name == _name(int(match[1])) and folder.is_dir()
    ]
    return [folder for _, folder in sorted(found)]


def _name(step: int) -> str:
    return f"step_{step:08d}"


def _temporary(folder: Path) -> Path:
    """A name for a checkpoint while this process writes or removes it."""
    path = folder.with_name(f".tmp_{folder.name}.{os.getpid()}")
    with contextlib.suppress(OSError):  # of a process that was killed and had the same number
        _remove(path)
    return path


def _pack(tensors: Mapping[str, Tensor], step: int) -> bytes:
    # safetensors does not allow shared memory, so tied weights are stored twice
    copies = {name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()}
    return write_tensors(copies, {"step": str(step)})


def _unpack(path: Path, data: bytes, step: int) -> dict[str, Tensor]:
    """The tensors of a file, which must be of this step."""
    try:
        tensors, facts = tensors_in(data)
    except InputError as error:
        # the digests match, so the file was written like this, by something other than this library
        raise InputError(f"{str(path)!r} is not a checkpoint's file: {error}") from None
    if facts.get("step") != str(step):
        raise InputError(f"{str(path)!r} is of a different checkpoint: its step is {facts.get('step')}, not {step}")
    return tensors


def _count(value: object) -> bool:
    return type(value) is int and 0 <= value < _STEPS


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _digest_of(state: Mapping[str, Any]) -> str:
    """The SHA-256 of a JSON document, however it is spaced and ordered."""
    return _digest(json.dumps(state, sort_keys=True, separators=(",", ":")).encode())
