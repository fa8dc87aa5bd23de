"""The command line: the parser of its arguments and its commands."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status."""
    try:
        from .parser import main as run  # here, so that Ctrl-C is reported from the first import on

        return run(arguments)
    except KeyboardInterrupt:
        return 130
