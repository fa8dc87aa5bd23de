"""The weights of a network: their names without wrappers, and float32 copies of those in 16 bits.

``torch.compile`` and ``DataParallel`` put a network into a wrapper, and the wrapper's prefix into every name of its
state dictionary. A checkpoint contains the names of the network itself, so that it fits the network with and without
wrappers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from solvers import InputError

from ..models.known_networks import COMPILED, inner


def state_of(network: nn.Module, masters: Mapping[Tensor, Tensor] | None = None) -> dict[str, Tensor]:
    """The state dictionary of a network, with the names of the network without wrappers.

    Args:
        network: with or without wrappers.
        masters: tensors to write instead of some of its parameters, see ``wide_copies``.
    """
    names, state = plain_names(network), network.state_dict(keep_vars=True)
    return {names[name]: (masters or {}).get(tensor, tensor).detach() for name, tensor in state.items()}


def load_state(network: nn.Module, state: Mapping[str, Tensor], masters: Mapping[Tensor, Tensor] | None = None) -> None:
    """Loads a state dictionary into a network; either may have wrappers that the other does not have.

    Args:
        network: with or without wrappers.
        state: with the names of the network, or of the network in a wrapper.
        masters: the float32 copies of some of its parameters, which are loaded as well.

    Raises:
        RuntimeError: a name is missing or unknown, or a shape is different.
    """
    names, found = plain_names(network), _without_prefixes(state)
    if names and all(name.startswith("module.") for name in found) and not set(names.values()) & set(found):
        found = {name.removeprefix("module."): tensor for name, tensor in found.items()}  # of a DataParallel
    own = {plain: name for name, plain in names.items()}
    network.load_state_dict({own.get(name, name): tensor for name, tensor in found.items()})
    with torch.no_grad():
        for name, tensor in network.state_dict(keep_vars=True).items():
            if masters and tensor in masters:
                masters[tensor].copy_(found[names[name]])


def wide_copies(parameters: Iterable[Tensor]) -> dict[Tensor, Tensor]:
    """A float32 copy of each parameter in bfloat16, for the optimiser.

    An update of less than 2^-9 of a bfloat16 number is rounded away, and with it the progress of a training with a
    small learning rate. The optimiser therefore updates the copies, whose roundings the network receives (Micikevicius
    et al. 2018, arXiv:1710.03740, section 3.1).

    Raises:
        InputError: a parameter has another dtype of less than 32 bits, such as float16, whose gradients underflow.
    """
    masters: dict[Tensor, Tensor] = {}
    for parameter in parameters:
        if parameter.dtype == torch.bfloat16:
            masters[parameter] = parameter.detach().float().requires_grad_()
        elif parameter.dtype.itemsize < 4:
            raise InputError(
                f"a parameter of the network is {parameter.dtype}, in which small gradients become 0: "
                "train it in float32 under torch.autocast, or in bfloat16"
            )
    return masters


def plain_names(network: nn.Module) -> dict[str, str]:
    """The names in a network's state dictionary, each with its name without wrappers."""
    wrappers = {name: part for name, module in network.named_modules() if (part := inner(module))}

    def kept(name: str) -> Iterator[str]:
        path = ""
        for part in name.split("."):
            if wrappers.get(path) != part:
                yield part
            path = f"{path}.{part}" if path else part

    return {name: ".".join(kept(name)) for name in network.state_dict()}


def _without_prefixes(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {".".join(part for part in name.split(".") if part != COMPILED): value for name, value in state.items()}
