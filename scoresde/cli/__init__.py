"""The command line: the parser of its arguments and its commands."""

from .start import main

__all__ = ["main"]
