"""The command line: the parser of its arguments and its commands."""

# nothing is imported here: with python -m, __main__ first takes the current folder from the path


def main(arguments: "list[str] | None" = None) -> int:
    """Runs a command, see ``scoresde.cli.start``; returns the exit status."""
    from .start import main as run

    return run(arguments)


__all__ = ["main"]
