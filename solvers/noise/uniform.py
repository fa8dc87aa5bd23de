"""Uniform numbers for discrete states: row i depends only on seed i, never on other rows or on the batch size."""

from __future__ import annotations

import torch
from torch import Tensor

from .counter import uniforms
from .seeded import SeededNoise


class UniformNoise(SeededNoise):
    """Uniform numbers in (0, 1) with 52 bits, a function of the seed, the number of the draw and the place in it.

    They are float64, because the largest of many numbers with 24 bits is far too small: tokens of a low probability
    would then never be drawn (Zheng et al. 2024, arXiv:2409.02908). They are computed on the CPU and have the same bits
    on every device.
    """

    def _draw(self, number: int | Tensor) -> Tensor:
        """The draws (B, *) of a number: one for all samples, or one for each."""
        numbers = number[None] if isinstance(number, Tensor) else torch.tensor([number])
        found = uniforms(self._keys[:2].cpu(), numbers.to("cpu", torch.int32), self.size)[0]
        return found.reshape(len(self.seeds), *self.shape).contiguous().to(self.device)
