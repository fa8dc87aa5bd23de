"""The modules that a callable uses: a network inside a lambda, a bound method, a partial or an object."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator
from itertools import islice
from typing import Any

from torch import nn

_DEPTH = 4  # a module in a list in an attribute of an object in a closure
_MOST = 64  # parts of a list or dictionary that are looked at: it may be data


def reachable_modules(part: Any) -> tuple[nn.Module, ...]:
    """The outermost modules that an object or a function holds, each once.

    It looks at what a function closes over and at the globals that it names, at the object of a bound method, at the
    parts of a ``functools.partial``, at an object's attributes, and into lists, tuples and dictionaries, and so on for
    what it finds, a few levels deep.

    >>> network = nn.Linear(2, 2)
    >>> reachable_modules(lambda x, label: network(x)) == (network,)
    True
    """
    return tuple(dict.fromkeys(_modules(part, _DEPTH)))


def _modules(part: Any, depth: int) -> Iterator[nn.Module]:
    if isinstance(part, nn.Module):
        yield part
    elif depth > 0:
        for inner in _parts(part):
            yield from _modules(inner, depth - 1)


def _parts(part: Any) -> Iterator[Any]:
    """The objects that a thing holds, as far as they can lead to a module."""
    if isinstance(part, types.MethodType):
        yield part.__self__
        yield from _parts(part.__func__)
    elif isinstance(part, types.FunctionType):
        for cell in part.__closure__ or ():
            try:
                yield cell.cell_contents
            except ValueError:  # a name that has no value yet
                continue
        yield from (part.__globals__[name] for name in part.__code__.co_names if name in part.__globals__)
        yield from part.__defaults__ or ()
        yield from (part.__kwdefaults__ or {}).values()
    elif isinstance(part, functools.partial):
        yield from (part.func, *part.args, *part.keywords.values())
    elif isinstance(part, dict):
        yield from islice(part.values(), _MOST)
    elif isinstance(part, (list, tuple)):
        yield from part[:_MOST]
    elif not isinstance(part, (type, types.ModuleType)) and "__dict__" in dir(part):
        yield from vars(part).values()
        yield from _parts(vars(type(part)).get("__call__"))
