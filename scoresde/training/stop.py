"""What ends a training early: Ctrl-C, SIGTERM and a time limit; each is answered after a complete update."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

INTERRUPT, TIME = 1, 2
"""The reasons of an early end."""
_ENDS = signal.SIG_DFL  # the process ends at once


@dataclass
class Stop:
    """Whether the training should end after the present update.

    Attributes:
        deadline: the moment of ``time.monotonic`` from which on it should; None for no limit.
        interrupted: Ctrl-C was pressed or SIGTERM arrived.
    """

    deadline: float | None = None
    interrupted: bool = field(default=False)

    @classmethod
    def after(cls, minutes: float | None) -> Stop:
        """A stop that many minutes from now; None for no limit."""
        return cls(None if minutes is None else time.monotonic() + 60 * minutes)

    @property
    def reason(self) -> int:
        """``INTERRUPT``, ``TIME``, or 0 if the training should continue."""
        if self.interrupted:
            return INTERRUPT
        return TIME if self.deadline is not None and time.monotonic() >= self.deadline else 0

    @contextlib.contextmanager
    def listening(self, hold: bool) -> Iterator[None]:
        """A block in which the first Ctrl-C only sets ``interrupted``, so that the update is completed.

        The same for SIGTERM if it has the handler of Ctrl-C, as in the command line, or none, as in Python. Other
        handlers, which the caller installed, stay in place. A second signal of the same kind has its usual effect:
        launchers send SIGTERM to processes that Ctrl-C already reached.

        Args:
            hold: do this; otherwise a signal has its usual effect at once.
        """
        main = threading.current_thread() is threading.main_thread()
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        usual = {signal.SIGINT: (signal.default_int_handler,), signal.SIGTERM: (signal.default_int_handler, _ENDS)}
        ours = [number for number in before if hold and main and before[number] in usual[number]]

        def handle(number: int, frame: Any) -> None:
            self.interrupted = True
            signal.signal(number, before[signal.Signals(number)])

        for number in ours:
            signal.signal(number, handle)
        try:
            yield
        finally:
            for number in ours:
                signal.signal(number, before[number])
