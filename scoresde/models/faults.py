"""Faults that are found without evaluating a network: of data on another scale, and of a network's settings."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from solvers import InputError, Node, generator

from ..paths.base import SDE
from .denoiser import Denoiser, time_labels
from .evaluation import evaluation
from .known_networks import reach
from .model import Model, as_model
from .time_labels import reached

_ROWS = 4096  # rows of the data that are looked at
# data over noise at t_max, and noise over the data's deviation at t_min: worth a warning; and either one: fatal
_LEFT, _COARSE, _TOO_MUCH = 0.1, 0.2, 0.5
# how far the deviation of the prior may be from that of the data at t_max: the ODE carries this factor to the samples,
# and 1.02 costs 4e-4 nats for each dimension, 6e-4 bits/dim
_PRIOR = 1.02
_LARGE = 2**20  # more numbers are too many to look at without being asked, and may be only a file's claim
_SAME = 1e-5  # rounding changes a network's output by less, relative to its size
_NUMBERS = 64  # fewer numbers do not show their scale
_SCALE = (0.05, 5.0)  # deviations for which networks and their default learning rates are made


@dataclass(frozen=True)
class Fault:
    """A fault in words; ``fatal`` if a training with it cannot succeed."""

    what: str
    text: str
    fatal: bool = False


def data_faults(model: Model, x: Tensor, bin_width: float | None = None) -> list[Fault]:
    """The faults of data x (N, *) for a model: their scale on its path, whole numbers, the order of their axes.

    Whole numbers are no fault of data whose ``bin_width`` is known.
    """
    rows = x[:_ROWS].detach().cpu().double()
    found, std, power = [], float(rows.std(correction=0)), float(rows.square().mean().sqrt())
    noisy, clean = model.sde(model.sde.t_max), model.sde(model.sde.t_min)
    shown = f"the data range from {float(rows.min()):.4g} to {float(rows.max()):.4g}, with standard deviation {std:.3g}"
    left, noise = noisy.alpha * power / noisy.sigma, clean.ratio / std if std > 0 else 0.0
    if left > _LEFT:
        text = f"{shown}: at the end of {model.sde} they are still {left:.2g} times the noise; scale them to order 1"
        found.append(Fault("scale", text, left > _TOO_MUCH))
    elif noise > _COARSE:
        text = f"{shown}: the least noise of {model.sde} is {noise:.2g} of that; scale them to order 1"
        found.append(Fault("scale", text, noise > _TOO_MUCH))
    elif std > 0 and not _SCALE[0] < std < _SCALE[1]:
        found.append(Fault("scale", f"{shown}: networks are made for data of order 1; scale them"))
    if left <= _LEFT:  # otherwise that is the fault
        found += prior_faults(model.sde, power)
    if bin_width is None and float(rows.abs().max()) > 1 and torch.equal(rows, rows.round()):
        text = "the data are whole numbers: scale levels 0 to K as 2 x / K - 1, and pass bin_width = 2 / K"
        found.append(Fault("levels", text))
    if x.ndim == 4 and x.shape[3] in (1, 3, 4) and x.shape[1] not in (1, 3, 4) and min(x.shape[1:3]) >= 8:
        text = f"samples {tuple(x.shape[1:])} seem to have their channels last: pass x.movedim(-1, 1)"
        found.append(Fault("channels", text))
    if isinstance(model, Denoiser) and model.predicts == "edm" and std > 0:
        factor = model.sigma_data / std
        if not 0.5 < factor < 2:
            text = f"sigma_data is {model.sigma_data:g}, but the standard deviation of the data is {std:.3g}"
            found.append(Fault("sigma_data", text))
    return found


def density_faults(model: Model, x: Tensor, bin_width: float | None = None) -> list[Fault]:
    """Signs that samples x (B, *) are not scaled as the data of the model were, so that log p(x) means nothing.

    Compared are the range of the training data and EDM's ``sigma_data`` where they are known, and whole numbers whose
    ``bin_width`` is not known. Fewer than 64 numbers do not show their scale by their deviation.
    """
    rows = x[:_ROWS].detach().cpu().double()
    low, high = float(rows.min()), float(rows.max())
    advice = "log p is the density of scaled data: scale x as the training data were"
    if model.data_range is not None:
        first, last = model.data_range
        span = last - first
        # noise of a dequantiser and tails leave the range by less than half of it; [0, 1] for [-1, 1] is a half of it
        outside = low < first - 0.5 * span or high > last + 0.5 * span
        half = x.numel() >= _NUMBERS and abs(low - 0.5 * (first + last)) < 1e-6 * span and high > last - 0.2 * span
        if span > 0 and (outside or half):
            text = f"x ranges from {low:.4g} to {high:.4g}, the training data from {first:.4g} to {last:.4g}; {advice}"
            return [Fault("scale", text)]
    elif x.numel() >= _NUMBERS:
        std = float(rows.std(correction=0))
        if isinstance(model, Denoiser) and model.predicts == "edm" and std > 3 * model.sigma_data:
            text = f"x has the standard deviation {std:.3g}, sigma_data of the model is {model.sigma_data:g}; {advice}"
            return [Fault("scale", text)]
        if bin_width is None and high - low > 2 and torch.equal(rows, rows.round()):
            return [Fault("levels", f"x are whole numbers from {low:g} to {high:g}; {advice}")]
    return []


def prior_faults(sde: SDE, deviation: float | None) -> list[Fault]:
    """The scale of the prior at t_max, where the deviation of the data is known.

    The prior is that of data of deviation 1. For Gaussian data the ODE is linear, so that samples from a start that is
    c times too wide are c times too wide, and the likelihood is wrong by (c^2 - 1) / 2 - log c nats for each dimension.
    """
    if deviation is None:
        return []
    noisy = sde(sde.t_max)
    prior, right = math.hypot(noisy.alpha, noisy.sigma), math.hypot(noisy.alpha * deviation, noisy.sigma)
    factor = prior / right
    if 1 / _PRIOR < factor < _PRIOR:
        return []
    text = (
        f"the prior of {sde} has the deviation {prior:.3g}, but data of deviation {deviation:.3g} have {right:.3g} at "
        f"t_max: samples start {factor:.3g} times as wide as they should; scale the data to order 1, with sigma_max "
        "far above that"
    )
    return [Fault("prior", text)]


def setting_faults(model: Model) -> list[Fault]:
    """Labels beyond the range for which the embedding of a denoiser's network is made; a few microseconds."""
    if not isinstance(model, Denoiser) or (most := reach(model.network)) is None:
        return []
    denoiser = model
    last = max(map(abs, reached(denoiser.label, denoiser.sde, denoiser.train_timesteps)))
    if last <= 1.5 * most:
        return []
    text = (
        f"the labels {denoiser.label!r} reach {last:g}, but the network's embedding is made for at most {most:g}: "
        "set its label_scale, or pass another time_label"
    )
    return [Fault("embedding", text)]


