"""Kinds of networks whose class shows which time label they expect; networks without the wrappers of torch."""

from __future__ import annotations

from typing import Any

from torch import nn

from solvers import InputError

from ..paths.base import SDE
from .networks import LabelledUNet, ResidualMLP

COMPILED = "_orig_mod"  # the name of the network inside torch.compile's wrapper
_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)
# the largest label of a module for which its time embedding is made: see the recipes in ``networks``
_MLP_REACH, _UNET_REACH = 20.0, 2000.0


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
    parts = [part for part in network.modules() if isinstance(part, (ResidualMLP, LabelledUNet))]
    if len(parts) != 1:
        return None
    return (_MLP_REACH if isinstance(parts[0], ResidualMLP) else _UNET_REACH) / parts[0].scale


def default_label(network: Any, predicts: str, sde: SDE, train_timesteps: int) -> str:
    """The time label of a network for which none is given.

    - "c_noise" with EDM's preconditioning, and "sigma" for the modules of EDM's code that contain it (``EDMPrecond``,
      ``VPPrecond``, ...).
    - "index" on the path of a chain; but "t" if the network is one of this library whose embedding is made for labels
      of order 1.
    - "t" on other paths.

    Raises:
        InputError: a network of diffusers on a path that is not a chain's, where each class expects another label; or a
            module of EDM's code with ``predicts="edm"``, which would precondition it twice.
    """
    kind = type(unwrapped(network)) if isinstance(network, nn.Module) else type(network)
    if kind.__name__.endswith("Precond"):
        if predicts == "edm":
            raise InputError(f"{kind.__name__} contains the preconditioning and returns x0: pass predicts='x0'")
        return "sigma"
    if predicts == "edm":
        return "c_noise"
    chain = sde.num_train_timesteps is not None
    if kind.__module__.partition(".")[0] == "diffusers" and not chain:
        raise InputError(
            f"{kind.__name__} of diffusers on {sde} needs a time_label: index (trained as a DDPM), sigma (score_sde's "
            "VE), 1000sigma (flows, but t for Flux) or c_noise (EDM)"
        )
    if not chain:
        return "t"
    most = reach(network)
    return "index" if most is None or train_timesteps - 1 <= most else "t"
