"""Networks of the user's, which a spec names as ``package.module:factory``.

The factory is a function, or a module's class, called as ``factory(shape=..., conditions=..., outputs=...)`` with those
of the three that it has as parameters. It returns a module that is called as ``module(x, label, **conditions)``. Its
other parameters are options of the spec: numbers and texts with a default, ``mine:net(width=64)``.

A factory with the parameter ``values`` makes networks of tokens: it gets the number S of values of a token, the mask
included, and, if it has that parameter, ``time``: whether the module is called with a label. The module returns a
number for each value of each token x (B, *), (B, *, S). Other factories' networks get tokens one-hot.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from torch import nn

from solvers import InputError

from ...data.conditions import Condition

_GIVEN = ("shape", "conditions", "outputs")
_OF_TOKENS = ("shape", "conditions", "values", "time")


@lru_cache(maxsize=64)  # equal specs must give equal recipes
def of_callable(factory: Callable[..., Any], base: type) -> type:
    """A class of recipes, derived from ``base``, whose ``build`` calls a factory.

    Raises:
        InputError: it does not take a shape, or a parameter has no default.
    """
    name = f"{factory.__module__}:{factory.__qualname__}"
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        raise InputError(f"the network {name} has no signature") from None
    if "shape" not in parameters:
        raise InputError(f"the network {name} must have a parameter 'shape', the shape (C, *) of a sample")
    tokens = "values" in parameters
    fields: list[Any] = []
    for key, parameter in parameters.items():
        if key in (_OF_TOKENS if tokens else _GIVEN) or parameter.kind in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        ):
            continue
        if parameter.default is parameter.empty:
            raise InputError(f"the parameter {key!r} of the network {name} needs a default, because a spec may omit it")
        if type(parameter.default) in (bool, int, float, str):
            fields.append((key, type(parameter.default), dataclasses.field(default=parameter.default)))

    def build(self: Any, shape: tuple[int, ...], outputs: int = 1, conditions: Sequence[Condition] = ()) -> nn.Module:
        if tokens:
            raise InputError(f"the network {name} takes tokens, the states of a process: set config.process")
        return called(self, shape=tuple(shape), conditions=tuple(conditions), outputs=outputs)

    def build_tokens(
        self: Any, shape: tuple[int, ...], values: int, conditions: Sequence[Condition] = (), time: bool = True
    ) -> nn.Module:
        if not tokens:
            made: nn.Module = base.build_tokens(self, shape, values, conditions, time)  # type: ignore[attr-defined]
            return made
        return called(self, shape=tuple(shape), conditions=tuple(conditions), values=values, time=time)

    def called(self: Any, **given: Any) -> nn.Module:
        if given["conditions"] and "conditions" not in parameters:
            raise InputError(f"the network {name} has no parameter 'conditions': its factory must take it")
        options = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        try:
            made = factory(**{key: value for key, value in given.items() if key in parameters}, **options)
        except InputError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise InputError(f"the network {name} cannot be made for samples {given['shape']}: {reason}") from error
        if not isinstance(made, nn.Module):
            raise InputError(f"the network {name} must return a torch.nn.Module, got a {type(made).__name__}")
        return made

    namespace = {"build": build, "build_tokens": build_tokens, "tokens": tokens, "__module__": factory.__module__}
    namespace["__doc__"] = inspect.getdoc(factory)
    made = dataclasses.make_dataclass(factory.__name__, fields, bases=(base,), frozen=True, namespace=namespace)
    made.__qualname__ = factory.__qualname__
    return made
