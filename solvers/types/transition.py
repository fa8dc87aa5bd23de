"""Transitions of a token: laws of its later state given its earlier one, as a matrix that need not be stored.

A law is a tensor (..., S) of probabilities of the S states of a token, in the last dimension. P[a, b] is the
probability of b after a: rows sum to one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


class Transition:
    """The matrix P (S, S) of one token, which is the same for all tokens of a sample."""

    def push(self, law: Tensor) -> Tensor:
        """The law after the transition, ``law @ P``; linear, so that ``law`` need not sum to one."""
        raise NotImplementedError

    def pull(self, law: Tensor) -> Tensor:
        """The inverse of ``push``: the numbers before the transition, which need not be positive."""
        raise NotImplementedError

    def rows(self, x: Tensor) -> Tensor:
        """P[x, :], the laws (*, S) of the later state, given the earlier states x (*)."""
        raise NotImplementedError

    def columns(self, x: Tensor) -> Tensor:
        """P[:, x], the likelihoods (*, S) of every earlier state, given the later states x (*)."""
        raise NotImplementedError


@dataclass(frozen=True)
class Mixing(Transition):
    """A token keeps its state with the probability ``keep``, and is otherwise drawn again.

    P = keep I + 1 law^T.

    Attributes:
        keep: broadcasts against laws (..., S): one number, or (B, 1, ..., 1).
        law: (S,) or (B, 1, ..., S), the law of the new state times 1 - keep.
        absorbing: a state that never changes; None if there is none.
    """

    keep: Tensor
    law: Tensor
    absorbing: int | None = None

    def push(self, law: Tensor) -> Tensor:
        total = law.sum(-1, keepdim=True)
        if self.absorbing is None:
            return self.keep * law + total * self.law
        stuck = law[..., self.absorbing, None]
        found = self.keep * law + (total - stuck) * self.law
        found[..., self.absorbing] += ((1 - self.keep) * stuck)[..., 0]
        return found

    def pull(self, law: Tensor) -> Tensor:
        total = law.sum(-1, keepdim=True)
        if self.absorbing is None:
            return (law - total * self.law) / self.keep
        # the total of the other states before, from theirs after
        others = total - law[..., self.absorbing, None]
        own = self.law[..., self.absorbing, None]
        before = others / (1 - own)
        found = (law - before * self.law) / self.keep
        found[..., self.absorbing] = (total - before)[..., 0]
        return found

    def rows(self, x: Tensor) -> Tensor:
        same = one_hot(x, self.law)
        found = self.keep * same + self.law
        if self.absorbing is None:
            return found
        return torch.where((x == self.absorbing)[..., None], same, found)

    def columns(self, x: Tensor) -> Tensor:
        same = one_hot(x, self.law)
        found = self.keep * same + _at(self.law, x)
        if self.absorbing is not None:
            found[..., self.absorbing] = (x == self.absorbing).to(found.dtype)
        return found


@dataclass(frozen=True)
class MaskingByState(Transition):
    """A token is masked, with a probability that depends on its state, and then stays so.

    Attributes:
        keep: (S - 1,) or (B, 1, ..., S - 1), the probabilities that states but the mask stay.
        lost: 1 - keep, which may be a small number.
        mask: the last state, S - 1.
    """

    keep: Tensor
    lost: Tensor
    mask: int

    def push(self, law: Tensor) -> Tensor:
        tokens, masked = law[..., : self.mask], law[..., self.mask :]
        return torch.cat([tokens * self.keep, masked + (tokens * self.lost).sum(-1, keepdim=True)], -1)

    def pull(self, law: Tensor) -> Tensor:
        tokens = law[..., : self.mask] / self.keep
        return torch.cat([tokens, law[..., self.mask :] - (tokens * self.lost).sum(-1, keepdim=True)], -1)

    def rows(self, x: Tensor) -> Tensor:
        return self.push(self._one_hot(x))

    def columns(self, x: Tensor) -> Tensor:
        same = self._one_hot(x)
        masked = same[..., self.mask :]
        return torch.cat([same[..., : self.mask] * self.keep + masked * self.lost, masked], -1)

    def _one_hot(self, x: Tensor) -> Tensor:
        return one_hot(x, self.keep.new_zeros(self.mask + 1))


@dataclass(frozen=True)
class Matrix(Transition):
    """A transition that is stored: ``matrix`` is (S, S), or (B, S, S) with one for each sample."""

    matrix: Tensor

    def push(self, law: Tensor) -> Tensor:
        return self._times(law, self.matrix)

    def pull(self, law: Tensor) -> Tensor:
        return self._times(law, torch.linalg.inv(self.matrix))

    def rows(self, x: Tensor) -> Tensor:
        return self._picked(x, self.matrix)

    def columns(self, x: Tensor) -> Tensor:
        return self._picked(x, self.matrix.mT)

    def _times(self, law: Tensor, matrix: Tensor) -> Tensor:
        if matrix.ndim == 2:
            return law @ matrix
        return (law.flatten(1, -2) @ matrix).view_as(law)

    def _picked(self, x: Tensor, matrix: Tensor) -> Tensor:
        if matrix.ndim == 2:
            return matrix[x]
        rows = torch.arange(len(x), device=x.device).view(-1, *(1,) * (x.ndim - 1))
        return matrix[rows, x]


def one_hot(x: Tensor, like: Tensor) -> Tensor:
    """The laws (*, S) that are certain of the states x (*), with S, dtype and device of the law ``like`` (..., S)."""
    made = like.new_zeros(*x.shape, like.shape[-1])
    return made.scatter_(-1, x[..., None], 1.0)


def _at(law: Tensor, x: Tensor) -> Tensor:
    """law[x] as (*, 1), for one law (S,) or one for each sample (B, 1, ..., S)."""
    if law.ndim == 1:
        return law[x][..., None]
    return law.expand(*x.shape, law.shape[-1]).gather(-1, x[..., None])
