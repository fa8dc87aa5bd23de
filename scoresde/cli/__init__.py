"""The command line: the parser of its arguments and its commands."""

__all__ = []
