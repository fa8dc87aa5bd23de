"""The command line: the parser of its arguments and its commands."""

from .parser import main

__all__ = ["main"]
