"""Problems on a denoiser: what a solver integrates."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from solvers import Node, Prediction, Rows
from solvers.grids import node_of_lam
from solvers.outputs import Output

from .sde import Denoises

# vector-Jacobian products taken at once: enough to fill a processor, few enough to bound memory
CHUNK = 64


@dataclass(frozen=True)
class Diffusion:
    """The samples of a denoiser, with their conditions (each (B, *))."""

    denoiser: Denoises
    conditions: Mapping[str, Tensor] = field(default_factory=dict)

    def node(self, t: float) -> Node:
        """The path at t."""
        return self.denoiser.sde(t)

    def node_of_lam(self, lam: float) -> Node:
        """The path where log(alpha / sigma) = lam."""
        return node_of_lam(self.denoiser.sde, lam)

    def predict(self, x: Tensor, node: Node | Node[Tensor]) -> Prediction:
        """The denoiser's prediction at x (B, *), at one node or at one a sample."""
        return self.denoiser.predict(x, node, **self.conditions)

    @property
    def output(self) -> Output | None:
        """What the denoiser's network puts out, where it has one."""
        return getattr(self.denoiser, "output", None)

    def raw(self, x: Tensor, node: Node) -> Tensor:
        """The network's own output at x (B, *)."""
        out: Tensor = self.denoiser.raw(x, node, **self.conditions)  # type: ignore[attr-defined]
        return out

    @property
    def log_prob(self) -> Callable[[Tensor, Node], Tensor]:
        """The log-density (B,) of x_t in nats, where the denoiser knows it; correctors that accept or reject ask."""
        known: Callable[[Tensor, Node], Tensor] = self.denoiser.log_prob  # type: ignore[attr-defined]
        return known

    def select(self, rows: Rows) -> Diffusion:
        """The problem of some of the samples."""
        return Diffusion(self.denoiser, {name: value[rows] for name, value in self.conditions.items()})


@dataclass(frozen=True)
class WithLogDensity:
    """The same samples with channels that carry the log-density, each solved like one more coordinate.

    Let r = sigma / alpha, y = x / alpha, D the denoiser and l the log-density of y along the probability-flow ODE,
    dl/dr = -(d - tr dD/dy) / r. For data N(0, I) that is known: l = -d/2 log(1 + r^2) + const, with the trace
    d / (1 + r^2). The channel carries the difference, u = r (l - l_0 + d/2 log((1 + r^2) / (1 + r_0^2))), for which
    du/dr = (u - M) / r with M = -r (tr dD/dy - d / (1 + r^2)): the equation of y itself with M as its prediction. So
    alpha u is appended to the state, and every deterministic solver integrates it at its own order; M vanishes at both
    ends of the path, so that little is left to integrate. There is one channel per probe of the divergence, so that
    the spread over the probes is seen in the result; u starts at 0.

    The state (B, d + m) is float64, on the CPU where the model's device has no float64; the model sees samples in
    ``dtype`` on ``device``. ``probes`` is (B, m, d), or None for the exact trace (m = 1).
    """

    denoiser: Denoises
    shape: tuple[int, ...]
    conditions: Mapping[str, Tensor] = field(default_factory=dict)
    probes: Tensor | None = None
    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"

    @property
    def channels(self) -> int:
        """m, the number of log-density channels."""
        return 1 if self.probes is None else self.probes.shape[1]

    def node(self, t: float) -> Node:
        """The path at t."""
        return self.denoiser.sde(t)

    def node_of_lam(self, lam: float) -> Node:
        """The path where log(alpha / sigma) = lam."""
        return node_of_lam(self.denoiser.sde, lam)

    def start(self, x: Tensor, node: Node) -> Tensor:
        """The state (B, d + m) at ``node`` of data x (B, *): alpha x, and channels of 0."""
        flat = node.alpha * x.flatten(1).to("cpu" if torch.device(self.device).type == "mps" else self.device).double()
        return torch.cat([flat, flat.new_zeros(len(x), self.channels)], 1)

    def split(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """The samples (B, *) and the channels (B, m) of a state."""
        flat, channels = state[:, : -self.channels], state[:, -self.channels :]
        return flat.reshape(len(state), *self.shape), channels

    def log_density_change(self, channels: Tensor, start: Node, end: Node) -> Tensor:
        """l_end - l_start (B, m) in nats, from the channels at ``end``."""
        normal = 0.5 * (math.log1p(end.ratio**2) - math.log1p(start.ratio**2))
        return channels / end.sigma - math.prod(self.shape) * normal

    def predict(self, x: Tensor, node: Node | Node[Tensor]) -> Prediction:
        """One forward pass and one batch of vector-Jacobian products, at one node or at one a sample."""
        samples, channels = self.split(x)
        with torch.enable_grad():
            leaf = samples.detach().to(self.dtype).to(self.device).requires_grad_()
            prediction = self.denoiser.predict(leaf, node, **self.conditions)
            trace = self._trace(prediction.x0, leaf).to(x.device).double()
        # alpha r = sigma turns the trace in x into the trace in y
        wide: Any = node.like(channels)
        drive = wide.ratio * math.prod(self.shape) / (1 + wide.ratio**2) - wide.sigma * trace
        pairs = (
            (prediction.x0, drive),
            (prediction.eps, (channels - wide.alpha * drive) / wide.sigma),
        )
        x0, eps = (torch.cat([a.detach().flatten(1).to(x.device).double(), b], 1) for a, b in pairs)
        return Prediction(x0, eps)

    def _trace(self, out: Tensor, leaf: Tensor) -> Tensor:
        """tr(d out / d leaf) (B, 1), or its estimates v . J v (B, m)."""
        d = math.prod(self.shape)
        if not out.requires_grad:  # a model that does not look at x
            return out.new_zeros(len(leaf), self.channels)
        if self.probes is None:
            vectors = torch.eye(d, dtype=leaf.dtype, device=leaf.device).unsqueeze(1).expand(d, len(leaf), d)
        else:
            vectors = self.probes.to(leaf).transpose(0, 1)
        parts = []
        for chunk in torch.split(vectors, CHUNK):
            shaped = chunk.reshape(len(chunk), *leaf.shape)
            (products,) = torch.autograd.grad(out, leaf, shaped, retain_graph=True, is_grads_batched=True)
            parts.append((products * shaped).flatten(2).sum(2))
        values = torch.cat(parts).transpose(0, 1)
        return values.sum(1, keepdim=True) if self.probes is None else values

    def select(self, rows: Rows) -> WithLogDensity:
        """The problem of some of the samples."""
        conditions = {name: value[rows] for name, value in self.conditions.items()}
        return replace(self, conditions=conditions, probes=None if self.probes is None else self.probes[rows])
