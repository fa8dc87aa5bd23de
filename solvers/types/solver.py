"""Solvers, correctors and noise: the parts of a solve other than its problem."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

from torch import Tensor

from ..errors import unknown
from ..registry import spec as grammar
from ..registry.normalise import normalise
from ..registry.options import Options, type_hints
from ..registry.registry import Registry
from ..registry.spec import Spec
from .answers import drawn
from .node import Node, Rows
from .problem import Problem

SPACES = ("gaussian", "discrete")
"""The spaces of states: states on a Gaussian path, or states without arithmetic, such as letters."""


class Noise(Protocol):
    """Standard normal numbers (B, *) for an interval of time; row i depends only on sample i."""

    def __call__(self, t: Node, s: Node) -> Tensor:
        """The normalised increment from t to s; for an interval of zero length, a fresh draw."""


class NoiseSource:
    """Noise that can be drawn for some samples alone, with the same numbers as for the whole batch."""

    def __call__(self, t: Node, s: Node) -> Tensor:
        """The normalised increment (B, *) from t to s; for an interval of zero length, a fresh draw."""
        raise NotImplementedError

    def select(self, rows: Rows) -> NoiseSource:
        """The noise of the selected samples."""
        raise NotImplementedError


def as_source(noise: Noise) -> NoiseSource:
    """Adapts noise to a noise source.

    Noise without ``select`` is always drawn for all samples. The numbers of a row then depend on how often other rows
    have drawn.
    """
    return noise if isinstance(noise, NoiseSource) else _Whole(noise)


class _Whole(NoiseSource):
    """Selected rows of noise that is always drawn for all samples."""

    def __init__(self, noise: Noise, rows: Rows = slice(None)) -> None:
        self.noise, self.rows = noise, rows

    def __call__(self, t: Node, s: Node) -> Tensor:
        found: Tensor = drawn(self.noise, t, s)
        return found[self.rows]

    def select(self, rows: Rows) -> _Whole:
        return _Whole(self.noise, rows)


class Step(NamedTuple):
    """The result of a step.

    Attributes:
        x: the state (B, *) at s.
        carry: what the solver remembers for the next step.
        error: an estimate of the step's error (B,).
        accepted, rejected: numbers of inner steps (B,) of solvers that choose their own steps.
        failed: why the solver gave up some of the samples, by row; their states are NaN.
    """

    x: Tensor
    carry: Any = None
    error: Tensor | None = None
    accepted: Tensor | None = None
    rejected: Tensor | None = None
    failed: Mapping[int, str] | None = None

    def after(self, earlier: Step) -> Step:
        """This step with the errors and inner steps of an earlier one added, and its failures, whose reasons count."""
        if all(part is None for part in earlier[2:]):
            return self
        return self._replace(
            error=_sum(earlier.error, self.error),
            accepted=_sum(earlier.accepted, self.accepted),
            rejected=_sum(earlier.rejected, self.rejected),
            failed={**(self.failed or {}), **(earlier.failed or {})},
        )


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return other if one is None else one if other is None else one + other


class Solver(Options):
    """A frozen dataclass whose fields are the method's options and whose ``step`` is a pure function.

    The class-level facts (order, kind, reference, ...) come from ``register``; if an option changes one of them, a
    subclass overrides the property. ``str(solver)`` is its spec: ``make(str(solver)) == solver``.
    """

    space: ClassVar[str] = "gaussian"
    """The space of the solver's states, one of ``SPACES``; it requires a problem of the same space."""

    @property
    def order(self) -> float:
        """The promised global order of convergence: of the state for an ODE solver, of the covariance for a stochastic
        one; infinite for one without a step error. The default is the order on the card; an option named ``order``
        overrides it."""
        return float(solvers.info_of(self).order or 0)

    @property
    def nominal_order(self) -> float:
        """The order of the method's formula, from exact starting values and without ``lower_order_final``. It is more
        than ``order`` if the start of a multistep method, or fixed weights on uneven grids, limit the order."""
        return self.order

    @property
    def stochastic(self) -> bool:
        """Whether a step draws noise."""
        return solvers.info_of(self).stochastic

    @property
    def nonlinear(self) -> str:
        """Why a step is not linear in the state, the predictions and the noise; empty if it is linear."""
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
    def consistent(self) -> bool:
        """Whether the samples follow the model's law in the limit of many steps. Decoders, which prefer likely tokens,
        do not."""
        return solvers.info_of(self).consistent

    @property
    def nodes(self) -> tuple[Node, ...] | None:
        """The nodes of the grid for which the solver's numbers were made; None for a solver that accepts any grid."""
        return None

    @property
    def own_grid(self) -> str | None:
        """The grid that the solver's numbers were made for, which it takes where none is named; None if any suits."""
        return None

    @property
    def parallel(self) -> bool:
        """Whether one model call evaluates several steps. A program evaluates one step after the other."""
        return False

    @property
    def evaluations(self) -> int:
        """Model evaluations (NFE) of one step to sigma > 0; for an adaptive solver, of one inner step."""
        return solvers.info_of(self).evaluations

    @property
    def restartable(self) -> bool:
        """Whether a step passes nothing on to the next, so that a solve can start again from any state of the grid.
        False if the carry changes from step to step; a carry that ``init`` made may stay the same throughout."""
        return not (self.adaptive or self.plans_grid)

    @property
    def plans_grid(self) -> bool:
        """Whether ``init`` plans the steps from the nodes of the grid, so that the solver cannot take other steps.

        The number of steps is no plan: a solver may depend on it and return False.
        """
        return False

    def limit_variance(self, variance: Any, node: Node) -> Any:
        """The variance that the solver converges to on Gaussian data with ``variance`` at ``node``. With correctors of
        fixed strength it exceeds ``variance``."""
        return variance

    def init(self, problem: Problem, x: Tensor, nodes: Sequence[Node]) -> Any:
        """The carry for the first step; ``nodes`` is the whole grid, for methods that count their steps."""
        return None

    def step(self, problem: Problem, x: Tensor, t: Node, s: Node, carry: Any, noise: Noise | None) -> Step:
        """The state at s, from x (B, *) at t."""
        raise NotImplementedError

    def to_data(self, problem: Problem, x: Tensor, t: Node, s: Node, carry: Any, noise: Noise | None) -> Step:
        """The last step, to sigma = 0, where lam is infinite: x_s = alpha_s x0, of order one for every method."""
        return Step(s.alpha * problem.predict(x, t).x0, carry)

    def replaced(self, carry: Any, x: Tensor) -> Any:
        """The carry after a hook has replaced the state by x (B, *); unchanged by default. Solvers that remember
        something about the state itself drop that part."""
        return carry

    def __str__(self) -> str:
        return solvers.format(self)


