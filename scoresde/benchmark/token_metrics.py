"""Distances between two sets of samples of discrete states: laws of short runs of tokens, and samples without a peer.

Samples (N, *) are read as sequences of all their tokens. Both are total variations or shares, between 0 and 1, and
smaller is better.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from solvers import InputError
from solvers.errors import positive_integer
from solvers.libraries import library


def ngrams(x: Tensor, y: Tensor, length: int) -> float:
    """The total variation between the laws of ``length`` tokens in a row, at any place, in two sets of samples.

    Its expectation is above the distance of the laws that the sets are drawn from: compare it with that of a third set.

    Args:
        x, y: (N, *) and (M, *), whole numbers of at least 0.
        length: how many tokens.

    Raises:
        InputError: a sample has fewer tokens than ``length``; samples are no whole numbers of at least 0.

    >>> ngrams(torch.tensor([[0, 1, 0]]), torch.tensor([[0, 1, 1]]), 2)
    0.5
    """
    positive_integer("length", length)
    a, b = _sequences(x), _sequences(y)
    if min(a.shape[1], b.shape[1]) < length:
        raise InputError(f"runs of {length} tokens need samples of so many, got {min(a.shape[1], b.shape[1])}")
    values = int(max(a.max(), b.max())) + 1
    if values**length > 2**62:
        raise InputError(f"{values} values of a token are too many for runs of {length}")
    runs = torch.cat([_runs(a, length, values), _runs(b, length, values)])
    place = torch.from_numpy(np.unique(runs.numpy(), return_inverse=True)[1])
    split, count = (a.shape[1] - length + 1) * len(a), int(place.max()) + 1
    one, two = (torch.bincount(part, minlength=count).double() / len(part) for part in (place[:split], place[split:]))
    return 0.5 * float((one - two).abs().sum())


def invalid(x: Tensor, y: Tensor) -> float:
    """The share of the samples x (N, *) that equal no sample of y (M, *).

    It is an error where y holds all that data can be, as of the heartbeat; of other data all samples are new.

    >>> invalid(torch.tensor([[0, 1], [1, 1]]), torch.tensor([[0, 1], [1, 0]]))
    0.5
    """
    a, b = _sequences(x), _sequences(y)
    if a.shape[1] != b.shape[1]:
        raise InputError(f"the samples have different sizes: {a.shape[1]} tokens in x, {b.shape[1]} in y")
    place = torch.from_numpy(np.unique(torch.cat([a, b]).numpy(), axis=0, return_inverse=True)[1]).flatten()
    return 1 - float(torch.isin(place[: len(a)], place[len(a) :]).double().mean())


def wilson(share: float, count: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval for a probability, from its share of ``count`` independent draws (Wilson 1927).

    >>> [round(end, 3) for end in wilson(0.0, 100)]
    [0.0, 0.037]
    """
    z = float(library("scipy.stats").norm.ppf(0.5 + level / 2))
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    reach = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    # at 0 and 1 the ends are exact, but for rounding
    return (0.0 if share == 0 else middle - reach), (1.0 if share == 1 else middle + reach)


TOKEN_METRICS: dict[str, Callable[..., float]] = {
    "invalid": invalid,
    "unigrams": partial(ngrams, length=1),
    "bigrams": partial(ngrams, length=2),
    "trigrams": partial(ngrams, length=3),
}
MEANINGS = {
    "invalid": "the share of samples that equal no held-out one",
    "unigrams": "the total variation between the laws of a token",
    "bigrams": "the total variation between the laws of two tokens in a row",
    "trigrams": "the total variation between the laws of three tokens in a row",
}


def meaningful(y: Tensor, others: Tensor | None = None) -> tuple[str, ...]:
    """The metrics that say something about data of which these are samples.

    Args:
        y: (M, *).
        others: more samples (K, *), by default every second one of y. The share of invalid samples means something if
            all of y are among them, as of data that have few different samples.
    """
    size = y[0].numel()
    runs = ("bigrams", "trigrams") if size > 2 else ("bigrams",) if size > 1 else ("unigrams",)
    return ("invalid", *runs) if invalid(y, y[::2] if others is None else others) == 0 else runs


def _sequences(x: Tensor) -> Tensor:
    """Samples as (N, d), int64."""
    flat = torch.as_tensor(x).flatten(1).cpu()
    whole = flat.long()
    if not flat.numel() or not bool((whole == flat).all()) or int(whole.min()) < 0:
        raise InputError("runs of tokens need samples of whole numbers of at least 0")
    return whole


def _runs(x: Tensor, length: int, values: int) -> Tensor:
    """The numbers (n,) of all runs of some tokens in sequences (N, d)."""
    windows = x.unfold(1, length, 1)
    return (windows * values ** torch.arange(length)).sum(-1).flatten()
