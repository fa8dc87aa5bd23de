"""The exponential moving average of a network's weights, with a warm-up."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from solvers import InputError

from ..models.known_networks import unwrapped
from .weights import load_state, state_of


def decay_at(updates: int, decay: float) -> float:
    """The decay after n = ``updates`` updates: min(decay, (1 + n) / (10 + n)), small at first to forget the start."""
    return min(decay, (1 + updates) / (10 + updates))


class Average:
    """The average of a network's weights and buffers; integers, such as counters, are copied.

    Every average has at least float32: in bfloat16, a change of less than 2^-9 of a weight is rounded away, and with
    the usual decays every change is less than that.

    Args:
        network: the network, with or without the wrappers of ``torch.compile`` and ``DataParallel``.
        decay: the decay after the warm-up.
        masters: the tensors to average instead of some of the parameters, see ``weights.wide_copies``.

    Attributes:
        updates: the number of updates made.

    Raises:
        InputError: the decay is not in [0, 1).
    """

    def __init__(self, network: nn.Module, decay: float, masters: Mapping[Tensor, Tensor] | None = None) -> None:
        if not 0 <= decay < 1:
            raise InputError(f"ema_decay must be at least 0 and less than 1, got {decay!r}")
        self.decay, self.updates, self._masters = decay, 0, masters or {}
        self._module = copy.deepcopy(unwrapped(network))
        # the tensors to average, as places in the network: a forward pass may replace a buffer
        self._places = _places(unwrapped(network))
        averages = [store[name] for store, name in _places(self._module)]
        # an average of 16 bits is computed in a copy; any other tensor of the module is its own average
        self._wide = {mean: mean.detach().float() for mean in averages if _real(mean) and mean.dtype.itemsize < 4}
        self._means = [self._wide.get(mean, mean).detach() for mean in averages]

    @property
    def module(self) -> nn.Module:
        """The averaged network, with the dtypes of the network, to which the averages are rounded."""
        with torch.no_grad():
            for tensor, mean in self._wide.items():
                tensor.copy_(mean)
        return self._module

    @torch.no_grad()
    def update(self) -> None:
        """Moves the average towards the present weights; the first update copies them."""
        weight = 1.0 if self.updates == 0 else 1 - decay_at(self.updates, self.decay)
        means, sources = [], []
        for mean, (store, name) in zip(self._means, self._places, strict=True):
            source = store[name]
            source = self._masters.get(source, source)
            if weight == 1.0 or not _real(mean):
                mean.copy_(source)
            else:
                means.append(mean)
                sources.append(source if source.dtype == mean.dtype else source.to(mean.dtype))
        if means:
            torch._foreach_lerp_(means, sources, weight)
        self.updates += 1

    def state(self) -> dict[str, Tensor]:
        """The state dictionary of the average, in at least float32."""
        return state_of(self._module, self._wide)

    def load(self, state: Mapping[str, Tensor], updates: int) -> None:
        """Replaces the average by a saved one.

        Raises:
            RuntimeError: the state dictionary is of a different network.
        """
        load_state(self._module, state, self._wide)
        self.updates = updates


def _places(network: nn.Module) -> list[tuple[dict[str, Tensor], str]]:
    """The places of all parameters and buffers of a network; each tensor once."""
    found: dict[int, tuple[dict[str, Tensor], str]] = {}
    for module in network.modules():
        for store in (module._parameters, module._buffers):
            for name, tensor in store.items():
                if tensor is not None:
                    found.setdefault(id(tensor), (store, name))  # type: ignore[arg-type]
    return list(found.values())


def _real(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()
