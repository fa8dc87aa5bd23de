"""The shards of an evaluation: written as soon as they are done, read again, joined."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from solvers import InputError

from ..likelihood.result import LogProb
from ..result_files import write_arrays
from ..sampling.failures import Failure


def write_shard(path: Path, facts: Mapping[str, Any], rows: slice, found: Mapping[str, LogProb]) -> None:
    """Writes a shard: arrays ``ode.nats``, ``ode.budget.prior``, ...; all other values and the facts as JSON."""
    arrays: dict[str, Any] = {"items": np.arange(rows.start, rows.stop)}
    plain: dict[str, dict[str, Any]] = {}
    for key, result in found.items():
        plain[key] = {}
        for field in fields(LogProb):
            value = getattr(result, field.name)
            if field.name == "terms":
                continue  # too large: a thousand numbers per sample
            if isinstance(value, Tensor):
                arrays[f"{key}.{field.name}"] = value.detach().cpu()
            elif isinstance(value, Mapping):
                arrays |= {f"{key}.{field.name}.{name}": inner.detach().cpu() for name, inner in value.items()}
            else:
                plain[key][field.name] = value
    write_arrays(path, **arrays, plain=np.array(json.dumps(plain)), facts=np.array(json.dumps(facts)))


def read_shard(path: Path, facts: Mapping[str, Any], rows: slice) -> dict[str, LogProb]:
    """Reads a shard.

    Raises:
        InputError: the shard is damaged, or belongs to a different evaluation or to other samples.
    """
    with _ShardFile(path) as shard:
        _same(path.parent, json.loads(str(shard["facts"])), facts)
        if shard["items"].tolist() != list(range(rows.start, rows.stop)):
            raise InputError(f"{path} contains other samples than {rows.start} to {rows.stop - 1}: remove it")
        found: dict[str, dict[str, Any]] = json.loads(str(shard["plain"]))
        for name in shard:
            key, _, field = name.partition(".")
            if key not in found:
                continue
            field, _, inner = field.partition(".")
            value = torch.from_numpy(shard[name])
            if inner:
                found[key].setdefault(field, {})[inner] = value
            else:
                found[key][field] = value
        for values in found.values():
            values["failures"] = tuple(Failure(*failure) for failure in values["failures"])
        return {key: LogProb(**values) for key, values in found.items()}


class _ShardFile:
    """An open shard file; damage is reported as ``InputError``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Any:
        try:
            self.file = np.load(self.path, allow_pickle=False)
            return self.file
        except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
            raise self._damaged(error) from None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self.file.close()
        if isinstance(error, (KeyError, ValueError, TypeError, zipfile.BadZipFile)) and not isinstance(
            error, InputError
        ):
            raise self._damaged(error) from None

    def _damaged(self, error: BaseException) -> InputError:
        return InputError(f"{self.path} is damaged ({error}): remove it, and the same command computes it again")


def refuse_other_evaluation(folder: Path, facts: Mapping[str, Any]) -> None:
    """Rejects a folder that contains a shard of a different evaluation.

    Raises:
        InputError: a shard belongs to a different evaluation, or is damaged.
    """
    for path in sorted(folder.glob("[0-9]*.npz")):
        with _ShardFile(path) as shard:
            _same(folder, json.loads(str(shard["facts"])), facts)


def _same(folder: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    for name in {**here, **there}:
        if there.get(name) != here.get(name):
            raise InputError(
                f"{folder} contains shards of a different evaluation: {name} is {there.get(name)!r} there and "
                f"{here.get(name)!r} here; use a different --out"
            )


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
        elif field.name in ("nfe", "products"):
            made[field.name] = max(values)
        else:
            made[field.name] = sum(values) if field.name == "seconds" else first
    return LogProb(**{**made, "failures": tuple(failure for part in failures for failure in part)})
