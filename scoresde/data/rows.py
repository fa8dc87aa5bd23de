"""Rows: samples by their index, with their conditions, in memory or read when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from solvers import InputError

from .storage import Array, Numbers


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples and their conditions.

    Attributes:
        x: (B, *), float32 in data units, on the CPU or where the rows are.
        conditions: by the name of the network's argument, each with B rows.
    """

    x: Tensor
    conditions: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.x)

    def part(self, rows: slice) -> Batch:
        """Some of the rows."""
        return Batch(self.x[rows], {name: value[rows] for name, value in self.conditions.items()})

    def to(self, device: torch.device | str) -> Batch:
        """The batch on a device; a copy to a GPU is ordered before what is computed there, and not waited for."""
        device = torch.device(device)
        ahead = device.type == "cuda"
        conditions = {name: value.to(device, non_blocking=ahead) for name, value in self.conditions.items()}
        return Batch(self.x.to(device, non_blocking=ahead), conditions)

    def pinned(self) -> Batch:
        """The batch in memory from which a GPU copies without waiting."""
        if self.x.device.type != "cpu":
            return self
        return Batch(self.x.pin_memory(), {name: value.pin_memory() for name, value in self.conditions.items()})


class Rows:
    """N samples of one shape. A row is the same whenever it is read."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError

    def batch(self, index: Tensor) -> Batch:
        """The rows of an index (B,), int64 on the CPU, in this order; rows may repeat."""
        raise NotImplementedError

    def first(self, count: int | None = None) -> Batch:
        """The first rows, or all, in memory."""
        return self.batch(torch.arange(len(self) if count is None else min(count, len(self))))

    def some(self, count: int) -> Batch:
        """At most so many rows, evenly spaced: they stand for all even where a source sorts them by class."""
        count = min(count, len(self))
        return self.batch(torch.arange(count) * len(self) // max(1, count))

    def tensor(self) -> Tensor:
        """All samples (N, *) in memory."""
        return self.first().x


class TensorRows(Rows):
    """Rows in memory.

    Args:
        x: (N, *), floats.
        conditions: each with N rows.

    Raises:
        InputError: a condition does not have one row per sample.
    """

    def __init__(self, x: Tensor, conditions: Mapping[str, Tensor] | None = None) -> None:
        self.x, self.conditions = x, dict(conditions or {})
        for name, value in self.conditions.items():
            if value.ndim == 0 or len(value) != len(x):
                rows = f"{len(value)} rows" if value.ndim else "no rows"
                raise InputError(f"the condition {name} has {rows} for {len(x)} samples; give one row per sample")

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.x.shape[1:])

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, index: Tensor) -> Batch:
        x = self.x[index.to(self.x.device)]
        return Batch(x, {name: value[index.to(value.device)] for name, value in self.conditions.items()})

    def first(self, count: int | None = None) -> Batch:
        return Batch(self.x[:count], {name: value[:count] for name, value in self.conditions.items()})


@dataclass(frozen=True, eq=False)
class Column:
    """Numbers as a source stores them, and what makes a tensor of some of their rows."""

    numbers: Numbers
    convert: Callable[[Array], Tensor]

    def __getitem__(self, index: Tensor) -> Tensor:
        return self.convert(self.numbers[index.numpy()])


class StoredRows(Rows):
    """Rows that stay in their source until they are asked for.

    Args:
        x: the samples.
        conditions: by the name of the network's argument.
        order: the places (N,) of the rows in the columns.
        shape: that of one sample.
    """

    def __init__(self, x: Column, conditions: Mapping[str, Column], order: Tensor, shape: tuple[int, ...]) -> None:
        self.x, self.conditions, self.order, self._shape = x, dict(conditions), order, shape

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    def __len__(self) -> int:
        return len(self.order)

    def batch(self, index: Tensor) -> Batch:
        places = self.order[index]
        return Batch(self.x[places], {name: column[places] for name, column in self.conditions.items()})
