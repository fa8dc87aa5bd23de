"""The features that a metric compares, named as ``package.module:factory``.

The factory is called with the options of the spec. It returns a function that maps samples (N, *) to (N, k), or a
module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from solvers import InputError
from solvers.errors import shown
from solvers.registry.outside import import_named, refuse_untyped
from solvers.registry.spec import parse

from .sets import Features

_BATCH = 256  # samples that are mapped at the same time


def from_factory(what: str, text: str, example: str) -> Any:
    """What the factory of a spec "module:factory(option=value)" returns.

    Args:
        what: what it makes, for messages.
        example: a spec, for messages.

    Raises:
        InputError: the text is not such a spec; a file that is not trusted names it; it cannot be imported; it fails.
    """
    spec = parse(text)
    module, colon, name = spec.name.partition(":")
    if not colon:
        raise InputError(f"{what} must be module:factory, such as {example}, got {text!r}")
    refuse_untyped(spec.name)
    return called(what, text, lambda: getattr(import_named(module), name)(*spec.args, **dict(spec.kwargs)))


def called(what: str, text: str, function: Callable[[], Any]) -> Any:
    """What a function returns that a spec names.

    Raises:
        InputError: it fails; the message names the spec.
    """
    try:
        return function()
    except (InputError, KeyboardInterrupt):
        raise
    except BaseException as error:  # a user's module may raise any exception, or call exit
        raise InputError(f"cannot make the {what} {text!r}: {str(error) or type(error).__name__}") from error


def features_of(text: str) -> Features:
    """Features by name: the result of a factory, evaluated in batches.

    Raises:
        InputError: the text is not "module:factory" or "module:factory(option=value)"; a file that is not trusted names
            it; it cannot be imported; the factory fails or returns nothing that can be called.
    """
    made = from_factory("features", text, "mine:inception")
    if not callable(made):
        raise InputError(f"the features {text!r} must be a function of samples, got {shown(made)}")
    if isinstance(made, nn.Module):
        made.eval()

    def features(x: Tensor) -> Tensor:
        parts = [torch.as_tensor(made(part)) for part in torch.split(x, _BATCH)]
        if any(part.ndim < 2 or part.shape[1:] != parts[0].shape[1:] for part in parts):
            sizes = ", ".join(dict.fromkeys(str(tuple(part.shape[1:])) for part in parts))
            raise InputError(f"the features {text!r} must have one size for all samples, got {sizes}")
        return torch.cat(parts)

    return features
