"""The inputs of public functions in the forms in which people have them, and one clear line for all others.

Seeds are a number of seeds, a list, a tensor or an array; tensors may be numpy arrays; dtypes and devices may be names.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from solvers import Hook, InputError, errors
from solvers.errors import positive_integer, unknown

if TYPE_CHECKING:
    from ..data.conditions import Condition

Seeds = int | Iterable[int] | Tensor | np.ndarray[Any, Any]
Array = Tensor | np.ndarray[Any, Any]
MOST_SEEDS = 10_000_000  # a larger number of samples is a typing error
DTYPES = ("float16", "bfloat16", "float32", "float64")


def seeds_of(seeds: Any) -> list[int]:
    """The seeds as a list; a number n means the seeds 0 to n - 1.

    >>> seeds_of(3), seeds_of(torch.tensor([5, 7])), seeds_of(range(2))
    ([0, 1, 2], [5, 7], [0, 1])

    Raises:
        InputError: they are not integers of at least 0.
    """
    if isinstance(seeds, (Tensor, np.ndarray)):
        seeds = seeds.tolist()
    if isinstance(seeds, (int, np.integer)) and not isinstance(seeds, bool) and seeds >= 0:
        if seeds > MOST_SEEDS:
            raise InputError(f"seeds are {shown(seeds)}, more than {MOST_SEEDS:,} samples at once")
        return list(range(int(seeds)))
    if isinstance(seeds, str) or not isinstance(seeds, Iterable):
        raise InputError(f"seeds must be a number of samples or a list of integers, got {shown(seeds)}")
    found = []
    for seed in seeds:
        try:
            number = -1 if isinstance(seed, (bool, np.bool_)) else operator.index(seed)
        except TypeError:
            number = -1
        if number < 0:
            raise InputError(f"a seed must be an integer of at least 0, got {shown(seed)}")
        found.append(number)
    return found


def shape_of(shape: Any) -> tuple[int, ...]:
    """The shape of a sample as a tuple; a number n means (n,).

    Raises:
        InputError: it is not a list of positive integers, or is empty.
    """
    if isinstance(shape, (Tensor, np.ndarray)) and shape.ndim == 1:
        shape = shape.tolist()
    lengths = (shape,) if isinstance(shape, (int, np.integer)) else shape
    if not isinstance(lengths, Iterable) or isinstance(lengths, (str, Tensor, np.ndarray)):
        raise InputError(f"shape must be the shape of one sample, such as (2,) or (3, 32, 32), got {shown(shape)}")
    found = tuple(positive_integer("every length in shape", length) for length in lengths)
    if not found:
        raise InputError("shape is (), but a sample needs at least one dimension; single numbers have the shape (1,)")
    return found


def draws_of(
    seeds: Any, shape: Any, x_init: Any, known: tuple[int, ...] | None
) -> tuple[list[int], tuple[int, ...], Tensor | None]:
    """The seeds, the shape of samples, and ``x_init`` (B, *) as a tensor, which decides what is missing of the others.

    Args:
        known: the shape that the model states; None if it states none.

    Raises:
        InputError: the seeds or the shape are not known; see also ``seeds_of`` and ``shape_of``.
    """
    start = None if x_init is None else tensor_of("x_init", x_init)
    if start is not None and start.ndim > 1:
        shape = start.shape[1:] if shape is None else shape
        seeds = len(start) if seeds is None else seeds
    shape = known if shape is None else shape
    if shape is None:
        raise InputError("shape is missing: pass the shape of one sample, such as (2,) or (3, 32, 32)")
    if seeds is None:
        raise InputError("seeds are missing: pass a number of samples such as seeds=16, or a list of integers")
    found, lengths = seeds_of(seeds), shape_of(shape)
    if known is not None and lengths[1:] == known and lengths[0] == len(found):
        raise InputError(f"shape {lengths} includes the number of samples: pass the shape of one sample, {known}")
    return found, lengths, start


def tensor_of(name: str, value: Any) -> Tensor:
    """The value as a tensor; a numpy array becomes one with the same dtype.

    Raises:
        InputError: it is neither a tensor nor an array of numbers.
    """
    if isinstance(value, Tensor):
        return value
    if isinstance(value, (np.ndarray, np.generic, list, tuple)):
        try:
            array = np.asarray(value)
            ours = array.flags.writeable and min(array.strides, default=0) >= 0  # torch takes no other memory
            return torch.as_tensor(array if ours else array.copy())
        except (TypeError, ValueError):
            pass
    raise InputError(f"{name} must be a tensor or a numpy array of numbers, got {shown(value)}")


def samples_of(name: str, value: Any) -> Tensor:
    """Samples (N, *) as a tensor of finite floats.

    Raises:
        InputError: they are no such tensor or array.
    """
    data = tensor_of(name, value)
    if not data.is_floating_point() or data.ndim < 2 or not data.numel():
        raise InputError(f"{name} must be floats (N, *), got {data.dtype} of shape {tuple(data.shape)}")
    if not torch.isfinite(data).all():
        raise InputError(f"{name} contain numbers that are not finite")
    return data


def conditions_of(
    condition: Any,
    count: int,
    device: torch.device | str = "cpu",
    known: Sequence[Condition] = (),
    given: Mapping[str, Tensor] = MappingProxyType({}),
) -> dict[str, Tensor]:
    """The conditions as tensors with ``count`` rows, by the names of the network's arguments, on the device.

    Args:
        known: the conditions that the model takes; if there are any, those of the caller are checked against them.
        given: conditions that the model brings along, in ``count`` rows or one for all; those of the caller replace
            them.

    Raises:
        InputError: they are not a mapping from names to tensors with one row per sample; see also ``Condition.check``.
    """
    if condition is None:
        condition = {}
    if not isinstance(condition, Mapping) or not all(isinstance(name, str) for name in condition):
        raise InputError(
            "condition must name the arguments of the network, such as condition={'label': labels}; "
            f"got {shown(condition)}"
        )
    found = {name: tensor_of(f"the condition {name}", value).to(device) for name, value in condition.items()}
    for name, row in given.items():
        own = row.to(device)
        found.setdefault(name, own.expand(count, *own.shape[1:]) if len(own) == 1 else own)
    for name, value in found.items():
        if value.ndim == 0 or len(value) != count:
            rows = f"{len(value)} rows" if value.ndim else "no rows"
            raise InputError(f"the condition {name} has {rows} for {count} samples; give one row per sample")
    for one in known:
        if one.name not in found:
            raise InputError(f"the network needs the condition {one.name!r}: pass condition={{{one.name!r}: ...}}")
        one.check(found[one.name])
    return found


def dtype_of(dtype: Any) -> torch.dtype:
    """The float dtype of a name such as "float32", a torch dtype or a numpy dtype.

    Raises:
        InputError: it is not a float type.
    """
    name = str(dtype).removeprefix("torch.") if isinstance(dtype, (str, torch.dtype)) else ""
    if not name:
        try:
            name = str(np.dtype(dtype))
        except TypeError:
            raise InputError(f"dtype must be a float type such as torch.float32, got {shown(dtype)}") from None
    found = getattr(torch, {"half": "float16", "float": "float32", "double": "float64"}.get(name, name), None)
    if not isinstance(found, torch.dtype):
        raise unknown("dtype", name, DTYPES)
    if not found.is_floating_point:
        raise InputError(f"dtype must be a float type, got {found}")
    return found


def device_of(device: Any) -> torch.device:
    """The device of a name such as "cuda:0".

    Raises:
        InputError: it is not a device, or this machine does not have it.
    """
    try:
        found = torch.device(device)
        if found.type != "cpu":
            torch.empty(0, device=found)
        if found.type == "meta":
            raise RuntimeError("it stores no numbers")
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        reason = " ".join(str(error).split()).partition(". ")[0][:200]
        raise InputError(f"device {str(device)!r} is not available: {reason}") from None
    return found


def hooks_of(hooks: Any) -> tuple[Hook, ...]:
    """The hooks as a tuple; a single function is one hook.

    Raises:
        InputError: a hook cannot be called.
    """
    found = (hooks,) if callable(hooks) else tuple(hooks) if isinstance(hooks, Sequence) else None
    if found is None or not all(callable(hook) for hook in found):
        raise InputError(f"hooks must be functions of (x, node), got {shown(hooks)}")
    return found


def shown(value: Any) -> str:
    """A short text of what was given: a tensor's shape and dtype, a class's name, or the value itself."""
    if isinstance(value, (Tensor, np.ndarray)):
        return f"{type(value).__name__} of shape {tuple(value.shape)} and {value.dtype}"
    if inspect.isclass(value):
        return f"the class {value.__name__}"
    text = errors.shown(value)
    return text if len(text) <= 60 else f"{type(value).__name__} {text[:50]}..."
