"""``config.json`` in a run's folder: the config, the data card, and what was changed when the run was resumed."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from solvers import InputError
from solvers.errors import positive_integer
from solvers.files import read_json, remove_unfinished

from ..configs import default
from ..data.conditions import Condition
from ..data.dataset import DataCard
from ..data.tokens import MOST_STATES
from ..io.result_files import write_json
from ..training import checkpoint
from .config import flat, line

NAME = "config.json"
_LARGEST_SAMPLE = 2**31  # numbers of a sample
_LONGEST = 10_000  # letters of a text in a config
# fields and sections that may change when a training run is resumed
_FREE = (
    "device",
    "data.path",
    "training.steps",
    "training.learning_rate",
    "training.schedule",
    "training.clip",
    "training.precision",
    "training.accumulate",
    "training.compile",
    "training.log_every",
    "training.checkpoint_every",
    "training.keep",
    "training.evaluate_every",
    "training.evaluate_likelihood",
    "training.max_minutes",
    "training.keep_every",
    "training.snapshot_every",
    "sampling",
    "likelihood",
)


class Saved(NamedTuple):
    """What a ``config.json`` contains."""

    config: ConfigDict
    card: DataCard
    changes: list[dict[str, Any]]
    commands: list[str]


def of_run(workdir: Path, config: ConfigDict) -> Saved | None:
    """The ``config.json`` of the run in a folder that is to be resumed with a config; None if there is no checkpoint.

    Raises:
        InputError: the folder contains a run of a different config; the message names the first field that differs.
    """
    if checkpoint.latest(workdir) is None:
        return None
    if not (workdir / NAME).exists():
        raise InputError(f"{workdir} contains checkpoints but no {NAME}; use a different --workdir")
    there = saved(workdir)
    refuse_other_config(workdir, there.config, config, _to_resume(there.config, config))
    return there


def refuse_other_data(workdir: Path, there: DataCard, card: DataCard) -> None:
    """Refuses to resume a run with other data.

    Raises:
        InputError: the data of the cards differ; the message says in what.
    """
    if found := there.differences(card):
        raise InputError(
            f"{workdir} contains a run on other data: here are {', '.join(found)}; --continue-with-other-data resumes "
            "it with these, otherwise use a different --workdir"
        )


def write(workdir: Path, config: ConfigDict, card: DataCard, there: Saved | None, command: str) -> list[str]:
    """Writes ``config.json``; the caller has made sure that the run can be trained, and holds its folder.

    A resumed run may have other settings that do not decide what a model is, such as the learning rate, and other data
    if the user said so. Both are recorded under "changes" with the step of the last checkpoint.

    Args:
        there: the ``config.json`` that is to be replaced, see ``of_run``.
        command: the command that trains the run, which is added to those of earlier changes.

    Returns:
        the changes of this call, as text.
    """
    remove_unfinished(workdir / NAME)
    last, changed, changes = checkpoint.latest(workdir), dict[str, Any](), list[dict[str, Any]]()
    commands = [] if there is None else there.commands
    if there is not None and last is not None:
        old = {**dict(flat(there.config)), "data.fingerprints": list(there.card.fingerprints)}
        new = {**dict(flat(config)), "data.fingerprints": list(card.fingerprints)}
        changed = {name: [old[name], value] for name, value in new.items() if old[name] != value}
        changes = [*there.changes, *([{"from": last.name, **changed}] if changed else [])]
        if not changed:
            return []
    document = {
        "config": config.to_dict(),
        "data": asdict(card),
        "commands": [*commands, command],
        **({"changes": changes} if changes else {}),
    }
    write_json(workdir / NAME, document)
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


def saved(workdir: Path) -> Saved:
    """The config, the data card and the changes saved in a run's folder.

    Raises:
        InputError: the folder contains no ``config.json``, or a damaged one.
    """
    path = workdir / NAME
    if not path.exists():
        raise InputError(f"{workdir} is not a run: it contains no {NAME}")
    document = read_json(path, "config")
    try:
        config = default.get_config()
        _refuse_other_kinds(document["config"], config)
        config.update(document["config"])
        changes = document.get("changes", [])
        if not isinstance(changes, list) or not all(isinstance(change, dict) for change in changes):
            raise ValueError("changes is not a list of objects")
        commands = document.get("commands", [])
        if not isinstance(commands, list) or not all(isinstance(command, str) for command in commands):
            raise ValueError("commands is not a list of texts")
        return Saved(config, _card(document["data"]), changes, commands)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise InputError(f"{path} is damaged or of a different version: {line(error)}") from None


def _refuse_other_kinds(given: Mapping[str, Any], config: ConfigDict, section: str = "") -> None:
    """Refuses values that a config does not have: of other types than its fields, and numbers and texts too large.

    Raises:
        ValueError: the name of such a field.
    """
    if not isinstance(given, dict):
        raise ValueError(f"{section or 'config'} is not an object")
    for name, value in given.items():
        if name not in config:
            raise ValueError(f"there is no field {section}{name}")
        if isinstance(config[name], ConfigDict):
            _refuse_other_kinds(value, config[name], f"{section}{name}.")
            continue
        kind = config.get_type(name)
        fits = type(value) is kind or (kind is float and type(value) is int) or (value is None and config[name] is None)
        large = isinstance(value, (int, float)) and not abs(value) < 2**63 and value != math.inf
        if not fits or large or (isinstance(value, str) and len(value) > _LONGEST):
            raise ValueError(f"{section}{name} is {str(value)[:40]!r}")


def _card(data: Mapping[str, Any]) -> DataCard:
    """The data card of a document.

    Raises:
        ValueError, KeyError, TypeError: it is not one.
    """

    def number(name: str, lowest: float = -math.inf) -> float:
        if isinstance(data[name], bool) or not math.isfinite(value := float(data[name])) or value < lowest:
            raise ValueError(f"{name} is {data[name]!r}")
        return value

    def pair(name: str, kind: type) -> tuple[Any, Any]:
        one, other = data[name]
        if any(type(value) is not kind or (isinstance(value, int) and abs(value) > 2**53) for value in (one, other)):
            raise ValueError(f"{name} is not a pair of {kind.__name__}")
        return one, other

    shape = tuple(positive_integer("shape", length) for length in data["shape"])
    if math.prod(shape) > _LARGEST_SAMPLE:
        raise ValueError(f"samples of shape {shape} are too large")
    width = None if data["bin_width"] is None else number("bin_width", math.ulp(0))
    levels = None if data["levels"] is None else pair("levels", int)
    return DataCard(
        shape, number("low"), number("high"), width, number("mean"), number("deviation", 0), levels,
        samples=pair("samples", int), fingerprints=pair("fingerprints", str),
        conditions=tuple(_condition(each) for each in data["conditions"]),
        **_vocabulary(data["states"], data["symbols"]),
    )  # fmt: skip


def _vocabulary(states: Any, symbols: Any) -> dict[str, Any]:
    """The number of values of a token, and what they stand for, of a document.

    Raises:
        ValueError: they are not that.
    """
    if states is not None and (type(states) is not int or not 2 <= states <= MOST_STATES):
        raise ValueError(f"states is {str(states)[:40]!r}")
    if type(symbols) is not str or (symbols and len(set(symbols)) != states) or len(symbols) != len(set(symbols)):
        raise ValueError("symbols are not a different one for each value of a token")
    return {"states": states, "symbols": symbols}


def _condition(data: Mapping[str, Any]) -> Condition:
    """A condition of a document.

    Raises:
        ValueError, KeyError, TypeError: it is not one.
    """
    name, kind, shape, classes = data["name"], data["kind"], data["shape"], data["classes"]
    if not isinstance(name, str) or not isinstance(kind, str) or len(name) > _LONGEST or type(classes) is not int:
        raise ValueError(f"the condition {str(name)[:40]!r} is {str(kind)[:40]!r} of {str(classes)[:40]} classes")
    lengths = tuple(positive_integer("shape", length) for length in shape)
    if math.prod(lengths) > _LARGEST_SAMPLE:
        raise ValueError(f"rows of shape {lengths} are too large")
    return Condition(name, kind, lengths, classes)  # type: ignore[arg-type]  # it checks the kind
