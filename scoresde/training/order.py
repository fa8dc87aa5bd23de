"""The order of the data, as a function of the seed and the number of the update; batches read one update ahead."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import count

import torch
from torch import Tensor

from solvers import InputError, generator

from ..data.prefetch import read_ahead
from ..data.rows import Batch, Rows, TensorRows
from .processes import Processes

_STREAM = 30  # of the seed; sampling (0 and 1) and the data's split use different ones
_THREADS = 2  # that read rows


@dataclass(frozen=True)
class Order:
    """Epochs of all rows, each in its own random order; batches run on across the ends of epochs.

    The order does not depend on the number of processes: they share each batch, see ``Processes.places``.

    Attributes:
        count: the number of rows of the data.
        batch_size: the samples of an update.
        seed: the seed of the run.
    """

    count: int
    batch_size: int
    seed: int

    def rows(self, step: int) -> Tensor:
        """The numbers of the rows (B,), int64, of the update that follows ``step`` updates."""
        first, parts = step * self.batch_size, list[Tensor]()
        last = first + self.batch_size
        while first < last:
            epoch, offset = divmod(first, self.count)
            parts.append(_permutation(self.count, self.seed, epoch)[offset : offset + last - first])
            first += len(parts[-1])
        return torch.cat(parts) if len(parts) > 1 else parts[0]


class Ahead:
    """The rows of one process in every update, read before the update needs them.

    Rows that are not in memory are read by threads, some batches ahead.

    Args:
        rows: the data.
        order: their order.
        processes: those that share each batch.
        step: how many updates were made before the first batch.
        pinned: put the batches into memory from which a GPU copies without waiting.

    Attributes:
        step: how many updates are made before the next batch; -1 after an error.
    """

    def __init__(self, rows: Rows, order: Order, processes: Processes, step: int, pinned: bool = False) -> None:
        self.step = step
        places = processes.places(order.batch_size)
        indices = (order.rows(k)[places.start :: places.step] for k in count(step))

        def read(index: Tensor) -> Batch:
            batch = rows.batch(index)
            return batch.pinned() if pinned else batch

        self._batches = read_ahead(read, indices, 0 if isinstance(rows, TensorRows) else _THREADS)
        self._found: Batch | Exception | None = None

    @property
    def failed(self) -> bool:
        """Whether ``take`` will raise an error."""
        return isinstance(self._found, Exception)

    def look(self) -> None:
        """Reads the next batch, and keeps it or the error."""
        if self._found is None:
            try:
                self._found = next(self._batches)
            except Exception as error:  # it is raised when the batch is needed
                self._found = error

    def take(self) -> Batch:
        """The next batch; raises what reading it raised."""
        self.look()
        found, self._found = self._found, None
        if isinstance(found, Batch):
            self.step += 1
            return found
        self.step = -1
        raise found or InputError("the data end")

    def close(self) -> None:
        """Ends the threads; a later batch needs another object."""
        self.step = -1
        self._batches.close()


@lru_cache(maxsize=2)
def _permutation(count: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(count, generator=generator(seed, _STREAM, epoch))
