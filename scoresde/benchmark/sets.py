"""Sets of samples as matrices: flattened, mapped to features, and checked."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from solvers import InputError

Features = Callable[[Tensor], Tensor]


def prepared(x: Tensor, y: Tensor, features: Features | None = None) -> tuple[Tensor, Tensor]:
    """Two sets (N, *) and (M, *) as float64 (N, d) and (M, d), checked.

    Raises:
        InputError: fewer than two samples, samples that are not finite, or sets with samples of different sizes.
    """
    x, y = _vectors("x", x, features), _vectors("y", y, features)
    if x.shape[1] != y.shape[1]:
        raise InputError(f"the samples have different sizes: {x.shape[1]} numbers in x, {y.shape[1]} in y")
    return x, y


def mapped(name: str, samples: Tensor, features: Features | None) -> Tensor:
    """The features of samples (N, *), or the samples themselves.

    Raises:
        InputError: there is not a row of features for each sample.
    """
    if features is None:
        return samples
    with torch.no_grad():
        found = torch.as_tensor(features(samples))
    if found.ndim < 2 or len(found) != len(samples):
        raise InputError(
            f"features gave {len(found) if found.ndim else 0} rows for the {len(samples)} samples of {name}"
        )
    return found


def _vectors(name: str, samples: Tensor, features: Features | None) -> Tensor:
    samples = torch.as_tensor(samples)
    count = len(samples) if samples.ndim else 0
    if count < 2 or samples.ndim < 2:
        raise InputError(f"a distance needs at least two samples (N, *), got {name} of shape {tuple(samples.shape)}")
    flat: Tensor = mapped(name, samples, features).detach().flatten(1).cpu().double()
    bad = int((~torch.isfinite(flat)).any(1).sum())
    if bad:
        raise InputError(f"{bad} of the {count} samples of {name} are not finite")
    return flat
