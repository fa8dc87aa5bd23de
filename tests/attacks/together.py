"""Many processes in one folder at once: nothing is lost, and what is there at the end is one process's whole result."""

from __future__ import annotations

from pathlib import Path

from attacks.kills import Measured
from attacks.long_commands import content, copy, differences
from attacks.processes import Running
from attacks.tally import Tally

SIZES = (2, 4, 7)  # how many processes at once


def processes(known: Measured, scratch: Path, sizes: tuple[int, ...]) -> Tally:
    """Starts several processes of a command in one folder, as many as ``sizes`` say, one number after the other.

    Those of a command whose result is replaced by a later one have two different sets of arguments by turns.
    """
    command = known.command
    tally = Tally(f"many processes, {command.name}")
    wholes = [known.after, *([known.before] if command.before else [])]
    for count in sizes:
        folder = copy(known.base, scratch)
        calls = [command.arguments if k % 2 == 0 or command.before is None else command.before for k in range(count)]
        _start(known, folder, calls, tally)
        here = content(folder)
        if all(differences(whole, here, command.parts) for whole in wholes):
            tally.failures.append(f"{count} processes: these differ: {differences(known.after, here)}")
    return tally.done()


def shards(known: Measured, scratch: Path, sizes: tuple[int, ...]) -> Tally:
    """Starts processes of ``likelihood`` that share its shards: one of them joins these to the result of one process.

    The record and the page contain the command, which names the share; all else is equal.
    """
    tally = Tally(f"many processes, {known.command.name} --shards")
    for count in sizes:
        folder = copy(known.base, scratch)
        _start(known, folder, [(*known.command.arguments, f"--shards={k + 1}/{count}") for k in range(count)], tally)
        here = content(folder)
        differing = differences(known.after, here, r"scores/likelihood\.(json|html)")
        if differing or not {"scores/likelihood.json", "scores/likelihood.html"} <= here.keys():
            tally.failures.append(f"{count} processes: these differ: {differing or 'the record'}")
    return tally.done()


def _start(known: Measured, folder: Path, calls: list[tuple[object, ...]], tally: Tally) -> None:
    running = [Running(known.command.function, folder, *call) for call in calls]
    ends = [process.wait() for process in running]
    tally.tried += len(ends)
    for ended in ends:
        tally.ends["ended" if ended.status == 0 else "refused in one line" if ended.one_error else "other"] += 1
        if ended.status and not ended.one_error:
            tally.failures.append(f"{len(ends)} processes: exit status {ended.status}: {ended.output[-500:]}")
    if all(ended.status for ended in ends):
        tally.failures.append(f"{len(ends)} processes: none ended: {ends[0].output[-300:]}")
