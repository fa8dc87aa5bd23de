"""Folders of tensors, each of one step, written atomically: a folder is complete or absent.

A folder ``step_00002000`` contains

    NAME.safetensors ...    the tensors of each part; each file also says its step
    state.json              step, facts, SHA-256 and size of each other file, format, SHA-256 of all this

It is written under a temporary name, flushed to the disk and then renamed, so that a process killed at any moment
leaves only complete folders. Reading verifies the digests first, and then that every part is of the same step. A file
that was altered on purpose can have the right digest; what it contains is then tensors, which run no code.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors.torch import save as write_tensors
from torch import Tensor

from solvers import InputError
from solvers.files import flush_folder, read_bytes, read_json

from ..io.array_files import LARGEST, tensors_in

FORMAT = 3
STATE = "state.json"
_LARGEST_STATE = 2**20  # bytes of state.json, which has a thousandth of it
_STEPS = 2**53  # more updates than this are not counted exactly everywhere
_PART = re.compile(r"([a-z][a-z0-9_]{0,63})\.safetensors")
_TEMPORARY = re.compile(r"\.tmp_step_[0-9]{8,}\.[0-9]+")  # the last number is the process that makes it


@dataclass(frozen=True, eq=False)
class StepFolder:
    """The content of a folder, on the CPU.

    Attributes:
        step: the number of updates after which it was written.
        parts: tensors by name, in named parts; a name has small letters, digits and underscores.
        facts: values of JSON.
    """

    step: int
    parts: Mapping[str, Mapping[str, Tensor]]
    facts: Mapping[str, Any] = field(default_factory=dict)


def write(parent: Path, content: StepFolder) -> Path:
    """Writes a folder into ``parent``, which is made if needed; returns its path.

    The caller holds the run's folder, see ``result_files.exclusive``.

    Raises:
        InputError: a folder of that step exists already.
        OSError: it cannot be written; what was written of it is removed.
    """
    final = parent / _name(content.step)
    if final.exists():
        raise InputError(f"{str(final)!r} exists already")
    parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(final)
    try:
        temporary.mkdir()
        for name, data in _files(content).items():
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
    return final


def remove(folder: Path) -> None:
    """Removes a folder; the caller holds the run's folder."""
    # renamed first: a folder with such a name is never half removed
    _remove(folder.rename(_temporary(folder)))


def remove_unfinished(parent: Path) -> None:
    """Removes what processes that were killed left of the folders they wrote or removed.

    The caller holds the run's folder, see ``result_files.exclusive``, so that no other process writes there now.
    """
    for path in parent.glob(".tmp_step_*"):
        if _TEMPORARY.fullmatch(path.name) and (path.is_dir() or path.is_symlink()):
            _remove(path)


def listed(parent: Path) -> dict[int, Path]:
    """The folders in ``parent`` by step, in order. All else there, such as copies, is ignored."""
    names = re.compile(r"step_([0-9]{8,})")
    found = {
        int(match[1]): folder
        for folder in parent.glob("step_*")
        if (match := names.fullmatch(folder.name)) and folder.name == _name(int(match[1])) and folder.is_dir()
    }
    return dict(sorted(found.items()))


def read(folder: Path, what: str, whole: Callable[[StepFolder], bool]) -> StepFolder:
    """Reads a folder, checks it against its digests, and that all its parts are of one step.

    Args:
        what: the kind of folder, for messages: "a checkpoint", ...
        whole: whether the parts, of which only the names are there yet, and the facts are those of such a folder.

    Raises:
        InputError: it is no such folder, or one of its files is missing, cut short or altered.
    """
    state, files = _read_state(folder, what, whole)
    parts = {}
    for name, recorded in files.items():
        path = folder / name
        try:
            there = path.stat().st_size if path.is_file() else recorded["bytes"]  # read_bytes reports what is no file
        except OSError as error:
            raise InputError(f"cannot read {str(path)!r}: {error.strerror}") from None
        if there != recorded["bytes"]:
            raise InputError(f"{str(path)!r} is damaged: {there} bytes instead of {recorded['bytes']}")
        data = read_bytes(path, f"file of {what}", min(recorded["bytes"], LARGEST))
        if _digest(data) != recorded["sha256"]:
            raise InputError(f"{str(path)!r} is damaged: its SHA-256 is not the recorded one")
        parts[name.partition(".")[0]] = _unpack(path, data, state.step, what)
    return replace(state, parts=parts)


