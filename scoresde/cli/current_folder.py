"""The current folder is data: it may have come from somebody else, and nothing in it runs unless it was named."""

from __future__ import annotations

import contextlib
import os
from argparse import Namespace
from collections.abc import Iterator, Sequence
from importlib import resources

from solvers.libraries import library
from solvers.registry.outside import Origin, modules_in
from solvers.registry.registry import outside_names

_SPECS = ("solver", "solvers", "grid", "grids", "name", "sde", "features", "target")  # the arguments that are specs


@contextlib.contextmanager
def named_modules() -> Iterator[None]:
    """A block in which ``mymodule:Mine`` is found in the current folder, after every other place."""
    try:
        folder = os.getcwd()
    except FileNotFoundError:  # it was deleted
        yield
        return
    with modules_in(folder):
        yield


def origin_of(parsed: Namespace, overrides: Sequence[str]) -> Origin:
    """The limits of a command: classes that its arguments name, which are typed, and others only with ``--trust``."""
    given = [vars(parsed).get(name) or [] for name in _SPECS]
    texts = [text for value in given for text in ([value] if isinstance(value, str) else value)]
    # the data's fields are names of files, which somebody else may have chosen
    texts += [text.partition("=")[2] for text in overrides if not text.startswith("--config.data.")]
    typed = frozenset(name for text in texts for name in outside_names(text))
    return Origin("a file", typed, vars(parsed).get("trust", False))


def import_drawing() -> None:
    """Imports matplotlib without the file ``matplotlibrc`` of the current folder, parts of which some versions run."""
    try:
        here = os.getcwd()
    except FileNotFoundError:  # it was deleted, and contains no file
        return
    with resources.as_file(resources.files("scoresde")) as elsewhere:
        os.chdir(elsewhere)
        try:
            library("matplotlib")
        finally:
            os.chdir(here)
