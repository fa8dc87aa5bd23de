"""The options of a registered class: the fields of a frozen dataclass.

Their values are checked against the annotations of the fields: types when a spec is read, ranges (``ranges``) at
construction. A typing error in a config is then reported in one clear line.
"""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from functools import cache
from typing import Any, Literal, TypeVar, Union

from ..errors import InputError, shown, unknown
from . import ranges
from .spec import LARGEST_BITS, Spec

T = TypeVar("T")
REGISTRIES: dict[type, Any] = {}  # by the base class of the registered classes


def named(option: str, default: T) -> T:
    """Declares a dataclass field with a default, under the name ``option`` in specs, cards and messages."""
    field: Any = dataclasses.field(default=default, metadata={"option": option})
    return field  # type: ignore[no-any-return]


def option_name(field: dataclasses.Field[Any]) -> str:
    """The name of a field in specs."""
    return str(field.metadata.get("option", field.name))


class Options:
    """The base of all registered classes: construction checks every option against its range.

    A subclass with further checks calls ``super().__post_init__()`` first.
    """

    def __post_init__(self) -> None:
        check_options(self)


def check_options(obj: Any) -> None:
    """Rejects an object of a registered class if an option is outside its range, or is no number where it must be one.

    Raises:
        InputError: the message names the class, the option, the range and the value.
    """
    cls: Any = type(obj)
    for field in dataclasses.fields(cls):
        value = getattr(obj, field.name)
        if isinstance(value, int) and value.bit_length() > LARGEST_BITS:
            raise InputError(f"{name_of(obj)}: {option_name(field)} is too large, got {shown(value)}")
    for field in numbers(cls):
        value = getattr(obj, field.name)
        if isinstance(value, (str, bytes, list, tuple, dict, type)) or value is None:
            raise InputError(f"{name_of(obj)}: {option_name(field)} must be a number, got {shown(value)}")
    for field, hint in ranged_options(cls):
        ranges.check(getattr(obj, field.name), hint, option_name(field), lambda: name_of(obj))


@cache
def type_hints(cls: type) -> dict[str, Any]:
    """The annotations of a class, without their ranges; kept, because resolving them takes long."""
    return typing.get_type_hints(cls)


@cache
def numbers(cls: type) -> tuple[dataclasses.Field[Any], ...]:
    """The fields of a dataclass that are plain numbers, without a range."""
    try:
        hints = type_hints(cls)
    except NameError:
        return ()  # see ``ranged_options``, which raises the error
    ranged = {field.name for field, _ in ranged_options(cls)}
    return tuple(f for f in dataclasses.fields(cls) if hints[f.name] in (int, float) and f.name not in ranged)


@cache
def ranged_options(cls: type) -> tuple[tuple[dataclasses.Field[Any], Any], ...]:
    """The fields of a dataclass that have ranges, and their annotations."""
    try:
        hints = typing.get_type_hints(cls, include_extras=True)
    except NameError:
        if "<locals>" not in cls.__qualname__:
            raise
        return ()  # the annotations of a local class may contain local names, which cannot be resolved
    return tuple((f, hints[f.name]) for f in dataclasses.fields(cls) if ranges.marks(hints[f.name]))


def name_of(obj: Any) -> str:
    """The registered name of an object's class."""
    registry = next(registry for base, registry in REGISTRIES.items() if isinstance(obj, base))
    return str(registry.info_of(obj).name)


def coerce(value: Any, hint: Any, where: str) -> Any:
    """Converts ``value`` to the type of the annotation ``hint``; if that is a registered base class, makes the object.

    Raises:
        InputError: the value does not fit the annotation; the message names ``where``.
    """
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, type) and (registry := REGISTRIES.get(hint)):
        if isinstance(value, (str, Spec, hint)):
            return registry.make(value)
        raise InputError(f"{where} takes a {registry.kind}, got {shown(value)}")
    if origin in (Union, types.UnionType):
        wanted_types = [option for option in options if option is not type(None)]
        if len(wanted_types) == 1 and value is not None and REGISTRIES.get(wanted_types[0]):
            return coerce(value, wanted_types[0], where)  # its error message is more precise
        for option in options:
            try:
                return coerce(value, option, where)
            except InputError:
                continue
    if isinstance(value, Spec) and not value.args and not value.kwargs and hint is not float:
        value = value.name
    if origin is Literal:
        if value in options:
            return value
        raise unknown(where.replace("option", "value for option", 1), str(value), map(str, options))
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(coerce(v, options[0], where) for v in value)
    elif hint is float and isinstance(value, Spec) and value.name == "inf":
        return math.inf
    elif hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            raise InputError(f"{where} is too large, got {shown(value)}") from None
        if math.isnan(number):
            raise InputError(f"{where} is not a number")
        return number
    elif hint in (int, bool, str) and type(value) is hint:
        return value
    elif hint is type(None) and value in (None, "None"):
        return None
    name = {float: "a number", int: "an integer", bool: "True or False", str: "a string"}
    wanted = name.get(hint) or re.sub(r"\b[a-z_]+\.(?=\w)", "", str(hint))
    given = value.name if isinstance(value, Spec) else value
    raise InputError(f"{where} takes {wanted}, got {shown(given)}")
