"""``Operator``: a measurement y = A(x0) + sigma n of a sample, with the noise n standard normal.

An operator is a value without a fixed size: ``shape`` returns the shape of one observation for the shape of one sample.
It acts on batches, in their dtype and on their device. On the CPU an observation does not depend on the rest of its
batch, bit for bit. ``linear`` ones also have an adjoint, a pseudo-inverse and a singular value decomposition.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from solvers import InputError, Registry, generator
from solvers.errors import shown
from solvers.registry.options import Options
from solvers.registry.ranges import NonNegative
from solvers.registry.spec import write

from ..io.array_files import read_array
from ..io.inputs import tensor_of

Array = str | Tensor | np.ndarray[Any, Any]  # the name of a .npy file, or the numbers themselves
LARGEST = 4096  # the largest sample whose singular value decomposition is computed from a dense matrix
_BLOCK = 2**17  # numbers of a product that are in memory at the same time


class SVD(NamedTuple):
    """The singular value decomposition A = U S V^T of a linear operator of rank k, for samples of one shape.

    The bases are orthonormal and complete; they compute in the dtype of their argument. Observations of m numbers and
    samples of d numbers have any shape.

    Attributes:
        values: the positive singular values (k,), float64.
        right: V^T x (B, d) of samples (B, *): the first k coordinates belong to ``values``, A maps the others to 0.
        from_right: the samples (B, *) with these coordinates (B, d).
        left: U^T y (B, m) of observations (B, *m): the first k coordinates belong to ``values``, no sample has the
            others.
        from_left: the observations (B, *m) with these coordinates (B, m).
    """

    values: Tensor
    right: Callable[[Tensor], Tensor]
    from_right: Callable[[Tensor], Tensor]
    left: Callable[[Tensor], Tensor]
    from_left: Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Operator(Options):
    """A measurement y = A(x0) + sigma n. Each is a frozen dataclass; its fields are its options.

    A subclass writes ``shape`` and ``__call__``, and sets ``linear`` where A is linear; the rest follows, by autograd
    and from a dense matrix, and may be overridden where there is something faster.

    Attributes:
        sigma: the standard deviation of the noise, in the units of the data.
        linear: whether A is linear.
        differentiable: whether the gradient of A says anything; rounding has gradient 0.
    """

    sigma: NonNegative = field(default=0.0, kw_only=True)
    linear: ClassVar[bool] = False
    differentiable: ClassVar[bool] = True

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of one observation, for samples of a shape.

        Raises:
            InputError: the operator does not apply to samples of this shape.
        """
        raise NotImplementedError

    def __call__(self, x: Tensor) -> Tensor:
        """The observations A(x) without noise (B, *m) of samples x (B, *); differentiable."""
        raise NotImplementedError

    def adjoint(self, y: Tensor, shape: tuple[int, ...]) -> Tensor:
        """A^T y (B, *shape) of observations y (B, *m).

        Raises:
            InputError: A is not linear, or y does not have the shape of observations.
        """
        self.check_observations(y, shape)
        with torch.enable_grad():
            x = torch.zeros(len(y), *shape, dtype=y.dtype, device=y.device, requires_grad=True)
            (found,) = torch.autograd.grad(self(x), x, y, create_graph=y.requires_grad)
        return found

    def pinv(self, y: Tensor, shape: tuple[int, ...]) -> Tensor:
        """A^+ y (B, *shape): of the samples whose observations are nearest to y (B, *m), the shortest.

        Raises:
            InputError: as ``adjoint``; or the sample is too large and no decomposition is known.
        """
        self.check_observations(y, shape)
        svd = self.svd(shape)
        if svd is None:
            raise InputError(f"{self}: no pseudo-inverse for samples of {math.prod(shape)} numbers; most {LARGEST}")
        values = svd.values.to(y)
        coordinates = y.new_zeros(len(y), math.prod(shape))
        coordinates[:, : len(values)] = svd.left(y)[:, : len(values)] / values
        return svd.from_right(coordinates)

    def svd(self, shape: tuple[int, ...]) -> SVD | None:
        """The singular value decomposition for samples of a shape; None if none is known and they are too large.

        By default that of the dense matrix, computed once for each shape.

        Raises:
            InputError: A is not linear.
        """
        self.check_linear()
        if math.prod(shape) > LARGEST:
            return None
        if shape not in self._decompositions:
            self._decompositions[shape] = dense_svd(self.matrix(shape), shape, self.shape(shape))
        return self._decompositions[shape]

    def matrix(self, shape: tuple[int, ...]) -> Tensor:
        """The matrix (m, d), float64, that maps a flattened sample to its flattened observation.

        Raises:
            InputError: A is not linear.
        """
        self.check_linear()
        d = math.prod(shape)
        with torch.no_grad():
            units = torch.eye(d, dtype=torch.float64).view(d, *shape)
            columns = [self(units[i : i + 256]).flatten(1) for i in range(0, d, 256)]
        return torch.cat(columns).T.contiguous()

    @cached_property
    def _decompositions(self) -> dict[tuple[int, ...], SVD]:
        return {}

    def check_linear(self) -> None:
        """Rejects an operator that is not linear.

        Raises:
            InputError: A is not linear.
        """
        if not self.linear:
            raise InputError(f"{self} is not linear: it has no adjoint, pseudo-inverse or singular values")

    def check_observations(self, y: Tensor, shape: tuple[int, ...]) -> None:
        """Rejects observations of another shape than ``shape`` returns, and operators that are not linear.

        Raises:
            InputError: A is not linear, or y does not have the shape (B, *m).
        """
        self.check_linear()
        check_shape(self, y, shape)

    def __str__(self) -> str:
        info = operators.info_of(self)
        options = [
            f"{name}={_short(value)}"
            for name, option in sorted(info.fields.items(), key=lambda item: item[1].kw_only is True)
            if isinstance(value := getattr(self, option.name), (Tensor, np.ndarray))
            or option.default is MISSING
            or value != option.default
        ]
        return f"{info.name}({', '.join(options)})" if options else info.name


