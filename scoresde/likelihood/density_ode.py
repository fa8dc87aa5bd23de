"""The log-density along the probability-flow ODE: a problem that integrates it, and the solve of a likelihood."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import solvers
from solvers import InputError, Node, Prediction, Problem, Rows, Solver
from solvers.libraries import library
from solvers.types.answers import predicted

from ..models.counting import add_vjps
from ..models.model import Model, as_model
from ..paths.base import SDE, ModelLike
from ..sampling.batches import Batching
from ..sampling.failures import Failure, Watch, failures_of, lost, without
from ..sampling.plan import Plan
from .divergence import Divergence, Exact
from .inputs import leaves_torch

# vector-Jacobian products per call: enough to use the device well, few enough to limit memory
CHUNK = 64


def _products(out: Tensor, leaf: Tensor, vectors: Tensor, create_graph: bool) -> Tensor:
    """The products v^T d out / d leaf (k, B, *) for vectors (k, B, *).

    They are computed in one batch, or one by one if that fails: some functions cannot be batched, and others only
    without a graph. A fault of the network itself is raised by the products one by one.
    """
    add_vjps(vectors.shape[0] * vectors.shape[1])
    library("torch.fx.experimental.symbolic_shapes")  # which the first product would import, with sympy
    options = {"retain_graph": True, "create_graph": create_graph, "allow_unused": True}
    try:
        (found,) = torch.autograd.grad(out, leaf, vectors, is_grads_batched=True, **options)
    except RuntimeError:
        rows = [torch.autograd.grad(out, leaf, v, **options)[0] for v in vectors]
        found = None if rows[0] is None else torch.stack(rows)
    return torch.zeros_like(vectors) if found is None else found  # None: out does not depend on leaf


def _seen(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a denoiser is evaluated, for samples in ``dtype``: at least float32."""
    return torch.promote_types(dtype, torch.float32)


def _cleared(left: Tensor, known: Tensor) -> Tensor:
    """``left``, the products (k, B, d) less their known part, with rounding errors set to 0.

    A vector that is only rounding of ``known`` becomes exactly 0 and keeps its gradient: a derivative through its
    direction would be a derivative of noise.
    """
    rounding = 8 * torch.finfo(known.dtype).eps * known.detach().norm(dim=2, keepdim=True)
    return torch.where(left.detach().norm(dim=2, keepdim=True) > rounding, left, left - left.detach())


