"""The optimiser of a training: AdamW on the weights, with their float32 copies and the scale of the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from solvers import InputError

from .options import TrainingOptions
from .weights import wide_copies

_COUNTER, _MOMENTS = "step", ("exp_avg", "exp_avg_sq")
_PATIENCE = 25  # skipped updates in a row: by then a scale of 65536 is 0.002, which no finite gradient overflows


class Optimiser:
    """AdamW, fused where torch offers it; see ``weights.wide_copies`` for weights in bfloat16.

    With the precision "fp16", gradients below 6e-8 would be 0, so the loss is multiplied by a scale and the gradient
    divided by it (Micikevicius et al. 2018, arXiv:1710.03740, section 3.2). A gradient that overflows halves the scale,
    and its update is skipped; 2000 updates without an overflow double it.

    Args:
        named: the parameters to train, at least one, by name.
        options: those of the training.

    Attributes:
        parameters: the parameters to train.
        masters: their float32 copies, where they have 16 bits.
        scaler: the scale of the loss; None but for "fp16".
        skipped: how many updates in a row were skipped.

    Raises:
        InputError: a parameter has an unsuitable dtype.
    """

    def __init__(self, named: Mapping[str, Tensor], options: TrainingOptions) -> None:
        self.names, self.parameters = list(named), list(named.values())
        self.device = self.parameters[0].device
        self.masters = wide_copies(self.parameters)
        self.updated = [self.masters.get(p, p) for p in self.parameters]
        # one kernel for all parameters instead of a loop over them; complex parameters do not have it
        fused = not any(p.is_complex() for p in self.updated) and self.device.type in ("cpu", "cuda", "mps")
        self.adam = torch.optim.AdamW(
            self.updated, lr=options.learning_rate, weight_decay=options.weight_decay, fused=fused
        )
        self.scaler = _scaler(self.device) if options.precision == "fp16" else None
        self.clip, self.skipped = options.clip, 0

    def clear(self) -> None:
        """Drops the gradients."""
        for p in self.parameters:
            p.grad = None

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of a loss to the gradients."""
        scaled = loss if self.scaler is None else self.scaler.scale(loss)
        scaled.backward()  # type: ignore[no-untyped-call]

    def clipped(self) -> Tensor:
        """The norm of the gradient (), which is then scaled down to the largest permitted norm."""
        for p, master in self.masters.items():
            master.grad = None if p.grad is None else p.grad.to(master.dtype)
        if self.scaler is not None:
            self.scaler.unscale_(self.adam)
        return clip_grad_norm_(self.updated, self.clip)

    def overflows(self) -> bool:
        """Whether a gradient that is not finite may be that of a loss whose scale is too large."""
        return self.scaler is not None and self.skipped < _PATIENCE

    def step(self, rate: float, skip: bool = False) -> None:
        """One update with a learning rate.

        Args:
            rate: the learning rate.
            skip: leave the weights as they are and lower the scale of the loss.
        """
        if not skip:
            for group in self.adam.param_groups:
                group["lr"] = rate
            self.adam.step()
            if self.masters:
                with torch.no_grad():
                    for p, master in self.masters.items():
                        p.copy_(master)
        self.skipped = self.skipped + 1 if skip else 0
        if self.scaler is not None:
            self.scaler.update()

    @property
    def scale(self) -> float:
        """The present scale of the loss."""
        return 1.0 if self.scaler is None else self.scaler.get_scale()

    def moments(self) -> dict[str, Tensor]:
        """AdamW's tensors, see ``moments_of``."""
        return moments_of(self.adam, self.names)

    def scales(self) -> dict[str, Tensor]:
        """The state of the loss's scale, as tensors; empty without one."""
        if self.scaler is None:
            return {}
        state = self.scaler.state_dict()
        numbers = {"scale": state["scale"], "growth": state["_growth_tracker"], "skipped": self.skipped}
        return {name: torch.tensor(float(value), dtype=torch.float64) for name, value in numbers.items()}

    def load(self, moments: Mapping[str, Tensor], scales: Mapping[str, Tensor], step: int) -> None:
        """Replaces the state by a saved one; the learning rate and other settings stay those of this run.

        A run that changes to fp16 begins with the scale of a new one.

        Raises:
            ValueError, KeyError: it is of other parameters.
        """
        state = state_from(moments, dict(zip(self.names, self.updated, strict=True)), step)
        self.adam.load_state_dict({**self.adam.state_dict(), "state": state})
        if self.scaler is not None and scales:
            there = {"scale": float(scales["scale"]), "_growth_tracker": int(scales["growth"])}
            self.scaler.load_state_dict({**self.scaler.state_dict(), **there})
            self.skipped = int(scales["skipped"])


def _scaler(device: torch.device) -> torch.amp.GradScaler:
    try:
        return torch.amp.GradScaler(device.type)
    except AttributeError:
        raise InputError("the precision 'fp16' needs torch 2.3 or later; use 'bf16'") from None


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
