"""Normal numbers as a function of a key and a counter, in 32-bit integer operations that every device has.

A sample's key follows from its seed. Its k-th draw is a function of (key, k, place in the draw), and no generator keeps
a state. Every number can therefore be computed alone, for any batch, in any order, on any device.

The function is pcg4d (Jarzynski and Olano 2020, Journal of Computer Graphics Techniques 9(3), listing 7) with four
rounds instead of two: with four, each bit of the counter and the key changes each bit of the outcome with probability
one half. The 32-bit words are equal on all devices; a device computes logarithm, sine and cosine with its own rounding.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_A, _C = 1664525, 1013904223  # the linear congruence of pcg4d
_ROUNDS = 4
_START = (0, -0x61C88647)  # the key under which seeds become keys: any constant
BLOCK = 1 << 19
"""Words that are computed at once on a CPU: fewer cost time for launching operations, more do not fit in its cache."""
DEVICE_BLOCK = 1 << 22
"""The same for other devices, where the limit is memory: 16 MiB."""


def keys_of(seeds: Sequence[int]) -> Tensor:
    """The keys (4, B) of integers of at least 0, int32: two independent keys of 64 bits for each seed."""
    rest, key = list(seeds), torch.tensor(_START, dtype=torch.int32)[:, None].expand(2, len(seeds))
    live, found = torch.tensor(True), torch.empty((4, len(seeds)), dtype=torch.int32)
    while True:  # 64 bits at a time, each under the key of those before
        bits = np.array([seed & 0xFFFFFFFFFFFFFFFF for seed in rest], dtype=np.uint64)
        low, high = (torch.from_numpy((bits >> np.uint64(i)).astype(np.uint32).view(np.int32)) for i in (0, 32))
        found = torch.where(live, _mixed(low, high, key[0], key[1]), found)
        rest, key = [seed >> 64 for seed in rest], found[:2]
        if not any(rest):
            return found
        live = torch.tensor([seed > 0 for seed in rest])


def room(draws: int, samples: int, count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """An empty tensor (K, B, 4, ceil(count / 4)) for ``fill``: float64 if ``dtype`` is, otherwise float32."""
    inner = torch.float64 if dtype == torch.float64 else torch.float32
    return torch.empty((draws, samples, 4, -(-count // 4)), dtype=inner, device=device)


def fill(out: Tensor, keys: Tensor, draws: Tensor) -> Tensor:
    """Fills ``out`` (K, B, 4, places) with standard normal numbers and returns it.

    The numbers of one draw of one sample are those of its (4, places), in this order.

    Args:
        keys: two rows (2, B) of ``keys_of``, on the device of ``out``.
        draws: the numbers of the draws, int32, on that device: (K,), or (K, B) if they differ between the samples.
    """
    count, samples, _, places = out.shape
    place, draw = _spread(torch.arange(places, dtype=torch.int32, device=out.device)), _spread(draws)
    draw = draw[:, :, None] if draw.ndim == 2 else draw[:, None, None]
    size = min(samples, max(1, block(out.device) // max(1, count * 4 * places)))
    scratch = _scratch(count * size * 4 * places, out.device)
    for i in range(0, samples, max(1, size)):
        part, key = out[:, i : i + size], keys[:, i : i + size, None]
        shape = (4, count, part.shape[1], places)
        words, spare = (buffer[: math.prod(shape)].view(shape) for buffer in scratch)
        own = draw[:, i : i + size] if draw.shape[1] > 1 else draw
        _box_muller(_rounds(words, spare, place, own, key[0], key[1]), spare, part.permute(2, 0, 1, 3))
    return out


def uniforms(keys: Tensor, draws: Tensor, count: int) -> Tensor:
    """Uniform numbers (K, B, count), float64 on the CPU: (m + 1/2) / 2^52 with an integer m of 52 bits.

    Args:
        keys: two rows (2, B) of ``keys_of``, on the CPU.
        draws: the numbers of the draws, int32, on the CPU: (K,), or (K, B) if they differ between the samples.
    """
    places = -(-count // 2)
    words = torch.empty((4, len(draws), keys.shape[1], places), dtype=torch.int32)
    place = _spread(torch.arange(places, dtype=torch.int32))
    draw = _spread(draws)
    draw = draw[:, :, None] if draw.ndim == 2 else draw[:, None, None]
    _rounds(words, torch.empty_like(words), place, draw, keys[0, :, None], keys[1, :, None])
    high, low = words.bitwise_and_(0x3FFFFFF).double().chunk(2)
    numbers = (high * 2.0**26 + low + 0.5) * 2.0**-52
    return numbers.permute(1, 2, 3, 0).reshape(len(draws), keys.shape[1], -1)[:, :, :count]


_LOCAL = threading.local()


def _scratch(words: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Two buffers of at least so many words. On a CPU a thread keeps them: new memory would cost a third of a draw."""
    if device.type != "cpu" or words > BLOCK:
        first, second = torch.empty((2, words), dtype=torch.int32, device=device)
        return first, second
    if _LOCAL.__dict__.get("words", 0) < words:
        _LOCAL.words, _LOCAL.scratch = BLOCK, torch.empty((2, BLOCK), dtype=torch.int32)
    first, second = _LOCAL.scratch
    return first, second


