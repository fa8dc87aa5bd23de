"""Configs: read from files, changed from the command line, saved in the folder of a run."""

from __future__ import annotations

import ast
import importlib.resources
import importlib.util
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from solvers import InputError
from solvers.errors import positive_integer, unknown

from ..configs import default
from ..data import DataCard
from ..result_files import write_json
from ..training import checkpoint

# fields and sections that may change when a training run is resumed
_FREE = (
    "device",
    "data.path",
    "training.steps",
    "training.learning_rate",
    "training.clip",
    "training.log_every",
    "training.checkpoint_every",
    "training.keep",
    "sampling",
    "likelihood",
)
# fields that replace one another: how many steps a solve has
_COUNTS = {"sampling": ("steps", "nfe"), "likelihood": ("steps", "nfe", "tolerance")}
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

    Of the fields that say how many steps a solve has, one replaces the others. Of two values for one field, the last
    counts.

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
    return config


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


def line(error: BaseException) -> str:
    """An error's message on one line of at most 200 characters."""
    return " ".join(str(error).split())[:200]


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The fields of a config with their full names: ``("training.steps", 6000)``, ..."""
    for name, value in config.items():
        if isinstance(value, (ConfigDict, dict)):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def claim(workdir: Path, config: ConfigDict, card: DataCard) -> list[str]:
    """Writes ``config.json`` into a run's folder, which must be new or contain a run of the same config.

    A resumed run may have other settings that do not decide what a model is, such as the learning rate. They are
    recorded under "changes" with the step of the last checkpoint.

    Returns:
        the changes, as text.

    Raises:
        InputError: the folder contains a run of a different config; the message names the first field that differs.
    """
    last, changes = checkpoint.latest(workdir), []
    changed: dict[str, Any] = {}
    if last is not None:
        if not (workdir / "config.json").exists():
            raise InputError(f"{workdir} contains checkpoints but no config.json; use a different --workdir")
        there = saved(workdir)[0]
        refuse_other_config(workdir, there, config, _to_resume(there, config))
        changes = json.loads((workdir / "config.json").read_text(encoding="utf-8")).get("changes", [])
        old = dict(flat(there))
        changed = {name: [old[name], value] for name, value in flat(config) if old[name] != value}
        if changed:
            changes.append({"from": last.name, **changed})
    workdir.mkdir(parents=True, exist_ok=True)
    document = {"config": config.to_dict(), "data": asdict(card), **({"changes": changes} if changes else {})}
    write_json(workdir / "config.json", document)
    return [f"{name}={new} instead of {before}" for name, (before, new) in changed.items()]


def refuse_other_config(
    workdir: Path, there: ConfigDict, config: ConfigDict, advice: str, free: Sequence[str] = _FREE
) -> None:
    """Refuses to use a run with a different config; ``free`` contains the fields and sections that may differ.

    Raises:
        InputError: a field differs that must not change; the message names the first one, and ends with ``advice``.
    """
    for field, old, new in _differences(there, config, free):
        raise InputError(
            f"{workdir} contains a run of a different config: {field} is {old!r} there and {new!r} here; {advice}"
        )


def _differences(there: ConfigDict, config: ConfigDict, free: Sequence[str] = _FREE) -> list[tuple[str, Any, Any]]:
    """The fields that differ and must not change: their names, values there and values here."""
    old = dict(flat(there))
    return [
        (field, old[field], new)
        for field, new in flat(config)
        if field not in free and field.partition(".")[0] not in free and old[field] != new
    ]


def _to_resume(there: ConfigDict, config: ConfigDict) -> str:
    """What to do about a run of a different config: the arguments that resume it, or a different folder."""
    found = _differences(there, config)
    if len(found) > 4:
        return "use a different --workdir"
    arguments = " ".join(shlex.quote(f"--config.{field}={old}") for field, old, _ in found)
    return f"to resume it, add {arguments}; otherwise use a different --workdir"


def saved(workdir: Path) -> tuple[ConfigDict, DataCard]:
    """The config and the data card saved in a run's folder.

    Raises:
        InputError: the folder contains no ``config.json``, or a damaged one.
    """
    path = workdir / "config.json"
    if not path.is_file():
        raise InputError(f"{workdir} is not a run: it contains no config.json")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        config = default.get_config()
        config.update(document["config"])
        data = document["data"]
        shape = tuple(positive_integer("shape", length) for length in data["shape"])
        levels = None if data["levels"] is None else (int(data["levels"][0]), int(data["levels"][1]))
        return config, DataCard(shape, data["low"], data["high"], data["bin_width"], float(data["deviation"]), levels)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged or of a different version: {line(error)}") from None
