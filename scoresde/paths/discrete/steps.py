"""Processes of discrete times only: a table of probabilities for each step, as D3PM's discretised Gaussian."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, NoReturn, overload

import torch
from torch import Tensor

from solvers import InputError
from solvers.registry.options import Options
from solvers.registry.ranges import Positive, Range
from solvers.types.process import Clock, Process, ProcessNode
from solvers.types.transition import Matrix, Transition

from .base import processes
from .dense import table_of
from .rank_one import States

CLOSE = 1e-3  # of a step, by which a time in float32 may be off


class Stepwise(Options, Process):
    """The base class of processes in T steps; a subclass has ``matrices``. Its times are t = i / T.

    There are no rates and no clock between the steps, so that the only grids are those of its own times, such as
    ``uniform`` with a number of steps that divides T, and the only solvers those of posteriors, such as ``tweedie``.
    """

    t_min = 0.0
    t_max = 1.0

    @property
    def matrices(self) -> Tensor:
        """The probabilities (T, S, S) of the steps, float64: [i, a, b] of b after a in step i + 1."""
        raise NotImplementedError

    @property
    def num_train_timesteps(self) -> int:
        """T, the number of the steps."""
        return len(self.matrices)

    @cached_property
    def _products(self) -> Tensor:
        """The products (T + 1, S, S) of the first steps."""
        found = [torch.eye(self.states, dtype=torch.float64)]
        for step in self.matrices:
            found.append(found[-1] @ step)
        return torch.stack(found)

    @cached_property
    def prior(self) -> Tensor:
        """The law at t_max of a token that was any value alike; for steps that keep that law, all values alike."""
        return self._products[-1].mean(0)

    @overload  # type: ignore[override]  # see Process
    def __call__(self, t: float) -> ProcessNode: ...
    @overload
    def __call__(self, t: Tensor) -> ProcessNode[Tensor]: ...
    def __call__(self, t: float | Tensor) -> ProcessNode | ProcessNode[Tensor]:
        """The node at a time t = i / T, whose clock is i; for a tensor (B,) with one node for each sample.

        Raises:
            InputError: a time is none of these.
        """
        steps = len(self.matrices)
        at = torch.as_tensor(t, dtype=torch.float64) * steps
        step = at.round()
        wrong = ((at - step).abs() > CLOSE) | (step < 0) | (step > steps)
        if bool(wrong.any()):
            time = float(torch.as_tensor(t).reshape(-1)[wrong.reshape(-1)][0])
            raise InputError(
                f"t={time:g} is no time of {self}, which has only the times i / {steps}: use the grid uniform with a "
                f"number of steps that divides {steps}, or explicit(times=[...])"
            )
        return ProcessNode(t, (step,)) if isinstance(t, Tensor) else ProcessNode(float(t), (float(step) + 0.0,))

    def transition(self, s: ProcessNode[Any], t: ProcessNode[Any], x: Tensor) -> Transition:
        first, last = (torch.as_tensor(node.clock).long().cpu() for node in (s, t))
        if first.ndim or last.ndim:
            pairs = zip((first + 0 * last).tolist(), (last + 0 * first).tolist(), strict=True)
            found = torch.stack([self._between(a, b) for a, b in pairs])
        else:
            found = self._between(int(first), int(last))
        return Matrix(found.to(x.device))

    def _between(self, first: int, last: int) -> Tensor:
        """The product (S, S) of the steps first + 1, ..., last."""
        if first == 0:
            return self._products[last]
        found = self.matrices[first]
        for step in self.matrices[first + 1 : last]:
            found = found @ step
        return found if last > first else torch.eye(self.states, dtype=torch.float64)

    def _no_clock(self) -> NoReturn:
        raise InputError(
            f"{self} has neither rates nor a clock between its times: use the solver tweedie, and the grid uniform "
            f"with a number of steps that divides {len(self.matrices)}"
        )

    def generator_columns(self, x: Tensor, t: ProcessNode[Any]) -> Tensor:
        self._no_clock()

    def generator_rows(self, x: Tensor, t: ProcessNode[Any]) -> Tensor:
        self._no_clock()

    def reading(self, node: ProcessNode, clock: Clock = "natural") -> float:
        self._no_clock()

    def time_of(self, reading: float, clock: Clock = "natural") -> float:
        self._no_clock()


@processes.register(
    "dense_steps",
    reference="Austin et al. 2021, arXiv:2107.03006, section 3",
    formula="P_{s->t} = product of the matrices of the steps between",
)
@dataclass(frozen=True, eq=False)
class DenseSteps(Stepwise):
    """Tokens move by a table of probabilities in each step.

    Args:
        steps: (T, S, S), [i, a, b] the probability of b after a in step i + 1; rows sum to 1.
        ordinal: whether the values are ordered, so that differences of tokens have a meaning.

    Raises:
        InputError: a probability is negative, or a row does not sum to 1.
    """

    steps: tuple[tuple[tuple[float, ...], ...], ...] | Tensor
    ordinal: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        table = table_of(self.steps, "dense_steps: steps", 3)
        wrong = (table < 0).any(-1) | ((table.sum(-1) - 1).abs() > 1e-6)
        if bool(wrong.any()):
            step, row = (int(i) for i in wrong.nonzero()[0])
            found = table[step, row]
            what = f"sums to {float(found.sum()):g}" if bool((found >= 0).all()) else f"has {float(found.min()):g}"
            raise InputError(
                f"dense_steps: row {row} of step {step + 1} {what}; rows are probabilities, which sum to 1"
            )
        object.__setattr__(self, "steps", table / table.sum(-1, keepdim=True))

    @property
    def matrices(self) -> Tensor:
        assert isinstance(self.steps, Tensor)
        return self.steps

    @property
    def states(self) -> int:
        """The number of values of a token."""
        return int(self.matrices.shape[-1])

    def __str__(self) -> str:
        return f"dense_steps({len(self.matrices)} steps of {self.states} values)"


@processes.register(
    "gaussian_steps",
    aliases=("d3pm_gaussian",),
    reference="Austin et al. 2021, arXiv:2107.03006, appendix A.2.3",
    formula="B_i[a, b] ~ exp(-4 (a - b)^2 / ((S - 1)^2 beta_i)) for b != a",
)
@dataclass(frozen=True)
class GaussianSteps(Stepwise):
    """D3PM's discretised Gaussian: ordered values move to values nearby in steps; the law of all values alike stays.

    Args:
        states: the number S of values.
        steps: the number T of steps; T S^2 numbers are stored, twice.
        first, last: beta of the first step and of the last one, linear between.
    """

    states: States
    steps: Annotated[int, Range(1)] = 1000
    first: Positive = 1e-4
    last: Positive = 0.02
    ordinal = True

    @cached_property
    def matrices(self) -> Tensor:
        betas = torch.linspace(self.first, self.last, self.steps, dtype=torch.float64).view(-1, 1, 1)
        place = torch.arange(self.states, dtype=torch.float64)
        apart = (place - place[:, None]) ** 2
        around = torch.arange(1 - self.states, self.states, dtype=torch.float64) ** 2
        scale = -4 / ((self.states - 1) ** 2 * betas)
        table = torch.exp(scale * apart) / torch.exp(scale * around).sum(-1, keepdim=True)
        moves = table - torch.diag_embed(table.diagonal(dim1=-2, dim2=-1))
        return moves + torch.diag_embed(1 - moves.sum(-1))

    def __str__(self) -> str:
        return processes.format(self)
