"""Entrances and a command with a known fault each: an attack that does not find it would find nothing."""

from __future__ import annotations

import time
from importlib import import_module
from pathlib import Path

from attacks.entrances import Entrance
from attacks.long_commands import Command


def _imports(text: str) -> object:
    return import_module("evil")


def _evaluates(text: str) -> object:
    return eval("__import__('evil')")


def _calls(text: str) -> object:
    import subprocess

    return subprocess.run(["true"])


def _unpickles(text: str) -> object:
    import pickle

    return pickle.loads(b"cposix\nsystem\n.")


def _writes_elsewhere(text: str) -> object:
    return Path("../elsewhere").write_text(text)


def _changes_a_file(text: str) -> object:
    return Path("tuned.json").write_text(text)


def _takes_long(text: str) -> object:
    began = time.process_time()
    while time.process_time() < began + 1.2:
        pass
    return None


def _believes_a_claim(text: str) -> object:
    return len(bytearray(2**32))


def _shows_a_traceback(text: str) -> object:
    raise KeyError(text)


def _repeats_it(text: str) -> object:
    from solvers import InputError

    error = InputError("x")
    error.args = ("x" * 5000,)
    raise error


DECOYS = tuple(
    Entrance(function.__name__, (), function)
    for function in (
        _imports, _evaluates, _calls, _unpickles, _writes_elsewhere, _changes_a_file, _takes_long, _believes_a_claim,
        _shows_a_traceback, _repeats_it,
    )
)  # fmt: skip


def careless(number: int) -> int:
    """Writes two files one after the other, the record last, and does not remove the record of before."""
    Path("both").mkdir(exist_ok=True)
    for name in ("values.txt", "record.txt"):
        Path("both", name).write_text(str(number))
        time.sleep(0.1)
    return 0


CARELESS = Command("careless", careless, (1,), (0,), ("both",), "both/record.txt")
