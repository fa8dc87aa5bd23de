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
from solvers.outputs import Output

from .sde import SDE

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
        compile: run the network through ``torch.compile``.

    Raises:
        InputError: an unknown ``predicts`` or ``time_label``, or fewer than two steps.
    """

    network: Callable[..., Tensor]
    sde: SDE
    predicts: str = "eps"
    time_label: str | None = None
    sigma_data: float = 0.5
    num_train_timesteps: int = 1000
    compile: bool = False

    def __post_init__(self) -> None:
        self.output.check()
        if self.time_label is not None and self.time_label not in TIME_LABELS:
            raise unknown("time label", self.time_label, TIME_LABELS)
        if self.num_train_timesteps < 2:
            raise InputError(f"num_train_timesteps must be at least 2, got {self.num_train_timesteps!r}")

        if self.compile and not hasattr(self.network, "_orig_mod"):
            object.__setattr__(self, "network", torch.compile(self.network))

    @property
    def output(self) -> Output:
        """What the network puts out."""
        return Output(self.predicts, self.sigma_data)

    def predict(self, x: Tensor, node: Node | Node[Tensor], **conditions: Tensor) -> Prediction:
        """One evaluation of the network, as the pair (x0, eps).

        Args:
            x: (B, *). The network sees it in its own dtype; the prediction has the dtype of x.
            node: of one time, or with tensors (B,).
            conditions: passed on to the network.

        Raises:
            InputError: the network refuses x, or answers with another shape.
        """
        return self.output.read(self.raw(x, node, **conditions), x, node.like(x))

    def raw(self, x: Tensor, node: Node | Node[Tensor], **conditions: Tensor) -> Tensor:
        """One evaluation of the network, as it puts it out: (B, *) in the dtype of x. Arguments as of ``predict``."""
        dtype, scaled = self._dtype(x), x
        if self.predicts == "edm":
            wide = node.like(x)
            scaled = x / (wide.alpha * (wide.ratio**2 + self.sigma_data**2) ** 0.5)
        return self._call(scaled.to(dtype), self._labels(node, dtype, x), conditions).to(x.dtype)

    def _labels(self, node: Node | Node[Tensor], dtype: torch.dtype, x: Tensor) -> Tensor:
        """The labels (B,) on the device of x (B, *)."""
        name = self.time_label or ("c_noise" if self.predicts == "edm" else "t")
        label = TIME_LABELS[name](node, self.sde, self.num_train_timesteps)
        # a 16-bit label would confuse neighbouring times: 988.49 is 988 in bfloat16
        precise = torch.float32 if dtype.itemsize < 4 else dtype
        if isinstance(label, Tensor):
            return label.to(precise).to(x.device).expand(len(x))
        return torch.full((len(x),), label, dtype=precise, device=x.device)  # filled there: no copy, no waiting

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
    one = torch.empty(1, dtype=torch.float32)
    return [float(denoiser._labels(node, denoiser._dtype(one), one)) for node in nodes if node.sigma > 0]
