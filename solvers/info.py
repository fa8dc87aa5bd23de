"""The card of a registered class: its name, the facts about it, and its options."""

from __future__ import annotations

import dataclasses
import inspect
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Info:
    """The card of a registered class. All but the first four fields are facts about solvers.

    Attributes:
        nonlinear: why a step is not linear in the state, the predictions and the noise; empty where it is.
        order: the method's own (nominal) order, of its default options.
        native: what the method interpolates or differences: x0, eps, score, ...
        equals: specs of methods with the same coefficients, proved equal by a test.
        note: what a user should know that the numbers do not say.
    """

    name: str
    cls: type
    aliases: tuple[str, ...] = ()
    reference: str = ""
    kind: str = ""
    order: float | None = None
    stochastic: bool = False
    nonlinear: str = ""
    adaptive: bool = False
    evaluations: int = 1
    formula: str = ""
    native: str = "eps"
    equals: tuple[str, ...] = ()
    note: str = ""

    @property
    def options(self) -> dict[str, Any]:
        """Option names and their defaults."""
        return {name: None if f.default is dataclasses.MISSING else f.default for name, f in self.fields.items()}

    @property
    def fields(self) -> dict[str, dataclasses.Field[Any]]:
        """The fields of the class by the names of their options."""
        return {option_name(field): field for field in dataclasses.fields(self.cls)}

    @property
    def positional(self) -> list[str]:
        """The options that may be given by position."""
        return [name for name, field in self.fields.items() if not field.kw_only]

    @property
    def linear(self) -> bool:
        """Whether a step is linear in the state, the predictions and the noise."""
        return not self.nonlinear

    @property
    def summary(self) -> str:
        """The first line of the class's docstring."""
        return (inspect.getdoc(self.cls) or "").partition("\n")[0]


def named(option: str, default: T) -> T:
    """The default of a field that specs, cards and messages call ``option``."""
    field: Any = dataclasses.field(default=default, metadata={"option": option})
    return field  # type: ignore[no-any-return]


def option_name(field: dataclasses.Field[Any]) -> str:
    """What specs call a field."""
    return str(field.metadata.get("option", field.name))
