"""``Guided``: a guided model, made of a model and a rule.

>>> import torch, scoresde
>>> from scoresde.guidance.guide import guide
>>> denoiser = scoresde.Denoiser(lambda x, label, y: x * y, scoresde.VP(), predicts="x0")
>>> guided = guide(denoiser, "cfg(scale=3)", null={"y": torch.tensor([0.5])})
>>> guided.predict(torch.ones(1, 1), denoiser.sde(0.5), y=torch.ones(1, 1)).x0.item()  # 0.5 + 3 (1 - 0.5)
2.0
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from copy import copy
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from solvers import Node, Prediction, Solver
from solvers.types.answers import predicted, raw_output
from solvers.types.model_output import Output

from ..models.model import Model, ModelWrapper
from .base import CLASSIFIED, CONDITION, Guidance, sum_of
from .classifier import Gradient

NEGATIVE_ROWS = "negative_"  # begins the name under which the rows of a negative condition travel with the samples
_NEAR, _SIDE = 1e-10, 1e-9  # a node this near an edge is on it; and how far inside of its piece an end is evaluated

T = TypeVar("T", Prediction, Tensor)


class Role:
    """How a prediction is made: by which model, and with which of its conditions changed.

    Attributes:
        model: the model; None is the guided one.
        rows: rows (1, *) that replace those of the samples, by the names of the conditions.
        negative: whether the rows of negative conditions replace those of the samples.
        alone: whether the model gets only ``rows``.
    """

    def __init__(
        self,
        model: Model | None = None,
        rows: Mapping[str, Tensor] | None = None,
        negative: bool = False,
        alone: bool = False,
    ) -> None:
        self.model, self.rows, self.negative, self.alone = model, rows or {}, negative, alone

    def conditions(self, x: Tensor, given: Mapping[str, Tensor], negative: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The conditions (B, *) of the prediction at x (B, *)."""
        found = {} if self.alone else dict(given)
        for name, row in self.rows.items():
            like = given.get(name)
            device = x.device if like is None else like.device
            row = row.to(device) if like is None or like.dtype == row.dtype else row.to(device, like.dtype)
            found[name] = row.expand(len(x), *row.shape[1:])
        return {**found, **negative} if self.negative else found


