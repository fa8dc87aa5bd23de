"""``Model``: an object that predicts x0 and eps on a path; ``as_model`` makes one of any object with ``predict``.

Users pass a ``ModelLike``: any object with ``.sde`` and ``.predict(x, node, **conditions)``, where the numbers of the
node multiply x (B, *) as they are: floats, or tensors (B, 1, ..., 1) with one node per sample. A ``Model`` also has the
optional parts: the network's own output, a density, the standard deviation of the data, rounded labels. Every public
function calls ``as_model`` once; all code behind it can rely on the attributes of ``Model``. ``Denoiser`` is the model
made of a network, and ``ModelWrapper`` a model built around another one.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from solvers import InputError, Node, Prediction, Solver
from solvers.errors import unknown
from solvers.types.answers import call, predicted
from solvers.types.model_output import Output
from solvers.types.problem import natural

from ..data.conditions import Condition
from ..paths.base import SDE, ModelLike
from .condition_noise import ConditionNoise
from .counting import add_forwards, counted
from .reachable import reachable_modules


class Model:
    """An object that predicts x0 and eps on a path; its optional parts have defaults.

    Attributes:
        sde: the path that it was trained on.
        sigma_data: standard deviation of the data; None if it is not known.
        log_prob: (x, node) -> the log-density (B,) of x_t in nats; None if it is not known.
        round_labels: whether the network receives the nearest label of its training instead of the exact one.
        shape: the shape of one sample; None if it is not known.
        data_range: the least and the greatest number of the training data; None if they are not known.
        conditions: the conditions that the network takes; empty if it takes none or they are not known.
        null: the rows (1, *) that mean "no condition", by name, of a network that was trained with others than
            ``Condition.empty``.
        given: conditions that the model brings along, by name: rows (B, *), or one row (1, *) for all samples. The
            functions that solve add them to the conditions of the samples.
        density: what the density along the model's ODE is the density of.
        condition_noise: the noise that the model adds to its conditions; None if it adds none.
        modules: the modules of the network, which a solve runs in evaluation mode.

    A model that is not made of other models calls ``counting.add_forwards`` when it evaluates its network.
    """

    space = "gaussian"
    """The space of its states, ``solvers.types.solver.SPACES``."""
    sde: SDE
    sigma_data: float | None = None
    log_prob: Callable[[Tensor, Node], Tensor] | None = None
    round_labels: bool = False
    shape: tuple[int, ...] | None = None
    data_range: tuple[float, float] | None = None
    conditions: tuple[Condition, ...] = ()
    null: Mapping[str, Tensor] = MappingProxyType({})
    given: Mapping[str, Tensor] = MappingProxyType({})
    density: str = "model"
    condition_noise: ConditionNoise | None = None

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        return ()

    @property
    def time_free(self) -> bool:
        """Whether a prediction depends on the state alone, and not on the time."""
        return False

    @property
    def checked(self) -> bool:
        """Whether the model itself checks what the network returns and that it writes into none of its tensors."""
        return False

    def predict(self, x: Tensor, node: Node | Node[Tensor], **conditions: Tensor) -> Prediction:
        """The prediction x0 and eps (B, *) at x (B, *)."""
        raise NotImplementedError

    @property
    def output(self) -> Output:
        """The kind of output that ``raw`` returns; x0 by default."""
        return Output("x0")

    def raw(self, x: Tensor, node: Node | Node[Tensor], **conditions: Tensor) -> Tensor:
        """Evaluates the model once and returns the kind ``output``, (B, *) at x (B, *)."""
        found: Tensor = predicted(self.predict, x, node, conditions).x0
        return found

    def cost(self, node: Node) -> int:
        """Evaluations of the network that one prediction at a node takes; ``counting`` counts them."""
        return 1

    def pieces(self, nodes: Sequence[Node]) -> Sequence[tuple[Model, Sequence[Node]]]:
        """The parts of a solve along ``nodes``, each a model and its nodes; one part by default.

        A model whose prediction jumps at a noise level ends a part there, which then is a node: the next part starts
        without the memory of earlier steps, and the model of each part is continuous up to both of its ends.
        """
        return ((self, nodes),)

    def check_solver(self, solver: Solver) -> None:
        """Accepts a solver, or says why the model cannot be solved with it.

        Raises:
            InputError: the prediction depends on what the solver has no meaning for, such as the steps of a grid.
        """

    def check_density(self) -> None:
        """Accepts that the density along the model's ODE is computed, or says why it is not that of its samples.

        Raises:
            InputError: it is not, and the model was not made for it.
        """

    def label_shift(self, node: Node | Node[Tensor]) -> float:
        """The distance by which rounding moves the label at a node (with tensors: the largest); 0 without rounding."""
        return 0.0


class _UserModel(Model):
    """A user's object as a ``Model``; the constructor looks up its optional parts."""

    def __init__(self, denoiser: ModelLike) -> None:
        self.denoiser, self.sde = denoiser, denoiser.sde
        self.sigma_data, self.log_prob = getattr(denoiser, "sigma_data", None), getattr(denoiser, "log_prob", None)
        output, raw, shape = (getattr(denoiser, name, None) for name in ("output", "raw", "shape"))
        self.shape = None if shape is None else tuple(shape)
        self._native: tuple[Output, Callable[..., Tensor]] | None = None
        if output is not None and raw is not None:
            self._native = output, raw

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        return reachable_modules(self.denoiser)

    @property
    def output(self) -> Output:
        return super().output if self._native is None else self._native[0]

    def predict(self, x: Tensor, node: Node | Node[Tensor], **conditions: Tensor) -> Prediction:
        name = f"{type(self.denoiser).__name__}.predict"
        try:
            with _as_one(len(x)):
                found = call(name, self.denoiser.predict, x, natural(node, x), conditions)
        except TypeError as error:
            raise condition_error(error, self.denoiser.predict, conditions) from error
        if not isinstance(found, Prediction):
            raise InputError(
                f"{type(self.denoiser).__name__}.predict must return solvers.Prediction(x0, eps), got a "
                f"{type(found).__name__}; for a network's output use scoresde.Denoiser(network, sde, predicts=...)"
            )
        return found

    def raw(self, x: Tensor, node: Node | Node[Tensor], **conditions: Tensor) -> Tensor:
        if self._native is None:
            return super().raw(x, node, **conditions)
        with _as_one(len(x)):
            found: Tensor = call(f"{type(self.denoiser).__name__}.raw", self._native[1], x, node.like(x), conditions)
        return found


