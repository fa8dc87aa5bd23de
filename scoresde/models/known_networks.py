"""Kinds of networks whose class shows which time label they expect; networks without the wrappers of torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from solvers import InputError

from ..paths.base import SDE
from .networks.conditioning import SelfConditioned
from .networks.dit import LabelledDiT
from .networks.mlp import ResidualMLP
from .networks.unet import LabelledUNet
from .reachable import reachable_modules

COMPILED = "_orig_mod"  # the name of the network inside torch.compile's wrapper
_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)
# the largest label of a module for which its time embedding is made: see the recipes in ``networks``
_MLP_REACH, _DIFFUSERS_REACH = 20.0, 2000.0
_OURS = (ResidualMLP, LabelledUNet, LabelledDiT)


def inner(module: nn.Module) -> str | None:
    """The name of the network inside a wrapper of ``torch.compile`` or ``DataParallel``; None for other modules."""
    if isinstance(module, _PARALLEL):
        return "module"
    return COMPILED if COMPILED in dict(module.named_children()) else None


def unwrapped(network: nn.Module) -> nn.Module:
    """The network inside the wrappers of ``torch.compile`` and ``DataParallel``."""
    while (name := inner(network)) is not None:
        network = network.get_submodule(name)
    return network


def reach(network: Any) -> float | None:
    """The largest label for which the embedding of a network of this library is made; None for other networks."""
    if not isinstance(network, nn.Module):
        return None
    parts = [part for part in network.modules() if isinstance(part, _OURS)]
    if len(parts) != 1:
        return None
    return (_MLP_REACH if isinstance(parts[0], ResidualMLP) else _DIFFUSERS_REACH) / parts[0].scale


def evaluations(modules: Iterable[nn.Module]) -> int:
    """How often one call of networks evaluates them: twice if one of them receives its own estimate."""
    return 2 if any(isinstance(part, SelfConditioned) for module in modules for part in module.modules()) else 1


def _kinds(module: nn.Module) -> Iterator[type]:
    """The classes of a module and its parts, from the outside; this library's networks read labels themselves."""
    yield type(module)
    if not isinstance(module, _OURS):
        for part in module.children():
            yield from _kinds(part)


def _of_diffusers(kind: type) -> bool:
    """Whether a class is a whole network of diffusers, not a layer that somebody uses in a network of their own."""
    return kind.__module__.startswith("diffusers.") and any(base.__name__ == "ModelMixin" for base in kind.__mro__)


def default_label(network: Any, predicts: str, sde: SDE, train_timesteps: int) -> str:
    """The time label of a network for which none is given; the network may stand inside of modules or a function.

    - "c_noise" with EDM's preconditioning, and "sigma" for the modules of EDM's code that contain it (``EDMPrecond``,
      ``VPPrecond``, ...).
    - "index" on the path of a chain; but "t" if the network is one of this library whose embedding is made for labels
      of order 1.
    - "t" on other paths.

    Raises:
        InputError: a network of diffusers on a path that is not a chain's, where each class expects another label; or a
            module of EDM's code with ``predicts="edm"``, which would precondition it twice.
    """
    kinds = [kind for module in reachable_modules(network) for kind in _kinds(unwrapped(module))]
    if named := next((kind.__name__ for kind in kinds if kind.__name__.endswith("Precond")), None):
        if predicts == "edm":
            raise InputError(f"{named} contains the preconditioning and returns x0: pass predicts='x0'")
        return "sigma"
    if predicts == "edm":
        return "c_noise"
    chain = sde.num_train_timesteps is not None
    if not chain and (named := next((kind.__name__ for kind in kinds if _of_diffusers(kind)), None)):
        raise InputError(
            f"{named} of diffusers on {sde} needs a time_label: index (trained as a DDPM), sigma (score_sde's "
            "VE), 1000sigma (flows, but t for Flux) or c_noise (EDM)"
        )
    if not chain:
        return "t"
    most = reach(network)
    return "index" if most is None or train_timesteps - 1 <= most else "t"
