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
    "decoder": 8, "bound": 9,
}  # fmt: skip
"""The streams, which are independent of one another."""
Stream = Literal[
    "times", "noise", "bins", "dropout", "conditions", "augmentation", "probes", "decoder", "bound"
]  # fmt: skip
_SHARED = 2**40  # the place of numbers that all rows of a batch share


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
        return uniforms(_keys(self.seed, stream, self.places), self._number("cpu"), count)

    def shared(self, stream: Stream) -> float:
        """A uniform number in (0, 1) that all rows of the batch share."""
        place = range(_SHARED, _SHARED + 1)
        return float(uniforms(_keys(self.seed, stream, place), self._number("cpu"), 1))

    def normal(self, stream: Stream, shape: Sequence[int], dtype: torch.dtype, device: torch.device | str) -> Tensor:
        """Standard normal numbers (B, *) for samples of a shape; other dtypes than float64 are rounded from float32."""
        device = torch.device(device)
        size = torch.Size(shape).numel()
        keys = _keys(self.seed, stream, self.places, device)
        numbers = fill(room(1, len(self), size, dtype, device), keys, self._number(device))
        return numbers[0].flatten(1)[:, :size].reshape(len(self), *shape).to(dtype)

    def normal_like(self, x: Tensor, stream: Stream = "noise") -> Tensor:
        """Standard normal numbers of the shape, dtype and device of x (B, *)."""
        return self.normal(stream, x.shape[1:], x.dtype, x.device)

    def _number(self, device: torch.device | str) -> Tensor:
        return torch.full((1,), self.step, dtype=torch.int32, device=device)


@lru_cache(maxsize=64)
def _keys(seed: int, stream: Stream, places: range, device: torch.device | str = "cpu") -> Tensor:
    """The keys (2, B) of rows. The seed is above the 64 bits of stream and place, so that it is mixed in last."""
    return keys_of([((seed + 1) << 64) | (STREAMS[stream] << 48) | place for place in places])[:2].to(device)
