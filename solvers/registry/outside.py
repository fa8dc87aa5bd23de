"""Classes of other modules, which a spec names as ``module:Class``: to import one is to run the code of its module.

A spec that somebody typed, in Python or on the command line, may name any. A spec that stands in a file may name only
those that were typed as well, unless the file is trusted; who reads a file makes its objects inside of
``Origin.limits``.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from types import ModuleType

from ..errors import InputError


@dataclass(frozen=True)
class Origin:
    """Where specs come from, and which outside classes they may name.

    Attributes:
        name: the name of the file, for messages.
        typed: the names that were typed, such as "mine:Net".
        trusted: whether specs from here may name every class.
    """

    name: str
    typed: frozenset[str] = frozenset()
    trusted: bool = False

    @contextlib.contextmanager
    def limits(self) -> Iterator[None]:
        """A block in which specs come from here; what the block around it may name, it may name as well."""
        around = _ORIGIN.get() or Origin("")
        before = _ORIGIN.set(Origin(self.name, self.typed | around.typed, self.trusted or around.trusted))
        try:
            yield
        finally:
            _ORIGIN.reset(before)


_ORIGIN: ContextVar[Origin | None] = ContextVar("origin", default=None)
_FOLDER: ContextVar[str | None] = ContextVar("folder", default=None)


def refuse_untyped(name: str) -> None:
    """Rejects the name of a class that only a file contains.

    Raises:
        InputError: the specs come from a file that is not trusted, and nobody typed the name.
    """
    origin = _ORIGIN.get()
    if origin is not None and not origin.trusted and name not in origin.typed:
        raise InputError(
            f"{origin.name} names the class {name}, and importing it runs code: --trust (in Python trust=True) "
            "allows it"
        )


@contextlib.contextmanager
def modules_in(folder: str) -> Iterator[None]:
    """A block in which a module that a spec names may also lie in a folder, after every other place.

    The folder joins ``sys.path`` at its end with the first such module, and leaves it after the block.
    """
    if folder in sys.path:
        yield
        return
    before = _FOLDER.set(folder)
    try:
        yield
    finally:
        _FOLDER.reset(before)
        while folder in sys.path:
            sys.path.remove(folder)


def import_named(module: str) -> ModuleType:
    """Imports a module that a spec names."""
    if (folder := _FOLDER.get()) is not None and folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(module)


@contextlib.contextmanager
def installed_only() -> Iterator[None]:
    """A block in which the folder of ``modules_in`` is not searched: it may contain what looks like a plug-in."""
    folder = _FOLDER.get()
    if folder is None or folder not in sys.path:
        yield
        return
    sys.path.remove(folder)
    try:
        yield
    finally:
        sys.path.append(folder)
