"""The nouns of a solve.

A Gaussian path is x = alpha(t) x0 + sigma(t) eps with eps ~ N(0, I). ``t`` is the time now, ``s`` the next one;
lam = log(alpha / sigma) and ratio = sigma / alpha. In the coordinates x / alpha against ratio every path has the
same probability-flow ODE, d(x / alpha) / d ratio = eps, which is why no solver here asks which path it is on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, cast

import torch
from torch import Tensor
from typing_extensions import TypeVar

from .registry import Options, Registry

T = TypeVar("T", float, Tensor, default=float)


@dataclass(frozen=True, slots=True, eq=False)
class Node(Generic[T]):
    """What a time means on a Gaussian path.

    In a solve every number is a Python float computed in float64; in training they are tensors of shape (B,).
    ``dalpha`` and ``dsigma`` are the time derivatives; NaN where a schedule does not give them.
    """

    t: T
    alpha: T
    sigma: T
    dalpha: T = math.nan  # type: ignore[assignment]
    dsigma: T = math.nan  # type: ignore[assignment]

    # compared as tuples, which hold a NaN equal to itself; a dataclass's own comparison does so up to Python 3.12 only
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Node) and self._numbers == other._numbers

    def __hash__(self) -> int:
        return hash(self._numbers)

    @property
    def _numbers(self) -> tuple[T, ...]:
        return (self.t, self.alpha, self.sigma, self.dalpha, self.dsigma)

    @property
    def lam(self) -> T:
        """log(alpha / sigma), half the log signal-to-noise ratio; +inf at sigma = 0."""
        if isinstance(self.sigma, Tensor):
            return torch.log(self.alpha / self.sigma)
        return math.inf if self.sigma == 0 else math.log(self.alpha / self.sigma)

    @property
    def ratio(self) -> T:
        """sigma / alpha, the noise level of x / alpha (Karras' sigma)."""
        return self.sigma / self.alpha

    @property
    def f(self) -> T:
        """Drift coefficient of dx = f x dt + g dw: d log alpha / dt."""
        return self.dalpha / self.alpha

    @property
    def g2(self) -> T:
        """Squared diffusion g^2 = d sigma^2 / dt - 2 f sigma^2."""
        return 2 * self.sigma * (self.dsigma - self.f * self.sigma)

    @staticmethod
    def stack(nodes: Sequence[Node]) -> Node[Tensor]:
        """One node a sample, as tensors (B,) in float64."""
        names = ("t", "alpha", "sigma", "dalpha", "dsigma")
        return Node(*(torch.tensor([getattr(n, name) for n in nodes], dtype=torch.float64) for name in names))

    def like(self, x: Tensor) -> Node[T]:
        """The same node, its numbers ready to multiply ``x`` (B, *): tensors (B,) become (B, 1, ..., 1)."""
        if not isinstance(self.t, Tensor):
            return self
        shape = (-1,) + (1,) * (x.ndim - 1)
        moved = (v.to(x.device, x.dtype).view(shape) for v in (self.alpha, self.sigma, self.dalpha, self.dsigma))
        return cast("Node[T]", Node(self.t, *moved))


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model says of x (B, *): the pair with x = alpha x0 + sigma eps, each (B, *).

    ``nu`` (B, *), from models that learned it, places the ancestral variance between beta_tilde (0) and beta (1).
    """

    x0: Tensor
    eps: Tensor
    nu: Tensor | None = None

    def score(self, node: Node) -> Tensor:
        """grad log p_t(x) = -eps / sigma."""
        return (-1 / node.sigma) * self.eps

    def velocity(self, node: Node) -> Tensor:
        """dx/dt of the probability-flow ODE: alpha' x0 + sigma' eps."""
        return node.dalpha * self.x0 + node.dsigma * self.eps


Rows = slice | Tensor
"""Some samples of a batch: a slice, or their indices (n,)."""


class Problem(Protocol):
    """What a solver integrates. A problem whose samples carry data of their own (conditions, probes) also has
    ``select(rows: Rows) -> Problem``, the problem of those samples alone. One that finds many nodes sooner than each
    may have ``nodes_of_lam(lams: Sequence[float]) -> list[Node]``. One whose model has an output of its own also has
    ``output``, an ``Output``, and ``raw(x, node) -> Tensor``, that output (B, *): programs use it as it is."""

    def node(self, t: float) -> Node:
        """The path at time t."""

    def node_of_lam(self, lam: float) -> Node:
        """The path where log(alpha / sigma) = lam."""

    def predict(self, x: Tensor, node: Any) -> Prediction:
        """One model evaluation at x (B, *): at one ``Node``, or, from solvers that step each sample on its own, at a
        node a sample, ``Node[Tensor]`` with tensors (B,). ``node.like(x)`` serves both."""


class Noise(Protocol):
    """Standard normal numbers (B, *) for an interval of time; row i depends on sample i alone."""

    def __call__(self, t: Node, s: Node) -> Tensor:
        """The normalised increment from t to s. An interval of zero length is a fresh draw."""


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

    def limit_variance(self, variance: Any, node: Node) -> Any:
        """What is left on the finest grids of data that are Gaussian with ``variance`` at ``node``: more than that with
        correctors of fixed strength."""
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


solvers: Registry[Solver] = Registry("solver", Solver, entry_points="scoresde.solvers")
correctors: Registry[Corrector] = Registry("corrector", Corrector)
