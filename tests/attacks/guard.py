"""A process that opens hostile files, and sees whether code ran, files changed, or time and memory were wasted.

It is forked, limited in memory, and watched from outside: a case that does not return is stopped with the process.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing.process
import os
import resource
import shutil
import stat
import sys
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attacks.decoys import DECOYS
from attacks.entrances import ENTRANCES, MARKER, Entrance, Refused
from attacks.processes import CONTEXT, serve

SECONDS = 1.0  # of CPU, for one case
HANGS = 20.0  # seconds of wall time after which a process that waits is stopped
MEMORY = 2**30  # bytes that a case may allocate; the files have a few thousand
CASES = 300  # of one process, so that cases do not depend on many others
MODULES = frozenset({"evil", "antigravity", "this"})  # that no library imports
CALLS = ("os.system", "subprocess.", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "pty.", "socket.connect",
         "pickle.find_class", "webbrowser.", "urllib.")  # fmt: skip
CHANGES = ("shutil.rmtree", "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.chmod", "os.chown", "os.truncate",
           "os.symlink", "os.link")  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A hostile input: the content of one file, or a text.

    Attributes:
        entrance: the name of the entrance.
        file: the file that is replaced, or "" for a text.
        content: bytes, or the text, or a kind of file: "pipe", "device", "folder", "loop", "missing", "huge".
        sealed: write the digests of the checkpoint again.
    """

    entrance: str
    file: str
    content: bytes | str
    sealed: bool = False

    def __str__(self) -> str:
        shown = self.content if len(self.content) < 300 else f"{self.content[:200]!r}... ({len(self.content)})"
        return f"{self.entrance}, {self.file or 'text'}{' (sealed)' * self.sealed}: {shown!r}"


class Guard:
    """Opens cases in a process of its own, which is replaced after some hundred cases or if one does not return."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.left = folder, 0
        self.process: multiprocessing.process.BaseProcess | None = None
        serve()

    def open(self, case: Case) -> tuple[str, str]:
        """The end of a case: "refused" or "value" or "fault", and the message."""
        if self.process is None or self.left == 0:
            self.close()
            self.link, theirs = CONTEXT.Pipe()
            process = CONTEXT.Process(target=_serve, args=(theirs, str(self.folder)), daemon=True)
            process.start()
            theirs.close()
            self.process, self.left = process, CASES
        self.left -= 1
        try:
            self.link.send(case)
            if self.link.poll(HANGS):
                verdict: tuple[str, str] = self.link.recv()
                return verdict
            what = f"does not return within {HANGS:g} s"
        except (EOFError, OSError):
            if self.process is not None:
                self.process.join()
            what = "the process died"
        self.close()
        return "fault", what

    def close(self) -> None:
        """Stops the process."""
        if self.process is not None:
            self.link.close()
            self.process.kill()
            self.process.join()
            self.process.close()
            self.process = None


def _serve(link: Any, folder: str) -> None:
    """The body of the process: a private copy of the folder, and one verdict for each case."""
    home = Path(folder).with_name(f"{Path(folder).name}_{os.getpid()}")
    shutil.copytree(folder, home)
    marker = Path(folder) / MARKER
    os.chdir(home)
    sys.path.append(str(home / "path"))
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    room = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + MEMORY
    watch, references = _Watch(home), dict[str, Any]()
    known = {entrance.name: entrance for entrance in (*ENTRANCES, *DECOYS)}
    try:
        while True:
            case = link.recv()
            entrance = known[case.entrance]
            if entrance.name not in references:  # imports what it needs, and says what a valid file contains
                resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
                try:
                    references[entrance.name] = entrance.read() if entrance.files else None
                except Exception as error:
                    link.send(("fault", f"the valid file: {error!r}"))
                    continue
                _clean(home)
                room = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + MEMORY
            resource.setrlimit(resource.RLIMIT_AS, (room, resource.RLIM_INFINITY))
            link.send(_open(case, entrance, home, watch, references[entrance.name], marker))
    except EOFError:
        shutil.rmtree(home, ignore_errors=True)
        os._exit(0)


def _open(
    case: Case, entrance: Entrance, home: Path, watch: _Watch, reference: object, marker: Path
) -> tuple[str, str]:
    kept = _place(case, home)
    before = _state(home, entrance)
    watch.seen.clear()
    watch.on = True
    began, end, detail, value = time.process_time(), "value", "", None
    try:
        value = entrance.read() if entrance.files else entrance.read(case.content)
    except BaseException as error:
        end, detail = _judged(error)
    watch.on = False
    seconds = time.process_time() - began
    if end == "value" and entrance.protected and value != reference:
        end, detail = "fault", "something else was read than was written"
    if seconds > SECONDS:
        end, detail = "fault", f"takes {seconds:.1f} s of CPU, {end}: {detail[:300]}"
    if watch.seen:
        end, detail = "fault", f"{watch.seen[:3]}, {end}: {detail[:300]}"
    if marker.exists():
        marker.unlink()
        end, detail = "fault", "evil.py was imported"
    if changed := {name for name, mark in before.items() if _state(home, entrance).get(name) != mark}:
        end, detail = "fault", f"changed {sorted(changed)[:3]}, {end}: {detail[:300]}"
    for name in [name for name in sys.modules if MODULES & set(name.split("."))]:
        del sys.modules[name]  # so that the next import is seen as well
    _restore(case, home, kept)
    _clean(home)
    return end, detail


def _judged(error: BaseException) -> tuple[str, str]:
    from solvers import InputError

    text = str(error)
    if isinstance(error, (InputError, Refused)):
        if len(text) > 3000:
            return "fault", f"the message has {len(text)} characters: {text[:200]}"
        return "refused", text
    last = traceback.extract_tb(error.__traceback__)[-3:]
    places = ", ".join(f"{Path(part.filename).name}:{part.lineno} {part.name}" for part in last)
    return "fault", f"{type(error).__name__}: {text[:300]} ({places})"


def _place(case: Case, home: Path) -> dict[Path, bytes]:
    """Puts the case's file in place; returns the valid files that it replaces."""
    if not case.file:
        return {}
    path = home / case.file
    state = path.with_name("state.json")
    kept = {file: file.read_bytes() for file in (path, state) if file.exists()}
    if isinstance(case.content, bytes):
        path.write_bytes(case.content)
        if case.sealed:
            _seal(path, state)
        return kept
    path.unlink()
    if case.content == "pipe":
        os.mkfifo(path)
    elif case.content == "folder":
        path.mkdir()
    elif case.content in ("device", "loop"):
        path.symlink_to("/dev/zero" if case.content == "device" else path)
    elif case.content == "huge":
        with path.open("wb") as file:
            file.truncate(2**41)  # no block of it is on the disk
    return kept


