"""Solvers, correctors and noise: what a solve is made of besides its problem."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

from torch import Tensor

from ..errors import unknown
from ..registry.options import Options
from ..registry.registry import Registry
from .node import Node, Rows
from .problem import Problem

SPACES = ("gaussian", "discrete")
"""Kinds of states: on a Gaussian path, or without arithmetic, such as letters."""


class Noise(Protocol):
    """Standard normal numbers (B, *) for an interval of time; row i depends on sample i alone."""

    def __call__(self, t: Node, s: Node) -> Tensor:
        """The normalised increment from t to s. An interval of zero length is a fresh draw."""


class NoiseSource:
    """Noise whose samples can be drawn apart: those of some rows are the same numbers, alone or with all."""

    def __call__(self, t: Node, s: Node) -> Tensor:
        """The normalised increment (B, *) from t to s. An interval of zero length is a fresh draw."""
        raise NotImplementedError

    def select(self, rows: Rows) -> NoiseSource:
        """The noise of those samples."""
        raise NotImplementedError


def as_source(noise: Noise) -> NoiseSource:
    """Noise as a source. One that cannot be split is asked for every sample: what a row sees then depends on what its
    neighbours have drawn."""
    return noise if isinstance(noise, NoiseSource) else _Whole(noise)


class _Whole(NoiseSource):
    """Some rows of a noise that is always drawn for all samples."""

    def __init__(self, noise: Noise, rows: Rows = slice(None)) -> None:
        self.noise, self.rows = noise, rows

    def __call__(self, t: Node, s: Node) -> Tensor:
        return self.noise(t, s)[self.rows]

    def select(self, rows: Rows) -> _Whole:
        return _Whole(self.noise, rows)


class Step(NamedTuple):
    """The outcome of a step: the state at s (B, *), what the solver wants to remember, an estimate of the error made
    (B,), and the inner steps of solvers that choose their own, accepted and rejected (B,)."""

    x: Tensor
    carry: Any = None
    error: Tensor | None = None
    accepted: Tensor | None = None
    rejected: Tensor | None = None


class Solver(Options):
    """A frozen dataclass whose fields are the method's options and whose ``step`` is a pure function.

    The class-level facts (order, kind, reference, ...) come from ``register``; where an option changes one of
    them, a subclass overrides the property. ``str(solver)`` is its spec: ``make(str(solver)) == solver``.
    """

    space: ClassVar[str] = "gaussian"
    """The kind of states that the solver carries, one of ``SPACES``: problems of the same space take it."""

    @property
    def order(self) -> float:
        """The global order of convergence that is promised: of the path for an ODE solver, of the covariance for a
        stochastic one. By default the order on the card; an option of that name takes its place."""
        return float(solvers.info_of(self).order or 0)

    @property
    def nominal_order(self) -> float:
        """The method's own order, from exact starting values and without ``lower_order_final``; more than ``order``
        where the start of a multistep method, or fixed weights on uneven grids, cap it."""
        return self.order

    @property
    def stochastic(self) -> bool:
        """Whether a step draws noise."""
        return solvers.info_of(self).stochastic

    @property
    def nonlinear(self) -> str:
        """Why a step is not linear in the state, the predictions and the noise; empty where it is."""
        return solvers.info_of(self).nonlinear

    @property
    def linear(self) -> bool:
        """Whether a step is linear in the state, the predictions and the noise: such a solver has a ``Program``."""
        return not self.nonlinear

    @property
    def adaptive(self) -> bool:
        """Whether the solver chooses its own steps inside each interval of the grid."""
        return solvers.info_of(self).adaptive

    @property
    def nodes(self) -> tuple[Node, ...] | None:
        """The grid of a solver whose numbers were made for one; None for every other."""
        return None

    @property
    def parallel(self) -> bool:
        """Whether several steps are asked of the model in one call. A program asks for one after the other."""
        return False

    @property
    def evaluations(self) -> int:
        """Model evaluations of one step, not to sigma = 0; of an adaptive solver's inner step."""
        return solvers.info_of(self).evaluations

    @property
    def restartable(self) -> bool:
        """Whether a step leaves nothing to the next, so that the solver can be started anew at any state of the grid.
        A solver whose carry changes from step to step says False; what ``init`` found may be handed on."""
        return not self.adaptive

    @property
    def plans_grid(self) -> bool:
        """Whether ``init`` plans the steps from the nodes of the grid, so that the solver can take no others."""
        return False

    def limit_variance(self, variance: Any, node: Node) -> Any:
        """The variance that the solver converges to on Gaussian data with ``variance`` at ``node``; correctors of fixed
        strength exceed it."""
        return variance

    def init(self, problem: Problem, x: Tensor, nodes: Sequence[Node]) -> Any:
        """What the first step finds in ``carry``; ``nodes`` is the whole grid, for methods that count their steps."""
        return None

    def step(self, problem: Problem, x: Tensor, t: Node, s: Node, carry: Any, noise: Noise | None) -> Step:
        """From x (B, *) at t to the state at s."""
        raise NotImplementedError

    def to_data(self, problem: Problem, x: Tensor, t: Node, s: Node, carry: Any, noise: Noise | None) -> Step:
        """The last step, to sigma = 0, where lam is infinite: x_s = alpha_s x0, of order one for every method."""
        return Step(s.alpha * problem.predict(x, t).x0, carry)

    def replaced(self, carry: Any, x: Tensor) -> Any:
        """The carry to go on with after a hook has replaced the state by x (B, *); by default the same. Solvers that
        remember something about the state itself drop it."""
        return carry

    def __str__(self) -> str:
        return solvers.format(self)


class Corrector(Options):
    """Moves a sample within one noise level; a frozen dataclass like a solver."""

    def limit_variance(self, variance: Any, node: Node) -> Any:
        """The stationary variance where the target at ``node`` is Gaussian with ``variance``."""
        return variance

    def correct(self, problem: Problem, x: Tensor, node: Node, noise: Noise) -> Tensor:
        """x (B, *) at ``node`` to x at the same node."""
        raise NotImplementedError

    def __str__(self) -> str:
        return correctors.format(self)


class SolverRegistry(Registry[Solver]):
    """The registry of solvers, which knows the spaces of states."""

    def names(self, space: str | None = None) -> list[str]:
        """Canonical names, sorted: of all solvers, or of those of one space of states.

        Raises:
            InputError: an unknown space.
        """
        if space is not None and space not in SPACES:
            raise unknown("space of states", space, SPACES)
        return [name for name in super().names() if space is None or self.make(name).space == space]


solvers = SolverRegistry("solver", Solver, entry_points="scoresde.solvers")
correctors: Registry[Corrector] = Registry("corrector", Corrector)
