"""The logs of a training run: ``train.jsonl``, a line of JSON for every few updates, and ``evaluations.jsonl``."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from solvers import InputError
from solvers.files import parse_json, read_bytes, remove_unfinished, write_atomically

NAME, EVALUATIONS = "train.jsonl", "evaluations.jsonl"
_LARGEST = 2**32  # bytes; ten million lines have a quarter of it


class Log:
    """The log ``train.jsonl``: step, loss, grad_norm, lr, seconds. Lines after ``step``, of lost work, are removed.

    The caller holds the folder, see ``result_files.exclusive``.
    """

    def __init__(self, workdir: Path | None, step: int) -> None:
        self.file: IO[str] | None = None
        self.before = 0.0  # seconds of earlier runs
        self.began = time.perf_counter()
        if workdir is None:
            return
        kept = remove_later(workdir, step)
        if kept and isinstance(seconds := kept[-1].get("seconds"), (int, float)):
            self.before = float(seconds)
        path = workdir / NAME
        self.file = path.open("a", encoding="utf-8")

    def write(self, record: dict[str, Any]) -> None:
        """Appends a line and flushes it to the operating system."""
        if self.file is not None:
            seconds = self.before + time.perf_counter() - self.began
            self.file.write(json.dumps({**record, "seconds": round(seconds, 3)}) + "\n")
            self.file.flush()

    def sync(self) -> None:
        """Flushes the lines to the disk; called before the checkpoint that includes their updates."""
        if self.file is not None:
            os.fsync(self.file.fileno())

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *reason: object) -> None:
        if self.file is not None:
            self.file.close()


def read(workdir: Path, name: str = NAME) -> bytes:
    """The content of a run's log, empty if there is none.

    Raises:
        InputError: what stands there is no file, or a file that cannot be read.
    """
    path = workdir / name
    return read_bytes(path, "log", _LARGEST) if path.exists() else b""


def records(workdir: Path, name: str = NAME) -> list[dict[str, Any]]:
    """The lines of a run's log.

    Raises:
        InputError: see ``read``.
    """
    return [line for _, line in _lines(read(workdir, name))]


def remove_later(workdir: Path, step: int, name: str = NAME) -> list[dict[str, Any]]:
    """Removes the lines of a log after ``step``, which are of lost work; returns the others.

    Raises:
        InputError: see ``read``.
    """
    path = workdir / name
    remove_unfinished(path)
    content = read(workdir, name)
    kept = [(text, line) for text, line in _lines(content) if line["step"] <= step]
    left = b"".join(text + b"\n" for text, _ in kept)
    if left != content or path.is_symlink():  # a link is replaced: what it leads to is no part of the run
        write_atomically(path, left)
    return [line for _, line in kept]


def append(workdir: Path, record: dict[str, Any], name: str) -> None:
    """Appends a line to a log and flushes it to the disk."""
    with (workdir / name).open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _lines(content: bytes) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """The lines of a log and what they say; a line that was cut short when the process was killed is skipped."""
    for text in content.split(b"\n"):
        try:
            line = parse_json(text.decode())
        except (InputError, UnicodeDecodeError):
            continue
        if isinstance(line, dict) and type(line.get("step")) is int:
            yield text, line
