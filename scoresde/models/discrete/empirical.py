"""The exact model of a data set of token sequences: its law is known at every node by listing its points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from solvers import InputError
from solvers.errors import positive_integer
from solvers.types.process import DiscretePrediction, Process, ProcessNode

from ...io.inputs import tensor_of
from ...paths.discrete.base import make_process
from ..counting import add_forwards
from .model import DiscreteModel

_ELEMENTS = 1 << 24  # of the largest tensor that is made at once


@dataclass(frozen=True, eq=False)
class DiscreteEmpirical:
    """The law of a data set of tokens, or of a weighted list of states: everything about it is exact.

    Args:
        data: (n, *) whole numbers of at least 0, the points.
        weights: (n,), of any sum; by default equal.

    Raises:
        InputError: the data are no whole numbers of at least 0; the weights do not fit.
    """

    data: Tensor
    weights: Tensor | None = None

    def __post_init__(self) -> None:
        data = tensor_of("data", self.data)
        if data.is_floating_point() or data.is_complex() or data.dtype == torch.bool or data.ndim < 2 or not len(data):
            raise InputError(f"data must be whole numbers (n, *), got {data.dtype} of shape {tuple(data.shape)}")
        if int(data.min()) < 0:
            raise InputError(f"tokens are numbers of at least 0, got {int(data.min())}")
        weights = torch.ones(len(data)) if self.weights is None else torch.as_tensor(self.weights)
        weights = weights.double()
        if weights.shape != (len(data),) or not bool((weights >= 0).all()) or not 0 < float(weights.sum()) < torch.inf:
            raise InputError(f"weights must be {len(data)} numbers of at least 0, one for each point")
        object.__setattr__(self, "data", data.long())
        object.__setattr__(self, "weights", weights / weights.sum())

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return tuple(self.data.shape[1:])

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Draws (count, *).

        Raises:
            InputError: count is no positive integer.
        """
        assert self.weights is not None
        positive_integer("count", count)
        return self.data[torch.multinomial(self.weights, count, replacement=True, generator=generator)]

    def log_prob(self, x: Tensor) -> Tensor:
        """The log-probabilities (B,) of states x (B, *), in nats; -inf of those that are no points.

        Raises:
            InputError: x has other dimensions than the data.
        """
        assert self.weights is not None
        self._check_shape(x)
        same = (x.flatten(1)[:, None] == self.data.flatten(1)[None]).all(2)
        return torch.log((same * self.weights).sum(1))

    def denoiser(self, process: str | Process) -> ExactDiscrete:
        """The exact model of the data on a process, or on the one that a spec names.

        Raises:
            InputError: the data have values that the process does not have; see also ``make_process``.
        """
        return ExactDiscrete(self, make_process(process))

    def log_prob_at(self, x: Tensor, process: Process, node: ProcessNode) -> Tensor:
        """The log-probabilities (B,) of noisy states x (B, *) at a node, in nats."""
        return torch.logsumexp(self._joint(x, process, node), 1)

    def _check_shape(self, x: Tensor) -> None:
        if tuple(x.shape[1:]) != self.shape:
            raise InputError(f"samples of the data set have the shape {self.shape}, x has {tuple(x.shape[1:])}")

    def _joint(self, x: Tensor, process: Process, node: ProcessNode[Any]) -> Tensor:
        """log P(point and x_t = x), (B, n)."""
        assert self.weights is not None
        self._check_shape(x)
        flat, points = x.flatten(1), self.data.flatten(1)
        seen = process.transition(process.clean, node, x).columns(x).flatten(1, -2).log()  # (B, d, S)
        found = torch.log(self.weights)[None].expand(len(x), -1).clone()
        size = max(1, _ELEMENTS // max(1, len(x) * len(points)))
        for i in range(0, flat.shape[1], size):
            part = points[:, i : i + size].T[None].expand(len(x), -1, -1)  # (B, places, n)
            found += seen[:, i : i + size].gather(2, part).sum(1)
        return found

    def predict(self, x: Tensor, process: Process, node: ProcessNode[Any]) -> DiscretePrediction:
        """The exact laws (B, *, S) of the clean tokens.

        Where no point can have become x they are those of the data, without the values that a token's own forbids.
        """
        assert self.weights is not None
        joint = self._joint(x, process, node)
        dead = torch.isneginf(joint).all(1, keepdim=True)
        posterior = torch.softmax(torch.where(dead, torch.log(self.weights), joint), 1)  # (B, n)
        points = self.data.flatten(1)
        law = posterior.new_zeros(len(x), points.shape[1], process.values)
        for i in range(points.shape[1]):
            law[:, i].index_add_(1, points[:, i], posterior)
        law = law.view(*x.shape, process.values)
        if bool(dead.any()):  # a token that is not masked is known nevertheless
            law = torch.where(dead.view(-1, *(1,) * x.ndim), process.possible(law, x, node), law)
        return DiscretePrediction(law)


@dataclass(frozen=True, eq=False)
class ExactDiscrete(DiscreteModel):
    """The exact model of a data set on a process."""

    target: DiscreteEmpirical
    process: Process

    def __post_init__(self) -> None:
        most, last = int(self.target.data.max()), self.process.states - 1
        if most > last:
            raise InputError(f"the data have the value {most}, but {self.process} has the values 0 to {last}")

    @property
    def time_free(self) -> bool:
        return self.process.mask is not None and self.process.mixture

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """The shape of one sample."""
        return self.target.shape

    def predict(self, x: Tensor, node: Any, **conditions: Tensor) -> DiscretePrediction:  # type: ignore[override]
        add_forwards(len(x))
        return self.target.predict(x, self.process, node)
