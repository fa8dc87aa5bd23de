"""Seeded noise: row i depends only on seed i, never on other rows or on the batch size."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from functools import cache, cached_property
from typing import Self

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..types.node import Node, Rows
from ..types.solver import NoiseSource
from .counter import block, fill, keys_of, room

# the state of a CPU generator: seed, position and a flag (24 bytes), then the words of the Mersenne Twister, 8 bytes
# each
_OFFSET, _WORDS = 24, 624
# at most so many draws are made ahead; with the start, only if all their numbers are no more than START
AHEAD, START = 64, 1 << 14


def generator(seed: int, *stream: int) -> torch.Generator:
    """A CPU generator for a seed and a stream; different streams of one seed are independent.

    Raises:
        InputError: the seed is not an integer of at least 0.
    """
    words = _state(np.random.SeedSequence(_checked(seed), spawn_key=stream))
    made = torch.Generator().manual_seed(int(words[0]))
    # manual_seed keeps 32 bits of its argument; some of 100000 seeds would then share their numbers: set every word
    state = made.get_state()
    state.numpy()[_OFFSET : _OFFSET + 8 * _WORDS].view(np.uint64)[:] = words
    return made.set_state(state)


@contextmanager
def global_seed(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """A block in which torch's global generators, of the CPU and of a CUDA device, start from a seed.

    Their states before the block are put back after it.
    """
    device = torch.device(device)
    # not torch.manual_seed, which seeds every device and keeps a trace of the calling stack
    generators = [torch.default_generator]
    if device.type == "cuda":
        torch.cuda.init()  # type: ignore[no-untyped-call]
        generators.append(torch.cuda.default_generators[device.index or 0])
    states = [each.get_state() for each in generators]
    try:
        for each in generators:
            each.manual_seed(seed)
        yield
    finally:
        for each, state in zip(generators, states, strict=True):
            each.set_state(state)


def _state(sequence: np.random.SeedSequence) -> np.ndarray:
    """The words of ``sequence.generate_state(624)``, all at once.

    The pool's words in turn, each mixed with one of a sequence of constants: O'Neill 2015, "Developing a seed_seq
    alternative"; NumPy guarantees that they remain the same.
    """
    constants = _constants()
    words: np.ndarray = np.resize(np.asarray(sequence.pool, np.uint32), _WORDS) ^ constants[:-1]
    words *= constants[1:]
    words ^= words >> np.uint32(16)
    return words


@cache
def _constants() -> np.ndarray:
    found = [0x8B51F9DD]
    for _ in range(_WORDS):
        found.append(found[-1] * 0x58F38DED & 0xFFFFFFFF)
    return np.array(found, np.uint32)


def _checked(seed: int) -> int:
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise InputError(f"a seed must be an integer of at least 0, got {seed!r}")
    return int(seed)


class _Drawn:
    """How many draws each of B samples has made: a batch and all selections from it count together."""

    def __init__(self, samples: int) -> None:
        self.samples = samples
        self.counts: int | Tensor = 0  # a tensor (B,) as soon as the samples differ

    def count(self, rows: Tensor | None) -> int | Tensor:
        """Counts one more draw, of all samples or of the rows; returns the draws' numbers, of which the first is 1."""
        counts = self.counts
        if rows is None:
            if isinstance(counts, Tensor) and bool((counts == counts[0]).all()):
                counts = int(counts[0])
            self.counts = counts + 1
            return self.counts
        if isinstance(counts, int):
            self.counts = counts = torch.full((self.samples,), counts, dtype=torch.int32)
        counts[rows] += 1
        return counts[rows]


class SeededNoise(NoiseSource):
    """Normal numbers that are a function of the seed, the number of the draw and the place in it.

    They are computed on the device, by ``solvers.noise.counter``. On different devices, and in float32 and float64,
    they are equal to float32's rounding.

    Args:
        seeds: one integer per sample.
        shape: the shape of one sample, without the batch dimension.
        dtype, device: dtype and device of the returned tensors.
    """

    def __init__(
        self,
        seeds: Iterable[int],
        shape: Sequence[int],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.seeds, self.shape = [_checked(seed) for seed in seeds], tuple(shape)
        self.dtype, self.device, self.size = dtype, torch.device(device), math.prod(self.shape)
        self._drawn = _Drawn(len(self.seeds))
        self._rows: Tensor | None = None  # the places of a selection's samples in the whole batch
        self._forget()

    def _forget(self) -> None:
        """Drops numbers that are stored for later calls; they depend on the selected samples."""
        self._first = self._end = 0  # the draws that are made already: from the first to before the end
        self._ahead = self._shown = torch.empty(0)  # as computed, and in the samples' shape and dtype

    @cached_property
    def _keys(self) -> Tensor:
        """The keys (4, B) of the samples: two rows for draws, and two for a Brownian path."""
        return keys_of(self.seeds).to(self.device)

    def initial(self) -> Tensor:
        """The standard normal start of every sample (B, *): the same on every call, independent of the steps' noise."""
        return self._draw(0)

    def draw(self) -> Tensor:
        """The next standard normal draw of every sample (B, *)."""
        return self._draw(self._drawn.count(self._rows))

    def __call__(self, t: Node, s: Node) -> Tensor:
        return self.draw()

    def select(self, rows: Rows) -> Self:
        """The noise of the selected samples; draws through any selection count as draws of the whole batch."""
        rows = rows if isinstance(rows, slice) else rows.cpu()
        chosen = copy(self)
        places = torch.arange(len(self.seeds))[rows]
        chosen.seeds, chosen._keys = [self.seeds[i] for i in places.tolist()], self._keys[:, rows]
        chosen._rows = places if self._rows is None else self._rows[rows]
        chosen._forget()
        return chosen

    def _draw(self, number: int | Tensor) -> Tensor:
        """The draws (B, *) of a number: one for all samples, or one for each."""
        if isinstance(number, Tensor):
            numbers = number[None].to(self.device, non_blocking=True)
            return self._shaped(fill(self._room(1), self._keys[:2], numbers))[0]
        if not self._first <= number < self._end:
            # the start alone, unless the first steps' draws come at little cost
            words = START if number == 0 else block(self.device)
            count = max(1, min(AHEAD, words // max(1, self._keys.shape[1] * self.size)))
            numbers = torch.arange(number, number + count, dtype=torch.int32, device=self.device)
            if count == 1:
                return self._shaped(fill(self._room(1), self._keys[:2], numbers))[0]
            if len(self._ahead) != count:
                self._ahead = self._room(count)
            self._shown = self._shaped(fill(self._ahead, self._keys[:2], numbers))
            self._first, self._end = number, number + count
        return self._shown[number - self._first].clone()

    def _room(self, draws: int) -> Tensor:
        return room(draws, len(self.seeds), self.size, self.dtype, self.device)

    def _shaped(self, numbers: Tensor) -> Tensor:
        """The numbers (K, B, 4, places) of draws as (K, B, *)."""
        flat = numbers.flatten(2)[:, :, : self.size]
        return flat.reshape(*flat.shape[:2], *self.shape).to(self.dtype)