def state_faults(denoiser: Denoiser) -> list[Fault]:
    """Parameters of several dtypes."""
    found: list[Fault] = []
    if not isinstance(denoiser.network, nn.Module):
        return found
    dtypes = {p.dtype for p in denoiser.network.parameters() if p.is_floating_point()}
    if len(dtypes) > 1 and denoiser.dtype is None:
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        found.append(Fault("dtype", f"its parameters are {names}: state the dtype of x, Denoiser(dtype=...)"))
    return found


def blind(denoiser: Denoiser, fresh: bool = False, given: Mapping[str, Tensor] | None = None) -> list[Fault]:
    """Whether the network of a known shape ignores its label, from two evaluations at one state of moderate size.

    The labels are those of t_min and t_max. A network ignores them if its output changes by less than 1e-5 of its size,
    as rounding does.

    Args:
        fresh: the network is about to be trained. Where its output does not depend on the label, that may be because
            layers start at zero; it is then evaluated twice more with random numbers in these layers.
        given: the conditions of one sample, each (1, *); by default empty ones.
    """
    if denoiser.shape is None or math.prod(denoiser.shape) > _LARGE:
        return []
    with evaluation(denoiser), torch.no_grad():
        blind = _ignores_time(denoiser, given)
        if fresh and blind is not False and isinstance(denoiser.network, nn.Module):
            blind = _ignores_time(_without_zeros(denoiser, denoiser.network), given)
    if not blind:
        return []
    advice = "it cannot learn different noise levels" if fresh else "is it the network that was trained?"
    return [Fault("time", f"the network ignores its time label: {advice}")]