def read_state(folder: Path, what: str, whole: Callable[[StepFolder], bool]) -> StepFolder:
    """Reads a folder's facts and the names of its parts, not the tensors; see ``read``."""
    return _read_state(folder, what, whole)[0]


def is_count(value: object) -> bool:
    """Whether a value of JSON is a number of updates."""
    return type(value) is int and 0 <= value < _STEPS


def _files(content: StepFolder) -> dict[str, bytes]:
    """The files of a folder."""
    files = {f"{name}.safetensors": _pack(part, content.step) for name, part in content.parts.items()}
    assert all(map(_PART.fullmatch, files)), list(files)
    state = {
        "format": FORMAT,
        "step": content.step,
        **content.facts,
        "files": {name: {"bytes": len(data), "sha256": _digest(data)} for name, data in files.items()},
    }
    return {**files, STATE: json.dumps({**state, "sha256": _digest_of(state)}, indent=2).encode()}


def _read_state(
    folder: Path, what: str, whole: Callable[[StepFolder], bool]
) -> tuple[StepFolder, dict[str, dict[str, Any]]]:
    """The content of a folder without its tensors, and the sizes and digests of its files."""
    file = folder / STATE
    if not file.exists():
        raise InputError(f"{str(folder)!r} is not {what}: it has no {STATE}")
    try:
        state = read_json(file, f"state of {what}", _LARGEST_STATE)
    except InputError as error:
        raise InputError(f"{str(file)!r} is damaged: {error}") from None
    if not isinstance(state, dict):
        raise InputError(f"{str(file)!r} is damaged: it is not an object")
    if state.get("format") != FORMAT:
        raise InputError(f"{str(file)!r} has format {state.get('format')!r:.40}; this version reads {FORMAT}")
    if state.pop("sha256", None) != _digest_of(state):
        raise InputError(f"{str(file)!r} is damaged: its SHA-256 is not the recorded one")
    try:
        files = state["files"]
        names = [match[1] for name in files if (match := _PART.fullmatch(name))]
        complete = len(names) == len(files) and is_count(state["step"])
        complete = complete and all(is_count(f["bytes"]) and isinstance(f["sha256"], str) for f in files.values())
        facts = {name: value for name, value in state.items() if name not in ("format", "step", "files")}
        content = StepFolder(state["step"], {name: {} for name in names}, facts)
        complete = complete and whole(content)
    except (KeyError, TypeError, AttributeError):
        complete = False
    if not complete:
        raise InputError(f"{str(file)!r} is damaged: a field is missing or has a value that it cannot have")
    if _name(state["step"]) != folder.name:
        raise InputError(f"{str(file)!r} is damaged: it is of step {state['step']}")
    return content, files


def _remove(path: Path) -> None:
    """Removes a folder, or the link to one that was moved to another disk."""
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path)


def _name(step: int) -> str:
    return f"step_{step:08d}"


def _temporary(folder: Path) -> Path:
    """A name for a folder while this process writes or removes it."""
    path = folder.with_name(f".tmp_{folder.name}.{os.getpid()}")
    with contextlib.suppress(OSError):  # of a process that was killed and had the same number
        _remove(path)
    return path


def _pack(tensors: Mapping[str, Tensor], step: int) -> bytes:
    # safetensors does not allow shared memory, so tied weights are stored twice
    copies = {name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()}
    return write_tensors(copies, {"step": str(step)})


def _unpack(path: Path, data: bytes, step: int, what: str) -> dict[str, Tensor]:
    """The tensors of a file, which must be of this step."""
    try:
        tensors, facts = tensors_in(data)
    except InputError as error:
        # the digests match, so the file was written like this, by something other than this library
        raise InputError(f"{str(path)!r} is not a file of {what}: {error}") from None
    if facts.get("step") != str(step):
        raise InputError(f"{str(path)!r} is of a different step: {facts.get('step')}, not {step}")
    return tensors


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _digest_of(state: Mapping[str, Any]) -> str:
    """The SHA-256 of a JSON document, however it is spaced and ordered."""
    return _digest(json.dumps(state, sort_keys=True, separators=(",", ":")).encode())
