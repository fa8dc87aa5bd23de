"""Seeded noise: row i depends only on seed i, never on other rows or on the batch size."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..types.node import Node, Rows
from ..types.solver import NoiseSource

# the state of a CPU generator: seed, position and a flag (24 bytes), then the words of the Mersenne Twister, 8 bytes
# each
_OFFSET, _WORDS = 24, 624


def generator(seed: int, *stream: int) -> torch.Generator:
    """A CPU generator for a seed and a stream; different streams of one seed are independent.

    Raises:
        InputError: the seed is not an integer of at least 0.
    """
    words = np.random.SeedSequence(_checked(seed), spawn_key=stream).generate_state(_WORDS, np.uint32)
    made = torch.Generator().manual_seed(int(words[0]))
    # manual_seed keeps 32 bits of its argument; some of 100000 seeds would then share their numbers: set every word
    state = made.get_state()
    state.numpy()[_OFFSET : _OFFSET + 8 * _WORDS].view(np.uint64)[:] = words
    return made.set_state(state)


def _checked(seed: int) -> int:
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise InputError(f"a seed must be an integer of at least 0, got {seed!r}")
    return int(seed)


class SeededNoise(NoiseSource):
    """One stream of normal numbers per sample, drawn on the CPU in float64.

    The numbers are the same on every device, and the same up to rounding in every dtype.

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
        self.dtype, self.device = dtype, torch.device(device)

    @cached_property
    def _steps(self) -> list[torch.Generator]:
        """The generators of the steps' noise, made at the first draw since each takes a tenth of a millisecond."""
        return [generator(seed, 1) for seed in self.seeds]

    def initial(self) -> Tensor:
        """The standard normal start of every sample (B, *): the same on every call, independent of the steps' noise."""
        return self._draw([generator(seed, 0) for seed in self.seeds])

    def draw(self) -> Tensor:
        """The next standard normal draw of every sample (B, *)."""
        return self._draw(self._steps)

    def __call__(self, t: Node, s: Node) -> Tensor:
        return self.draw()

    def select(self, rows: Rows) -> SeededNoise:
        """The noise of the selected samples; it shares their generators, so each draw advances both objects."""
        chosen = SeededNoise((), self.shape, self.dtype, self.device)
        places = range(len(self.seeds))[rows] if isinstance(rows, slice) else rows.tolist()
        chosen.seeds, chosen._steps = [self.seeds[i] for i in places], [self._steps[i] for i in places]
        return chosen

    def _draw(self, generators: list[torch.Generator]) -> Tensor:
        if not generators:
            return torch.empty((0, *self.shape), dtype=self.dtype, device=self.device)
        rows = [torch.randn(self.shape, generator=g, dtype=torch.float64).to(self.dtype) for g in generators]
        return torch.stack(rows).to(self.device)
