"""Evaluation mode: a solve runs a network without dropout and without the statistics of its batch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .model import as_model


@contextlib.contextmanager
def evaluation(denoiser: Any) -> Iterator[None]:
    """Puts the denoiser's modules into evaluation mode for a block, and restores the mode of every submodule after it.

    In training mode, dropout would make the samples of equal seeds different, and batch normalisation would make a
    sample depend on its batch. ``reachable_modules`` says which modules are found where the network is a function; the
    mode of others stays.

    Raises:
        InputError: the object is not a denoiser.
    """
    training = [part for module in as_model(denoiser, None).modules for part in module.modules() if part.training]
    try:
        for part in training:
            part.training = False
        yield
    finally:
        for part in training:
            part.training = True


def recordable(x: Tensor) -> Tensor:
    """The tensor itself, or a copy of a tensor from torch.inference_mode, which autograd cannot record.

    The caller has left the inference mode.
    """
    return x.clone() if x.is_inference() else x


@contextlib.contextmanager
def gradients(differentiable: bool) -> Iterator[None]:
    """A block in which derivatives can be computed; it keeps the graph of its result only if ``differentiable``.

    It holds for every mode of the caller: ``no_grad``, ``inference_mode``, or neither.
    """
    with torch.inference_mode(False), torch.set_grad_enabled(differentiable):
        yield
