"""The trace of a denoiser's Jacobian, from products of vectors with it.

With J = d x0 / d x at a node, an estimator asks for products v^T J of a few vectors v a sample: random ones, fixed for
the whole solve, so that the ODE it integrates is one and the same. Each gives several channels, whose mean is the
trace; their spread over a solve is the standard error. What of J is known beforehand, a multiple of the identity, is
taken out first and never estimated.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from solvers import InputError, Registry, generator
from solvers.registry.options import Options
from solvers.registry.ranges import Count

# (k, B, d) vectors -> v^T J, (k, B, d), in at least float32 whatever the network computes in
Products = Callable[[Tensor], Tensor]

# an orthonormal basis leaves out what is this many units of rounding, beside the largest column
_ROUNDING = 32


class Divergence(Options):
    """How the trace is found; a frozen dataclass whose fields are its options."""

    def draw(self, seeds: list[int], d: int) -> Tensor | None:
        """The vectors of a solve (B, k, d), float64, row i from seed i alone; None where none are drawn.

        Raises:
            InputError: there are more vectors than dimensions, where that makes no sense.
        """
        raise NotImplementedError

    def channels(self, d: int) -> int:
        """How many channels m ``trace`` gives."""
        raise NotImplementedError

    def products(self, d: int) -> int:
        """Vector-Jacobian products of one evaluation, per sample."""
        raise NotImplementedError

    def trace(self, products: Products, vectors: Tensor | None, like: Tensor) -> Tensor:
        """The trace (B, m) for samples ``like`` (B, d), ``vectors`` (B, k, d) as drawn; sums have the products' dtype.

        The dtype of ``like`` is that in which products are rounded.
        """
        raise NotImplementedError

    def exact(self, d: int) -> bool:
        """Whether the trace has no error in d dimensions, whatever is drawn."""
        return False

    def stderr(self, integrals: Tensor, d: int) -> Tensor:
        """The standard error (B,) of the mean of integrals (B, m): 0 where it is exact, NaN for a single channel."""
        if self.exact(d):
            return torch.zeros_like(integrals[:, 0])
        m = integrals.shape[1]
        return integrals.std(1) / math.sqrt(m) if m > 1 else integrals[:, 0] * math.nan

    def __str__(self) -> str:
        return divergences.format(self)


divergences: Registry[Divergence] = Registry("divergence", Divergence)


@divergences.register("exact")
@dataclass(frozen=True)
class Exact(Divergence):
    """Every diagonal entry: d vector-Jacobian products per evaluation, no error."""

    def draw(self, seeds: list[int], d: int) -> None:
        return None

    def channels(self, d: int) -> int:
        return 1

    def products(self, d: int) -> int:
        return d

    def trace(self, products: Products, vectors: Tensor | None, like: Tensor) -> Tensor:
        d = like.shape[1]
        basis = torch.eye(d, dtype=like.dtype, device=like.device).unsqueeze(1).expand(d, len(like), d)
        return torch.diagonal(products(basis), dim1=0, dim2=2).contiguous().sum(1, keepdim=True)

    def exact(self, d: int) -> bool:
        return True


def _normal(seed: int, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=generator(seed, 2), dtype=torch.float64)


@divergences.register("hutchinson", reference="Hutchinson 1989; Grathwohl et al. 2019, arXiv:1810.01367, section 3.1")
@dataclass(frozen=True)
class Hutchinson(Divergence):
    """The mean of v^T J v over independent probes v, fixed for the whole solve.

    With S the symmetric part of J, a probe's variance is 2 (|S|_F^2 - sum s_ii^2) for random signs (``rademacher``),
    which are exact for a diagonal Jacobian, 2 |S|_F^2 for ``gaussian`` ones, and a little below that for those on the
    ``sphere`` of radius sqrt(d).
    """

    probes: Count = 4
    law: Literal["rademacher", "gaussian", "sphere"] = "rademacher"

    def draw(self, seeds: list[int], d: int) -> Tensor:
        return torch.stack([self._row(seed, d) for seed in seeds])

    def _row(self, seed: int, d: int) -> Tensor:
        if self.law == "rademacher":
            return torch.randint(0, 2, (self.probes, d), generator=generator(seed, 2)).double() * 2 - 1
        v = _normal(seed, (self.probes, d))
        return v if self.law == "gaussian" else v * (math.sqrt(d) / v.norm(dim=1, keepdim=True))

    def channels(self, d: int) -> int:
        return self.probes

    def products(self, d: int) -> int:
        return self.probes

    def trace(self, products: Products, vectors: Tensor | None, like: Tensor) -> Tensor:
        assert vectors is not None
        v = vectors.transpose(0, 1)
        return (products(v) * v).sum(2).T


@divergences.register("orthogonal", reference="Haar-distributed frames; exact with as many probes as dimensions")
@dataclass(frozen=True)
class Orthogonal(Divergence):
    """The mean of d q^T J q over ``probes`` columns q of a random orthogonal matrix.

    The probes of a frame exclude one another, so that the variance is 1 - probes / d times what their spread says, and
    none is left with d of them.
    """

    probes: Count = 4

    def draw(self, seeds: list[int], d: int) -> Tensor:
        if self.probes > d:
            raise InputError(f"orthogonal: probes={self.probes} of data with {d} dimensions; take at most {d}")
        frames = []
        for seed in seeds:
            q, r = torch.linalg.qr(_normal(seed, (d, self.probes)))
            frames.append((q * torch.diagonal(r).sign()).T * math.sqrt(d))  # the signs make it Haar's law
        return torch.stack(frames)

    channels = Hutchinson.channels
    products = Hutchinson.products
    trace = Hutchinson.trace

    def exact(self, d: int) -> bool:
        return self.probes == d

    def stderr(self, integrals: Tensor, d: int) -> Tensor:
        return super().stderr(integrals, d) * math.sqrt(1 - self.probes / d)


def orthonormal(columns: Tensor, rounding: float) -> Tensor:
    """An orthonormal basis (k, B, d) of what columns (k, B, d) span, by Gram-Schmidt's method, twice over.

    A column that is in the span of those before it but for ``rounding`` of the largest is 0 in the basis. What is left
    of it is noise, which would turn with every evaluation, and by which there is no derivative; those of the other
    columns are the span's own.
    """
    sizes = columns.detach().norm(dim=2).amax(0)
    basis = columns.new_zeros(0, *columns.shape[1:])
    for column in columns:
        for _ in range(2):
            column = column - torch.einsum("kb,kbd->bd", torch.einsum("kbd,bd->kb", basis, column), basis)
        kept = (column.detach().norm(dim=1) > rounding * sizes).unsqueeze(1)
        # the root is taken of 1 where the column is dropped: that of 0 has no derivative
        length = torch.where(kept, column, 1.0).square().sum(1, keepdim=True).sqrt()
        basis = torch.cat([basis, (torch.where(kept, column, 0.0) / length).unsqueeze(0)])
    return basis


@divergences.register("hutchpp", aliases=("hutch++",), reference="Meyer et al. 2021, arXiv:2010.09649, algorithm 1")
@dataclass(frozen=True)
class HutchPP(Divergence):
    """Hutch++: the trace on the span Q of J^T S exactly, and Hutchinson's estimate with probes G on what is left,

    tr(Q^T J Q) + mean of g^T (I - Q Q^T) J (I - Q Q^T) g, with ``vectors`` columns in each of S, Q and G.

    Its error falls like 1 / m in the number m of products where J is nearly of low rank, and like 1 / sqrt(m) where it
    is not. The mean is the trace whatever Q is: where J^T S has fewer directions than columns, Q has fewer as well,
    those that are there to rounding, and the probes see to the rest. Q follows J along the solve, and a derivative of
    the estimate includes that of Q.
    """

    vectors: Count = 2

    def draw(self, seeds: list[int], d: int) -> Tensor:
        if self.vectors >= d:
            raise InputError(f"hutchpp: vectors={self.vectors} must be below the data's {d} dimensions")
        # S is normal: columns of signs may be equal, and the span then holds rounding noise
        rows = [_normal(seed, (2 * self.vectors, d)) for seed in seeds]
        return torch.stack([torch.cat([v[: self.vectors], v[self.vectors :].sign()]) for v in rows])

    def channels(self, d: int) -> int:
        return self.vectors

    def products(self, d: int) -> int:
        return 3 * self.vectors

    def trace(self, products: Products, vectors: Tensor | None, like: Tensor) -> Tensor:
        assert vectors is not None
        first, g = torch.split(vectors.transpose(0, 1), self.vectors)
        q = orthonormal(products(first), _ROUNDING * torch.finfo(like.dtype).eps)
        inside = (products(q) * q).sum(2).sum(0)
        left = g - torch.einsum("mkb,kbd->mbd", torch.einsum("mbd,kbd->mkb", g.to(q), q), q)
        channels: Tensor = inside.unsqueeze(1) + (products(left) * left).sum(2).T
        return channels