def time_faults(model: Model, shape: tuple[int, ...], given: Mapping[str, Tensor] | None = None) -> list[Fault]:
    """Whether a network that is about to be trained on samples of ``shape`` ignores its label, see ``blind``."""
    return blind(replace(model, shape=shape), fresh=True, given=given) if isinstance(model, Denoiser) else []


def _ignores_time(denoiser: Denoiser, given: Mapping[str, Tensor] | None) -> bool | None:
    """Whether the output of a network is the same at both ends of the path; None if it is 0."""
    sde, device = denoiser.sde, next((p.device for module in denoiser.modules for p in module.parameters()), "cpu")
    x = torch.randn((1, *(denoiser.shape or ())), generator=generator(0), dtype=torch.float64).float().to(device)
    ends = [torch.tensor(time_labels(denoiser, [sde(t)]), device=device) for t in (sde.t_min, sde.t_max)]
    rows = given or {condition.name: condition.empty(1) for condition in denoiser.conditions}
    rows = {name: value.to(device) for name, value in rows.items()}
    first, last = (denoiser.evaluate_network(x, label, rows).float() for label in ends)
    if not bool(first.any() or last.any()):
        return None
    return float((last - first).abs().max()) < _SAME * float(first.abs().max())


def _without_zeros(denoiser: Denoiser, network: nn.Module) -> Denoiser:
    """The denoiser with random numbers in those parameters of its network that are 0 throughout."""
    source, weights = generator(1), dict[str, Tensor]()
    for name, parameter in network.named_parameters():
        if parameter.is_floating_point() and not bool(parameter.any()):
            scale = max(1, parameter[0].numel()) ** -0.5 if parameter.ndim > 1 else 0.1
            weights[name] = (scale * torch.randn(parameter.shape, generator=source)).to(parameter)

    def evaluated(x: Tensor, label: Tensor, /, **conditions: Tensor) -> Any:
        return torch.func.functional_call(network, weights, (x, label), conditions)

    one = torch.empty(0, dtype=denoiser.dtype or next((p.dtype for p in network.parameters()), torch.float32))
    return replace(denoiser, network=evaluated, time_label=denoiser.label, dtype=one.dtype, compile=False)


def start_faults(x: Tensor, node: Node) -> list[Fault]:
    """The scale of states x (B, *) to start from at a node where noise dominates."""
    size, noise = float(x.detach().double().square().mean().sqrt()), math.hypot(node.alpha, node.sigma)
    if x.numel() < _NUMBERS or node.ratio < 1 or 1 / 3 < size / noise < 3:
        return []
    text = (
        f"x_init has a root mean square of {size:.3g}, but states at t={node.t:g} have about {noise:.3g}: "
        "is it noise that was not multiplied by sigma?"
    )
    return [Fault("x_init", text)]


def known_deviation(model: Model) -> float | None:
    """The deviation of the model's data, where it is stated: ``sigma_data``, which a ``Denoiser`` uses only for edm."""
    return None if isinstance(model, Denoiser) and model.predicts != "edm" else model.sigma_data


def checked_model(denoiser: Any, prior: bool = False, space: str | None = "gaussian") -> Model:
    """The denoiser as a ``Model``, after a warning if its settings do not suit its network; or, where the path's
    ``prior`` is used, if that does not fit the data's deviation.

    Raises:
        InputError: see ``as_model``.
    """
    model = as_model(denoiser, space)
    if model.space == "discrete":
        return model
    report_faults(setting_faults(model) + (prior_faults(model.sde, known_deviation(model)) if prior else []))
    return model


def report_faults(faults: list[Fault]) -> None:
    """Warns of faults.

    Raises:
        InputError: one of them is fatal.
    """
    for fault in faults:
        if fault.fatal:
            raise InputError(fault.text)
        warnings.warn(fault.text, stacklevel=3)
