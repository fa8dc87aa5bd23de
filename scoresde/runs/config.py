"""Configs: read from files, and changed from the command line."""

from __future__ import annotations

import ast
import importlib.resources
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from solvers import InputError, make, resolve
from solvers.errors import unknown
from solvers.types.solver import SPACES

from ..configs import default

# fields that replace one another: how many steps a solve has
_COUNTS = {"sampling": ("steps", "nfe", "forwards"), "likelihood": ("steps", "nfe", "tolerance")}
_KINDS = {bool: "True or False", int: "an integer", float: "a number", str: "a text"}


def read_config(name: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Reads a config from a file, or one of the library's configs by name, and applies ``--config.x=y`` arguments.

    Raises:
        InputError: no such file, no ``get_config`` in it, or an override of an unknown field or with the wrong type.
    """
    path = Path(name)
    packaged = Path(str(importlib.resources.files("scoresde.configs")))
    if not path.is_file():
        included = packaged / f"{path.stem}.py"
        if path.parent.name not in ("", "configs") or not included.is_file():
            known = [p.stem for p in packaged.glob("*.py") if not p.stem.startswith("_")]
            raise unknown("config file", name, known, "(or give the path of a file)")
        path = included
    spec = importlib.util.spec_from_file_location(f"scoresde_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise InputError(f"{name} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except (Exception, SystemExit) as error:
        raise InputError(f"{name}: {type(error).__name__}: {line(error)}") from error
    if not isinstance(config, ConfigDict):
        raise InputError(f"{name}: get_config() must return a ConfigDict")
    return override(config, overrides)


def override(config: ConfigDict, overrides: Sequence[str]) -> ConfigDict:
    """Applies ``--config.section.field=value`` arguments to a config.

    Of the fields that say how many steps a solve has, one replaces the others, and a solver that chooses its own steps
    replaces all of them. Of two values for one field, the last counts.

    Raises:
        InputError: an unknown field, a value of the wrong type, or two fields of which one replaces the other.
    """
    fields, given = dict(flat(config)), dict[str, str]()
    for argument in overrides:
        name, separator, text = argument.partition("=")
        field = name.removeprefix("--config.")
        if not separator or field == name:
            raise InputError(f"cannot read {argument!r}; expected --config.section.field=value")
        if field not in fields:
            raise unknown("config field", field, fields)
        given[field] = text
        _set(config, field, _value(field, text, config))
    for section, names in _COUNTS.items():
        counts = [name for name in names if f"{section}.{name}" in given]
        if len(counts) > 1:
            raise InputError(f"{section}.{counts[0]} and {section}.{counts[1]} exclude each other: leave out one")
        for name in names if counts else ():
            if name not in counts and f"{section}.{name}" in fields:
                _set(config, f"{section}.{name}", None)
        if not counts and not config[section].grid and _chooses_its_steps(given.get(f"{section}.solver", "")):
            for name in names:
                _set(config, f"{section}.{name}", None)
    return config


def _chooses_its_steps(solver: str) -> bool:
    """Whether a registered solver chooses its own steps; False of a solver outside the library or an unknown one."""
    if not solver or ":" in solver:
        return False
    try:
        return any(make(resolve(solver, space)[0]).adaptive for space in SPACES)
    except InputError:
        return False


def _value(field: str, text: str, config: ConfigDict) -> Any:
    """The value that a text gives to a field, in the type of the field.

    ``None`` (or ``none``) is None where the default config or this one leaves the field empty. Elsewhere it is an
    error: as a text it would be the name of something called "None".

    Raises:
        InputError: the text is not of that type.
    """
    *sections, name = field.split(".")
    holder, empty = config, default.get_config()
    for section in sections:
        holder, empty = holder[section], empty.get(section, ConfigDict())
    kind = holder.get_type(name)
    if text.lower() == "none":
        if holder[name] is None or empty.get(name, text) is None:
            return None
        raise InputError(f"{field}={text}: expected {_KINDS.get(kind, f'a {kind.__name__}')}; it cannot be None")
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if kind in (int, float, str):
            return kind(text)
        value = ast.literal_eval(text)
        if not isinstance(value, kind):
            raise TypeError
        return value
    except (KeyError, ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        raise InputError(f"{field}={text}: expected {_KINDS.get(kind, f'a {kind.__name__}')}") from None


def _set(config: ConfigDict, field: str, value: Any) -> None:
    *sections, name = field.split(".")
    for section in sections:
        config = config[section]
    config[name] = value


def line(error: BaseException | str) -> str:
    """A message on one line of at most 200 characters."""
    return " ".join(str(error).split())[:200]


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The fields of a config with their full names: ``("training.steps", 6000)``, ..."""
    for name, value in config.items():
        if isinstance(value, (ConfigDict, dict)):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
