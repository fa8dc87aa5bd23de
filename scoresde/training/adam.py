"""The tensors of AdamW by the names of the parameters, as a checkpoint contains them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

_COUNTER, _MOMENTS = "step", ("exp_avg", "exp_avg_sq")


def moments_of(optimizer: torch.optim.AdamW, names: Sequence[str]) -> dict[str, Tensor]:
    """The optimiser's tensors: ``NAME.step``, ``NAME.exp_avg`` and ``NAME.exp_avg_sq`` for the parameter NAME.

    Args:
        names: those of the optimiser's parameters, in its order. A parameter without gradients has no tensors.
    """
    state = optimizer.state_dict()["state"]
    return {f"{names[index]}.{key}": value for index, values in state.items() for key, value in values.items()}


def state_from(
    moments: Mapping[str, Tensor], parameters: Mapping[str, Tensor], step: int
) -> dict[int, dict[str, Tensor]]:
    """The inverse of ``moments_of``: the state of each parameter by its index.

    Args:
        parameters: the optimiser's parameters by name, in its order.
        step: how many updates were made, which no parameter's counter exceeds.

    Raises:
        ValueError: a name is missing or unknown, a moment does not have the shape of its parameter, or a counter is
            not a number of updates.
    """
    state: dict[int, dict[str, Tensor]] = {}
    for index, (name, parameter) in enumerate(parameters.items()):
        found = {key: moments[f"{name}.{key}"] for key in (_COUNTER, *_MOMENTS) if f"{name}.{key}" in moments}
        if not found:
            continue
        if len(found) < 1 + len(_MOMENTS):
            raise ValueError(f"the optimiser has only {', '.join(found)} of {name}")
        for key in _MOMENTS:
            if found[key].shape != parameter.shape:
                shapes = f"{tuple(found[key].shape)}, not {tuple(parameter.shape)}"
                raise ValueError(f"the optimiser's {name}.{key} has the shape {shapes}")
        counter = found[_COUNTER]
        if counter.ndim or counter.is_complex() or not 1 <= float(counter) <= step or float(counter) % 1:
            raise ValueError(f"the optimiser's {name}.{_COUNTER} is not a number of updates up to {step}")
        state[index] = found
    known = {f"{name}.{key}" for name in parameters for key in (_COUNTER, *_MOMENTS)}
    if strange := sorted(set(moments) - known):
        raise ValueError(f"the optimiser has {strange[0]}, of which the network has no parameter")
    return state
