"""The identities that an operator must satisfy, measured on random samples."""

from __future__ import annotations

import torch
from torch import Tensor

from solvers import InputError, generator

from ..io.inputs import shape_of
from .base import Operator

TOLERANCE = 1e-10  # of an identity in float64, relative to the size of its terms
_ROWS = 5


def check(operator: Operator, shape: tuple[int, ...], seed: int = 0) -> dict[str, float]:
    """Checks an operator on random samples of a shape, and returns the relative error of each identity.

    Of every operator: observations have the shape that it states, and a row of a batch equals the row alone. Of linear
    ones: A is additive, <A x, y> = <x, A^T y>, A A^+ A = A; and where a decomposition is known, V V^T = I, U U^T = I,
    A = U S V^T, each to 1e-10. Run it on an operator of yours, on the CPU.

    >>> from scoresde.operators import Downsample
    >>> max(check(Downsample(2), (1, 4, 4)).values()) < 1e-10
    True

    Raises:
        InputError: the operator does not apply to the shape, or an identity fails; the message names it and its error.
    """
    shape = shape_of(shape)
    x = torch.randn(_ROWS, *shape, dtype=torch.float64, generator=generator(seed, 0))
    y = operator(x)
    wanted = (len(x), *operator.shape(shape))
    if tuple(y.shape) != wanted:
        raise InputError(f"{operator}: observations have the shape {tuple(y.shape)}, it states {wanted}")
    if not torch.isfinite(y).all():
        raise InputError(f"{operator}: an observation of finite samples is not finite")
    for i in range(len(x)):
        if not torch.equal(operator(x[i : i + 1])[0], y[i]):
            raise InputError(f"{operator}: an observation depends on the other samples of its batch")
    errors = _linear(operator, x, y, shape, seed) if operator.linear else {}
    for identity, error in errors.items():
        if not error <= TOLERANCE:
            raise InputError(f"{operator}: {identity} fails for samples of shape {shape}, relative error {error:.1e}")
    return errors


def _linear(operator: Operator, x: Tensor, y: Tensor, shape: tuple[int, ...], seed: int) -> dict[str, float]:
    """The relative errors of the identities of a linear operator."""
    other = torch.randn(y.shape, dtype=torch.float64, generator=generator(seed, 1))
    pulled = operator.adjoint(other, shape)
    if pulled.shape != x.shape:
        raise InputError(f"{operator}: A^T y has the shape {tuple(pulled.shape)}, samples have {tuple(x.shape)}")
    left, right = (y * other).flatten(1).sum(1), (x * pulled).flatten(1).sum(1)
    scale = _norms(y) * _norms(other)
    found = {
        "A(x + y) = A x + A y": _error(operator(x + x.roll(1, 0)), y + y.roll(1, 0)),
        "<A x, y> = <x, A^T y>": float(((left - right).abs() / scale.clamp_min(1e-300)).max()),
        "A A^+ A = A": _error(operator(operator.pinv(y, shape)), y),
    }
    svd = operator.svd(shape)
    if svd is None:
        return found
    k, coordinates = len(svd.values), svd.right(x)
    z = torch.randn(x.flatten(1).shape, dtype=torch.float64, generator=generator(seed, 2))
    w = torch.randn(y.flatten(1).shape, dtype=torch.float64, generator=generator(seed, 3))
    image = torch.zeros_like(w)
    image[:, :k] = coordinates[:, :k] * svd.values
    return {
        **found,
        "V V^T = I": _error(svd.from_right(coordinates), x),
        "V^T V = I": max(_error(svd.right(svd.from_right(z)), z), _error(_norms(svd.from_right(z)), _norms(z))),
        "U U^T = I": _error(svd.from_left(svd.left(y)), y),
        "U^T U = I": max(_error(svd.left(svd.from_left(w)), w), _error(_norms(svd.from_left(w)), _norms(w))),
        "A = U S V^T": _error(svd.from_left(image), y),
    }


def _norms(x: Tensor) -> Tensor:
    return x.flatten(1).square().sum(1).sqrt()


def _error(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, relative to the largest number; infinite for another shape."""
    if found.shape != wanted.shape:
        return float("inf")
    return float((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-300))
