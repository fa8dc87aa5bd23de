"""Commands in processes of their own, which can be killed, short of space or stopped.

A server imports torch and scoresde once; each process is forked from it and costs milliseconds. The server itself runs
nothing, so that a process starts as one that was started by hand.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.forkserver
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STARTED = b"\x01"  # the first byte of a process's output: from here on, its command runs
HANGS = 300.0  # seconds; no command here takes a tenth of it, also on a machine that does other work

CONTEXT = multiprocessing.get_context("forkserver")


def serve() -> None:
    """Starts the server of processes, if it does not run yet."""
    tests = str(Path(__file__).parent.parent)
    before = dict(os.environ)
    os.environ.update(OMP_NUM_THREADS="1", PYTHONPATH=os.pathsep.join([tests, *sys.path]), MPLBACKEND="agg")
    try:
        CONTEXT.set_forkserver_preload(["attacks.preload"])
        multiprocessing.forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)


@dataclass(frozen=True)
class Fault:
    """What happens to a process.

    Attributes:
        operation: it is killed before its n-th operation on files, counted from 1: opening a file, flushing, renaming,
            removing, making a folder.
        seconds, signal: the signal arrives after so many seconds.
        file_size: no file of it may grow beyond so many bytes, as on a disk that is full.
    """

    operation: int | None = None
    seconds: float | None = None
    signal: int = signal.SIGKILL
    file_size: int | None = None


NONE = Fault()


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit status (minus the signal that killed it), its output, its time."""

    status: int
    output: str
    seconds: float

    @property
    def one_error(self) -> bool:
        """Whether it reported one error, in one line, with exit status 2."""
        errors = [line for line in self.output.splitlines() if line.startswith("error: ")]
        return self.status == 2 and len(errors) == 1 and "Traceback" not in self.output


class Running:
    """A process that runs a function in a folder; the function returns an exit status."""

    def __init__(self, function: Callable[..., int], folder: Path, *arguments: Any, fault: Fault = NONE) -> None:
        serve()
        self.fault = fault
        self.reader, writer = CONTEXT.Pipe(duplex=False)
        self.process = CONTEXT.Process(target=_run, args=(writer, str(folder), fault, function, arguments), daemon=True)
        self.process.start()
        writer.close()

    def wait(self) -> Ended:
        """Waits for its end, sends the fault's signal on the way."""
        output, began, sent = b"", None, False
        deadline = time.monotonic() + HANGS
        while True:
            now = time.monotonic()
            due = deadline
            if began is not None and self.fault.seconds is not None and not sent:
                due = min(deadline, began + self.fault.seconds)
            if now >= due:
                with contextlib.suppress(ProcessLookupError):  # it has just ended
                    os.kill(self.process.pid or 0, self.fault.signal if due < deadline else signal.SIGKILL)
                assert due < deadline, f"a process hangs: {output[-2000:]!r}"
                sent = True
                continue
            if not select.select([self.reader.fileno()], [], [], due - now)[0]:
                continue
            part = os.read(self.reader.fileno(), 65536)
            if not part:
                break
            if began is None:
                began = time.monotonic()
            output += part
        self.process.join()
        self.reader.close()
        seconds = time.monotonic() - (began or deadline)
        status = self.process.exitcode
        assert status is not None
        self.process.close()
        return Ended(status, output.removeprefix(STARTED).decode(errors="replace"), seconds)


def run(function: Callable[..., int], folder: Path, *arguments: Any, fault: Fault = NONE) -> Ended:
    """Runs a function in a process of its own, in a folder, until it ends."""
    return Running(function, folder, *arguments, fault=fault).wait()


def count_operations(function: Callable[..., int], folder: Path, *arguments: Any) -> int:
    """Runs a function as ``run`` does and returns how many operations on files it makes."""
    ended = run(_counted, folder, function, *arguments)
    assert ended.status == 0, ended.output
    return int(ended.output.rpartition("operations: ")[2])


def _counted(function: Callable[..., int], *arguments: Any) -> int:
    seen = _watch_operations(lambda count: None)
    status = function(*arguments)
    print("\noperations:", seen[0], flush=True)
    return status


def _run(writer: Any, folder: str, fault: Fault, function: Callable[..., int], arguments: tuple[Any, ...]) -> None:
    """The body of a process: its output goes to the pipe, and it ends at once when the function does."""
    for stream in (1, 2):
        os.dup2(writer.fileno(), stream)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", buffering=1, closefd=False)
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell turns it off in the background
    if fault.file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (fault.file_size, resource.RLIM_INFINITY))
    if fault.operation is not None:
        at = fault.operation
        _watch_operations(lambda count: os.kill(os.getpid(), signal.SIGKILL) if count == at else None)
    os.write(1, STARTED)
    try:
        status = function(*arguments)
    except BaseException:
        import traceback

        traceback.print_exc()
        status = 70
    sys.stdout.flush()
    os._exit(status)


_OPERATIONS = frozenset({"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link"})


def _watch_operations(watch: Callable[[int], None]) -> list[int]:
    """Calls ``watch`` with the number of each operation below the current folder, before it takes place."""
    here, seen = os.getcwd(), [0]

    def count() -> None:
        seen[0] += 1
        watch(seen[0])

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _OPERATIONS and isinstance(arguments[0], (str, bytes, os.PathLike)):
            path = os.path.abspath(os.fsdecode(arguments[0]))
            if path == here or path.startswith(here + os.sep):
                count()

    fsync = os.fsync

    def counted_fsync(handle: Any) -> None:
        count()
        fsync(handle)

    os.fsync = counted_fsync  # type: ignore[assignment]
    sys.addaudithook(hook)
    return seen
