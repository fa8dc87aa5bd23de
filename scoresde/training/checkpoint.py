"""Checkpoints, written atomically: a checkpoint is complete or absent.

A checkpoint is a folder ``checkpoints/step_00002000`` of a run:

    model.safetensors  ema.safetensors  optimizer.pt    the tensors
    state.json                                          step, EMA updates, SHA-256 and size of each other file, format

It is written under a temporary name, flushed to the disk and then renamed, so that a run killed at any moment leaves
only complete checkpoints. Loading verifies the digests first. The optimiser's file is read with ``weights_only``, which
builds tensors and plain values and runs no code.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from safetensors.torch import save as write_tensors
from torch import Tensor

from solvers import InputError

FORMAT = 1
_TEMPORARY = ".tmp_"
_FILES = ("model.safetensors", "ema.safetensors", "optimizer.pt")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The state of a run after ``step`` updates, on the CPU.

    Attributes:
        step: updates made.
        model, ema: state dictionaries of the network and of its average.
        optimizer: the optimiser's state dictionary.
        ema_updates: how often the average was updated.
    """

    step: int
    model: Mapping[str, Tensor]
    ema: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    ema_updates: int


def save(workdir: Path, checkpoint: Checkpoint, keep: int = 2) -> Path:
    """Writes a checkpoint and then removes all but the last ``keep``. Returns the folder of the new checkpoint.

    Raises:
        InputError: a checkpoint of that step exists already.
    """
    parent = workdir / "checkpoints"
    final = parent / f"step_{checkpoint.step:08d}"
    if final.exists():
        raise InputError(f"{str(final)!r} exists already")
    parent.mkdir(parents=True, exist_ok=True)
    for stale in parent.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(stale)
    buffer = io.BytesIO()
    torch.save(checkpoint.optimizer, buffer)
    contents = dict(zip(_FILES, (_pack(checkpoint.model), _pack(checkpoint.ema), buffer.getvalue()), strict=True))
    state = {
        "format": FORMAT,
        "step": checkpoint.step,
        "ema_updates": checkpoint.ema_updates,
        "files": {name: {"bytes": len(data), "sha256": _digest(data)} for name, data in contents.items()},
    }
    contents["state.json"] = json.dumps(state, indent=2).encode()
    temporary = parent / f"{_TEMPORARY}{final.name}"
    temporary.mkdir()
    for name, data in contents.items():
        with (temporary / name).open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    _sync_folder(temporary)
    temporary.rename(final)
    _sync_folder(parent)
    for old in _steps(workdir)[:-keep]:
        # renamed first: a folder with a checkpoint's name is never half removed
        shutil.rmtree(old.rename(parent / f"{_TEMPORARY}{old.name}"))
    return final


def latest(workdir: Path) -> Path | None:
    """The folder of the run's last checkpoint, or None."""
    return next(reversed(_steps(workdir)), None)


def load(folder: Path) -> Checkpoint:
    """Reads a checkpoint and checks it against its digests.

    Raises:
        InputError: the folder is not a checkpoint, or one of its files is missing, cut short or altered.
    """
    state = _read_state(folder)
    contents = {}
    for name in _FILES:
        try:
            data = (folder / name).read_bytes()
        except OSError as error:
            raise InputError(f"cannot read {str(folder / name)!r}: {error.strerror}") from None
        recorded = state["files"][name]
        if len(data) != recorded["bytes"]:
            raise InputError(f"{str(folder / name)!r} is damaged: {len(data)} bytes instead of {recorded['bytes']}")
        if _digest(data) != recorded["sha256"]:
            raise InputError(f"{str(folder / name)!r} is damaged: its SHA-256 is not the recorded one")
        contents[name] = data
    try:
        optimizer = torch.load(io.BytesIO(contents["optimizer.pt"]), map_location="cpu", weights_only=True)
        model, ema = (read_tensors(contents[name]) for name in _FILES[:2])
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        # the digests match, so the file was written like this, by something other than this library
        raise InputError(f"{str(folder)!r} is not a checkpoint: {str(error).partition(chr(10))[0]}") from None
    return Checkpoint(state["step"], model, ema, optimizer, state["ema_updates"])


def _read_state(folder: Path) -> dict[str, Any]:
    file = folder / "state.json"
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        raise InputError(f"{str(folder)!r} is not a checkpoint: it has no readable state.json") from None
    except ValueError:
        raise InputError(f"{str(file)!r} is damaged: it is not JSON") from None
    try:
        version = state["format"]
        whole = all(
            isinstance(state["files"][name]["bytes"], int) and isinstance(state["files"][name]["sha256"], str)
            for name in _FILES
        ) and all(type(state[key]) is int and state[key] >= 0 for key in ("step", "ema_updates"))
    except (KeyError, TypeError):
        version, whole = FORMAT, False
    if version != FORMAT:
        raise InputError(f"{str(file)!r} has format {version!r}; this version reads {FORMAT}")
    if not whole:
        raise InputError(f"{str(file)!r} is damaged: a field is missing or of the wrong type")
    found: dict[str, Any] = state
    return found


def _steps(workdir: Path) -> list[Path]:
    """The run's checkpoint folders, by step."""
    names = re.compile(r"step_(\d+)")
    found = [
        (int(match[1]), folder)
        for folder in (workdir / "checkpoints").glob("step_*")
        if (match := names.fullmatch(folder.name)) and folder.is_dir()
    ]
    return [folder for _, folder in sorted(found)]


def _pack(tensors: Mapping[str, Tensor]) -> bytes:
    # safetensors does not allow shared memory, so tied weights are stored twice
    return write_tensors({name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()})


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _sync_folder(folder: Path) -> None:
    """Flushes the renames in a folder to the disk, on systems that can open folders."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