class Guided(ModelWrapper):
    """A model whose prediction combines those of several roles; ``guide`` makes one.

    With a linear rule, ``raw`` is the combination of the networks' own outputs. There is no density of x_t: the ODE of
    a guided model is not that of a diffused law.
    """

    def __init__(
        self, model: Model, guidance: Guidance, roles: Mapping[str, Role], gradient: Gradient | None = None
    ) -> None:
        super().__init__(model)
        self.guidance, self.roles, self.gradient = guidance, roles, gradient
        self.density = "guided ode"
        self.bounds: tuple[float, float] | None = None  # the ends of the piece of a solve, as noise levels
        self._probed: list[bool] = []  # not empty after the first comparison; all copies share it

    @property
    def _others(self) -> tuple[Model, ...]:
        """The models of the roles, without the guided one."""
        return tuple(role.model for role in self.roles.values() if role.model is not None)

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        own = () if self.gradient is None else self.gradient.modules
        return tuple(dict.fromkeys([*self.model.modules, *(m for other in self._others for m in other.modules), *own]))

    @property
    def checked(self) -> bool:
        return self.gradient is None and all(model.checked for model in (self.model, *self._others))

    @property
    def output(self) -> Output:
        same = all(model.output == self.model.output for model in self._others)
        return self.model.output if self.guidance.linear and same else super().output

    def cost(self, node: Node) -> int:
        roles = (self.roles[role] for role in self.guidance.asked(self._side(node.ratio)))
        return sum((self.model if role.model is None else role.model).cost(node) for role in roles)

    def check_solver(self, solver: Solver) -> None:
        self.guidance.check_solver(solver)
        for model in (self.model, *self._others):
            model.check_solver(solver)

    def pieces(self, nodes: Sequence[Node]) -> Sequence[tuple[Model, Sequence[Node]]]:
        """A piece between each two edges of the rule, which become nodes; and between those of the inner models."""
        guidance, found = self.guidance.on(nodes), list[tuple[Model, Sequence[Node]]]()
        for places in _divided(nodes, guidance.edges, self.sde.node_of_lam):
            low, high = sorted((places[0].ratio, places[-1].ratio))
            for (inner, *others), inner_places in _pieces_of((self.model, *self._others), places):
                made = copy(self)
                made.model, made.guidance, models = inner, guidance, iter(others)
                made.roles = {
                    name: role if role.model is None else Role(next(models), role.rows, role.negative, role.alone)
                    for name, role in self.roles.items()
                }
                made.bounds = (low, high) if guidance.edges else None
                found.append((made, inner_places))
        return found

    def predict(self, x: Tensor, node: Node | Node[Tensor], **conditions: Tensor) -> Prediction:
        return self._by_phase(x, node, conditions, self._predict)

    def raw(self, x: Tensor, node: Node | Node[Tensor], **conditions: Tensor) -> Tensor:
        if self.output != self.model.output or not self.guidance.linear:
            return super().raw(x, node, **conditions)
        return self._by_phase(x, node, conditions, self._raw)

    def _side(self, ratio: float) -> float:
        """The noise level of a node, moved into the piece of the solve if it is one of its ends."""
        if self.bounds is None:
            return ratio
        low, high = self.bounds
        if low * (1 - _SIDE) <= ratio <= high * (1 + _SIDE):
            return min(max(ratio, low * (1 + _SIDE)), high * (1 - _SIDE))
        return ratio

    def _by_phase(
        self,
        x: Tensor,
        node: Node | Node[Tensor],
        conditions: dict[str, Tensor],
        at: Callable[[Tensor, Node | Node[Tensor], dict[str, Tensor], float], T],
    ) -> T:
        """``at`` of samples x (B, *) whose nodes are in the same phase of the rule, together; and of all, in order."""
        if not isinstance(node.t, Tensor):
            return at(x, node, conditions, self._side(node.ratio))
        ratios = [self._side(ratio) for ratio in node.ratio.flatten().tolist()]
        phases: dict[Hashable, list[int]] = {}
        for i, ratio in enumerate(ratios):
            phases.setdefault(self.guidance.phase(ratio), []).append(i)
        if len(phases) == 1:
            return at(x, node, conditions, ratios[0])
        parts = []
        for places in phases.values():
            rows = torch.tensor(places)
            own = {name: value[rows.to(value.device)] for name, value in conditions.items()}
            parts.append(at(x[rows.to(x.device)], _rows_of(node, rows), own, ratios[places[0]]))
        order = torch.argsort(torch.tensor([i for places in phases.values() for i in places])).to(x.device)
        found: T = _joined(parts, order)
        return found

    def _split(self, conditions: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The conditions of the samples, and the negative ones."""
        own = {name: value for name, value in conditions.items() if not name.startswith(NEGATIVE_ROWS)}
        negative = {name.removeprefix(NEGATIVE_ROWS): v for name, v in conditions.items() if name not in own}
        return own, negative

    def _asker(
        self,
        x: Tensor,
        conditions: dict[str, Tensor],
        evaluate: Callable[[Model, dict[str, Tensor]], T],
        moved: Callable[[Gradient, T, dict[str, Tensor]], T],
    ) -> tuple[Callable[[str], T], dict[str, T], dict[str, Tensor]]:
        """A function that evaluates a role once; the evaluated roles; and the conditions of the samples."""
        own, negative = self._split({**self._negative(x), **conditions})
        known: dict[str, T] = {}

        def ask(name: str) -> T:
            if name not in known:
                role = self.roles[name]
                if name == CLASSIFIED:
                    assert self.gradient is not None
                    known[name] = moved(self.gradient, ask(self.gradient.base), own)
                else:
                    model = self.model if role.model is None else role.model
                    known[name] = evaluate(model, role.conditions(x, own, negative))
            return known[name]

        return ask, known, own

    def _predict(self, x: Tensor, node: Any, conditions: dict[str, Tensor], ratio: float) -> Prediction:
        def evaluate(model: Model, given: dict[str, Tensor]) -> Prediction:
            found: Prediction = predicted(model.predict, x, node, given)
            return found

        ask, known, own = self._asker(
            x, conditions, evaluate, lambda gradient, base, own: gradient.moved(base, x, node, own)
        )
        if self.guidance.linear:
            weights = self.guidance.weights(ratio)
            found = {name: ask(name) for name in weights}
            self._probe({name: p.x0 for name, p in found.items()}, own)
            first: Prediction = next(iter(found.values()))
            if list(weights.values()) == [1.0]:
                return first
            x0, eps = (sum_of({n: getattr(p, part) for n, p in found.items()}, weights) for part in ("x0", "eps"))
            return Prediction(x0, eps, first.nu)
        x0 = self.guidance.x0(ask, x, node, ratio)
        self._probe({name: p.x0 for name, p in known.items()}, own)
        wide: Any = node.like(x)
        if not known:
            return Prediction(x0, (x - wide.alpha * x0) / wide.sigma)
        base: Prediction = known.get(CONDITION) or next(iter(known.values()))
        if x0 is base.x0:
            return base
        return Prediction(x0, base.eps - (wide.alpha / wide.sigma) * (x0 - base.x0), base.nu)

    def _raw(self, x: Tensor, node: Any, conditions: dict[str, Tensor], ratio: float) -> Tensor:
        def evaluate(model: Model, given: dict[str, Tensor]) -> Tensor:
            found: Tensor = raw_output(model.raw, x, node, given)
            return found

        ask, _, own = self._asker(
            x, conditions, evaluate, lambda gradient, base, own: gradient.moved_raw(self.output, base, x, node, own)
        )
        weights = self.guidance.weights(ratio)
        found = {name: ask(name) for name in weights}
        self._probe(found, own)
        return sum_of(found, weights)

    def _negative(self, x: Tensor) -> dict[str, Tensor]:
        """The model's own rows of negative conditions, for a prediction outside of a solve."""
        rows = {name: value for name, value in self.given.items() if name.startswith(NEGATIVE_ROWS) and len(value) == 1}
        return {name: value.to(x.device).expand(len(x), *value.shape[1:]) for name, value in rows.items()}

    def _probe(self, found: Mapping[str, Tensor], conditions: Mapping[str, Tensor]) -> None:
        """Warns once if the prediction with the conditions has the bits of that without them."""
        null = next((found[name] for name in ("null", "negative") if name in found), None)
        if self._probed or null is None or CONDITION not in found or CLASSIFIED in found:
            return
        self._probed.append(True)
        rows = self.roles["null" if "null" in found else "negative"].rows
        both = [(conditions[name], row) for name, row in rows.items() if name in conditions]
        other = not rows or any(not torch.equal(given, row.to(given).expand_as(given)) for given, row in both)
        if other and torch.equal(null, found[CONDITION]):
            text = "has no effect: the network predicts the same with and without its conditions; does it use them?"
            warnings.warn(f"{self.guidance} {text}", stacklevel=2)


def _pieces_of(models: Sequence[Model], nodes: Sequence[Node]) -> list[tuple[tuple[Model, ...], Sequence[Node]]]:
    """The parts of a solve in which no model's prediction jumps: the models of each part, and its nodes."""
    parts: list[tuple[tuple[Model, ...], Sequence[Node]]] = [((), nodes)]
    for model in models:
        parts = [((*done, part), places) for done, inner in parts for part, places in model.pieces(inner)]
    return parts


def _divided(
    nodes: Sequence[Node], edges: Sequence[float], node_of_lam: Callable[[float], Node]
) -> list[tuple[Node, ...]]:
    """The nodes of each part of a solve between two edges, which are noise levels; edges become nodes."""
    down = nodes[0].ratio > nodes[-1].ratio
    found, part = [], [nodes[0]]
    for t, s in pairwise(nodes):
        low, high = sorted((t.ratio, s.ratio))
        inside = {edge for edge in edges if low * (1 + _NEAR) < edge < high * (1 - _NEAR)}
        for edge in sorted(inside, reverse=down):
            middle = node_of_lam(-math.log(edge))
            found.append((*part, middle))
            part = [middle]
        part.append(s)
        if s is not nodes[-1] and any(abs(edge - s.ratio) <= _NEAR * edge for edge in edges):
            found.append(tuple(part))
            part = [s]
    return [*found, tuple(part)]


def _rows_of(node: Node[Tensor], rows: Tensor) -> Node[Tensor]:
    """The nodes of some samples."""
    numbers = (node.t, node.alpha, node.sigma, node.dalpha, node.dsigma)
    return Node(*(v[rows.to(v.device)] if isinstance(v, Tensor) else v for v in numbers))


def _joined(parts: Sequence[Any], order: Tensor) -> Any:
    """The parts one after the other, in an order of their rows."""
    if isinstance(parts[0], Tensor):
        return torch.cat(list(parts))[order]
    nu = None if any(part.nu is None for part in parts) else torch.cat([part.nu for part in parts])[order]
    x0, eps = (torch.cat(values)[order] for values in ([p.x0 for p in parts], [p.eps for p in parts]))
    return Prediction(x0, eps, nu)
