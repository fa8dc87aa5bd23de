"""Problems: what a solver integrates, a path and a model.

``Problem`` has a default for everything except the path and the prediction, so a custom problem takes a few lines.
``as_problem`` adapts any other suitable object once, where it enters a solve.
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
    """Raised by a problem that does not know its density."""


class Problem:
    """What a solver integrates: a path and a model, with the conditions of its samples.

    A subclass has ``path``, as an attribute or a property, and implements ``predict``. Everything else has a default,
    which a subclass overrides if it knows more.
    """

    space = "gaussian"
    """The space of states: a solver requires a problem of its own space."""

    if TYPE_CHECKING:  # read-only for a type checker; a dataclass may still declare them as fields

        @property
        def path(self) -> Schedule:
            """The schedule, which gives alpha and sigma at a time."""

        @property
        def output(self) -> Output | None:
            """The output of the network, if the model has one: programs then call ``raw``."""
    else:
        output = None

    @property
    def time_free(self) -> bool:
        """Whether a prediction depends on the state alone, and not on the time."""
        return False

    @property
    def checked(self) -> bool:
        """Whether the problem itself checks the functions of users that it calls, as ``answers.call`` does."""
        return False

    def predict(self, x: Tensor, node: Any) -> Prediction:
        """Evaluates the model once at x (B, *).

        ``node`` is one ``Node``, or a ``Node[Tensor]`` with tensors (B, 1, ..., 1), from solvers that step each sample
        on its own: its numbers multiply x as they are. These tensors are float64 on the CPU; ``node.like(x)`` has x's
        dtype and device. Objects that ``as_problem`` adapts get ``node.like(x)``.
        """
        raise NotImplementedError

    def node(self, t: float) -> Node:
        """The node at time t."""
        return self.path(t)

    def node_of_lam(self, lam: float) -> Node:
        """The node where log(alpha / sigma) = lam; the nearer end of the path if it does not reach lam."""
        return as_schedule(self.path).node_of_lam(lam)

    def nodes_of_lam(self, lams: Sequence[float]) -> list[Node]:
        """``node_of_lam`` of each lam, in one call if the path supports it."""
        return as_schedule(self.path).nodes_of_lam(lams)

    def pieces(self, nodes: Sequence[Any]) -> Sequence[tuple[Problem, Sequence[Any]]]:
        """The parts of a solve along ``nodes``, each a problem and its nodes, which end where the next ones begin.

        A problem whose prediction jumps at a noise level ends a part there: a step across a jump has order one at most,
        and so has a step that reuses a prediction from its other side. By default there is one part.
        """
        return ((self, nodes),)

    def check_solver(self, solver: Any) -> None:
        """Accepts a solver, or says why it cannot solve this problem.

        Raises:
            InputError: it cannot.
        """

    def select(self, rows: Rows) -> Problem:
        """The problem of some of the samples; itself if samples have no data of their own (conditions, probes)."""
        return self

    def raw(self, x: Tensor, node: Node) -> Tensor:
        """The network's output (B, *) at x (B, *); available if ``output`` is not None."""
        raise NotImplementedError

    def log_prob(self, x: Tensor, node: Node) -> Tensor:
        """The log-density (B,) in nats of x_t = x (B, *) at a node.

        Raises:
            NoDensity: the problem does not know its density.
        """
        raise NoDensity(_without_density(self))


class ProblemWrapper(Problem):
    """A problem around an inner problem, to which it delegates everything that a subclass does not override."""

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

    @property
    def time_free(self) -> bool:
        return self.problem.time_free

    def check_solver(self, solver: Any) -> None:
        self.problem.check_solver(solver)

    def select(self, rows: Rows) -> Problem:
        """The problem of some of the samples: a wrapper around the inner problem's ``select``."""
        raise NotImplementedError

    @property
    def output(self) -> Output | None:
        return self.problem.output

    def raw(self, x: Tensor, node: Node) -> Tensor:
        return self.problem.raw(x, node)

    def log_prob(self, x: Tensor, node: Node) -> Tensor:
        return self.problem.log_prob(x, node)


def as_problem(given: Any) -> Problem:
    """Adapts any object with ``predict(x, node)``, such as a denoiser, to a problem.

    Optional parts are looked up here, once: ``nodes_of_lam``, ``pieces``, ``check_solver``, ``select``, ``output`` with
    ``raw``, and ``log_prob``.
    Solvers that evaluate between the grid's nodes need ``sde``, or ``node`` and ``node_of_lam``.

    Raises:
        InputError: the object has neither ``predict`` nor ``raw``.
    """
    if isinstance(given, Problem):
        return given
    if not (hasattr(given, "predict") or hasattr(given, "raw")):
        raise InputError(f"a problem needs predict(x, node), which {type(given).__name__} does not have")
    return _AdaptedProblem(given)


def natural(node: Any, x: Tensor) -> Any:
    """A node whose numbers multiply x (B, *) as they are: with one node per sample, they are tensors (B, 1, ..., 1)."""
    return node.like(x) if isinstance(node, Node) and isinstance(node.t, Tensor) else node


class _AdaptedProblem(Problem):
    """An adapter from any suitable object to a problem."""

    OPTIONAL = ("sde", "node", "node_of_lam", "nodes_of_lam", "pieces", "check_solver", "select", "output", "log_prob")

    def __init__(self, given: Any) -> None:
        self.given = given
        self.has = {name for name in self.OPTIONAL if getattr(given, name, None) is not None}
        if not hasattr(given, "raw"):
            self.has.discard("output")  # an output that cannot be evaluated is of no use
        self.space = getattr(given, "space", Problem.space)

    @property
    def path(self) -> Schedule:
        if "sde" not in self.has:
            name = type(self.given).__name__
            raise InputError(f"this solver needs a path: derive {name} from solvers.Problem, or give it an sde")
        path: Schedule = self.given.sde
        return path

    def predict(self, x: Tensor, node: Any) -> Prediction:
        return self.given.predict(x, natural(node, x))  # type: ignore[no-any-return]

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

    def pieces(self, nodes: Sequence[Any]) -> Sequence[tuple[Problem, Sequence[Any]]]:
        if "pieces" not in self.has:
            return super().pieces(nodes)
        return [(as_problem(part), places) for part, places in self.given.pieces(nodes)]

    def check_solver(self, solver: Any) -> None:
        if "check_solver" in self.has:
            self.given.check_solver(solver)

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
