"""Helpers that all variational bounds share: bin widths, budgets, the conditions of a batch."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from solvers import InputError

from ..likelihood.inputs import positive
from .decoders import Decoder, Discretised


def width_of(decoder: Decoder, x: Tensor, bin_width: float | None) -> float | None:
    """The bin width of the data x (B, *): the decoder's if it has one, otherwise ``bin_width``.

    Raises:
        InputError: the data are not at the levels of the decoder, or the width is not positive.
    """
    if isinstance(decoder, Discretised):
        decoder.check(x)
        return positive("bin_width", decoder.bin_width)
    return None if bin_width is None else positive("bin_width", bin_width)


def offset_of(decoder: Decoder, x: Tensor, width: float | None) -> Tensor:
    """The log-volume of a bin (B,) in nats for data that were spread over their bins; 0 for all other data."""
    spread = width is not None and not isinstance(decoder, Discretised)
    return torch.full((len(x),), x[0].numel() * math.log(width) if spread and width else 0.0, dtype=torch.float64)


def rows_of(condition: Mapping[str, Tensor] | None, rows: slice) -> dict[str, Tensor]:
    """The conditions of the samples in ``rows``."""
    return {name: value[rows] for name, value in (condition or {}).items()}


def finite_sum(budget: Mapping[str, Tensor]) -> Tensor:
    """The sum (B,) of the terms of a budget.

    Raises:
        InputError: a sum is not finite.
    """
    nats = torch.stack(list(budget.values())).sum(0)
    if not torch.isfinite(nats).all():
        raise InputError(f"{int((~torch.isfinite(nats)).sum())} of {len(nats)} bounds are not finite")
    return nats