@dataclass(frozen=True)
class WithLogDensity(Problem):
    """A denoiser's problem whose state has extra channels for the log-density; each is solved like a coordinate.

    Let r = sigma / alpha, y = x / alpha, D the denoiser and l the log-density of y along the probability-flow ODE:
    dl/dr = -(d - tr dD/dy) / r. For data N(0, I) the solution is known: l = -d/2 log(1 + r^2) + const, with the trace
    d / (1 + r^2). The difference from it, k = l - l_0 + d/2 log((1 + r^2) / (1 + r_0^2)), obeys dk/dr = -M / r^2 with
    M = -r (tr dD/dy - d / (1 + r^2)), which vanishes at both ends of the path.

    A channel contains w = (1 + r) k. With x0 = k + (1 + r) M / r and eps = k - (1 + r) M / r^2 it is one more
    coordinate of the path: w = x0 + r eps and dw/dr = eps. The state therefore gets alpha w appended, and every
    deterministic solver integrates it at its own order. The adaptive pairs divide the state by alpha + sigma and so
    integrate k itself: an error in k stays constant, whereas an error in r k would grow or shrink like r. The
    divergence has m channels, whose spread over its probes is thus visible in the result. All channels start at 0.

    The state (B, d + m) and the sums over d are float64, on the CPU if the model's device has no float64. The model
    receives samples in ``dtype`` on ``device``, in float32 if ``dtype`` has 16 bits; the denoiser of a 16-bit network
    converts them. ``vectors`` (B, k, d) are the vectors that the divergence drew. With ``create_graph`` the result can
    be differentiated by x, by the network's parameters and by the conditions; every evaluation then stays in memory.
    """

    denoiser: ModelLike
    shape: tuple[int, ...]
    conditions: Mapping[str, Tensor] = field(default_factory=dict)
    divergence: Divergence = field(default=Exact())
    vectors: Tensor | None = None
    create_graph: bool = False
    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"

    @cached_property
    def model(self) -> Model:
        """The denoiser as a ``Model``."""
        return as_model(self.denoiser)

    @property
    def channels(self) -> int:
        """The number m of log-density channels."""
        return self.divergence.channels(math.prod(self.shape))

    @property
    def path(self) -> SDE:
        """The path that the denoiser was trained on."""
        return self.denoiser.sde

    def start(self, x: Tensor, node: Node) -> Tensor:
        """The state (B, d + m) at ``node`` of data x (B, *): alpha x, and channels of 0."""
        flat = node.alpha * x.flatten(1).to("cpu" if torch.device(self.device).type == "mps" else self.device).double()
        return torch.cat([flat, flat.new_zeros(len(x), self.channels)], 1)

    def split(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """The samples (B, *) and the channels (B, m) of a state."""
        flat, channels = state[:, : -self.channels], state[:, -self.channels :]
        return flat.reshape(len(state), *self.shape), channels

    def log_density_change(self, channels: Tensor, start: Node, end: Node) -> Tensor:
        """The change l_end - l_start (B, m) in nats, from the channels at ``end``."""
        normal = 0.5 * (math.log1p(end.ratio**2) - math.log1p(start.ratio**2))
        return channels / (end.alpha + end.sigma) - math.prod(self.shape) * normal

    def predict(self, x: Tensor, node: Node | Node[Tensor]) -> Prediction:
        """The prediction for samples and channels: one forward pass and one batch of vector-Jacobian products.

        The node is the same for all samples, or there is one per sample.
        """
        samples, channels = self.split(x)
        with torch.enable_grad():
            leaf = (samples if self.create_graph else samples.detach()).to(_seen(self.dtype)).to(self.device)
            leaf = leaf if leaf.requires_grad else leaf.requires_grad_()
            with self._attention():
                prediction = predicted(self.model.predict, leaf, node, self.conditions)
            trace = self._trace(prediction.x0, leaf, node).to(x.device).double()
        # alpha r = sigma turns the trace in x into the trace in y
        wide: Any = node.like(channels)
        drive = wide.ratio * math.prod(self.shape) / (1 + wide.ratio**2) - wide.sigma * trace
        known, change = channels / (wide.alpha + wide.sigma), (1 + wide.ratio) * drive / wide.ratio
        pairs = ((prediction.x0, known + change), (prediction.eps, known - change / wide.ratio))
        x0, eps = (torch.cat([a.flatten(1).to(x.device).double(), b], 1) for a, b in pairs)
        return Prediction(x0, eps) if self.create_graph else Prediction(x0.detach(), eps.detach())

    def _attention(self) -> AbstractContextManager[None]:
        """Chooses the kernel of attention: with a graph the only one that has second derivatives."""
        return sdpa_kernel(SDPBackend.MATH) if self.create_graph else nullcontext()

    def _trace(self, out: Tensor, leaf: Tensor, node: Node | Node[Tensor]) -> Tensor:
        """The trace tr(d out / d leaf) by channels (B, m)."""
        flat, d = leaf.flatten(1), math.prod(self.shape)
        wide = torch.float32 if leaf.device.type == "mps" else torch.float64
        if not out.requires_grad:  # a model that does not depend on x
            self._check_gradients(leaf, node)
            return flat.new_zeros(len(leaf), self.channels)
        # x0 = share x + ...: this multiple of the identity is the known part of the Jacobian
        share: Any = self.model.output.weights(node.like(flat))[0][0]  # type: ignore[arg-type]

        def products(vectors: Tensor) -> Tensor:
            parts = []
            for chunk in torch.split(vectors.to(flat), CHUNK):
                found = _products(out, leaf, chunk.reshape(len(chunk), *leaf.shape), self.create_graph)
                left = found.flatten(2) - share * chunk
                parts.append((_cleared(left, share * chunk) if self.create_graph else left).to(wide))
            whole = torch.cat(parts)
            if float(whole.detach().abs().max() - 1e-6 * (share * vectors.detach()).abs().max()) <= 0:
                self._check_gradients(leaf, node)  # the products contain only the known part
            return whole

        vectors = None if self.vectors is None else self.vectors.to(leaf.device, wide)
        trace: Tensor = self.divergence.trace(products, vectors, flat) + share * d
        return trace

    def _check_gradients(self, leaf: Tensor, node: Node | Node[Tensor]) -> None:
        """Rejects a model whose output depends on x but has no gradient with respect to x.

        Raises:
            InputError: the model runs under no_grad or inference_mode, detaches x, or is not computed by torch.
        """

        out = self.model.raw(leaf, node, **self.conditions)
        slope = torch.autograd.grad(out.sum(), leaf, allow_unused=True)[0] if out.requires_grad else None
        if slope is not None or not bool(out.isfinite().all()):
            return
        if not torch.equal(out, self.model.raw(leaf.detach() * 1.25 + 0.25, node, **self.conditions)):
            raise InputError(
                "the model's output has no gradient with respect to x, which a likelihood needs: does it run under "
                "torch.no_grad or inference_mode, or detach x?"
            )

    def pieces(self, nodes: Sequence[Node]) -> Sequence[tuple[WithLogDensity, Sequence[Node]]]:
        """The problem with the model of each part of a solve."""
        return [(replace(self, denoiser=model), places) for model, places in self.model.pieces(nodes)]

    def check_solver(self, solver: Solver) -> None:
        self.model.check_solver(solver)

    def select(self, rows: Rows) -> WithLogDensity:
        """The problem restricted to some of the samples."""
        conditions = {name: value[rows] for name, value in self.conditions.items()}
        return replace(self, conditions=conditions, vectors=None if self.vectors is None else self.vectors[rows])


class DensitySolution(NamedTuple):
    """The result of ``DensitySolve.run``.

    It contains the states (B, *) at both ends, the change of the log-density of x (B, m) in nats, the NFE (B,), and the
    samples that failed: the ends and changes of these are NaN.
    """

    start: Tensor
    end: Tensor
    change: Tensor
    nfe: Tensor
    failures: tuple[Failure, ...] = ()


@dataclass(frozen=True)
class DensitySolve:
    """A solve of the log-density ODE for a set of samples, along any plan.

    Attributes:
        divergence: how the trace is computed.
        seeds: the seeds of the probes, one per sample.
        shape: the shape of one sample.
        conditions: the conditions of the denoiser, each (B, *).
        batching: how samples are batched; the model receives them in its dtype, while the state is float64.
        differentiable: keep the graph of the whole solve.
    """

    denoiser: ModelLike
    divergence: Divergence
    seeds: list[int]
    shape: tuple[int, ...]
    conditions: Mapping[str, Tensor]
    batching: Batching
    differentiable: bool = False

    def problem(self, rows: slice) -> WithLogDensity:
        """The problem restricted to some of the samples."""
        return WithLogDensity(
            self.denoiser,
            self.shape,
            {name: value[rows] for name, value in self.conditions.items()},
            self.divergence,
            self.divergence.draw(self.seeds[rows], math.prod(self.shape)),
            self.differentiable,
            self.batching.dtype,
            self.batching.device,
        )

    def run(self, plan: Plan, clean: Callable[[slice], Tensor]) -> DensitySolution:
        """Solves for samples and their log-density on the nodes of a plan, in either direction.

        Args:
            clean: returns x / alpha (n, *) at the first node for the rows of a batch.

        Raises:
            InputError: gradients are requested but the solver computes outside torch; see ``Model.check_density``.
        """
        as_model(self.denoiser).check_density()
        if self.differentiable and leaves_torch(plan.solver):
            raise InputError(f"{plan.solver} computes outside torch, so it has no gradients: use a different solver")
        start, end, d = plan.nodes[0], plan.nodes[-1], math.prod(self.shape)
        batches = self.batching.rows(len(self.seeds))
        failures: list[Failure] = []
        parts, bar = [], self.batching.bar(plan.steps * len(batches), "log p")

        def advance(state: Tensor, node: Node) -> None:
            bar.update()

        with bar, torch.set_grad_enabled(self.differentiable):
            for rows in batches:
                problem = self.problem(rows)
                state = problem.start(clean(rows), start)
                watch = Watch(plan)
                solution = solvers.solve(plan.solver, problem, state, plan.nodes, hooks=[advance, watch], strict=False)
                bad = lost(solution.x.detach())
                failures += failures_of(bad, rows.start, solution.failed, watch.reasons)
                states, channels = problem.split(without(solution.x, bad, torch.nan))
                # l is the log-density of x / alpha; convert it to that of x at both ends
                change = problem.log_density_change(channels, start, end) - d * math.log(end.alpha / start.alpha)
                parts.append((problem.split(state)[0], states, change, solution.nfe))
        first, last, change, nfe = (torch.cat(values) for values in zip(*parts, strict=True))
        return DensitySolution(first, last, change, nfe, tuple(failures))
