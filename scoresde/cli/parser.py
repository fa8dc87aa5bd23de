"""The command line: scoresde demo | train | sample | restore | likelihood | benchmark | rerun | compare | choose |
tune | import-solver | solvers | guidances | posteriors | operators | check-solver | check-posterior.

Every command that takes a config also takes ``--config.section.field=value``. Invalid input ends with a message of one
line and exit status 2, Ctrl-C and SIGTERM with exit status 130.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shlex
import signal
import sys
import threading
import warnings
from argparse import Namespace
from collections.abc import Iterator, Sequence
from importlib import import_module

from ..io.interrupts import uninterrupted
from .arguments import Usage, read

LONGEST = 2000  # characters of a message
INVALID, STOPPED, UNREAD = 2, 130, 141  # the exit statuses of invalid input, Ctrl-C and SIGTERM, and a closed pipe


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    _open_streams()
    try:
        with _terminable(), _printable():
            try:
                parsed, overrides = read(argv)
                return _run(parsed, overrides, shlex.join(["scoresde", *argv]))
            finally:
                if sys.stdout:  # None if it is closed
                    sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output, such as head, has what it wanted
        return _unwritten(UNREAD)
    except OSError as error:  # of the output: where it goes is full
        return _unwritten(_invalid(error))
    except Usage as error:
        return _invalid(error)
    except KeyboardInterrupt as stop:
        _tell(f"stopped{': ' + str(stop) if str(stop) else ''}")
        return STOPPED
    except Exception as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        _tell("stopped")  # a package failed while it closed what Ctrl-C had interrupted
        return STOPPED


def _run(parsed: Namespace, overrides: list[str], command: str) -> int:
    try:
        os.getcwd()
    except FileNotFoundError:  # some builds of torch end the process there
        raise Usage("the current folder has been deleted: change to another one") from None
    with uninterrupted():  # torch is imported, which takes a second; in the middle, packages turn it into other errors
        from solvers import InputError

        from .current_folder import named_modules, origin_of

        alone = parsed.command in (
            "solvers",
            "guidances",
            "posteriors",
            "operators",
            "import-solver",
            "check-solver",
            "check-posterior",
        )
        room = "solver_commands" if alone else "tuning" if parsed.command in ("choose", "tune") else "commands"
        module = import_module(f"{__package__}.{room}")
    try:
        with _plain_lines(), named_modules(), origin_of(parsed, overrides).limits():
            return int(module.COMMANDS[parsed.command](parsed, overrides, command) or 0)
    except BrokenPipeError:
        raise
    except (InputError, OSError, MemoryError) as error:
        return _invalid(error)


def _invalid(error: Exception) -> int:
    _tell(f"error: {str(error) or type(error).__name__}")
    return INVALID


def _tell(message: str) -> None:
    """Prints a message on stderr as one line without control characters; if it is too long, without its middle."""
    line = " ".join(message.split())
    if len(line) > LONGEST:
        line = f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"
    line = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in line)
    with contextlib.suppress(OSError):  # nobody reads it
        if sys.stderr:  # else print would write it to stdout
            print(line, file=sys.stderr)


def _unwritten(status: int) -> int:
    """Returns the status; what the output still contains is not written, because the interpreter would try again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status


def _open_streams() -> None:
    """Opens the null device where stdin, stdout or stderr is closed; else a file of results would get its number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


@contextlib.contextmanager
def _printable() -> Iterator[None]:
    """What the terminal's encoding does not contain, and names of files that are not text, are printed as escapes."""
    streams = [s for s in (sys.stdout, sys.stderr) if isinstance(s, io.TextIOWrapper)]
    before = [stream.errors for stream in streams]
    for stream in streams:
        stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        for stream, errors in zip(streams, before, strict=True):
            with contextlib.suppress(OSError):  # it flushes
                stream.reconfigure(errors=errors)


@contextlib.contextmanager
def _plain_lines() -> Iterator[None]:
    """A block in which warnings and the log are single lines on the standard error."""
    root, form = logging.getLogger(), warnings.formatwarning
    level, handler = root.level, None if root.handlers else logging.StreamHandler(sys.stderr)
    if handler is not None:
        root.addHandler(handler)
        root.setLevel(logging.INFO)
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = form
        if handler is not None:
            root.removeHandler(handler)
            root.setLevel(level)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM, with which schedulers and containers stop a process, does the same as Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
