"""Helpers that all variational bounds share: bin widths, the conditions of a batch, samples whose bound failed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ..likelihood.inputs import positive
from ..likelihood.result import LogProb
from ..sampling.failures import failures_of, lost, report, without
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


def total(budget: Mapping[str, Tensor]) -> Tensor:
    """The sum (B,) of the terms of a budget."""
    return torch.stack(list(budget.values())).sum(0)


def reported(bound: LogProb, on_failure: str) -> LogProb:
    """The bound with NaN in every part of the samples for which it is not finite, after these were reported.

    Args:
        on_failure: as in ``log_prob``.

    Raises:
        InputError: samples failed and ``on_failure`` is ``raise``, or all samples failed.
    """
    ends = bound.latent.flatten(1).to(bound.nats)
    bad = lost(torch.cat([bound.nats[:, None], ends], 1))
    failures = failures_of(bad, 0)
    name = bound.solver if bound.solver.endswith(" bound") else f"bound of {bound.solver}"
    report(failures, len(bad), on_failure, f"the {name}")
    if not failures:
        return bound
    terms = None if bound.terms is None else without(bound.terms, bad, torch.nan)
    return replace(
        bound,
        nats=without(bound.nats, bad, torch.nan),
        stderr=without(bound.stderr, bad, torch.nan),
        latent=without(bound.latent, bad, torch.nan),
        budget={name: without(value, bad, torch.nan) for name, value in bound.budget.items()},
        terms=terms,
        failures=failures,
    )
