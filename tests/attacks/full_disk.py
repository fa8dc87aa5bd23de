"""A disk that is full: one line, exit status 2, nothing lost, and with space the same command ends equal.

Two kinds: a limit on the size of a file, which works everywhere, and a small file system in memory, which needs the
right to mount one.
"""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from attacks.kills import Measured, wrong_files
from attacks.long_commands import content, copy, differences, work
from attacks.processes import Fault, run
from attacks.tally import Tally

_SPACE = 64 * 2**20  # bytes: enough for every command here
_PAGE = 4096


def file_limits(known: Measured, scratch: Path, count: int, seed: int) -> Tally:
    """Runs a command ``count`` times while no file may grow beyond a random size; the largest size fits every file."""
    rng, command = random.Random(f"{seed} {known.command.name} limits"), known.command
    tally = Tally(f"file size limit, {command.name}")
    copy(known.base, scratch)
    run(command.function, scratch, *command.arguments)
    largest = max(path.stat().st_size for path in scratch.rglob("*") if path.is_file())
    for _ in range(count):
        folder, limit = copy(known.base, scratch), int(largest ** rng.uniform(0.2, 1.05))
        _half_done(known, folder, rng)
        _try(known, folder, tally, f"limit {limit}", Fault(file_size=limit))
    return tally.done()


def small_disks(known: Measured, mount: Path, count: int, seed: int) -> Tally:
    """Runs a command ``count`` times on a file system with a random amount of space left.

    Raises:
        PermissionError: this process may not mount one.
    """
    rng, command = random.Random(f"{seed} {known.command.name} disks"), known.command
    tally = Tally(f"full disk, {command.name}")
    for _ in range(count):
        with _disk(mount):
            run(command.function, copy(known.base, mount / "try"), *command.arguments)
            need = _used(mount)
            folder = copy(known.base, mount / "try")
            _half_done(known, folder, rng)
            there = _used(mount)
            size = there + _PAGE * rng.randint(0, max(1, int(1.2 * (need - there)) // _PAGE))
            _resize(mount, size)
            _try(known, folder, tally, f"{size - there} bytes left", Fault(), mount)
    return tally.done()


def _half_done(known: Measured, folder: Path, rng: random.Random) -> None:
    """Does a part of the work, so that there is something to lose."""
    if known.command.resumes:
        fault = Fault(seconds=rng.uniform(0, known.seconds), signal=signal.SIGKILL)
        run(known.command.function, folder, *known.command.arguments, fault=fault)


def _try(known: Measured, folder: Path, tally: Tally, label: str, fault: Fault, mount: Path | None = None) -> None:
    command, done = known.command, work(folder)
    ended = run(command.function, folder, *command.arguments, fault=fault)
    tally.tried += 1
    tally.ends["it fitted" if ended.status == 0 else "one line" if ended.one_error else "other"] += 1
    wrong = ""
    if ended.status and not ended.one_error and command.name != "tune":  # which is no command: Python shows the error
        wrong = f"exit status {ended.status}: {ended.output[-500:]}"
    elif ended.status and (wrong := wrong_files(known, folder, done)):
        wrong = f"after {ended.output[-200:]!r}: {wrong}"
    if mount is not None:
        _resize(mount, _SPACE)
    again = run(command.function, folder, *command.arguments)
    if not wrong and again.status:
        wrong = f"with space, exit status {again.status}: {again.output[-500:]}"
    if not wrong and (differing := differences(known.after, content(folder))):
        wrong = f"with space, these differ: {differing}"
    if wrong:
        tally.failures.append(f"{label}: {wrong}")


@contextlib.contextmanager
def _disk(mount: Path) -> Iterator[None]:
    mount.mkdir(parents=True, exist_ok=True)
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={_SPACE}", "none", str(mount)], capture_output=True, text=True
    )
    if made.returncode:
        raise PermissionError(f"no file system can be mounted: {made.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def _resize(mount: Path, size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={max(_PAGE, size)}", str(mount)], check=True)


def _used(mount: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in mount.rglob("*") if path.is_file())