@contextmanager
def _as_one(rows: int) -> Iterator[None]:
    """A block that counts as one evaluation of the network unless models are evaluated in it, which count themselves.

    ``rows`` is the number of samples.
    """
    with counted() as count:
        yield
    if not count.calls:
        add_forwards(rows)


class ModelWrapper(Model):
    """A model around an inner model, on the same path and with the same labels; a subclass overrides ``predict``.

    ``raw`` returns the x0 of ``predict``, and there is no ``log_prob``: a changed prediction has neither the inner
    model's output nor its density. Where the inner model divides a solve, each part gets a copy of the wrapper.
    """

    def __init__(self, model: ModelLike) -> None:
        self.model = as_model(model, self.space)
        self.sde, self.sigma_data, self.round_labels = self.model.sde, self.model.sigma_data, self.model.round_labels
        self.shape, self.data_range = self.model.shape, self.model.data_range
        self.conditions, self.null, self.given = self.model.conditions, self.model.null, self.model.given
        self.density = self.model.density
        self.condition_noise = self.model.condition_noise

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        return self.model.modules

    def predict(self, x: Tensor, node: Node | Node[Tensor], **conditions: Tensor) -> Prediction:
        return self.model.predict(x, node, **conditions)

    def cost(self, node: Node) -> int:
        return self.model.cost(node)

    def pieces(self, nodes: Sequence[Node]) -> Sequence[tuple[Model, Sequence[Node]]]:
        return [(self.around(inner), places) for inner, places in self.model.pieces(nodes)]

    def around(self, inner: Model) -> ModelWrapper:
        """This wrapper around another inner model; itself if that is the present one."""
        if inner is self.model:
            return self
        made = copy(self)
        made.model = inner
        return made

    def check_solver(self, solver: Solver) -> None:
        self.model.check_solver(solver)

    def check_density(self) -> None:
        self.model.check_density()

    def label_shift(self, node: Node | Node[Tensor]) -> float:
        return self.model.label_shift(node)