class Corrector(Options):
    """A method that moves samples within one noise level; a frozen dataclass like a solver."""

    def limit_variance(self, variance: Any, node: Node) -> Any:
        """The stationary variance if the target at ``node`` is Gaussian with ``variance``."""
        return variance

    def correct(self, problem: Problem, x: Tensor, node: Node, noise: Noise) -> Tensor:
        """Moves x (B, *) at ``node`` to a new x at the same node."""
        raise NotImplementedError

    def __str__(self) -> str:
        return correctors.format(self)


class SolverRegistry(Registry[Solver]):
    """The registry of solvers, which can list those of one space of states."""

    def names(self, space: str | None = None) -> list[str]:
        """Canonical names, sorted: of all solvers, or of those of one space of states.

        Raises:
            InputError: the space is unknown.
        """
        if space is not None and space not in SPACES:
            raise unknown("space of states", space, SPACES)
        return [name for name in super().names() if space is None or self.make(name).space == space]

    def shared_names(self, space: str) -> dict[str, str]:
        """The names that mean a solver of this space where its states are asked for, and that solver's own name."""
        infos = [info for info in self._infos.values() if info.shared and self.make(info.name).space == space]
        return {shared: info.name for info in infos for shared in info.shared}

    def in_space(self, text: str, space: str) -> str:
        """The spec ``text`` with names that the spaces share, also of solvers in it, replaced by those of one space.

        >>> solvers.in_space("pc(predictor=euler)", "discrete")
        'discrete_pc(predictor=tau_euler)'

        Raises:
            InputError: a name is unknown.
        """
        own = self.shared_names(space)
        if not any(re.search(rf"\b{name}\b", text.lower()) for name in own):
            return text
        head = text.partition("(")[0]
        return str(self._renamed(grammar.parse(text, label="" if ":" in head else head), own))

    def _renamed(self, value: Any, own: Mapping[str, str]) -> Any:
        if not isinstance(value, Spec):
            return value
        name = own.get(normalise(value.name), value.name)
        if not (value.args or value.kwargs):
            return Spec(name)
        info, hints = self.info(name), type_hints(self.info(name).cls)
        solver = {option for option, field in info.fields.items() if hints[field.name] is Solver}
        args = zip(value.args, (*info.positional, *[""] * len(value.args)), strict=False)
        return Spec(
            name,
            tuple(self._renamed(each, own) if option in solver else each for each, option in args),
            tuple((option, self._renamed(each, own) if option in solver else each) for option, each in value.kwargs),
        )


solvers = SolverRegistry("solver", Solver, entry_points="scoresde.solvers")
correctors: Registry[Corrector] = Registry("corrector", Corrector)
