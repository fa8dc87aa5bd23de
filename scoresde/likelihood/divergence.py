"""Estimators of the trace of a denoiser's Jacobian, from vector-Jacobian products.

J = d x0 / d x is the Jacobian at a node. An estimator computes products v^T J for a few random vectors v per sample,
the *probes*. They stay fixed for the whole solve, so that the solver integrates one ODE. An estimator returns several
channels: their mean is the trace, and the spread of their integrals gives the standard error. The part of J that is
known, a multiple of the identity, is subtracted first and never estimated.
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

# vectors (k, B, d) -> v^T J (k, B, d), in at least float32 for every dtype of the network
Products = Callable[[Tensor], Tensor]

# an orthonormal basis omits columns below this many units of rounding of the largest column
_ROUNDING = 32


class Divergence(Options):
    """A rule that computes the trace. Each rule is a frozen dataclass; its fields are its options."""

    def draw(self, seeds: list[int], d: int) -> Tensor | None:
        """Draws the vectors of a solve (B, k, d), float64; row i depends only on seed i. None if the rule needs none.

        Raises:
            InputError: the rule does not support that many vectors in d dimensions.
        """
        raise NotImplementedError

    def channels(self, d: int) -> int:
        """The number m of channels that ``trace`` returns."""
        raise NotImplementedError

    def products(self, d: int) -> int:
        """The number of vector-Jacobian products of one evaluation, per sample."""
        raise NotImplementedError

    def trace(self, products: Products, vectors: Tensor | None, like: Tensor) -> Tensor:
        """The trace by channels (B, m).

        Args:
            products: computes vector-Jacobian products; sums are in the dtype of its result.
            vectors: the vectors (B, k, d) that ``draw`` returned.
            like: the samples (B, d); products are rounded in its dtype.
        """
        raise NotImplementedError

    def exact(self, d: int) -> bool:
        """Whether the trace is exact in d dimensions, for every draw."""
        return False

    def stderr(self, integrals: Tensor, d: int) -> Tensor:
        """The standard error (B,) of the mean of integrals (B, m): 0 if the rule is exact, NaN for one channel."""
        if self.exact(d):
            return 0 * integrals[:, 0]  # NaN for samples that failed
        m = integrals.shape[1]
        return integrals.std(1) / math.sqrt(m) if m > 1 else integrals[:, 0] * math.nan

    def __str__(self) -> str:
        return divergences.format(self)


divergences: Registry[Divergence] = Registry("divergence", Divergence)


@divergences.register("exact")
@dataclass(frozen=True)
class Exact(Divergence):
    """The exact trace, from every diagonal entry: d vector-Jacobian products per evaluation."""

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

    With S the symmetric part of J, the variance of one probe is 2 (|S|_F^2 - sum s_ii^2) for random signs
    (``rademacher``), which are exact for a diagonal Jacobian; 2 |S|_F^2 for ``gaussian`` probes; and slightly less for
    probes on the ``sphere`` of radius sqrt(d).
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

    The columns are not independent: the variance is 1 - probes / d times the value for independent probes of the same
    spread. With d probes the trace is exact.
    """

    probes: Count = 4

    def draw(self, seeds: list[int], d: int) -> Tensor:
        if self.probes > d:
            raise InputError(f"orthogonal: probes={self.probes} exceeds the data's {d} dimensions; use at most {d}")
        frames = []
        for seed in seeds:
            q, r = torch.linalg.qr(_normal(seed, (d, self.probes)))
            frames.append((q * torch.diagonal(r).sign()).T * math.sqrt(d))  # with these signs the law is Haar's
        return torch.stack(frames)

    channels = Hutchinson.channels
    products = Hutchinson.products
    trace = Hutchinson.trace

    def exact(self, d: int) -> bool:
        return self.probes == d

    def stderr(self, integrals: Tensor, d: int) -> Tensor:
        return super().stderr(integrals, d) * math.sqrt(1 - self.probes / d)


def orthonormal(columns: Tensor, rounding: float) -> Tensor:
    """An orthonormal basis (k, B, d) of the span of columns (k, B, d), by Gram-Schmidt's method, applied twice.

    A column is 0 in the basis if its distance from the span of the earlier columns is at most ``rounding`` times the
    size of the largest column. The remainder of such a column is noise: its direction changes with every evaluation,
    and it has no useful derivative.
    """
    sizes = columns.detach().norm(dim=2).amax(0)
    basis = columns.new_zeros(0, *columns.shape[1:])
    for column in columns:
        for _ in range(2):
            column = column - torch.einsum("kb,kbd->bd", torch.einsum("kbd,bd->kb", basis, column), basis)
        kept = (column.detach().norm(dim=1) > rounding * sizes).unsqueeze(1)
        # for a dropped column take the root of 1, because the root of 0 has no derivative
        length = torch.where(kept, column, 1.0).square().sum(1, keepdim=True).sqrt()
        basis = torch.cat([basis, (torch.where(kept, column, 0.0) / length).unsqueeze(0)])
    return basis


@divergences.register("hutchpp", aliases=("hutch++",), reference="Meyer et al. 2021, arXiv:2010.09649, algorithm 1")
@dataclass(frozen=True)
class HutchPP(Divergence):
    """Hutch++: the exact trace on the span Q of J^T S, plus Hutchinson's estimate with probes G on the complement,

    tr(Q^T J Q) + mean of g^T (I - Q Q^T) J (I - Q Q^T) g, with ``vectors`` columns in each of S, Q and G.

    Its error falls like 1 / m in the number m of products if J has nearly low rank, else like 1 / sqrt(m). The estimate
    is unbiased for every Q: if J^T S has fewer independent columns (up to rounding), Q has fewer as well, and the
    probes cover the larger complement. Q changes with J along the solve, and a derivative of the estimate includes
    that of Q.
    """

    vectors: Count = 2

    def draw(self, seeds: list[int], d: int) -> Tensor:
        if self.vectors >= d:
            raise InputError(f"hutchpp: vectors={self.vectors} must be below the data's {d} dimensions")
        # S is normal, because columns of signs may be equal, and their span would then contain rounding noise
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


def rule_of(divergence: str | Divergence | None, d: int) -> Divergence:
    """The rule for data of d dimensions from its name or spec.

    None means ``hutchinson``, or ``exact`` where that takes no more products.
    """
    if divergence is None:
        return Exact() if d <= Hutchinson().products(d) else Hutchinson()
    return divergences.make(divergence)
