"""What a solver integrates: a path and a model.

``Problem`` has a default for everything but the path and the prediction, so a problem of one's own is a few lines. Any
other object that says as much is adapted once, by ``as_problem``, where it enters a solve.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..errors import InputError
from .model_output import Output
from .node import Node, Prediction, Rows
from .schedule import Schedule, as_schedule


class NoDensity(InputError):
    """A problem that does not know its density was asked for it."""


class Problem:
    """The samples that a solve carries: their path and their model.

    A subclass has ``path``, as an attribute or a property, and writes ``predict``. The rest are defaults, to be
    overridden where a problem knows more.
    """

    space = "gaussian"
    """The kind of states: solvers of the same space take the problem."""

    if TYPE_CHECKING:  # read-only to a type checker, and to a dataclass free to be fields

        @property
        def path(self) -> Schedule:
            """The schedule that says what a time means."""

        @property
        def output(self) -> Output | None:
            """What the model puts out, where it has an output of its own: programs then ask for ``raw``."""
    else:
        output = None

    def predict(self, x: Tensor, node: Any) -> Prediction:
        """One model evaluation at x (B, *): at one ``Node``, or, from solvers that step each sample on its own, at a
        node a sample, ``Node[Tensor]`` with tensors (B,). ``node.like(x)`` serves both."""
        raise NotImplementedError

    def node(self, t: float) -> Node:
        """The path at time t."""
        return self.path(t)

    def node_of_lam(self, lam: float) -> Node:
        """The path where log(alpha / sigma) = lam, at its nearer end where it does not reach lam."""
        return as_schedule(self.path).node_of_lam(lam)

    def nodes_of_lam(self, lams: Sequence[float]) -> list[Node]:
        """``node_of_lam`` of each, at once where the path can."""
        return as_schedule(self.path).nodes_of_lam(lams)

    def select(self, rows: Rows) -> Problem:
        """The problem of some of the samples; itself where samples carry no data of their own (conditions, probes)."""
        return self

    def raw(self, x: Tensor, node: Node) -> Tensor:
        """The model's own output (B, *) at x (B, *); of problems with ``output``."""
        raise NotImplementedError

    def log_prob(self, x: Tensor, node: Node) -> Tensor:
        """The log-density (B,) in nats of x_t = x (B, *) at a node.

        Raises:
            NoDensity: the problem does not know it.
        """
        raise NoDensity(_without_density(self))


class ProblemWrapper(Problem):
    """A problem that adds to another; whatever it does not override is the inner problem's."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.space = problem.space

    @property
    def path(self) -> Schedule:
        return self.problem.path

    def predict(self, x: Tensor, node: Any) -> Prediction:
        return self.problem.predict(x, node)

    def node(self, t: float) -> Node:
        return self.problem.node(t)

    def node_of_lam(self, lam: float) -> Node:
        return self.problem.node_of_lam(lam)

    def nodes_of_lam(self, lams: Sequence[float]) -> list[Node]:
        return self.problem.nodes_of_lam(lams)

    def select(self, rows: Rows) -> Problem:
        """The wrapped problem of some of the samples: a wrapper around the inner problem's ``select``."""
        raise NotImplementedError

    @property
    def output(self) -> Output | None:
        return self.problem.output

    def raw(self, x: Tensor, node: Node) -> Tensor:
        return self.problem.raw(x, node)

    def log_prob(self, x: Tensor, node: Node) -> Tensor:
        return self.problem.log_prob(x, node)


def as_problem(given: Any) -> Problem:
    """A problem of any object with ``predict(x, node)``, such as a denoiser.

    What else it has is looked up here, once: ``sde``, or ``node`` and ``node_of_lam``, which solvers need that look
    between the grid's nodes; ``nodes_of_lam``, ``select``, ``output`` with ``raw``, ``log_prob``.

    Raises:
        InputError: the object has neither ``predict`` nor ``raw``.
    """
    if isinstance(given, Problem):
        return given
    if not (hasattr(given, "predict") or hasattr(given, "raw")):
        raise InputError(f"a problem has predict(x, node), which {type(given).__name__} has not")
    return _Adapted(given)


class _Adapted(Problem):
    """A foreign object as a problem."""

    OPTIONAL = ("sde", "node", "node_of_lam", "nodes_of_lam", "select", "output", "log_prob")

    def __init__(self, given: Any) -> None:
        self.given = given
        self.has = {name for name in self.OPTIONAL if getattr(given, name, None) is not None}

    @property
    def path(self) -> Schedule:
        if "sde" not in self.has:
            name = type(self.given).__name__
            raise InputError(f"this solver looks up times: derive {name} from solvers.Problem, or give it an sde")
        path: Schedule = self.given.sde
        return path

    def predict(self, x: Tensor, node: Any) -> Prediction:
        prediction: Prediction = self.given.predict(x, node)
        return prediction

    def node(self, t: float) -> Node:
        node: Node = self.given.node(t) if "node" in self.has else self.path(t)
        return node

    def node_of_lam(self, lam: float) -> Node:
        node: Node = self.given.node_of_lam(lam) if "node_of_lam" in self.has else super().node_of_lam(lam)
        return node

    def nodes_of_lam(self, lams: Sequence[float]) -> list[Node]:
        if "nodes_of_lam" in self.has:
            nodes: list[Node] = self.given.nodes_of_lam(lams)
            return nodes
        return [self.node_of_lam(lam) for lam in lams]

    def select(self, rows: Rows) -> Problem:
        return as_problem(self.given.select(rows)) if "select" in self.has else self

    @property
    def output(self) -> Output | None:
        return self.given.output if "output" in self.has else None

    def raw(self, x: Tensor, node: Node) -> Tensor:
        out: Tensor = self.given.raw(x, node)
        return out

    def log_prob(self, x: Tensor, node: Node) -> Tensor:
        if "log_prob" not in self.has:
            raise NoDensity(_without_density(self.given))
        density: Tensor = self.given.log_prob(x, node)
        return density


def _without_density(problem: Any) -> str:
    name = type(problem).__name__
    return f"{'this problem' if name.startswith('_') else name} has no log_prob(x, node)"
