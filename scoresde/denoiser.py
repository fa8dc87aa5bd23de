"""A network as a denoiser: its native output becomes the pair (x0, eps) with x = alpha x0 + sigma eps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from solvers import InputError, Node, Prediction
from solvers.errors import unknown

from .sde import SDE

# (F, x, node, sigma_data) -> (x0, eps), with node's numbers ready to multiply x
Convert = Callable[[Tensor, Tensor, Any, float], tuple[Tensor, Tensor]]


def _from_x0(out: Tensor, x: Tensor, node: Any, sigma_data: float) -> tuple[Tensor, Tensor]:
    return out, (x - node.alpha * out) / node.sigma


def _from_eps(out: Tensor, x: Tensor, node: Any, sigma_data: float) -> tuple[Tensor, Tensor]:
    return (x - node.sigma * out) / node.alpha, out


def _from_v(out: Tensor, x: Tensor, node: Any, sigma_data: float) -> tuple[Tensor, Tensor]:
    # v = alpha eps - sigma x0, of Salimans and Ho 2022 (arXiv:2202.00512, section 4); on any path a rotation with scale
    scale = node.alpha**2 + node.sigma**2
    return (node.alpha * x - node.sigma * out) / scale, (node.sigma * x + node.alpha * out) / scale


def _from_score(out: Tensor, x: Tensor, node: Any, sigma_data: float) -> tuple[Tensor, Tensor]:
    return _from_eps(-node.sigma * out, x, node, sigma_data)


def _from_velocity(out: Tensor, x: Tensor, node: Any, sigma_data: float) -> tuple[Tensor, Tensor]:
    # u = alpha' x0 + sigma' eps together with x = alpha x0 + sigma eps
    scale = node.alpha * node.dsigma - node.dalpha * node.sigma
    return (node.dsigma * x - node.sigma * out) / scale, (node.alpha * out - node.dalpha * x) / scale


def _from_edm(out: Tensor, x: Tensor, node: Any, sigma_data: float) -> tuple[Tensor, Tensor]:
    # D = c_skip y + c_out F with y = x / alpha and sigma / alpha as the noise level (Karras et al. 2022, table 1).
    # eps = (y - D) / ratio = (ratio y / total - sigma_data F / sqrt(total)): nothing cancels at low noise.
    y, ratio = x / node.alpha, node.sigma / node.alpha
    total = ratio**2 + sigma_data**2
    x0 = (sigma_data**2 / total) * y + (ratio * sigma_data / total**0.5) * out
    return x0, (ratio / total) * y - (sigma_data / total**0.5) * out


PREDICTS: dict[str, Convert] = {
    "x0": _from_x0,
    "eps": _from_eps,
    "v": _from_v,
    "score": _from_score,
    "velocity": _from_velocity,
    "edm": _from_edm,
}

# what the network is told of the time: (node, sde, num_train_timesteps) -> label
TIME_LABELS: dict[str, Callable[[Any, SDE, int], Any]] = {
    "t": lambda node, sde, count: node.t,
    "999t": lambda node, sde, count: 999 * node.t,
    "1000t": lambda node, sde, count: 1000 * node.t,
    "index": lambda node, sde, count: _whole((count - 1) / (sde.t_max - sde.t_min) * (node.t - sde.t_min)),
    "sigma": lambda node, sde, count: node.sigma,
    "log_sigma": lambda node, sde, count: _log(node.sigma),
    "c_noise": lambda node, sde, count: -node.lam / 4,
}


def _log(value: Any) -> Any:
    return torch.log(value) if isinstance(value, Tensor) else math.log(value)


def _whole(value: Any) -> Any:
    """The nearest integer where that is all that rounding took; between integers, the value itself."""
    if isinstance(value, Tensor):
        return torch.where((value - value.round()).abs() < 1e-6, value.round(), value)
    return float(round(value)) if abs(value - round(value)) < 1e-6 else value


@dataclass(frozen=True)
class Denoiser:
    """A network trained on an SDE, as a source of predictions.

    Args:
        network: called as ``network(x, label, **conditions)`` with x (B, *) in the dtype of its parameters and label
            (B,) in that dtype or, for 16-bit ones, float32; returns (B, *).
        sde: the path it was trained on.
        predicts: its output: "x0", "eps", "v" (alpha eps - sigma x0), "score", "velocity" (dx/dt of the ODE), or
            "edm" (the raw network F inside EDM's preconditioning).
        time_label: the label it sees: "t", "999t", "1000t", "index", "sigma", "log_sigma" or "c_noise"
            (log(sigma / alpha) / 4); by default "c_noise" for "edm" and "t" otherwise.
        sigma_data: standard deviation of the data, for "edm".
        num_train_timesteps: for "index", the steps T of a network trained in discrete time. Step i of 0..T-1 is
            t = t_min + i / (T - 1) (t_max - t_min): on VP's own [0.001, 1] with T = 1000, t = (i + 1) / 1000. The
            discrete grids of ``solvers`` (leading, trailing, linspace, ...) place their nodes there, and the network
            sees exactly their integers.

    Raises:
        InputError: an unknown ``predicts`` or ``time_label``, or fewer than two steps.
    """

    network: Callable[..., Tensor]
    sde: SDE
    predicts: str = "eps"
    time_label: str | None = None
    sigma_data: float = 0.5
    num_train_timesteps: int = 1000

    def __post_init__(self) -> None:
        if self.predicts not in PREDICTS:
            raise unknown("prediction type", self.predicts, PREDICTS)
        if self.time_label is not None and self.time_label not in TIME_LABELS:
            raise unknown("time label", self.time_label, TIME_LABELS)
        if not self.sigma_data > 0:
            raise InputError(f"sigma_data must be positive, got {self.sigma_data!r}")
        if self.num_train_timesteps < 2:
            raise InputError(f"num_train_timesteps must be at least 2, got {self.num_train_timesteps!r}")

    def predict(self, x: Tensor, node: Node | Node[Tensor], **conditions: Tensor) -> Prediction:
        """One evaluation of the network.

        Args:
            x: (B, *). The network sees it in its own dtype; the prediction has the dtype of x.
            node: of one time, or with tensors (B,).
            conditions: passed on to the network.

        Raises:
            InputError: the network refuses x, or answers with another shape.
        """
        wide = node.like(x)
        dtype = self._dtype(x)
        labels = self._labels(node, dtype).to(x.device).expand(x.shape[0])
        scaled = x / (wide.alpha * (wide.ratio**2 + self.sigma_data**2) ** 0.5) if self.predicts == "edm" else x
        out = self._call(scaled.to(dtype), labels, conditions).to(x.dtype)
        return Prediction(*PREDICTS[self.predicts](out, x, wide, self.sigma_data))

    def _labels(self, node: Node | Node[Tensor], dtype: torch.dtype) -> Tensor:
        name = self.time_label or ("c_noise" if self.predicts == "edm" else "t")
        label = TIME_LABELS[name](node, self.sde, self.num_train_timesteps)
        # a 16-bit label would confuse neighbouring times: 988.49 is 988 in bfloat16
        precise = torch.float32 if dtype.itemsize < 4 else dtype
        return torch.as_tensor(label, dtype=torch.float64 if isinstance(label, float) else None).to(precise)

    def _call(self, x: Tensor, labels: Tensor, conditions: dict[str, Tensor]) -> Tensor:
        try:
            out = self.network(x, labels, **conditions)
        except torch.cuda.OutOfMemoryError:  # its message speaks of sizes too
            raise
        except RuntimeError as error:
            if any(word in str(error) for word in ("shape", "size", "channels")):
                line = str(error).partition("\n")[0]
                raise InputError(f"the network refuses samples of shape {tuple(x.shape[1:])}: {line}") from error
            raise
        out = getattr(out, "sample", out)  # diffusers' backbones answer with an object
        if not isinstance(out, Tensor) or out.shape != x.shape:
            shown = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise InputError(f"the network answers {shown} for samples {tuple(x.shape)}")
        return out

    def _dtype(self, x: Tensor) -> torch.dtype:
        if isinstance(self.network, nn.Module):
            for parameter in self.network.parameters():
                return parameter.dtype
        return x.dtype


def time_labels(denoiser: Denoiser, nodes: Sequence[Node]) -> list[float]:
    """The time labels that the network sees at the nodes of a solve, as it sees them: in the dtype of its parameters,
    or in float32 where it has none. The node of sigma = 0, where no solver asks it, is left out.

    >>> import solvers, scoresde
    >>> denoiser = Denoiser(lambda x, label: x, scoresde.VP(), time_label="index")
    >>> time_labels(denoiser, solvers.grid("trailing", denoiser.sde, steps=4))
    [999.0, 749.0, 499.0, 249.0]
    """
    dtype = denoiser._dtype(torch.empty(0, dtype=torch.float32))
    return [float(denoiser._labels(node, dtype)) for node in nodes if node.sigma > 0]
