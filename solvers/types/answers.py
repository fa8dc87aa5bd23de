"""Calls of the functions that users pass: faults that would otherwise look like numbers become one ``InputError``.

A network that writes into its input changes the state of the solve; a StopIteration ends the loop that it crosses, as
if nothing were missing; torch converts integers, booleans and complex numbers to floats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from .node import Node, Prediction

_NONE: Mapping[str, Any] = {}


def call(who: str, function: Callable[..., Any], x: Any, at: Any, conditions: Mapping[str, Any] = _NONE) -> Any:
    """``function(x, at, **conditions)``; ``who`` is the function in messages, ``at`` a time label or a node.

    torch counts the writes into a tensor, except into those of inference mode: the function gets copies that count.

    Raises:
        InputError: the function writes into a tensor that it is given, or raises StopIteration.
    """
    given = (x, at, *conditions.values()) if conditions else (x, at)
    for value in given:
        if isinstance(value, Tensor) and value.is_inference():
            x, at, *others = given = tuple(counting(value) for value in given)
            conditions = dict(zip(conditions, others, strict=True))
            break
    before = [value._version for value in given if isinstance(value, Tensor)]
    try:
        found = function(x, at, **conditions)
    except StopIteration as error:
        raise stopped(who, error) from error
    except RuntimeError as error:
        if "leaf Variable that requires grad" in str(error):
            raise writes(who, "a tensor that requires gradients, such as its input x") from error
        raise
    after = [value._version for value in given if isinstance(value, Tensor)]
    if after != before:
        names = ("its input x", "its time label", *(f"the condition {name!r}" for name in conditions))
        tensors = (name for name, value in zip(names, given, strict=True) if isinstance(value, Tensor))
        raise writes(who, next(name for name, a, b in zip(tensors, before, after, strict=True) if a != b))
    return found


def predicted(predict: Callable[..., Prediction], x: Any, node: Any, conditions: Mapping[str, Any] = _NONE) -> Any:
    """A model's prediction at x (B, *), after a check of its numbers; without the graph where none is asked for.

    Raises:
        InputError: the model does not return ``Prediction(x0, eps)`` of floats like x; see also ``call``.
    """
    found = call("the model", predict, x, node, conditions)
    if type(x) is not Tensor:  # symbolic, in a trace
        return found
    if not isinstance(found, Prediction):
        raise InputError(f"the model must return solvers.Prediction(x0, eps), got {_kind(found)}")
    for name, part in (("x0", found.x0), ("eps", found.eps)):
        if wrong := fault(part, x):
            raise InputError(f"the model predicts {name} as {wrong} for samples {tuple(x.shape)}{_times(x, node)}")
    if (found.x0.requires_grad or found.eps.requires_grad) and not torch.is_grad_enabled():
        return Prediction(found.x0.detach(), found.eps.detach(), None if found.nu is None else found.nu.detach())
    return found


def raw_output(raw: Callable[..., Tensor], x: Any, node: Any, conditions: Mapping[str, Any] = _NONE) -> Any:
    """A model's own output (B, *) at x (B, *), checked like ``predicted``.

    Raises:
        InputError: the model does not return floats like x; see also ``call``.
    """
    found = call("the model", raw, x, node, conditions)
    if wrong := fault(found, x):
        raise InputError(f"the model returns {wrong} for samples {tuple(x.shape)}")
    return found.detach() if found.requires_grad and not torch.is_grad_enabled() else found


def replacement(hook: Callable[..., Any], x: Tensor, node: Any) -> Tensor | None:
    """What a hook returns for the state x (B, *): another state, or None.

    Raises:
        InputError: the hook returns anything else, or raises StopIteration.
    """
    try:
        found = hook(x, node)
    except StopIteration as error:
        raise stopped("a hook", error) from error
    if found is None:
        return None
    shape = (len(found), *x.shape[1:]) if isinstance(found, Tensor) and found.ndim else None  # a hook may drop samples
    if wrong := fault(found, x, shape, x.is_floating_point()):
        raise InputError(f"a hook returns {wrong} for states {tuple(x.shape)}: it must return a state like x, or None")
    state: Tensor = found
    return state


def drawn(noise: Callable[..., Any], t: Any, s: Any) -> Any:
    """The noise (B, *) of the interval from t to s.

    Raises:
        InputError: the source raises StopIteration, or returns no floats.
    """
    try:
        found = noise(t, s)
    except StopIteration as error:
        raise stopped("the noise source", error) from error
    if isinstance(found, Tensor) and not found.is_floating_point():
        raise InputError(f"the noise source returns {found.dtype}; noise has floats")
    if found is None or isinstance(found, tuple):
        raise InputError(f"the noise source returns {_kind(found)}; noise is a tensor of floats")
    return found


def fault(found: Any, like: Tensor, shape: tuple[int, ...] | None = None, floats: bool = True) -> str:
    """In what a tensor is not like another, in words; empty if it is. ``shape`` is by default that of ``like``."""
    if not isinstance(found, Tensor):
        return _kind(found)
    if found.layout != torch.strided:
        return f"a tensor of layout {found.layout}"
    if shape is None and found.dtype == like.dtype and found.shape == like.shape and found.device == like.device:
        return ""
    if found.shape != (like.shape if shape is None else shape):
        return str(tuple(found.shape))
    if found.is_floating_point() != floats or found.is_complex():
        return f"{found.dtype} instead of {'floats' if floats else like.dtype}"
    return "" if found.device == like.device else f"a tensor on {found.device} instead of {like.device}"


def stopped(who: str, error: StopIteration) -> InputError:
    """The error for a function that raised StopIteration, which would end the loop that called it."""
    detail = f" with {_kind(error.value)}" if error.value is not None else ""
    return InputError(f"{who} raised StopIteration{detail}: is there a next(...) of an iterator that has ended?")


def writes(who: str, what: str) -> InputError:
    """The error for a function that writes into a tensor that it is given."""
    advice = "compute x * 2 instead of x.mul_(2), leave out inplace=True, or begin with x = x.clone()"
    return InputError(f"{who} writes into {what}: {advice}")


def counting(value: Any) -> Any:
    """The value itself, or a copy of a tensor of inference mode, into which torch counts no writes."""
    if isinstance(value, Tensor) and value.is_inference():
        with torch.inference_mode(False):
            return value.clone()
    return value


def version(value: Any) -> int:
    """How often a tensor was written into; 0 if torch does not count it: in inference mode and for symbolic values."""
    return value._version if isinstance(value, Tensor) and not value.is_inference() else 0


def _kind(found: Any) -> str:
    return type(found).__name__


def _times(x: Tensor, node: Any) -> str:
    """What to know about a node that has a time for each sample."""
    if not isinstance(node, Node) or not isinstance(node.t, Tensor):
        return ""
    return (
        f"; with a time for each sample, the numbers of a node have the shape {tuple(node.like(x).t.shape)}, and "
        "node.t.flatten() is the time of each sample"
    )
