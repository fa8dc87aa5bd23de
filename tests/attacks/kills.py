"""Kills: a command is stopped at a random moment, started again until it ends, and compared with one that ran through.

A moment is either a time, uniform over what the command takes, or an operation on files, uniform over all it makes: the
second hits the moments between two files of one result, which are short.
"""

from __future__ import annotations

import random
import re
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attacks.long_commands import Command, content, copy, differences, work
from attacks.processes import Ended, Fault, count_operations, run
from attacks.tally import Tally

STOPPED = 130  # the exit status after Ctrl-C and SIGTERM
MOST_KILLS = 4  # of one trial; the next start is left alone


@dataclass(frozen=True)
class Measured:
    """A command that ran through: the files before it and after it, its time and its operations on files."""

    command: Command
    base: Path
    before: dict[str, Any]
    after: dict[str, Any]
    seconds: float
    operations: int


def measured(command: Command, base: Path, scratch: Path) -> Measured:
    """Runs a command through, twice; the results must not differ."""
    folder = copy(base, scratch)
    ended = run(command.function, folder, *command.arguments)
    assert ended.status == 0, ended.output
    after = content(folder)
    folder = copy(base, scratch)
    operations = count_operations(command.function, folder, *command.arguments)
    assert not (differing := differences(after, content(folder))), f"{command.name} is not reproducible: {differing}"
    return Measured(command, base, content(base), after, ended.seconds, operations)


def kills(known: Measured, scratch: Path, count: int, seed: int, number: int = signal.SIGKILL) -> Tally:
    """Stops a command ``count`` times at random moments, and resumes it each time until it ends.

    Args:
        number: the signal. SIGKILL comes at times and at operations by turns, SIGTERM and SIGINT at times.
    """
    rng, command = random.Random(f"{seed} {known.command.name} {number}"), known.command
    tally = Tally(f"{signal.Signals(number).name} of {command.name}")
    for _ in range(20 * count + 20):  # most signals arrive before the command ends
        if tally.tried >= count:
            break
        folder = copy(known.base, scratch)
        moments: list[str] = []
        for start in range(MOST_KILLS + 1):
            by_operation = number == signal.SIGKILL and tally.tried % 2 == 1
            fault = Fault() if start == MOST_KILLS or tally.tried >= count else _fault(known, rng, number, by_operation)
            done = work(folder)
            ended = run(command.function, folder, *command.arguments, fault=fault)
            if ended.status == 0:
                break
            tally.tried += 1
            moments.append(f"operation {fault.operation}" if fault.operation else f"{fault.seconds:.3f} s")
            if wrong := _wrong_stop(ended, number) or wrong_files(known, folder, done):
                tally.failures.append(f"{', '.join(moments)}: {wrong}")
                break
        else:
            tally.failures.append(f"{', '.join(moments)}: it does not end: {ended.output[-300:]}")
        if ended.status == 0:
            # a checkpoint more than every fourth is due to a signal that lets the update complete
            odd = "$^" if number == signal.SIGKILL else command.kept
            if wrong := differences(known.after, content(folder), odd):
                tally.failures.append(f"{', '.join(moments)}: at the end these differ: {wrong}")
            tally.ends[f"ended after {len(moments)} stops"] += 1
    return tally.done()


def _fault(known: Measured, rng: random.Random, number: int, by_operation: bool) -> Fault:
    if by_operation:
        return Fault(operation=rng.randint(1, known.operations))
    return Fault(seconds=rng.uniform(0, known.seconds), signal=number)


def _wrong_stop(ended: Ended, number: int) -> str:
    """What is wrong with the end of a process that was stopped; empty if nothing is."""
    if ended.status == -signal.SIGKILL and number == signal.SIGKILL:
        return ""
    if ended.status == STOPPED and number != signal.SIGKILL and "Traceback" not in ended.output:
        return ""
    if ended.status == -signal.SIGTERM and number == signal.SIGTERM and not ended.output:
        return ""  # it came before the command could take care of it, and ended the process
    return f"exit status {ended.status}: {ended.output[-500:]}"


def wrong_files(known: Measured, folder: Path, done: set[str]) -> str:
    """What is wrong with the files of a command that did not end; empty if nothing is.

    No work that was done before is lost, and every result is whole, that of before or the new one, or has no record.
    """
    here, command = content(folder), known.command
    if lost := done - work(folder):
        return f"work is lost: {', '.join(sorted(lost)[:3])}"
    results = [name for name in {**known.before, **known.after} if name.startswith(command.results)]
    others = [name for name in {**here, **known.before} if not name.startswith(command.results)]
    others = [name for name in others if not re.match(command.parts, name)]
    if changed := [name for name in others if here.get(name) != known.before.get(name)]:
        return f"these are no results of it and differ: {', '.join(changed)}"
    if command.resumes or (command.record is not None and command.record not in here):
        return ""
    found = {name: here[name] for name in results if name in here}
    for whole in (known.before, known.after):
        if found == {name: whole[name] for name in results if name in whole}:
            return ""
    return "the result is neither that of before nor the new one"
