"""The random numbers of training: functions of (seed, stream, step, place of the row in the batch)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from .counter import fill, keys_of, room, uniforms

STREAMS = {
    "times": 1, "noise": 2, "bins": 3, "dropout": 4, "conditions": 5, "augmentation": 6, "probes": 7,
    "decoder": 8, "bound": 9, "condition_noise": 10,
}  # fmt: skip
"""The streams, which are independent of one another."""
Stream = Literal[
    "times", "noise", "bins", "dropout", "conditions", "augmentation", "probes", "decoder", "bound", "condition_noise"
]  # fmt: skip
_SHARED = 2**40  # the place of numbers that all rows of a batch share
_STEPS, _NUMBERS = 64, 1 << 14  # numbers of so many steps are computed together, if they are no more than these


@dataclass(frozen=True)
class Draws:
    """The random numbers of some rows of a batch.

    They do not depend on which rows are drawn together: any number of processes, and any division of a batch into
    parts, draw the same numbers. They are computed on the device that needs them, equal to float32's rounding on all.

    Attributes:
        seed: the seed of the run.
        step: how many updates were made before; below 2^31.
        places: the places of the rows in the whole batch.
        batch: how many rows the whole batch has.
    """

    seed: int
    step: int
    places: range
    batch: int

    @classmethod
    def of(cls, seed: int, step: int, count: int) -> Draws:
        """The numbers of a whole batch of ``count`` rows."""
        return cls(seed, step, range(count), count)

    def __len__(self) -> int:
        return len(self.places)

    def part(self, rows: slice) -> Draws:
        """The numbers of some of the rows."""
        return replace(self, places=self.places[rows])

    def uniform(self, stream: Stream, count: int = 1) -> Tensor:
        """Uniform numbers in (0, 1): (B, count), float64 on the CPU."""
        return self._uniform(stream, self.places, count)

    def shared(self, stream: Stream) -> float:
        """A uniform number in (0, 1) that all rows of the batch share."""
        return float(self._uniform(stream, range(_SHARED, _SHARED + 1), 1))

    def normal(self, stream: Stream, shape: Sequence[int], dtype: torch.dtype, device: torch.device | str) -> Tensor:
        """Standard normal numbers (B, *) for samples of a shape; other dtypes than float64 are rounded from float32."""
        device = torch.device(device)
        size = torch.Size(shape).numel()
        steps = _together(len(self) * size)
        made = _normals if steps > 1 else _normals.__wrapped__
        numbers = made(self.seed, stream, self.places, size, dtype, device, self.step // steps, steps)
        own = numbers[self.step % steps].reshape(len(self), *shape).to(dtype)
        return own.clone() if steps > 1 else own  # the caller may write into it

    def _uniform(self, stream: Stream, places: range, count: int) -> Tensor:
        steps = _together(len(places) * count)
        made = _uniforms if steps > 1 else _uniforms.__wrapped__
        return made(self.seed, stream, places, count, self.step // steps, steps)[self.step % steps].clone()

    def normal_like(self, x: Tensor, stream: Stream = "noise") -> Tensor:
        """Standard normal numbers of the shape, dtype and device of x (B, *)."""
        return self.normal(stream, x.shape[1:], x.dtype, x.device)


def _together(numbers: int) -> int:
    """For how many steps numbers are computed together: small draws cost the launching of their operations."""
    return max(1, min(_STEPS, _NUMBERS // max(1, numbers)))


def _range(block: int, steps: int, device: torch.device | str) -> Tensor:
    return torch.arange(block * steps, (block + 1) * steps, device=device).to(torch.int32)


@lru_cache(maxsize=64)
def _uniforms(seed: int, stream: Stream, places: range, count: int, block: int, steps: int) -> Tensor:
    """The uniform numbers (steps, B, count) of some successive steps."""
    return uniforms(_keys(seed, stream, places), _range(block, steps, "cpu"), count)


@lru_cache(maxsize=64)
def _normals(
    seed: int,
    stream: Stream,
    places: range,
    size: int,
    dtype: torch.dtype,
    device: torch.device,
    block: int,
    steps: int,
) -> Tensor:
    """The normal numbers (steps, B, size) of some successive steps, in at least float32."""
    keys = _keys(seed, stream, places, device)
    numbers = fill(room(steps, len(places), size, dtype, device), keys, _range(block, steps, device))
    return numbers.flatten(2)[:, :, :size]


@lru_cache(maxsize=64)
def _keys(seed: int, stream: Stream, places: range, device: torch.device | str = "cpu") -> Tensor:
    """The keys (2, B) of rows. The seed is above the 64 bits of stream and place, so that it is mixed in last."""
    return keys_of([((seed + 1) << 64) | (STREAMS[stream] << 48) | place for place in places])[:2].to(device)
