"""The start of the command line: Ctrl-C is reported from the first import on."""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status."""
    try:
        from .parser import main as run

        return run(arguments)
    except KeyboardInterrupt:
        return 130