def block(device: torch.device) -> int:
    """The number of words that are computed at once on a device."""
    return BLOCK if device.type == "cpu" else DEVICE_BLOCK


def _spread(counter: Tensor) -> Tensor:
    return counter * _A + _C


def _mixed(place: Tensor, draw: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """The words (4, B) of one counter and one key per sample."""
    words = torch.empty((4, len(place)), dtype=torch.int32)
    return _rounds(words, torch.empty_like(words), _spread(place), _spread(draw), first, second)


def _rounds(words: Tensor, spare: Tensor, place: Tensor, draw: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Fills ``words`` (4, *) with the words of (place, draw) under the key (first, second); ``spare`` has that shape.

    Products and sums are modulo 2^32. The shift repeats the sign, which saves masking it: the sum of a number's halves
    reaches its lower half, as in pcg4d.
    """
    x, y, z, w = words
    # a one-to-one function of the four; each has a factor that is constant along the last axis at most once, which is
    # what torch computes quickly
    torch.add(place, torch.addcmul(first, draw, second), out=x)
    torch.addcmul(draw, x, x, out=y)
    torch.addcmul(first, x, y, out=z)
    torch.addcmul(second, y, z, out=w)
    for _ in range(_ROUNDS - 1):
        torch.bitwise_right_shift(words, 16, out=spare)
        words.add_(spare)
        x.addcmul_(y, w)
        y.addcmul_(z, x)
        z.addcmul_(x, y)
        w.addcmul_(y, z)
    return words


def _box_muller(words: Tensor, spare: Tensor, out: Tensor) -> None:
    """Writes normal numbers (4, *) to ``out``; overwrites ``words`` and ``spare``, int32 (4, *).

    With u = (m | 1) / 2^31, m the 31 lower bits of a word and u rounded to float32 in every dtype, and a the other
    word / 2^32: sqrt(-2 log u) cos(2 pi a), sqrt(-2 log u) sin(2 pi a). The largest is sqrt(62 log 2) = 6.6.
    """
    radius, angle = spare.view(torch.float32).chunk(2)
    radius.copy_(words[:2].bitwise_and_(0x7FFFFFFF).bitwise_or_(1)).mul_(2.0**-31)
    if out.dtype == torch.float64:
        radius, angle, cosine = radius.double(), words[2:].double(), torch.empty_like(radius, dtype=torch.float64)
    else:
        angle.copy_(words[2:])
        cosine = words[:2].view(torch.float32)  # its bits are used up
    radius.log_().mul_(-2).sqrt_()
    angle.mul_(2 * math.pi / 2**32)
    torch.mul(torch.cos(angle, out=cosine), radius, out=out[:2])
    torch.mul(angle.sin_(), radius, out=out[2:])
