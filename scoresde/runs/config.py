"""Configs: read from files, changed from the command line, saved in the folder of a run."""

from __future__ import annotations

import importlib.resources
import importlib.util
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from absl import flags
from ml_collections import ConfigDict, config_flags

from solvers import InputError
from solvers.errors import positive_integer, unknown

from ..configs import default
from ..data import DataCard
from ..result_files import write_json
from ..training import checkpoint

# fields that may change when a training run is resumed
_FREE = (
    "device",
    "data.path",
    "training.steps",
    "training.learning_rate",
    "training.clip",
    "training.log_every",
    "training.checkpoint_every",
    "training.keep",
)
_FREE_SECTIONS = ("sampling", "likelihood")


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

    Raises:
        InputError: an unknown field, or a value of the wrong type.
    """
    fields = dict(flat(config))
    for argument in overrides:
        name, separator, _ = argument.partition("=")
        field = name.removeprefix("--config.")
        if not separator or field == name:
            raise InputError(f"cannot read {argument!r}; expected --config.section.field=value")
        if field not in fields:
            raise unknown("config field", field, fields)
    holder = flags.FlagValues()  # type: ignore[no-untyped-call]
    argv = ["scoresde", *overrides]
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=holder, sys_argv=argv)
        holder(argv)
    except (flags.Error, AttributeError, TypeError, ValueError) as error:
        raise InputError(line(error)) from None
    return cast(ConfigDict, holder.config)


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


def claim(workdir: Path, config: ConfigDict, card: DataCard) -> None:
    """Writes ``config.json`` into a run's folder, which must be new or contain a run of the same config.

    Raises:
        InputError: the folder contains a run of a different config; the message names the first field that differs.
    """
    if checkpoint.latest(workdir) is not None:
        if not (workdir / "config.json").exists():
            raise InputError(f"{workdir} contains checkpoints but no config.json; use a different --workdir")
        there = saved(workdir)[0]
        refuse_other_config(workdir, there, config, _to_resume(there, config))
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / "config.json", {"config": config.to_dict(), "data": asdict(card)})


def refuse_other_config(workdir: Path, there: ConfigDict, config: ConfigDict, advice: str) -> None:
    """Refuses to use a run with a different config.

    Raises:
        InputError: a field differs that must not change; the message names the first one, and ends with ``advice``.
    """
    for field, old, new in _differences(there, config):
        raise InputError(
            f"{workdir} contains a run of a different config: {field} is {old!r} there and {new!r} here; {advice}"
        )


def _differences(there: ConfigDict, config: ConfigDict) -> list[tuple[str, Any, Any]]:
    """The fields that differ and must not change: their names, values there and values here."""
    old = dict(flat(there))
    return [
        (field, old[field], new)
        for field, new in flat(config)
        if field not in _FREE and field.partition(".")[0] not in _FREE_SECTIONS and old[field] != new
    ]


def _to_resume(there: ConfigDict, config: ConfigDict) -> str:
    """What to do about a run of a different config: the arguments that resume it, or a different folder."""
    found = _differences(there, config)
    if len(found) > 4 or any(old is None for _, old, _ in found):  # an argument cannot set None
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
        return config, DataCard(shape, data["low"], data["high"], data["bin_width"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged or of a different version: {line(error)}") from None