class ModelObserver(ModelWrapper):
    """A model that predicts the same as the inner one; a subclass overrides ``observe``, called at each evaluation."""

    def __init__(self, model: ModelLike) -> None:
        super().__init__(model)
        self.log_prob = self.model.log_prob

    def observe(self, x: Tensor, node: Node | Node[Tensor]) -> None:
        """Receives the states x (B, *) and the node of an evaluation, before it."""
        raise NotImplementedError

    @property
    def checked(self) -> bool:
        return self.model.checked

    @property
    def output(self) -> Output:
        return self.model.output

    def predict(self, x: Tensor, node: Node | Node[Tensor], **conditions: Tensor) -> Prediction:
        self.observe(x, node)
        return self.model.predict(x, node, **conditions)

    def raw(self, x: Tensor, node: Node | Node[Tensor], **conditions: Tensor) -> Tensor:
        self.observe(x, node)
        return self.model.raw(x, node, **conditions)


class LabelShiftRecorder(ModelObserver):
    """Records in ``largest`` the largest distance by which rounding moved a label, over all evaluations."""

    def __init__(self, model: ModelLike) -> None:
        super().__init__(model)
        self._shifts = [0.0]  # which all copies share

    @property
    def largest(self) -> float:
        return self._shifts[0]

    def observe(self, x: Tensor, node: Node | Node[Tensor]) -> None:
        self._shifts[0] = max(self._shifts[0], self.label_shift(node))


def as_model(denoiser: Any, space: str | None = "gaussian") -> Model:
    """Any object with ``sde`` and ``predict`` as a ``Model``; a ``Model`` is returned unchanged.

    Args:
        space: the space of states that the caller needs; None for any.

    Raises:
        InputError: the object has no ``sde`` or no ``predict``, or its states are of another space.
    """
    found = denoiser if isinstance(denoiser, Model) else _adapted(denoiser)
    if space not in (None, found.space):
        there = (
            "a scoresde.DiscreteDenoiser has them"
            if space == "discrete"
            else "of discrete states there are sample and discrete_bound, and no probability-flow ODE, encoding or "
            "exact likelihood"
        )
        raise InputError(
            f"{type(denoiser).__name__} has {found.space} states, but {space} states are needed here; {there}"
        )
    return found


def _adapted(denoiser: Any) -> Model:
    """A user's object as a ``Model``.

    Raises:
        InputError: it has no ``sde`` or no ``predict``.
    """
    if isinstance(denoiser, type):
        raise InputError(f"a denoiser is an object, got the class {denoiser.__name__}")
    missing = [name for name in ("sde", "predict") if not hasattr(denoiser, name)]
    if missing:
        raise InputError(
            f"a denoiser needs .sde and .predict(x, node); {type(denoiser).__name__} has no {missing[0]}: "
            "wrap a network in scoresde.Denoiser(network, sde, predicts=...)"
        )
    return _UserModel(denoiser)


def condition_error(error: TypeError, function: Callable[..., Any], conditions: Mapping[str, Tensor]) -> Exception:
    """The error for conditions, or a time, that a function does not take or misses; others are returned as they are."""
    text = str(error)
    if twice := re.search(r"multiple values for argument '(\w+)'", text):
        return InputError(
            f"the condition {twice[1]!r} has the name of the network's state or time: rename that argument of the "
            "network"
        )
    named = next((name for name in conditions if f"unexpected keyword argument '{name}'" in text), None)
    missing = re.search(r"missing \d+ required (?:positional|keyword-only) arguments?: '(\w+)'", text)
    called = function.forward if isinstance(function, nn.Module) else function
    try:
        signature = inspect.signature(called)
    except (TypeError, ValueError):  # a function written in C
        return error
    try:
        signature.bind_partial(None, None)
    except TypeError:
        shown = getattr(function, "__name__", type(function).__name__)
        return InputError(
            f"{shown}{signature} does not take the state and its second argument, the time: for a network without time "
            "pass lambda x, t: network(x)"
        )
    if named is None and missing is None:
        return error
    taken = list(signature.parameters)[2:]
    if named is not None:
        return unknown("condition of the network", named, taken)
    if missing is not None and missing[1] in taken:
        return InputError(f"the network needs the condition {missing[1]!r}: pass condition={{{missing[1]!r}: ...}}")
    return error
