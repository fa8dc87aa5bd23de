"""Averages of a network's weights over its training, several at once: their decays, as specs, and their tensors.

After n updates an average m moves towards the weights theta by m <- b m + (1 - b) theta, with the decay b = b(n). The
first update copies the weights, so that no average contains the initial ones.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from solvers import InputError, Registry
from solvers.registry.options import Options
from solvers.registry.ranges import AnyPositive, Range
from solvers.registry.spec import split, write

from ..models.known_networks import unwrapped
from .checkpoint import AverageState
from .weights import load_state, state_of

# relative standard deviations of power averages: of the last of a million updates, and of the uniform average
NARROWEST, WIDEST = 1e-6, 1 / math.sqrt(12)


class Decay(Options):
    """The decay of an average as a function of time. Each is a frozen dataclass; its fields are its options."""

    def at(self, updates: int, batch_size: int) -> float:
        """The decay b of the update that follows ``updates`` updates of ``batch_size`` samples."""
        raise NotImplementedError

    def __str__(self) -> str:
        """The spec with all options, so that what a file says does not depend on defaults."""
        info = decays.info_of(self)
        options = [f"{name}={write(getattr(self, field.name))}" for name, field in info.fields.items()]
        return f"{info.name}({', '.join(options)})"


decays: Registry[Decay] = Registry("average", Decay)


@decays.register("ema", reference="Song et al. 2021, arXiv:2011.13456")
@dataclass(frozen=True)
class Ema(Decay):
    """An exponential average with a warm-up: b = min(decay, (1 + n) / (10 + n)), small at first to forget the start."""

    decay: Annotated[float, Range(0, 1, "[)")] = 0.999

    def at(self, updates: int, batch_size: int) -> float:
        return min(self.decay, (1 + updates) / (10 + updates))


@decays.register("half_life", reference="Karras et al. 2022, arXiv:2206.00364")
@dataclass(frozen=True)
class HalfLife(Decay):
    """An average in which the weight of an update halves after so many samples, of any batch size.

    b = 2^(-B / min(samples, ramp n B)) for n updates of B samples: at first the half-life is the share ``ramp`` of the
    training so far. ``ramp=inf`` is for none.
    """

    samples: AnyPositive = 500_000.0
    ramp: AnyPositive = 0.05

    def at(self, updates: int, batch_size: int) -> float:
        length = min(self.samples, self.ramp * updates * batch_size) if updates else 0.0
        return 0.5 ** (batch_size / length) if length else 0.0


@decays.register("power", reference="Karras et al. 2024, arXiv:2312.02696, eq. 2 and 127")
@dataclass(frozen=True)
class Power(Decay):
    """An average whose profile at time t is proportional to tau^gamma, as wide at all times relative to t.

    b = (1 - 1 / t)^(gamma + 1) at t = n + 1. Then the update at time tau has the weight
    (tau^(gamma + 1) - (tau - 1)^(gamma + 1)) / t^(gamma + 1), the integral of the profile
    (gamma + 1) tau^gamma / t^(gamma + 1) from tau - 1 to tau. ``std`` is the profile's standard deviation divided by t.
    """

    std: Annotated[float, Range(NARROWEST, WIDEST, "[)")] = 0.1

    @property
    def gamma(self) -> float:
        """The exponent of the profile."""
        return gamma_of(self.std)

    def at(self, updates: int, batch_size: int) -> float:
        return float((updates / (updates + 1)) ** (gamma_of(self.std) + 1))


def std_of(gamma: float) -> float:
    """The relative standard deviation of the profile tau^gamma: sqrt((g + 1) / ((g + 2)^2 (g + 3))).

    Karras et al. 2024, arXiv:2312.02696, eq. 123.

    >>> round(std_of(6.94), 4), round(std_of(0) / WIDEST, 12)
    (0.1, 1.0)
    """
    return math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)


def gamma_of(std: float) -> float:
    """The inverse of ``std_of`` for 0 < std < 12^(-1/2), where gamma is positive.

    The root of (g + 2)^2 (g + 3) std^2 = g + 1 (eq. 126). With u = g + 2 this is u^3 + u^2 = (u - 1) / std^2, whose
    largest root Newton's method reaches from above, where the cubic is convex.
    """
    inverse = 1 / std**2
    u = 1 / std + 2  # above the root: u^2 (u + 1) > (u - 1) / std^2 for u >= 1 / std
    for _ in range(100):
        step = (u**3 + u**2 - inverse * (u - 1)) / (3 * u**2 + 2 * u - inverse)
        u -= step
        if abs(step) <= 1e-15 * u:
            break
    return u - 2


def decays_of(specs: str | Sequence[str | Decay]) -> tuple[Decay, ...]:
    """The decays of specs, which a text separates by commas.

    >>> [str(decay) for decay in decays_of("ema(decay=0.99), power(std=0.05)")]
    ['ema(decay=0.99)', 'power(std=0.05)']

    Raises:
        InputError: there is none, an average is named twice, or see ``Registry.make``.
    """
    if not isinstance(specs, (str, tuple, list)):
        raise InputError(f"averages must be specs such as ema(decay=0.999), got {specs!r}")
    found = tuple(decays.make(spec) for spec in (split(specs) if isinstance(specs, str) else specs))
    if not found:
        raise InputError("averages must name at least one average, such as ema(decay=0.999)")
    names = list(map(str, found))
    if twice := [name for k, name in enumerate(names) if name in names[:k]]:
        raise InputError(f"averages names {twice[0]} twice")
    return found


class Average:
    """An average of a network's weights and buffers; integers, such as counters, are copied.

    Every average has at least float32: in bfloat16, a change of less than 2^-9 of a weight is rounded away, and with
    the usual decays every change is less than that.

    Attributes:
        decay: its decay.
        updates: the number of updates made.
    """

    def __init__(self, network: nn.Module, decay: Decay) -> None:
        self.decay, self.updates = decay, 0
        self._module = copy.deepcopy(unwrapped(network))
        averages = [store[name] for store, name in places_of(self._module)]
        # an average of 16 bits is computed in a copy; any other tensor of the module is its own average
        self._wide = {mean: mean.detach().float() for mean in averages if _real(mean) and mean.dtype.itemsize < 4}
        self._means = [self._wide.get(mean, mean).detach() for mean in averages]
        self._moved = [k for k, mean in enumerate(self._means) if _real(mean)]
        self._copied = [k for k, mean in enumerate(self._means) if not _real(mean)]

    @property
    def module(self) -> nn.Module:
        """The averaged network, with the dtypes of the network, to which the averages are rounded."""
        with torch.no_grad():
            for tensor, mean in self._wide.items():
                tensor.copy_(mean)
        return self._module

    @torch.no_grad()
    def update(self, sources: Sequence[Tensor], batch_size: int) -> None:
        """Moves the average towards the present weights; the first update copies them.

        Args:
            sources: the weights and buffers, in the order of ``places_of`` and in at least float32.
            batch_size: how many samples the update of the weights was computed from.
        """
        copied = self._copied
        if self.updates == 0:
            copied = list(range(len(self._means)))
        elif self._moved:
            weight = 1 - self.decay.at(self.updates, batch_size)
            torch._foreach_lerp_([self._means[k] for k in self._moved], [sources[k] for k in self._moved], weight)
        for k in copied:
            self._means[k].copy_(sources[k])
        self.updates += 1

    def state(self) -> AverageState:
        """The number of updates, and the state dictionary of the average, in at least float32."""
        return AverageState(self.updates, state_of(self._module, self._wide))

    def load(self, state: AverageState) -> None:
        """Replaces the average by a saved one.

        Raises:
            RuntimeError: the state dictionary is of a different network.
        """
        load_state(self._module, state.tensors, self._wide)
        self.updates = state.updates


class Averages:
    """Several averages of one network.

    Args:
        network: the network, with or without the wrappers of ``torch.compile`` and ``DataParallel``.
        specs: the averages, see ``decays_of``. The first is the one that is used where none is named.
        batch_size: samples per update, of all processes together.
        masters: the tensors to average instead of some of the parameters, see ``weights.wide_copies``.

    Raises:
        InputError: see ``decays_of``.
    """

    def __init__(
        self,
        network: nn.Module,
        specs: str | Sequence[str | Decay],
        batch_size: int,
        masters: Mapping[Tensor, Tensor] | None = None,
    ) -> None:
        self._batch_size, self._masters = batch_size, masters or {}
        # the tensors to average, as places in the network: a forward pass may replace a buffer
        self._places = places_of(unwrapped(network))
        self._averages = {str(decay): Average(network, decay) for decay in decays_of(specs)}

    @property
    def first(self) -> Average:
        """The first average."""
        return next(iter(self._averages.values()))

    def __getitem__(self, spec: str) -> Average:
        return self._averages[spec]

    @torch.no_grad()
    def update(self) -> None:
        """Moves every average towards the present weights."""
        sources = []
        for store, name in self._places:
            source = self._masters.get(store[name], store[name])
            narrow = _real(source) and source.dtype.itemsize < 4
            sources.append(source.float() if narrow else source)
        for average in self._averages.values():
            average.update(sources, self._batch_size)

    def states(self) -> dict[str, AverageState]:
        """The states of all averages by their specs."""
        return {spec: average.state() for spec, average in self._averages.items()}

    def load(self, states: Mapping[str, AverageState]) -> None:
        """Replaces the averages by saved ones, each with its own number of updates.

        Raises:
            InputError: the saved averages are others than these.
            RuntimeError: a state dictionary is of a different network.
        """
        if list(states) != list(self._averages):
            raise InputError(f"its averages are {', '.join(states)}, not {', '.join(self._averages)}")
        for spec, average in self._averages.items():
            average.load(states[spec])


def places_of(network: nn.Module) -> list[tuple[dict[str, Tensor], str]]:
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
