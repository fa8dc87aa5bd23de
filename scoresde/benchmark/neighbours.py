"""Comparisons of two sets by nearest neighbours: precision, recall, density, coverage, and a classifier's accuracy.

They distinguish samples that look unlike data from data that no sample looks like, which a distance adds up. All depend
on the numbers of samples: compare only values from the same numbers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

import solvers
from solvers import InputError
from solvers.errors import positive_integer

from .sets import Features, prepared

_BLOCK = 1024  # rows of a matrix of distances that are in memory at the same time


def precision(x: Tensor, y: Tensor, features: Features | None = None, k: int = 3) -> float:
    """The share of x in the support of y: in the ball of a sample of y that reaches to its k-th nearest neighbour in y.

    Kynkaanniemi et al. 2019, arXiv:1904.06991, eq. 1 and 2. Larger is better.

    Args:
        x, y: samples (N, *), and real ones (M, *).
        features: maps (N, *) to (N, k) first.

    Raises:
        InputError: k or fewer samples in y; see also ``prepared``.
    """
    x, y = prepared(x, y, features)
    return float(_inside(x, y, _radii("y", y, k)).any(1).double().mean())


def recall(x: Tensor, y: Tensor, features: Features | None = None, k: int = 3) -> float:
    """The share of y in the support of x: ``precision`` with x and y swapped. Larger is better."""
    return precision(y, x, features, k)


def density(x: Tensor, y: Tensor, features: Features | None = None, k: int = 5) -> float:
    """How many balls of y contain a sample of x, divided by k, on average; about 1 for samples of one law.

    Naeem et al. 2020, arXiv:2002.09797, eq. 8. Larger is better, but samples near the modes alone have more than 1.

    Raises:
        InputError: as in ``precision``.
    """
    x, y = prepared(x, y, features)
    return float(_inside(x, y, _radii("y", y, k)).double().sum(1).mean() / k)


def coverage(x: Tensor, y: Tensor, features: Features | None = None, k: int = 5) -> float:
    """The share of the balls of y that contain a sample of x. Larger is better.

    Naeem et al. 2020, eq. 9. For two sets of n samples of one continuous law its expectation is
    1 - prod_{i=0}^{k-1} (n - i) / (2 n - 1 - i), in any dimension.

    Raises:
        InputError: as in ``precision``.
    """
    x, y = prepared(x, y, features)
    return float(_inside(x, y, _radii("y", y, k)).any(0).double().mean())


def classifier(x: Tensor, y: Tensor, features: Features | None = None, seed: int = 0) -> float:
    """The accuracy of a classifier that tells x from y, on samples that it was not made of; 0.5 if it cannot.

    Lopez-Paz and Oquab 2017, arXiv:1610.06545, with their nearest neighbours: the vote of the floor(sqrt(n)) nearest
    ones of the n samples of one half, on the other half. Of the larger set only a random part is used.

    Args:
        seed: of the halves.

    Raises:
        InputError: see ``prepared``; also fewer than four samples in a set.
    """
    x, y = prepared(x, y, features)
    half, generator = tested(len(x), len(y)) // 2, solvers.generator(seed, 3)
    parts = [z[torch.randperm(len(z), generator=generator)[: 2 * half]] for z in (x, y)]
    known, new = (torch.cat([part[place] for part in parts]) for place in (slice(0, half), slice(half, None)))
    k = math.isqrt(len(known))
    k -= 1 - k % 2  # odd, so that there is no draw
    votes = [
        (torch.cdist(block, known).topk(k, largest=False).indices < half).sum(1) for block in torch.split(new, _BLOCK)
    ]
    of_x = torch.cat(votes) > k / 2
    right = torch.cat([of_x[:half], ~of_x[half:]])
    return float(right.double().mean())


def tested(n: int, m: int) -> int:
    """How many samples ``classifier`` classifies, of sets of n and m.

    Raises:
        InputError: a set has fewer than four.
    """
    if min(n, m) < 4:
        raise InputError(f"a classifier needs at least four samples in each set, got {n} and {m}")
    return 2 * (min(n, m) // 2)


def _radii(name: str, y: Tensor, k: int) -> Tensor:
    """The distance of each sample to its k-th nearest neighbour in the same set (M,)."""
    if positive_integer("k", k) >= len(y):
        raise InputError(f"the {k} nearest neighbours need more than {k} samples, got {len(y)} in {name}")
    return torch.cat([torch.cdist(block, y).kthvalue(k + 1, dim=1).values for block in torch.split(y, _BLOCK)])


def _inside(x: Tensor, y: Tensor, radii: Tensor) -> Tensor:
    """Whether each sample of x is in each ball of y, (N, M)."""
    return torch.cat([torch.cdist(block, y) <= radii for block in torch.split(x, _BLOCK)])
