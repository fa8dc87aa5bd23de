"""Time labels: the number that a network receives for a time, computed from a node, and the node of a label.

N is the number of steps of a network that was trained in discrete time. Its step i of 0..N-1 is at
t = t_min + i / (N - 1) (t_max - t_min) on its SDE; on the range [1/N, 1] of a chain this is t = (i + 1) / N.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from solvers import InputError, Node
from solvers.errors import unknown
from solvers.libraries import library
from solvers.time_grids.network_steps import time_of_index

from ..paths.base import SDE


class Label(NamedTuple):
    """One time label.

    Args:
        of: (node, sde, N) -> label, for a node of floats or of tensors (B,).
        time: (label, sde, N) -> t in closed form; None if there is no closed form.
        trained: N -> the least and the greatest label of the N steps; None if the label does not count steps.
    """

    of: Callable[[Any, SDE, int], Any]
    time: Callable[[float, SDE, int], float] | None = None
    trained: Callable[[int], tuple[int, int]] | None = None


def _log(value: Any) -> Any:
    return torch.log(value) if isinstance(value, Tensor) else math.log(value)


def _whole(value: Any) -> Any:
    """The nearest integer if it is within 1e-6, so that rounding errors vanish; otherwise the value unchanged."""
    if isinstance(value, Tensor):
        return torch.where((value - value.round()).abs() < 1e-6, value.round(), value)
    return float(round(value)) if abs(value - round(value)) < 1e-6 else value


def _index(node: Any, sde: SDE, count: int) -> Any:
    return _whole((count - 1) / (sde.t_max - sde.t_min) * (node.t - sde.t_min))


LABELS: dict[str, Label] = {
    # networks in continuous time, with embeddings for 0..1
    "t": Label(lambda node, sde, n: node.t, lambda label, sde, n: label),
    # score_sde's continuous networks on VP and sub-VP
    "999t": Label(lambda node, sde, n: 999 * node.t, lambda label, sde, n: label / 999),
    # networks with sinusoidal embeddings for 0..1000, on a time of 0..1
    "1000t": Label(lambda node, sde, n: 1000 * node.t, lambda label, sde, n: label / 1000),
    # Ho et al. 2020 and its successors: diffusers, improved-diffusion, guided-diffusion, latent diffusion
    "index": Label(_index, lambda label, sde, n: time_of_index(sde, label, n), lambda n: (0, n - 1)),
    # i of 1..N, as the papers count: the position in a table of alpha^2 whose first entry is 1, the data
    "index+1": Label(
        lambda node, sde, n: 1 + _index(node, sde, n),
        lambda label, sde, n: time_of_index(sde, label - 1, n),
        lambda n: (1, n),
    ),
    # score_sde's discrete networks on VE (NCSN): 0 is the noisiest step
    "reversed_index": Label(
        lambda node, sde, n: n - 1 - _index(node, sde, n),
        lambda label, sde, n: time_of_index(sde, n - 1 - label, n),
        lambda n: (0, n - 1),
    ),
    # score_sde's label i of its steps, which it places at t = i / (N - 1), and its continuous networks with that N
    "(N-1)t": Label(
        lambda node, sde, n: _whole((n - 1) * node.t), lambda label, sde, n: label / (n - 1), lambda n: (0, n - 1)
    ),
    # flow matching with t = sigma: Stable Diffusion 3, Flux and diffusers' other flows
    "Nt": Label(lambda node, sde, n: _whole(n * node.t), lambda label, sde, n: label / n, lambda n: (0, n)),
    # score_sde's continuous networks on VE (NCSN++), which take the logarithm themselves
    "sigma": Label(lambda node, sde, n: node.sigma),
    # networks on VE with an embedding of the logarithm
    "log_sigma": Label(lambda node, sde, n: _log(node.sigma)),
    # log(sigma / alpha) / 4: Karras et al. 2022, EDM
    "c_noise": Label(lambda node, sde, n: -node.lam / 4, lambda label, sde, n: sde.t_of_lam(-4 * label)),
    # flow-matching networks with labels 0..1000, on a path whose t is not its sigma
    "1000sigma": Label(lambda node, sde, n: 1000 * node.sigma),
}


def checked(name: str, sde: SDE, num_train_timesteps: int) -> str:
    """The name of a time label, checked against an SDE.

    Raises:
        InputError: the name is unknown; or the label counts steps, and on the SDE's range of t it leaves the labels
            that the network was trained on.
    """
    if name not in LABELS:
        raise unknown("time label", name, LABELS)
    label = LABELS[name]
    if label.trained is not None:
        least, most = label.trained(num_train_timesteps)
        first, last = reached(name, sde, num_train_timesteps)
        if first < least - 1e-6 or last > most + 1e-6:
            raise InputError(
                f"the time label {name!r} covers [{first:g}, {last:g}] on {sde}, but a network of "
                f"{num_train_timesteps} steps was trained on [{least}, {most}]"
            )
    return name


def reached(name: str, sde: SDE, num_train_timesteps: int) -> tuple[float, float]:
    """The least and the greatest label over the range of an SDE."""
    first, last = (float(LABELS[name].of(sde(t), sde, num_train_timesteps)) for t in (sde.t_min, sde.t_max))
    return min(first, last), max(first, last)


def node_of_label(name: str, label: float, sde: SDE, num_train_timesteps: int) -> Node:
    """The node whose time label is ``label``.

    >>> from scoresde.paths.chain_paths import ChainSDE
    >>> chain = ChainSDE(num_train_timesteps=50)
    >>> node_of_label("reversed_index", 0, chain, 50).t
    1.0

    Raises:
        InputError: the label is outside the range of labels on the path.
    """
    first, last = reached(name, sde, num_train_timesteps)
    slack = 1e-3 * max(abs(first), abs(last)) + 1e-6
    if not first - slack <= label <= last + slack:
        raise InputError(f"the timestep {label:g} is outside [{first:g}, {last:g}], where the network was trained")
    label, known = min(max(label, first), last), LABELS[name]
    if known.time is not None:
        t = known.time(label, sde, num_train_timesteps)
    else:
        ends = (sde.t_min, sde.t_max)
        t = float(
            library("scipy.optimize").brentq(
                lambda t: float(known.of(sde(t), sde, num_train_timesteps)) - label, *ends, xtol=1e-15
            )
        )
    return sde(min(max(t, sde.t_min), sde.t_max))


def rounded(name: str, label: Any, num_train_timesteps: int) -> Any:
    """The nearest label, a float or a tensor, that a network of N steps was trained on.

    Raises:
        InputError: the label does not count steps.
    """
    trained = LABELS[name].trained
    if trained is None:
        counting = ", ".join(sorted(key for key, value in LABELS.items() if value.trained))
        raise InputError(f"round_labels needs a label that counts steps ({counting}); {name!r} does not")
    least, most = trained(num_train_timesteps)
    if isinstance(label, Tensor):
        return label.round().clamp(least, most)
    return float(min(max(round(label), least), most))
