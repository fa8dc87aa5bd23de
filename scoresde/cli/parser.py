"""The command line: scoresde demo | train | sample | likelihood | benchmark | solvers | check-solver.

Every command that takes a config also takes ``--config.section.field=value``. Invalid input ends with a message of one
line and exit status 2, Ctrl-C and SIGTERM with exit status 130.
"""

from __future__ import annotations

import contextlib
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

from .arguments import Usage, read

INVALID, STOPPED, UNREAD = 2, 130, 141  # the exit statuses of invalid input, Ctrl-C and SIGTERM, and a closed pipe


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with _terminable():
            parsed, overrides = read(argv)
            return _run(parsed, overrides, shlex.join(["scoresde", *argv]))
    except Usage as error:
        return _invalid(error)
    except KeyboardInterrupt as stop:
        print(f"stopped{': ' + str(stop) if str(stop) else ''}", file=sys.stderr)
        return STOPPED


def _run(parsed: Namespace, overrides: list[str], command: str) -> int:
    from solvers import InputError  # here, so that the help and errors in the arguments need not wait for torch

    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # so that mymodule:Mine is found in the current folder, as with python -m
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    of_solvers = parsed.command in ("solvers", "check-solver")
    module = import_module(f"{__package__}.{'solver_commands' if of_solvers else 'commands'}")
    try:
        status = int(module.COMMANDS[parsed.command](parsed, overrides, command) or 0)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader of the output, such as head, has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more at its end
        return UNREAD
    except (InputError, OSError) as error:
        return _invalid(error)


def _invalid(error: Exception) -> int:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return INVALID


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
