"""The starts of solves of discrete states, and checks of tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from solvers import Hook, InputError
from solvers.discrete.base import picked
from solvers.noise.uniform import UniformNoise

from ..io.inputs import tensor_of
from ..models.model import Model


def discrete_starts(
    process: Any, seeds: Sequence[int], shape: tuple[int, ...], device: torch.device, x_init: Tensor | None
) -> Callable[[slice], tuple[Tensor, UniformNoise]]:
    """The function that starts a batch: from ``x_init``, or from draws of the process's prior for each token."""
    prior = process.prior.cumsum(0).to(device)

    def start(rows: slice) -> tuple[Tensor, UniformNoise]:
        source = UniformNoise(seeds[rows], shape, torch.float64, device)
        if x_init is not None:
            return x_init[rows].to(device), source
        uniform = source.initial()
        return picked(prior.expand(*uniform.shape, len(prior)), uniform), source

    return start


def tokens_of(name: str, value: Any, process: Any, masked: bool = True) -> Tensor:
    """A batch (B, *) of tokens of a process, int64.

    Args:
        masked: whether the mask is a valid token, as it is of noisy states and is not of data.

    Raises:
        InputError: the value has no whole numbers, or numbers that are no tokens of the process.
    """
    x = tensor_of(name, value)
    if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        raise InputError(f"{name} must be whole numbers, the tokens of {process}, got {x.dtype}")
    if x.ndim < 2 or not x.numel():
        raise InputError(f"{name} must have the shape (B, *), at least one sample, got {tuple(x.shape)}")
    check_values(name, x, process, masked)
    return x.long()


def check_values(name: str, x: Tensor, process: Any, masked: bool = True) -> None:
    """Rejects whole numbers (B, *) that are no tokens of a process; see ``tokens_of``."""
    low, high = int(x.min()), int(x.max())
    most = (process.values if masked else process.states) - 1
    if low < 0 or high > most:
        wrong = low if low < 0 else high
        if wrong == process.mask:
            raise InputError(f"{name} has the value {wrong}, the mask of {process}; data have the values 0 to {most}")
        raise InputError(f"{name} has the value {wrong}, but {process} has the values 0 to {most}")


def checked_hooks(hooks: Sequence[Hook], model: Model) -> Sequence[Hook]:
    """The hooks of a solve; those of discrete states reject a state that is no longer one of tokens."""
    return tuple(_checked(hook, model.sde) for hook in hooks) if model.space == "discrete" else hooks


def _checked(hook: Hook, process: Any) -> Hook:
    def run(x: Tensor, node: Any) -> Tensor | None:
        found = hook(x, node)
        state = x if found is None else found
        if isinstance(state, Tensor) and state.dtype == x.dtype and state.numel():
            check_values("the state after a hook", state, process)
        return found

    return run
