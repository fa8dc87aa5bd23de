"""All kinds of attacks with their full counts, by part; a fraction of them is a sample of each."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from attacks import entrances, full_disk, hostile, kills, long_commands, together
from attacks.tally import Tally

KILLS, STOPS, DISKS, ROUNDS, INPUTS = 100, 25, 25, 3, 10_000
PARTS = ("kills", "signals", "disks", "together", "inputs")


@dataclass(frozen=True)
class Attack:
    """An attack: its part, what is attacked, how many are tried, and the call."""

    part: str
    name: str
    count: int
    start: Callable[[], Tally]


class Scratch:
    """A folder with what is attacked, made when it is first needed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.known = cache(self._known)
        self.base = cache(lambda: long_commands.prepared(folder / "commands"))
        self.files = partial(entrances.prepared, folder / "files")

    def _known(self, name: str) -> kills.Measured:
        command = next(command for command in long_commands.COMMANDS if command.name == name)
        return kills.measured(command, self.base(), self.folder / "measured")


def attacks(scratch: Scratch, fraction: float = 1.0, seed: int = 0) -> Iterator[Attack]:
    """All attacks, each with so much of its count, at least one."""
    sizes = together.SIZES if fraction >= 0.05 else together.SIZES[:1]
    place, mount = scratch.folder / "attacked", scratch.folder / "mounted"

    def some(count: int) -> int:
        return max(1, round(count * fraction))

    def start(attack: Callable[..., Tally], command: str, *arguments: object) -> Callable[[], Tally]:
        return lambda: attack(scratch.known(command), *arguments)

    for command in long_commands.COMMANDS:
        name = command.name
        yield Attack("kills", name, some(KILLS), start(kills.kills, name, place, some(KILLS), seed))
        if command.function is long_commands.command_line:
            for number in (signal.SIGTERM, signal.SIGINT):
                call = start(kills.kills, name, place, some(STOPS), seed, number)
                yield Attack("signals", f"{name}, {number.name}", some(STOPS), call)
        limits = start(full_disk.file_limits, name, place, some(DISKS), seed)
        yield Attack("disks", f"{name}, file size", some(DISKS), limits)
        disks = start(full_disk.small_disks, name, mount, some(DISKS), seed)
        yield Attack("disks", f"{name}, file system", some(DISKS), disks)
        together_ = start(together.processes, name, place, sizes * some(ROUNDS))
        yield Attack("together", name, sum(sizes) * some(ROUNDS), together_)
    shards = start(together.shards, "likelihood", place, sizes * some(ROUNDS))
    yield Attack("together", "likelihood --shards", sum(sizes) * some(ROUNDS), shards)
    for entrance in entrances.ENTRANCES:
        count = hostile.shares(round(INPUTS * fraction))[entrance.name]
        call = partial(lambda e, n: hostile.hostile(e, scratch.files(e), n, seed), entrance, count)
        yield Attack("inputs", entrance.name, count, call)
