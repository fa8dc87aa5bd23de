"""A network as a denoiser: its native output becomes the pair (x0, eps) with x = alpha x0 + sigma eps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from solvers import InputError, Node, Prediction
from solvers.errors import positive_integer
from solvers.time_grids.network_steps import train_timesteps
from solvers.types.model_output import Output

from ..paths.base import SDE
from . import time_labels as labels
from .denoises import Model


@dataclass(frozen=True)
class Denoiser(Model):
    """A network trained on an SDE, as a source of predictions.

    Args:
        network: called as ``network(x, label, **conditions)`` with x (B, *) in the dtype of its parameters and label
            (B,) in that dtype or, for 16-bit ones, float32; returns (B, *).
        sde: the path it was trained on.
        predicts: its output: "x0", "eps", "v" (alpha eps - sigma x0), "score", "velocity" (dx/dt of the ODE), or
            "edm" (the raw network F inside EDM's preconditioning).
        time_label: the label it sees, a name in ``scoresde.models.time_labels``: "t", "999t", "1000t", "index",
            "index+1", "reversed_index", "(N-1)t", "Nt", "sigma", "log_sigma", "c_noise" (log(sigma / alpha) / 4) or
            "1000sigma"; by default "c_noise" for "edm" and "t" otherwise.
        sigma_data: standard deviation of the data, for "edm".
        num_train_timesteps: N, the steps of a network trained in discrete time, for the labels that count them; by
            default the SDE's own, as a chain's, else 1000. Step i of 0..N-1 is
            t = t_min + i / (N - 1) (t_max - t_min): on VP's own [0.001, 1] with N = 1000, t = (i + 1) / 1000. The
            discrete grids of ``solvers`` (leading, trailing, linspace, ...) place their nodes there, and the network
            sees exactly their integers.
        compile: run the network through ``torch.compile``.
        round_labels: show the network the nearest label that it was trained on, for labels that count steps.
        learned_variance: the network answers (B, 2 C, ...) for x (B, C, ...): its output and then v, between -1 and 1;
            ``predict`` says nu = (v + 1) / 2 (Nichol and Dhariwal 2021, arXiv:2102.09672, eq. 15), and ``raw`` leaves
            it out.
        clip: a bound c > 0: x0 is clamped to [-c, c] and eps = (x - alpha x0) / sigma follows. What the denoiser puts
            out is then that x0, whatever the network predicts.
        shape: of one sample, where it is known.

    Raises:
        InputError: an unknown ``predicts`` or ``time_label``, or fewer than two steps; a label that counts steps and
            leaves those of the network over the SDE's range; ``round_labels`` with a label that counts none; a ``clip``
            that is not positive.
    """

    network: Callable[..., Tensor]
    sde: SDE
    predicts: str = "eps"
    time_label: str | None = None
    sigma_data: float = 0.5
    num_train_timesteps: int | None = None
    compile: bool = False
    round_labels: bool = False
    learned_variance: bool = False
    clip: float | None = None
    shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        self._native.check()
        if positive_integer("num_train_timesteps", self.train_timesteps) < 2:
            raise InputError(f"num_train_timesteps must be at least 2, got {self.train_timesteps!r}")
        own = self.sde.num_train_timesteps or self.train_timesteps
        if own != self.train_timesteps:
            raise InputError(f"num_train_timesteps={self.train_timesteps}, but the chain of {self.sde} has {own}")
        labels.checked(self.label, self.sde, self.train_timesteps)
        if self.round_labels:
            labels.rounded(self.label, 0.0, self.train_timesteps)  # which says of which labels it can
        if self.clip is not None and not (isinstance(self.clip, (int, float)) and 0 < self.clip < math.inf):
            raise InputError(f"clip must be a positive number, got {self.clip!r}")
        if self.shape is not None:
            object.__setattr__(self, "shape", tuple(self.shape))
        if self.compile and not hasattr(self.network, "_orig_mod"):
            object.__setattr__(self, "network", torch.compile(self.network))

    @property
    def output(self) -> Output:
        """What ``raw`` puts out: the network's own output, or x0 where it is clipped."""
        return Output("x0") if self.clip is not None else self._native

    @property
    def label(self) -> str:
        """The name of the time label that the network sees."""
        if self.time_label is not None:
            return self.time_label
        return "c_noise" if self.predicts == "edm" else "t"

    @property
    def train_timesteps(self) -> int:
        """N, the steps of a network trained in discrete time."""
        return train_timesteps(self.sde, self.num_train_timesteps)

    @property
    def _native(self) -> Output:
        return Output(self.predicts, self.sigma_data)

    def predict(self, x: Tensor, node: Node | Node[Tensor], **conditions: Tensor) -> Prediction:
        """One evaluation of the network, as the pair (x0, eps), and nu where the network learned its variance.

        Args:
            x: (B, *). The network sees it in its own dtype; the prediction has the dtype of x.
            node: of one time, or with tensors (B,).
            conditions: passed on to the network.

        Raises:
            InputError: the network refuses x, or answers with another shape.
        """
        out, nu = self._ask(x, node, conditions)
        found = self.output.read(out, x, node.like(x))
        return found if nu is None else Prediction(found.x0, found.eps, nu)

    def raw(self, x: Tensor, node: Node | Node[Tensor], **conditions: Tensor) -> Tensor:
        """One evaluation of the network, as ``output`` says: (B, *) in the dtype of x. Arguments as of ``predict``."""
        return self._ask(x, node, conditions)[0]

    def _ask(self, x: Tensor, node: Node | Node[Tensor], conditions: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """What ``output`` says, and nu where the network learned it: each (B, *) in the dtype of x."""
        dtype, scaled, nu = self._dtype(x), x, None
        if self.predicts == "edm":
            wide = node.like(x)
            scaled = x / (wide.alpha * (wide.ratio**2 + self.sigma_data**2) ** 0.5)
        out = self._call(scaled.to(dtype), self._labels(node, dtype, x), conditions).to(x.dtype)
        if self.learned_variance:
            out, v = out.chunk(2, 1)
            nu = (v + 1) / 2
        if self.clip is not None:
            out = self._native.read(out, x, node.like(x)).x0.clamp(-self.clip, self.clip)
        return out, nu

    def _labels(self, node: Node | Node[Tensor], dtype: torch.dtype, x: Tensor) -> Tensor:
        """The labels (B,) on the device of x (B, *)."""
        label = self._exact_label(node)
        if self.round_labels:
            label = labels.rounded(self.label, label, self.train_timesteps)
        # a 16-bit label would confuse neighbouring times: 988.49 is 988 in bfloat16
        precise = torch.float32 if dtype.itemsize < 4 else dtype
        if isinstance(label, Tensor):
            return label.to(precise).to(x.device).expand(len(x))
        return torch.full((len(x),), label, dtype=precise, device=x.device)  # filled there: no copy, no waiting

    def label_shift(self, node: Node | Node[Tensor]) -> float:
        """How far rounding moves the label at a node, of many nodes the largest; 0 where labels are not rounded."""
        if not self.round_labels:
            return 0.0
        exact = self._exact_label(node)
        shift = abs(labels.rounded(self.label, exact, self.train_timesteps) - exact)
        return float(shift.max()) if isinstance(shift, Tensor) else float(shift)

    def _exact_label(self, node: Node | Node[Tensor]) -> Any:
        return labels.LABELS[self.label].of(node, self.sde, self.train_timesteps)

    def _call(self, x: Tensor, label: Tensor, conditions: dict[str, Tensor]) -> Tensor:
        try:
            out = self.network(x, label, **conditions)
        except torch.cuda.OutOfMemoryError:  # its message speaks of sizes too
            raise
        except RuntimeError as error:
            if any(word in str(error) for word in ("shape", "size", "channels")):
                line = str(error).partition("\n")[0]
                raise InputError(f"the network refuses samples of shape {tuple(x.shape[1:])}: {line}") from error
            raise
        out = getattr(out, "sample", out)  # diffusers' backbones answer with an object
        expected = (len(x), 2 * x.shape[1], *x.shape[2:]) if self.learned_variance else tuple(x.shape)
        if not isinstance(out, Tensor) or out.shape != expected:
            shown = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            wanted = f"; with a learned variance it has to be {expected}" if self.learned_variance else ""
            raise InputError(f"the network answers {shown} for samples {tuple(x.shape)}{wanted}")
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


def label_shift(denoiser: Denoiser, nodes: Sequence[Node]) -> float | None:
    """How far rounding moves the label at most at the nodes of a solve, the one of sigma = 0 left out; None where the
    denoiser does not round. Solvers ask between the nodes too: what a solve saw is ``Sample.label_shift``.

    >>> import solvers, scoresde
    >>> denoiser = Denoiser(lambda x, label: x, scoresde.VP(), time_label="index", round_labels=True)
    >>> round(label_shift(denoiser, solvers.grid("uniform", denoiser.sde, steps=2)), 9)  # the middle is 499.5
    0.5
    """
    if not denoiser.round_labels:
        return None
    return max((denoiser.label_shift(node) for node in nodes if node.sigma > 0), default=0.0)
