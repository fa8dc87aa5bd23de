"""Guidance: rules that combine a model's predictions, such as with and without its condition, into one.

Every rule returns a prediction of the same state, so that a guided model is a model: any solver, encoding and
likelihood take it. ``guided.Guided`` evaluates the predictions that a rule asks for, by their roles.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from solvers import InputError, Node, Prediction, Registry, Solver
from solvers.registry.options import Options
from solvers.registry.spec import Spec

CONDITION, NULL, NEGATIVE, BAD, CLASSIFIED = "condition", "null", "negative", "bad", "classified"
"""Roles of predictions: with the conditions of the samples; without any; with those that are to be avoided; of a worse
model; without conditions, moved by a classifier's gradient. ``only(i)`` is the role with the i-th condition alone."""

Ask = Callable[[str], Prediction]
"""The prediction in a role, evaluated once for all who ask."""

log = logging.getLogger("scoresde")


def only(i: int) -> str:
    """The role of the prediction with the i-th condition, and without the others."""
    return f"only {i}"


class Guidance(Options):
    """A rule that combines predictions; a frozen dataclass whose fields are its options."""

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles that the rule asks for at some noise level."""
        raise NotImplementedError

    @property
    def linear(self) -> bool:
        """Whether the result is a sum of the predictions with weights whose sum is 1: the same for every output."""
        return False

    @property
    def edges(self) -> tuple[float, ...]:
        """The noise levels sigma / alpha at which the rule changes."""
        return ()

    def asked(self, ratio: float) -> tuple[str, ...]:
        """The roles that the rule asks for at a noise level."""
        return self.roles

    def phase(self, ratio: float) -> Hashable:
        """A value that is the same at noise levels where the rule is the same."""
        return ()

    def weights(self, ratio: float) -> Mapping[str, float]:
        """The weights of the roles at a noise level, of a linear rule; those that are 0 are left out."""
        raise NotImplementedError

    def x0(self, ask: Ask, x: Tensor, node: Node | Node[Tensor], ratio: float) -> Tensor:
        """The combined x0 (B, *) at x (B, *).

        Args:
            node: one node, or one per sample, all in the same phase.
            ratio: the noise level that decides the phase.
        """
        weights = self.weights(ratio)
        return sum_of({role: ask(role).x0 for role in weights}, weights)

    def on(self, nodes: Sequence[Node]) -> Guidance:
        """The rule of one solve along ``nodes``; itself if it depends on nothing but the noise level."""
        return self

    def check_solver(self, solver: Solver) -> None:
        """Accepts a solver, or says why it does not go with the rule.

        Raises:
            InputError: it does not.
        """

    def __str__(self) -> str:
        return guidances.format(self)


def sum_of(parts: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The sum of tensors (B, *) with weights; a single one of weight 1 is returned as it is."""
    (first, w), *rest = weights.items()
    found = parts[first] if w == 1 else w * parts[first]
    for name, w in rest:
        found = found + w * parts[name]
    return found


@dataclass(frozen=True)
class Interval(Guidance):
    """A rule that holds where lo <= sigma / alpha < hi; elsewhere the prediction is that of one role.

    Attributes:
        interval: [lo, hi], the noise levels sigma / alpha from lo to below hi; all of them by default.
    """

    interval: tuple[float, ...] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.interval is None:
            return
        if len(self.interval) != 2:
            raise InputError(f"{self.name}: interval is [lo, hi] in sigma / alpha, got {list(self.interval)}")
        low, high = self.interval
        if not 0 <= low < high:
            raise InputError(f"{self.name}: interval must have 0 <= lo < hi in sigma / alpha, got [{low:g}, {high:g}]")

    @property
    def name(self) -> str:
        """The registered name."""
        return guidances.info_of(self).name

    @property
    def outside(self) -> str:
        """The role outside of the interval."""
        return CONDITION

    @property
    def edges(self) -> tuple[float, ...]:
        return tuple(r for r in self.interval or () if 0 < r < math.inf)

    def acts(self, ratio: float) -> bool:
        """Whether a noise level is in the interval."""
        return self.interval is None or self.interval[0] <= ratio < self.interval[1]

    def phase(self, ratio: float) -> Hashable:
        return self.acts(ratio)


class Linear(Interval):
    """A rule with weights whose sum is 1; a subclass has ``inside``."""

    def inside(self) -> Mapping[str, float]:
        """The weights of the roles inside the interval."""
        raise NotImplementedError

    @property
    def linear(self) -> bool:
        return True

    @property
    def roles(self) -> tuple[str, ...]:
        found = [role for role, w in self.inside().items() if w != 0]
        return tuple(dict.fromkeys([*found, *((self.outside,) if self.interval else ())]))

    def asked(self, ratio: float) -> tuple[str, ...]:
        return tuple(self.weights(ratio))

    def weights(self, ratio: float) -> Mapping[str, float]:
        if not self.acts(ratio):
            return {self.outside: 1.0}
        return {role: w for role, w in self.inside().items() if w != 0}


def finite(guidance: Any, *names: str) -> None:
    """Rejects options that are not finite.

    Raises:
        InputError: one is infinite or NaN.
    """
    for name in names:
        value = getattr(guidance, name)
        for number in value if isinstance(value, tuple) else (value,):
            if not math.isfinite(number):
                raise InputError(f"{guidances.info_of(guidance).name}: {name} must be finite, got {number}")


class GuidanceRegistry(Registry[Guidance]):
    """The registry of guidance, which also reads w = scale - 1 of cfg, the other convention.

    The w of other kinds is not: of autoguidance, for example, it is the scale itself.
    """

    def make(self, spec: str | Spec | Guidance) -> Guidance:
        if isinstance(spec, str):
            spec = self.read(spec)
        if isinstance(spec, Spec) and spec.name == "cfg":
            options = dict(spec.kwargs)
            if isinstance(w := options.pop("w", None), (int, float)) and "scale" not in options and not spec.args:
                log.info("cfg: w=%g is scale=%g here: scale 1 is the conditional prediction", w, w + 1)
                spec = Spec("cfg", (), (("scale", w + 1), *options.items()))
        return super().make(spec)


guidances = GuidanceRegistry("guidance", Guidance, entry_points="scoresde.guidances")
