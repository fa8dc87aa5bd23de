"""The command line in tests."""

import os
import traceback

from scoresde.cli.parser import main

SMALL = [
    "--config.model.network=mlp(width=32, depth=1)", "--config.training.checkpoint_every=20",
    "--config.training.evaluate_every=0",
]  # fmt: skip


def fails(capsys, arguments, *words):
    """The command ends with status 2 and one line that holds the words."""
    capsys.readouterr()
    assert main([str(a) for a in arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1, lines
    assert [word for word in words if word not in errors[0]] == [], errors[0]


def contents(folder):
    """All files in a folder, without the lock."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def forked(function):
    """Runs a function in a process of its own, whose exit status it returns; much faster than to start Python."""
    number = os.fork()
    if number == 0:
        status = 1
        try:
            status = function()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return number
