"""The shards of an evaluation: written as soon as they are done, read again, joined.

A shard is a file of ``checked_arrays`` with the facts of its evaluation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from solvers import InputError
from solvers.files import parse_json

from ..io.checked_arrays import as_text, read_checked, write_checked
from ..likelihood.result import LogProb
from ..sampling.failures import Failure
from .config import line

_TEXTS = ("solver", "grid", "divergence", "kind", "stderr_of", "density", "unit")
_COUNTS, _SUMS, _MEANS = ("nfe", "calls"), ("seconds", "calls"), ("forwards", "vjps")
_MAPPING, _LEFT_OUT = "budget", "terms"  # the terms are too large: a thousand numbers per sample
_OPTIONAL = ("nfe_per_sample", "freedom", "solver_error")
_TENSORS = ("nats", "stderr", "latent", *_OPTIONAL)


def shards_in(folder: Path) -> list[Path]:
    """The shards in a folder, in order. All else in it, such as copies, is ignored."""
    return sorted(path for path in folder.glob("*.npz") if re.fullmatch(r"[0-9]{5,}\.npz", path.name))


def write_shard(path: Path, facts: Mapping[str, Any], rows: slice, found: Mapping[str, LogProb]) -> None:
    """Writes a shard: arrays ``ode.nats``, ``ode.budget.prior``, ...; all other values, and the facts, as JSON."""
    arrays: dict[str, Any] = {"items": np.arange(rows.start, rows.stop)}
    plain: dict[str, dict[str, Any]] = {}
    for key, result in found.items():
        plain[key] = {}
        for field in fields(LogProb):
            value = getattr(result, field.name)
            if field.name == _LEFT_OUT:
                continue
            if isinstance(value, Tensor):
                arrays[f"{key}.{field.name}"] = value.detach().cpu().numpy()
            elif isinstance(value, Mapping):
                arrays |= {f"{key}.{field.name}.{name}": inner.detach().cpu().numpy() for name, inner in value.items()}
            elif field.name not in _TENSORS:
                plain[key][field.name] = value
    write_checked(path, {**arrays, "plain": as_text(plain)}, facts)


def read_shard(path: Path, facts: Mapping[str, Any], rows: slice) -> dict[str, LogProb]:
    """Reads a shard.

    Raises:
        InputError: the shard is damaged, or belongs to a different evaluation or to other samples.
    """
    arrays = _arrays(path)
    _same(path, arrays.pop("facts"), facts)
    items = arrays.pop("items", None)
    if items is None or items.tolist() != list(range(rows.start, rows.stop)):
        raise InputError(f"{path} contains other samples than {rows.start} to {rows.stop - 1}: remove it")
    try:
        return _results(arrays, rows.stop - rows.start)
    except (InputError, KeyError, ValueError, TypeError, AttributeError) as error:
        # the fingerprints match, so the file was written like this, by something other than this library
        raise _damaged(path, error) from None


def refuse_other_evaluation(folder: Path, facts: Mapping[str, Any]) -> None:
    """Rejects a folder that contains a shard of a different evaluation.

    Raises:
        InputError: a shard belongs to a different evaluation, or is damaged.
    """
    for path in shards_in(folder):
        _same(path, _arrays(path)["facts"], facts)


def refuse_other_parts(paths: Sequence[Path | None], shards: Sequence[Mapping[str, LogProb]]) -> None:
    """Rejects shards of one evaluation that do not have the same parts.

    Args:
        paths: the files of the shards, for the message.

    Raises:
        InputError: a shard has other parts than the first one.
    """
    for path, shard in zip(paths, shards, strict=True):
        if path is not None and _parts(shard) != _parts(shards[0]):
            raise _damaged(path, InputError("it has other parts than the other shards"))


def _parts(shard: Mapping[str, LogProb]) -> set[tuple[str, ...]]:
    """The names of all tensors of a shard, without those that were not written, and the shapes of their rows."""
    found: set[tuple[str, ...]] = set()
    for key, result in shard.items():
        tensors = {name: getattr(result, name) for name in _TENSORS}
        tensors |= {f"{_MAPPING}.{name}": value for name, value in result.budget.items()}
        found |= {(key, name, str(tuple(t.shape[1:]))) for name, t in tensors.items() if t is not None}
    return found


def _arrays(path: Path) -> dict[str, Any]:
    """The arrays of a shard, whose names and contents are those that were written; ``facts`` as a mapping.

    Raises:
        InputError: the shard is damaged.
    """
    try:
        arrays, evaluation = read_checked(path, "shard")
    except InputError as error:
        raise _damaged(path, error) from None
    return {**arrays, "facts": evaluation}


def _results(arrays: dict[str, Any], count: int) -> dict[str, LogProb]:
    """The results in the arrays of a shard of ``count`` samples, each array and value of its kind."""
    plain = parse_json(str(arrays.pop("plain")[()]))
    found: dict[str, dict[str, Any]] = {
        key: {name: _plain(name, values.pop(name)) for name in list(values)} for key, values in plain.items()
    }
    for name, array in arrays.items():
        key, _, field = name.partition(".")
        field, _, inner = field.partition(".")
        if array.dtype.kind not in "fiu" or array.ndim < 1 or len(array) != count:
            raise InputError(f"{name} is not a number for each of {count} samples")
        value = torch.from_numpy(array)
        if field == _MAPPING and inner:
            found[key].setdefault(field, {})[inner] = value
        elif field in _TENSORS and not inner:
            found[key][field] = value
        else:
            raise InputError(f"{name} is not a part of a result")
    for values in found.values():
        if any(not 0 <= failure.sample < count for failure in values["failures"]):
            raise InputError(f"a failure is not of one of {count} samples")
    return {key: LogProb(**{_MAPPING: {}, **values}) for key, values in found.items()}


def _plain(name: str, value: Any) -> Any:
    """A value of a result that is not a tensor, if it is of its kind.

    Raises:
        InputError: it is not.
    """
    if name == "failures":
        return tuple(
            Failure(_of(name, int, sample), _of(name, str, reason), None if seed is None else _of(name, int, seed))
            for sample, reason, seed in value
        )
    if name in _TEXTS:
        return _of(name, str, value)
    if name in _COUNTS:
        return _of(name, int, value)
    if name == "bin_width" and value is None:
        return None
    if name in ("bin_width", "seconds", *_MEANS):
        return float(_of(name, (int, float), value))
    raise InputError(f"{name} is not a part of a result")


def _of(name: str, kind: type | tuple[type, ...], value: Any) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise InputError(f"{name} is {value!r}")
    return value


def _same(path: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    for name in {**here, **there}:
        if there.get(name) != here.get(name):
            raise InputError(
                f"{path.parent} contains shards of a different evaluation, such as {path.name}: {name} is "
                f"{there.get(name)!r} there and {here.get(name)!r} here; use a different --out"
            )


def _damaged(path: Path, error: BaseException) -> InputError:
    reason = f"{type(error).__name__} {error}" if isinstance(error, KeyError) else str(error)
    reason = reason.removeprefix(f"cannot read the shard {str(path)!r}: ")
    return InputError(f"{path} is damaged ({line(reason)}): remove it, and the same command computes it again")


def join(shards: Sequence[LogProb]) -> LogProb:
    """Joins the shards of one evaluation into one result; its failures are named by their place in the whole."""
    made: dict[str, Any] = {}
    firsts = [sum(len(shard.nats) for shard in shards[:k]) for k in range(len(shards))]
    failures = [
        [f._replace(sample=first + f.sample) for f in p.failures] for first, p in zip(firsts, shards, strict=True)
    ]
    for field in fields(LogProb):
        values = [getattr(shard, field.name) for shard in shards]
        first = values[0]
        if isinstance(first, Tensor):
            made[field.name] = torch.cat([value.detach().cpu() for value in values])
        elif isinstance(first, Mapping):
            made[field.name] = {k: torch.cat([value[k].detach().cpu() for value in values]) for k in first}
        elif isinstance(first, str):
            made[field.name] = " / ".join(dict.fromkeys(filter(None, values)))
        elif field.name == "nfe":
            made[field.name] = max(values)
        elif field.name in _MEANS:
            rows = [len(shard.nats) for shard in shards]
            made[field.name] = sum(v * n for v, n in zip(values, rows, strict=True)) / max(1, sum(rows))
        else:
            made[field.name] = sum(values) if field.name in _SUMS else first
    return LogProb(**{**made, "failures": tuple(failure for part in failures for failure in part)})
