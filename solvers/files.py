"""Files: read as data, within limits, and written whole.

A file may come from anybody. A reader therefore opens only regular files (a pipe or a device would wait for ever),
reads at most so many bytes, and reports everything that is wrong with one line. A writer never leaves an incomplete
file: it writes a temporary file in the same folder, flushes it to the disk and renames it.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import stat
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from .errors import InputError

LARGEST_TEXT = 16 * 2**20  # bytes of JSON; the program of a thousand steps of the largest solver has a fiftieth of it


@contextlib.contextmanager
def open_regular(path: str | Path, what: str = "file", limit: int | None = None) -> Iterator[tuple[BinaryIO, int]]:
    """Opens a regular file for reading; gives it and its size in bytes.

    Args:
        what: the kind of file, for messages: "program", "grid", ...
        limit: the most bytes that such a file has; None for no limit.

    Raises:
        InputError: there is no such file, it cannot be read, it is a folder, pipe or device, or it is too large.
    """
    try:
        possible = b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:  # half of a character
        possible = False
    if not possible:
        raise InputError(f"cannot read the {what} {str(path)!r}: this is not the name of a file")
    try:
        # without O_NONBLOCK, opening a pipe waits for somebody who writes into it
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(handle, "rb") as file:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode):
                raise InputError(f"cannot read the {what} {str(path)!r}: it is a pipe or a device, not a file")
            if limit is not None and found.st_size > limit:
                size = f"{found.st_size:,} bytes, and a {what} has at most {limit:,}"
                raise InputError(f"cannot read the {what} {str(path)!r}: it has {size}")
            yield file, found.st_size
    except OSError as error:
        raise InputError(f"cannot read the {what} {str(path)!r}: {error.strerror or error}") from None


def read_bytes(path: str | Path, what: str = "file", limit: int | None = None) -> bytes:
    """The content of a regular file.

    Args:
        what, limit: see ``open_regular``.

    Raises:
        InputError: see ``open_regular``; or the file grows while it is read, or exceeds the memory.
    """
    with open_regular(path, what, limit) as (file, size):
        try:
            content = file.read(size + 1)  # no more: some files of the system report no size and do not end
        except (MemoryError, OverflowError):
            raise InputError(f"cannot read the {what} {str(path)!r}: {size:,} bytes exceed the memory") from None
    if len(content) > size:
        raise InputError(f"cannot read the {what} {str(path)!r}: it has more bytes than it reports")
    return content


def read_text(path: str | Path, what: str = "file", limit: int | None = LARGEST_TEXT) -> str:
    """The text of a regular file in UTF-8.

    Raises:
        InputError: see ``read_bytes``; or it is not text.
    """
    content = read_bytes(path, what, limit)
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise InputError(f"cannot read the {what} {str(path)!r}: it is not text") from None


def read_json(path: str | Path, what: str = "file", limit: int = LARGEST_TEXT) -> Any:
    """The JSON document of a regular file.

    Raises:
        InputError: see ``read_bytes``; or it is not JSON, is nested too deeply, or an object contains a name twice.
    """
    try:
        return parse_json(read_text(path, what, limit))
    except InputError as error:
        if str(error).startswith("cannot read"):
            raise
        raise InputError(f"{str(path)!r} is not a {what}: {error}") from None


def read_document(path: str | Path, what: str, form: str, version: int) -> dict[str, Any]:
    """The JSON object of a file that names its ``format`` and ``version``.

    Raises:
        InputError: see ``read_json``; or it names another format or version.
    """
    document = read_json(path, what)
    if not isinstance(document, dict) or document.get("format") != form:
        raise InputError(f'{str(path)!r} is not a {what}: it does not contain "format": "{form}"')
    if (found := document.get("version")) != version:
        raise InputError(f"{str(path)!r} is a {what} of version {found!r}; this library reads version {version}")
    return document


def write_document(path: str | Path, what: str, text: str) -> None:
    """Writes a file whole.

    Raises:
        InputError: it cannot be written.
    """
    try:
        write_atomically(path, text)
    except OSError as error:
        raise InputError(f"cannot write the {what} {str(path)!r}: {error.strerror}") from None


def parse_json(text: str) -> Any:
    """The JSON document of a text; a name that occurs twice in an object is an error, because readers disagree on it.

    Raises:
        InputError: the text is not JSON, is nested too deeply, or an object contains a name twice.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(made := dict(pairs)) < len(pairs):
            raise InputError("a name occurs twice in one object")
        return made

    try:
        return json.loads(text, object_pairs_hook=once)
    except InputError:
        raise
    except RecursionError:
        raise InputError("it is nested too deeply") from None
    except ValueError as error:  # also an integer of more than 4300 digits
        raise InputError(f"it is not JSON: {error}") from None


def finite(value: Any) -> Any:
    """A value as JSON can represent it: mappings and sequences of the same, in which numbers that are not finite are
    None."""
    if isinstance(value, Mapping):
        return {str(key): finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple, range)):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_atomically(path: str | Path, content: str | bytes) -> None:
    """Writes a file that is complete or absent, also after a power failure.

    A file of that name stays as it was until the new one is complete on the disk.

    Raises:
        InputError: the name is that of a pipe or a device, which a rename would remove, or is no name.
        OSError: the file cannot be written; the temporary file is removed.
    """
    path = Path(path)
    if "\0" in str(path):
        raise InputError(f"cannot write {str(path)!r}: this is not the name of a file")
    with contextlib.suppress(FileNotFoundError):
        kind = path.stat().st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
            raise InputError(f"cannot write {str(path)!r}: it is a pipe or a device, not a file")
    # of the process and the thread, so that two writers of one name do not meet; the last one that renames counts.
    # The name is cut, because with the rest it might be longer than names can be.
    temporary = path.with_name(f".{path.name[:40]}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with temporary.open("wb") as file:
            # a name that is not text (of a folder, in a page) is written with escapes
            file.write(content.encode(errors="backslashreplace") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    flush_folder(path.parent)


def remove_unfinished(path: str | Path) -> None:
    """Removes the temporary files of processes that were killed while they wrote this file.

    The caller makes sure that no process writes it now.
    """
    path = Path(path)
    pattern = re.compile(rf"\.{re.escape(path.name)}\.[0-9]+\.[0-9]+\.tmp")
    for found in path.parent.glob(".*.tmp"):
        if pattern.fullmatch(found.name):
            found.unlink(missing_ok=True)


def flush_folder(folder: Path) -> None:
    """Flushes the names in a folder to the disk, on systems that can open folders."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
