"""``Posterior``: a method that draws from p(x0 | y), for a measurement y = A(x0) + sigma n.

Most methods are denoisers: they change the prediction of the model, at every evaluation of any solver. With
G = grad_x log p(y | x_t), the prediction of p(x0 | y) is

    x0' = x0 + (sigma^2 / alpha) G,    eps' = eps - sigma G,

so that x = alpha x0' + sigma eps' remains true. A method is a guess of G. Other methods replace parts of the state
after a step, take steps of their own, or move many particles for each sample: they override ``draw``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from solvers import Hook, InputError, Node, Prediction, Registry, Solver, solve
from solvers.noise.seeded import SeededNoise
from solvers.registry.options import Options

from ..models.counting import add_vjps
from ..models.model import Model, ModelWrapper
from ..models.problem import Diffusion
from ..operators.base import Operator
from ..paths.base import ModelLike

OBSERVATION = "observation"  # the condition under which y travels with the samples


class Draws(NamedTuple):
    """Samples of p(x0 | y).

    Attributes:
        x: the samples (B, *).
        nfe: evaluations that the solver asked for, per sample (B,).
        log_evidence: an estimate of log p(y) (B,) in nats, of methods that have one.
        effective: the least effective number of particles (B,), of methods with particles.
    """

    x: Tensor
    nfe: Tensor
    log_evidence: Tensor | None = None
    effective: Tensor | None = None


@dataclass(frozen=True)
class Task:
    """What a method draws: one sample for each row of ``y``, along the nodes of a solver.

    Attributes:
        model: the model of p(x0).
        operator: A, with its noise.
        y: the measurements (B, *m), one for each sample.
        shape: the shape of one sample.
        solver, nodes: the solver and the nodes from noise to data.
        seeds: one for each sample.
        conditions: conditions of the model, each (B, *).
        hooks: functions that are called with (x, node) after every step.
    """

    model: Model
    operator: Operator
    y: Tensor
    shape: tuple[int, ...]
    solver: Solver
    nodes: tuple[Node, ...]
    seeds: Sequence[int]
    conditions: Mapping[str, Tensor] = field(default_factory=dict)
    hooks: Sequence[Hook] = ()

    def noise(self, *lead: int) -> SeededNoise:
        """A source of normal numbers (B, *lead, *shape), a function of each sample's seed."""
        return SeededNoise(self.seeds, (*lead, *self.shape), self.y.dtype, self.y.device)

    def start(self, noise: SeededNoise) -> Tensor:
        """The draws of the prior at the first node, for data of deviation 1."""
        first = self.nodes[0]
        return float((first.alpha**2 + first.sigma**2) ** 0.5) * noise.initial()


class Posterior(Options):
    """A method that draws from p(x0 | y). Its fields are its options."""

    nonlinear: ClassVar[bool] = False
    """Whether it takes operators that are not linear."""
    noiseless: ClassVar[bool] = True
    """Whether it takes measurements without noise, sigma = 0."""

    def check(self, operator: Operator, shape: tuple[int, ...]) -> None:
        """Rejects an operator that the method cannot use.

        Raises:
            InputError: the operator is not linear, or its sigma is 0, where the method needs the opposite; it does not
                take samples of this shape.
        """
        name = posteriors.info_of(self).name
        operator.shape(shape)
        if not operator.linear and not self.nonlinear:
            able = ", ".join(n for n in posteriors.names() if posteriors.info(n).cls.nonlinear)
            raise InputError(f"{name} needs a linear operator, which {operator} is not; these take it: {able}")
        if operator.sigma == 0 and not self.noiseless:
            raise InputError(f"{name} divides by the noise of the measurement: give {operator} a sigma above 0")

    def draw(self, task: Task) -> Draws:
        """Draws one sample for each row of the task's measurements."""
        raise NotImplementedError


posteriors: Registry[Posterior] = Registry("posterior", Posterior)


