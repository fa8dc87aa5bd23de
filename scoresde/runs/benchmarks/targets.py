"""Targets by name, and what a user's factory returns: a distribution whose score is exact, or a denoiser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from solvers.errors import unknown
from solvers.registry.spec import Spec, parse

from ...benchmark.features import called, from_factory
from ...data.loading import load_whole
from ...models.targets import Empirical, Gaussian, GaussianMixture


def empirical(data: str | Spec, rows: int | None = None) -> Empirical:
    """The target that is a data set, a point mass at each row.

    Args:
        data: a path, or "digits".
        rows: at most so many rows, evenly spaced; by default all.

    Raises:
        InputError: the data cannot be read.
    """
    there = load_whole(str(data)).train
    return Empirical(there.some(len(there) if rows is None else rows).x.double())


TARGETS: dict[str, Callable[..., GaussianMixture | Empirical]] = {
    "gaussian": Gaussian,
    "mixture": GaussianMixture,
    "empirical": empirical,
}


def target_of(text: str) -> Any:
    """A target by a spec such as "mixture(means=[[2, 0], [-2, 0]], covariances=0.1)", or what "module:factory" returns.

    Raises:
        InputError: an unknown name; the options do not fit; see also ``from_factory``.
    """
    spec = parse(text)
    if ":" in spec.name:
        return from_factory("target", text, "mine:target")
    if spec.name not in TARGETS:
        raise unknown("target", spec.name, TARGETS, "(module:factory names one of your own)")
    return called("target", text, lambda: TARGETS[spec.name](*spec.args, **dict(spec.kwargs)))
