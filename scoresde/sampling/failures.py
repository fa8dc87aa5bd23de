"""Samples that fail: their rows are NaN, the other samples are returned, and one warning names them.

A sample fails if its state is not finite, or if its adaptive solver gives up. Every sample is solved independently, so
the others are not affected.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from solvers import InputError, Node
from solvers.errors import unknown

from .plan import Plan

HOW = ("warn", "raise", "keep")
"""What is done about failed samples: a warning, an ``InputError``, or nothing but the record in the result."""
SHOWN = 10  # the most reasons in a message, and the most samples of a reason


class Failure(NamedTuple):
    """A sample that failed: its place in the whole input, counted from 0, the reason with the noise level, and the
    seed that it was drawn from, if it was drawn."""

    sample: int
    reason: str
    seed: int | None = None


class Watch:
    """A hook that remembers where each sample stopped being finite."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.steps = plan, 0
        self.reasons: dict[int, str] = {}

    def __call__(self, x: Tensor, node: Node) -> None:
        self.steps += 1
        for i in torch.nonzero(lost(x.detach())).flatten().tolist():
            at = f"not finite after step {self.steps} of {self.plan.steps}, at sigma / alpha = {node.ratio:.4g}"
            self.reasons.setdefault(i, at)


def lost(x: Tensor) -> Tensor:
    """Which rows (B,) of x (B, *) contain a number that is not finite."""
    return ~torch.isfinite(x.flatten(1)).all(1)


def without(x: Tensor, rows: Tensor, value: float) -> Tensor:
    """x (B, *) with ``value`` in every place of some rows (B,)."""
    return torch.where(rows.to(x.device).view(-1, *(1,) * (x.ndim - 1)), value, x)


def failures_of(rows: Tensor, first: int, *known: Mapping[int, str]) -> tuple[Failure, ...]:
    """The failures of a batch whose rows (B,) are lost, from the first reason that is known for each.

    ``first`` is the place of the batch in the whole input.
    """
    places = torch.nonzero(rows).flatten().tolist()
    return tuple(Failure(first + i, next((of[i] for of in known if i in of), "not finite")) for i in places)


def check_how(how: str) -> None:
    """Checks the value of ``on_failure``.

    Raises:
        InputError: it is none of ``HOW``.
    """
    if how not in HOW:
        raise unknown("on_failure", how, HOW)


def report(failures: Sequence[Failure], count: int, how: str, subject: str) -> None:
    """Warns of the samples that failed.

    Args:
        count: the number of samples of the whole input.
        how: one of ``HOW``.
        subject: a description of the solve, such as "heun on karras".

    Raises:
        InputError: samples failed, and ``how`` is ``raise``, or ``warn`` and all of them did.
    """
    if not failures or how == "keep":
        return
    numbers = f"{len(failures)} of {count} samples of {subject} are not finite"
    if how == "raise" or len(failures) == count:
        raise InputError(f"{numbers}: {listed(failures)}")
    warnings.warn(f"{numbers} and are returned as NaN: {listed(failures)}", stacklevel=3)


def listed(failures: Iterable[Failure]) -> str:
    """The failures in a line, by their reasons."""
    by_reason: dict[str, list[Failure]] = {}
    for failure in failures:
        by_reason.setdefault(failure.reason, []).append(failure)
    parts = []
    for reason, samples in list(by_reason.items())[:SHOWN]:
        names = ", ".join(map(_named, samples[:SHOWN])) + (f" and {len(samples) - SHOWN} more" * (len(samples) > SHOWN))
        parts.append(f"sample{'s' * (len(samples) > 1)} {names} {reason}")
    more = sum(len(samples) for samples in list(by_reason.values())[SHOWN:])
    return "; ".join(parts) + (f"; and {more} more samples" if more else "")


def _named(failure: Failure) -> str:
    """The place of a sample, and its seed where that is another number."""
    other = failure.seed is not None and failure.seed != failure.sample
    return f"{failure.sample} (seed {failure.seed})" if other else str(failure.sample)


class Seen:
    """Where each sample of a foreign loop stopped being finite, found without waiting for the device before the end."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.first: Tensor | None = None

    def __call__(self, x: Tensor, node: Node) -> None:
        """Sees the states x (B, *) of the next evaluation, or the predictions there."""
        self.nodes.append(node)
        place = torch.where(lost(x.detach()), len(self.nodes), 0)
        self.first = place if self.first is None else torch.where(self.first > 0, self.first, place)

    def report(self, x: Tensor, subject: str) -> Tensor:
        """The result x (B, *) of the loop, with NaN in every place of the samples that failed, after a warning.

        Raises:
            InputError: all samples failed.
        """
        bad = lost(x.detach())
        if not bool(bad.any()):
            return x
        reasons: dict[int, str] = {}
        for i, k in enumerate(() if self.first is None else self.first.tolist()):
            if k:
                level = f"sigma / alpha = {self.nodes[k - 1].ratio:.4g}"
                reasons[i] = f"not finite from evaluation {k} of {len(self.nodes)}, at {level}"
        report(failures_of(bad, 0, reasons), len(x), "warn", subject)
        return without(x, bad, torch.nan)