def _seal(path: Path, state: Path) -> None:
    """Writes the digests of a checkpoint again."""
    try:
        document = json.loads(state.read_bytes())
        if path != state:
            data = path.read_bytes()
            document["files"][path.name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        document.pop("sha256", None)
        text = json.dumps(document, sort_keys=True, separators=(",", ":"))
        document["sha256"] = hashlib.sha256(text.encode()).hexdigest()
        state.write_text(json.dumps(document))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return  # it is no such document any more


def _restore(case: Case, home: Path, kept: dict[Path, bytes]) -> None:
    if case.file:
        path = home / case.file
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        elif path.is_symlink() or path.exists():
            path.unlink()
    for path, content in kept.items():
        path.write_bytes(content)


def _clean(home: Path) -> None:
    """Removes what an entrance wrote."""
    for path in (home / "out", *home.glob("run/.*"), *home.glob("*.png")):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _state(home: Path, entrance: Entrance) -> dict[str, str]:
    """What must not change: the kind and the content of files."""
    found = {}
    for path in sorted(p for place in entrance.keeps for p in (home / place).rglob("*")):
        name = str(path.relative_to(home))
        if path.is_symlink() or name.startswith(("out", "run/.")) or name.endswith(".lock") or path.is_dir():
            continue
        mode = path.stat().st_mode
        large = path.stat().st_size > 2**26
        whole = stat.S_ISREG(mode) and not large
        found[name] = hashlib.sha256(path.read_bytes()).hexdigest() if whole else str(mode)
    return found


@dataclass
class _Watch:
    """Watches what Python does while a case is open: imports, calls of other programs, changes outside the folder."""

    home: Path
    on: bool = False
    seen: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.root = str(self.home)
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "import" and str(arguments[0]).partition(".")[0] in MODULES:
            self.seen.append(f"import {arguments[0]}")
        elif event == "exec" and getattr(arguments[0], "co_filename", "").startswith(self.root):
            self.seen.append(f"exec {arguments[0]}")
        elif event.startswith(CALLS) or (event in CHANGES and self._outside(arguments[0])):
            self.seen.append(f"{event} {arguments[:2]}")
        elif event == "open" and self._writes(arguments) and self._outside(arguments[0]):
            self.seen.append(f"open for writing {arguments[:2]}")

    @staticmethod
    def _writes(arguments: tuple[Any, ...]) -> bool:
        flags = arguments[2] if isinstance(arguments[2], int) else 0
        return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))

    def _outside(self, path: Any) -> bool:
        if isinstance(path, int):
            return False
        full = os.path.abspath(os.fsdecode(path))
        return not (full == self.root or full.startswith(self.root + os.sep) or full == os.devnull)