operators: Registry[Operator] = Registry("operator", Operator)


def _short(value: Any) -> str:
    if isinstance(value, (Tensor, np.ndarray)):
        return f"<{' x '.join(map(str, value.shape))}>"
    # the name of a function, without its address in memory: the same text in every process
    return str(getattr(value, "__name__", type(value).__name__)) if callable(value) else write(value)


def check_shape(operator: Operator, y: Tensor, shape: tuple[int, ...]) -> None:
    """Rejects observations y that do not have the shape (B, *m) that an operator gives for samples of a shape.

    Raises:
        InputError: y has another shape.
    """
    wanted = operator.shape(tuple(shape))
    if y.ndim == 0 or tuple(y.shape[1:]) != wanted:
        raise InputError(
            f"{operator} observes samples of shape {tuple(shape)} in the shape {wanted}; got observations of shape "
            f"{tuple(y.shape[1:])}"
        )


def log_likelihood(operator: Operator, y: Tensor, x0: Tensor) -> Tensor:
    """log N(y; A(x0), sigma^2 I) (B,) in nats, of observations y (B, *m) or (1, *m) given samples x0 (B, *).

    Raises:
        InputError: the operator has sigma = 0, or y has another shape than its observations.
    """
    if not operator.sigma > 0:
        raise InputError(f"{operator}: without noise an observation has no density; give it a sigma above 0")
    check_shape(operator, y, tuple(x0.shape[1:]))
    residual = (y - operator(x0)).flatten(1) / operator.sigma
    constant = residual.shape[1] * (0.5 * math.log(2 * math.pi) + math.log(operator.sigma))
    return -0.5 * residual.square().sum(1) - constant


def measure(operator: Operator, x: Tensor, noise: Tensor | torch.Generator | int = 0) -> Tensor:
    """Observations y = A(x) + sigma n (B, *m) of samples x (B, *).

    Args:
        noise: a seed or a generator of standard normal numbers, or these numbers themselves (B, *m).

    Raises:
        InputError: the samples or the noise have a shape that does not fit.
    """
    y = operator(x)
    if isinstance(noise, Tensor):
        check_shape(operator, noise, tuple(x.shape[1:]))
        return y + operator.sigma * noise
    source = noise if isinstance(noise, torch.Generator) else generator(noise)
    drawn = torch.randn(y.shape, dtype=torch.float64, generator=source, device=source.device)
    return y + operator.sigma * drawn.to(y)


def numbers(name: str, value: Array, ndim: int | None = None) -> Tensor:
    """An option that is a file or an array, as a tensor; numbers must be finite, and become float64.

    Raises:
        InputError: the file cannot be read, or the array has no numbers, other ones, or another number of dimensions.
    """
    if isinstance(value, str):
        value = torch.from_numpy(read_array(value, name))
    found = tensor_of(name, value).detach().cpu()
    if ndim is not None and found.ndim != ndim:
        raise InputError(f"{name} must have {ndim} dimensions, got the shape {tuple(found.shape)}")
    if found.dtype == torch.bool:
        return found
    if found.is_complex() or not found.numel() or not torch.isfinite(found).all():
        raise InputError(f"{name} must contain finite real numbers, got {shown(value)[:80]}")
    return found.double()


def flat(operator: Operator, x: Tensor) -> Tensor:
    """Samples (B, *) as vectors (B, d), once the operator applies to their shape.

    Raises:
        InputError: it does not.
    """
    operator.shape(tuple(x.shape[1:]))
    return x.flatten(1)


def times(matrix: Tensor, x: Tensor) -> Tensor:
    """The products A x (B, m) of a matrix (m, d) with vectors x (B, d).

    On the CPU each is a sum of its own: a matrix product rounds differently for another number of rows.
    """
    matrix = matrix.to(x)
    if x.device.type != "cpu":
        return x @ matrix.mT
    rows = max(1, _BLOCK // max(1, matrix.numel()))
    parts = [x[i : i + rows].unsqueeze(1) for i in range(0, len(x), rows)] or [x.unsqueeze(1)]
    return torch.cat([(matrix * part).sum(2) for part in parts])


def dense_svd(matrix: Tensor, shape: tuple[int, ...], observed: tuple[int, ...]) -> SVD:
    """The decomposition of a dense matrix (m, d), for samples and observations of these shapes."""
    u, values, vh = torch.linalg.svd(matrix, full_matrices=True)
    rounding = max(matrix.shape) * torch.finfo(matrix.dtype).eps * values.max()
    ut, v = u.T.contiguous(), vh.T.contiguous()
    return SVD(
        values[values > rounding],
        lambda x: times(vh, x.flatten(1)),
        lambda z: times(v, z).view(len(z), *shape),
        lambda y: times(ut, y.flatten(1)),
        lambda z: times(u, z).view(len(z), *observed),
    )
