"""Pickles of plain data: dictionaries, lists, numbers, texts and NumPy arrays, read without unpickling.

Unpickling calls what a pickle names. This reader names nothing and calls nothing: it goes through the instructions,
accepts those that build plain data, and recognises the functions with which NumPy's arrays and Python's bytes are
written. All else is refused.
"""

from __future__ import annotations

import math
import pickletools
import re
from typing import Any, NamedTuple

import numpy as np

from solvers import InputError

MOST = 20_000_000  # instructions; a batch of 10,000 images with labels and names has 50,000
_LARGEST = 2**33  # numbers of an array


class _Name(NamedTuple):
    """A function that the pickle names."""

    name: str


class _Mark:
    """The start of the values of a list, tuple or dictionary."""


class _Unfinished:
    """An array or dtype, whose content follows."""

    def __init__(self, value: Any = None) -> None:
        self.value = value


_NAMES = {
    **{f"numpy.{core}.multiarray _reconstruct": _Name("reconstruct") for core in ("core", "_core")},
    **{f"numpy.{core}.numeric _frombuffer": _Name("frombuffer") for core in ("core", "_core")},
    "numpy ndarray": _Name("ndarray"),
    "numpy dtype": _Name("dtype"),
    "_codecs encode": _Name("encode"),
    "__builtin__ bytes": _Name("bytes"),
}
_PUSHED = (
    *("INT", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "SHORT_BINSTRING", "BINSTRING", "BINUNICODE"),
    *("SHORT_BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


def read_plain(content: bytes) -> Any:
    """The value that a pickle describes; texts of Python 2 are texts here, arrays are NumPy's.

    Raises:
        InputError: it is not a pickle, or not one of plain data; the message names the instruction or the function.
    """
    try:
        return _value(content)
    except InputError:
        raise
    except (ArithmeticError, LookupError, MemoryError, TypeError, ValueError, AttributeError, EOFError) as error:
        reason = " ".join(str(error).split())[:100]
        raise InputError(f"it is not a pickle of plain data ({reason or type(error).__name__})") from None


def _value(content: bytes) -> Any:
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    argument: Any
    for count, (code, argument, _) in enumerate(pickletools.genops(content)):
        name = code.name
        if count > MOST:
            raise InputError(f"it has more than {MOST:,} instructions")
        if name in ("PROTO", "FRAME"):
            continue
        if name == "STOP":
            return _finished(stack[-1])
        if name in _PUSHED:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("MEMOIZE", "BINPUT", "LONG_BINPUT"):
            memo[len(memo) if name == "MEMOIZE" else int(argument)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[int(argument)])
        elif name == "GLOBAL":
            stack.append(_named(argument))
        elif name == "STACK_GLOBAL":
            function, module = stack.pop(), stack.pop()
            stack.append(_named(f"{module} {function}"))
        elif name not in _BUILDERS:
            raise InputError(f"it contains the instruction {name}, which is not one of plain data")
        else:
            _BUILDERS[name](stack)
    raise InputError("it ends early")


def _named(name: str) -> _Name:
    if name not in _NAMES:
        raise InputError(f"it names {name.replace(' ', '.')!r:.100}, which is not plain data")
    return _NAMES[name]


def _since_mark(stack: list[Any]) -> list[Any]:
    """The values above the last mark, which leave the stack with it."""
    place = len(stack) - 1
    while not isinstance(stack[place], _Mark):
        place -= 1
        if place < 0:
            raise ValueError("a mark is missing")
    found = stack[place + 1 :]
    del stack[place:]
    return found


def _set(stack: list[Any], values: list[Any]) -> None:
    if not isinstance(stack[-1], dict) or len(values) % 2:
        raise ValueError("it sets items of what is no dictionary")
    for key, value in zip(values[::2], values[1::2], strict=True):
        if not isinstance(key, (str, bytes)):
            raise ValueError("the key of a dictionary is no text")
        stack[-1][key if isinstance(key, str) else key.decode("latin1")] = _finished(value)


def _append(stack: list[Any], values: list[Any]) -> None:
    if not isinstance(stack[-1], list):
        raise ValueError("it appends to what is no list")
    stack[-1].extend(values)


def _tuple(stack: list[Any], length: int) -> None:
    if len(stack) < length:
        raise ValueError("a value is missing")
    values = tuple(stack[len(stack) - length :])
    del stack[len(stack) - length :]
    stack.append(values)


def _pair(stack: list[Any]) -> list[Any]:
    value, key = stack.pop(), stack.pop()
    return [key, value]


def _reduce(stack: list[Any]) -> None:
    """What a function that is known makes of its arguments."""
    arguments, function = stack.pop(), stack.pop()
    if not isinstance(function, _Name) or not isinstance(arguments, tuple):
        raise InputError("it calls what is no function of arrays")
    if function.name == "encode":
        text, encoding = arguments
        if encoding != "latin1" or not isinstance(text, str):
            raise ValueError("bytes are in another encoding than latin1")
        stack.append(text.encode("latin1"))
    elif function.name == "bytes" and not arguments:
        stack.append(b"")
    elif function.name == "dtype":
        stack.append(_Unfinished(_dtype(arguments[0])))
    elif function.name == "reconstruct":
        stack.append(_Unfinished())
    elif function.name == "frombuffer":
        numbers, dtype, shape, order = arguments
        stack.append(_Unfinished(_array(_finished(dtype), shape, order == "F", numbers)))
    else:
        raise InputError(f"it calls {function.name}, which makes no plain data")


def _build(stack: list[Any]) -> None:
    """The content of an array or a dtype."""
    state, unfinished = stack.pop(), stack[-1]
    if not isinstance(unfinished, _Unfinished) or not isinstance(state, tuple):
        raise InputError("it sets the state of what is no array")
    if isinstance(unfinished.value, np.dtype):  # (version, byte order, ...)
        if state[1] not in ("<", ">", "|", "="):
            raise ValueError("a byte order is unknown")
        unfinished.value = unfinished.value.newbyteorder(state[1])
    else:
        _, shape, dtype, fortran, numbers = state
        unfinished.value = _array(_finished(dtype), shape, bool(fortran), numbers)


def _dtype(text: Any) -> np.dtype[Any]:
    if not isinstance(text, str) or not re.fullmatch(r"[<>|=]?([biuf][1248]|\?)", text):
        raise InputError("it contains an array of other than numbers")
    return np.dtype(text)


def _array(dtype: Any, shape: Any, fortran: bool, numbers: Any) -> np.ndarray[Any, Any]:
    if isinstance(numbers, str):  # Python 2's
        numbers = numbers.encode("latin1")
    if not isinstance(dtype, np.dtype) or not isinstance(numbers, (bytes, bytearray)) or not isinstance(shape, tuple):
        raise ValueError("an array is not of numbers")
    lengths = [length for length in shape if isinstance(length, int) and 0 <= length < _LARGEST]
    if len(lengths) < len(shape) or math.prod(lengths) * dtype.itemsize != len(numbers):
        raise ValueError(f"an array claims the shape {shape} in {len(numbers):,} bytes")
    return np.frombuffer(numbers, dtype).reshape(shape, order="F" if fortran else "C")


def _finished(value: Any) -> Any:
    if isinstance(value, _Unfinished):
        value = value.value
    if isinstance(value, (_Name, _Mark)) or value is NotImplemented:
        raise ValueError("it is no value")
    return value


_BUILDERS: dict[str, Any] = {
    "EMPTY_DICT": lambda stack: stack.append({}),
    "EMPTY_LIST": lambda stack: stack.append([]),
    "EMPTY_TUPLE": lambda stack: stack.append(()),
    "MARK": lambda stack: stack.append(_Mark()),
    "SETITEM": lambda stack: (lambda pair: _set(stack, pair))(_pair(stack)),
    "SETITEMS": lambda stack: (lambda values: _set(stack, values))(_since_mark(stack)),
    "APPEND": lambda stack: (lambda value: _append(stack, [value]))(stack.pop()),
    "APPENDS": lambda stack: (lambda values: _append(stack, values))(_since_mark(stack)),
    "TUPLE": lambda stack: (lambda values: stack.append(tuple(values)))(_since_mark(stack)),
    "TUPLE1": lambda stack: _tuple(stack, 1),
    "TUPLE2": lambda stack: _tuple(stack, 2),
    "TUPLE3": lambda stack: _tuple(stack, 3),
    "REDUCE": _reduce,
    "BUILD": _build,
}