class DenoiserPosterior(Posterior):
    """A method that changes the prediction of the model, and runs under every solver."""

    gradients: ClassVar[bool] = False
    """Whether it differentiates the model."""

    def predict(self, ask: Ask) -> Prediction:
        """The prediction (B, *) of p(x0 | y), see ``Ask``."""
        raise NotImplementedError

    def draw(self, task: Task) -> Draws:
        noise = task.noise()
        denoiser = Conditioned(task.model, task.operator, task.y, self, task.shape)
        problem = Diffusion(denoiser, {**task.conditions, OBSERVATION: task.y})
        found = solve(task.solver, problem, task.start(noise), task.nodes, noise, task.hooks, strict=False)
        return Draws(found.x, found.nfe)


@dataclass(frozen=True)
class Ask:
    """One evaluation of the model at x (B, *), its derivatives, and the measurements y (B, *m).

    Attributes:
        x: with gradients, a leaf of the graph or a part of the caller's.
        node: numbers that multiply x: floats, or tensors (B, 1, ..., 1).
    """

    model: Model
    operator: Operator
    y: Tensor
    x: Tensor
    node: Node
    conditions: Mapping[str, Tensor]
    create_graph: bool = False

    @cached_property
    def found(self) -> Prediction:
        """The prediction of p(x0) at x."""
        return self.model.predict(self.x, self.node, **self.conditions)

    def vjp(self, v: Tensor) -> Tensor:
        """J^T v (B, *) for v (B, *), with the derivative J of x0 by x. J is symmetric for exact models."""
        return self.gradient(self.found.x0, v)

    def gradient(self, out: Tensor, v: Tensor | None = None) -> Tensor:
        """The derivative (B, *) by x of the sum of ``out``, whose rows depend on x's rows alone, or of ``out`` . v."""
        add_vjps(len(self.x))
        (found,) = torch.autograd.grad(
            out, self.x, torch.ones_like(out) if v is None else v, retain_graph=True, create_graph=self.create_graph
        )
        return found

    def shifted(self, dx0: Tensor) -> Prediction:
        """The prediction with x0 moved by dx0 (B, *), and eps after it."""
        return Prediction(self.found.x0 + dx0, self.found.eps - (self.node.alpha / self.node.sigma) * dx0)


class Conditioned(ModelWrapper):
    """A model of p(x0 | y): y (B, *m) travels with the samples, as the condition "observation".

    Args:
        model: the model of p(x0).
        operator: A, with its noise.
        y: the measurement (*m), or one for each sample (B, *m).
        method: how the prediction is changed.
        shape: the shape of one sample; by default the model's.

    Raises:
        InputError: the shape is not known; the method does not take the operator; y is no observation of it.
    """

    def __init__(
        self,
        model: ModelLike,
        operator: Operator,
        y: Tensor,
        method: DenoiserPosterior,
        shape: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__(model)
        shape = self.shape if shape is None else shape
        if shape is None:
            raise InputError("the shape of a sample is not known: pass shape")
        method.check(operator, shape)
        self.shape, self.operator, self.method = tuple(shape), operator, method
        self.given = {**self.given, OBSERVATION: observations(operator, y, self.shape)}

    def predict(self, x: Tensor, node: Node | Node[Tensor], **conditions: Tensor) -> Prediction:
        if OBSERVATION not in conditions:
            conditions = {**conditions, **self.given}
        y = conditions.pop(OBSERVATION).to(x)
        y = y.expand(len(x), *y.shape[1:])
        if not self.method.gradients:
            return self.method.predict(Ask(self.model, self.operator, y, x, node.like(x), conditions))
        kept = torch.is_grad_enabled() and x.requires_grad
        with torch.enable_grad():
            leaf = x if kept else x.detach().requires_grad_()
            found = self.method.predict(Ask(self.model, self.operator, y, leaf, node.like(x), conditions, kept))
        return found if kept else Prediction(found.x0.detach(), found.eps.detach())


def observations(operator: Operator, y: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Measurements (B, *m) of samples of a shape: y itself, or y (*m) as one row.

    Raises:
        InputError: y is neither, or is not finite.
    """
    wanted = operator.shape(shape)
    if tuple(y.shape) == wanted:
        y = y.unsqueeze(0)
    if tuple(y.shape[1:]) != wanted or y.ndim != len(wanted) + 1 or not len(y):
        raise InputError(
            f"{operator} measures samples {shape} as {wanted}: the observation has the shape {tuple(y.shape)}"
        )
    if not torch.isfinite(y).all():
        raise InputError("the observation contains numbers that are not finite")
    return y
