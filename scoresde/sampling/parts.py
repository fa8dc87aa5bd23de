"""``Parts``: the batches of a restoration that are done, in files from which the same restoration resumes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from solvers import InputError
from solvers.files import parse_json

from ..io.array_files import read_arrays
from ..io.result_files import writable, write_arrays
from ..posterior.base import Draws
from .failures import Failure


class Part(NamedTuple):
    """The draws of one batch, and what they cost.

    Attributes:
        forwards, vjps: evaluations of the network and vector-Jacobian products, summed over the draws.
        seconds: wall-clock time.
    """

    draws: Draws
    failures: tuple[Failure, ...]
    forwards: int
    vjps: int
    seconds: float


@dataclass(frozen=True)
class Parts:
    """The finished batches of one restoration, each a .npz file in a folder of their own.

    Attributes:
        folder: where they are; created with the first one.
        facts: what decides the draws, as JSON types: a batch of other facts is refused.
        replace: draw a batch again that is damaged or has other facts.
    """

    folder: Path
    facts: Mapping[str, Any]
    replace: bool = False

    def knowing(self, facts: Mapping[str, Any]) -> Parts:
        """The same folder with more facts."""
        return replace(self, facts=json.loads(json.dumps({**self.facts, **facts})))

    def read(self, number: int) -> Part | None:
        """The batch of a number; None if it is to be drawn.

        Raises:
            InputError: the file is damaged, or its batch belongs to another restoration.
        """
        path = self._path(number)
        if not path.exists():
            return None
        try:
            return self._read(path)
        except InputError:
            if self.replace:
                return None
            raise

    def _read(self, path: Path) -> Part:
        try:
            arrays: dict[str, Any] = read_arrays(path, "batch of draws")
            plain = str(arrays.pop("plain")[()])
            if str(arrays.pop("digest")[()]) != _digest(arrays, plain):
                raise ValueError("its digest is not the recorded one")
            document: dict[str, Any] = parse_json(plain)
            failures = tuple(Failure(*failure) for failure in document["failures"])
            tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
            draws = Draws(**tensors)  # type: ignore[arg-type]
            part = Part(draws, failures, document["forwards"], document["vjps"], document["seconds"])
            facts = document["facts"]
        except (InputError, KeyError, ValueError, TypeError) as error:
            raise InputError(f"{path} is damaged ({error}): remove it, and the same command draws it again") from None
        for name in {**self.facts, **facts}:
            if (there := facts.get(name)) != (here := self.facts.get(name)):
                raise InputError(
                    f"{self.folder} contains batches of another restoration: {name} is {there!r:.80} there and "
                    f"{here!r:.80} here; use a different folder, or remove this one"
                )
        return part

    def write(self, number: int, part: Part) -> None:
        """Writes the batch of a number."""
        given = part.draws._asdict().items()
        tensors = {name: value.detach().cpu() for name, value in given if isinstance(value, Tensor)}
        # NumPy has no bfloat16, whose numbers are float32 numbers as well
        arrays = {n: (v.float() if v.dtype == torch.bfloat16 else v).numpy() for n, v in tensors.items()}
        plain = json.dumps({"facts": self.facts, **part._asdict(), "draws": sorted(arrays)})
        writable(self.folder)
        write_arrays(self._path(number), **arrays, plain=np.array(plain), digest=np.array(_digest(arrays, plain)))

    def remove(self) -> None:
        """Removes the batches, and the folder if nothing else is in it."""
        if self.folder.is_dir():
            for path in self.folder.glob("[0-9]*.npz"):
                path.unlink()
            if not any(self.folder.iterdir()):
                self.folder.rmdir()

    def note(self) -> str:
        """How many batches are done, for a message at the end of a process; empty if there are none."""
        count = len(list(self.folder.glob("[0-9]*.npz"))) if self.folder.is_dir() else 0
        return f"{count} finished batches are in {self.folder}; the same command resumes" if count else ""

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:05d}.npz"


def _digest(arrays: Mapping[str, np.ndarray[Any, Any]], plain: str) -> str:
    """A fingerprint of arrays with their names, and of a text."""
    found = hashlib.sha256(plain.encode())
    for name, array in sorted(arrays.items()):
        found.update(f"{name} {array.shape} {array.dtype.str} ".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:16]


def joined(parts: Sequence[Part], like: Tensor) -> Part:
    """The batches, one after the other, as one; on the device of ``like``, the samples in its dtype."""
    draws, failures, forwards, vjps, seconds = zip(*parts, strict=True)
    placed = [Draws(*(value.to(like.device) if isinstance(value, Tensor) else value for value in one)) for one in draws]  # type: ignore[arg-type]
    whole = Draws.of(placed)
    whole = whole._replace(x=whole.x.to(like.dtype))
    return Part(whole, tuple(f for part in failures for f in part), sum(forwards), sum(vjps), sum(seconds))
