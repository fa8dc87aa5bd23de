"""``Posterior``: a method that draws from p(x0 | y), for a measurement y = A(x0) + sigma n.

Most methods are denoisers: they change the prediction of the model, at every evaluation of any solver. With
G = grad_x log p(y | x_t), the prediction of p(x0 | y) is

    x0' = x0 + (sigma^2 / alpha) G,    eps' = eps - sigma G,

so that x = alpha x0' + sigma eps' remains true. A method is a guess of G. Other methods replace parts of the state
after a step, take steps of their own, or move many particles for each sample: they override ``draw``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from solvers import Hook, InputError, Node, Prediction, Registry, Solver, solve
from solvers.libraries import library
from solvers.noise.seeded import SeededNoise
from solvers.registry.options import Options

from ..io.inputs import Array, shape_of, tensor_of
from ..models.counting import add_vjps
from ..models.evaluation import gradients, recordable
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
        failed: why the method gave up some of the samples, by row; these are NaN.
    """

    x: Tensor
    nfe: Tensor
    log_evidence: Tensor | None = None
    effective: Tensor | None = None
    failed: Mapping[int, str] = MappingProxyType({})

    @classmethod
    def of(cls, parts: Sequence[Draws]) -> Draws:
        """The draws of several batches, one after the other, without the reasons of those that failed."""
        columns = [
            [value for value in column if value is not None] for column in zip(*(p[:4] for p in parts), strict=True)
        ]
        return cls(*(torch.cat(values) if values else None for values in columns))  # type: ignore[arg-type]


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
        hooks: functions that are called with the states (B, *) and the node after every step.
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
    """A method that draws from p(x0 | y). Its fields are its options, its class variables what it promises and needs.

    Attributes:
        exact_for: data and operators for which its limit of many steps is p(x0 | y) itself; empty if there are none.
        keeps_prior: whether an observation of infinite noise leaves the prior, in the limit of many steps.
        nonlinear: whether it takes operators that are not linear.
        noise: ``any`` sigma of the operator; ``needed``, where it divides by sigma; ``ignored``, where it draws as if
            sigma were 0.
        differentiates: what it differentiates: the ``model``, the ``operator`` alone, or nothing.
        without_gradient: whether it takes operators whose gradient is 0, although it differentiates.
        solver: the solver of ``scoresde.restore``, by default.
        budgeted: whether its evaluations are those of the grid, so that a budget of them sets the steps.
    """

    exact_for: ClassVar[str] = ""
    keeps_prior: ClassVar[bool] = True
    nonlinear: ClassVar[bool] = False
    noise: ClassVar[Literal["any", "needed", "ignored"]] = "any"
    differentiates: ClassVar[Literal["", "model", "operator"]] = ""
    without_gradient: ClassVar[bool] = False
    solver: ClassVar[str] = "dpmpp_2m_sde"  # noise in the steps mends what a method guesses wrongly
    budgeted: ClassVar[bool] = True

    def check(self, operator: Operator, shape: tuple[int, ...]) -> None:
        """Rejects an operator that the method cannot use, for samples of a shape.

        Raises:
            InputError: the operator is not linear, has no gradient or no noise, where the method needs it; or it does
                not take samples of this shape.
        """
        name = posteriors.info_of(self).name
        operator.shape(shape)
        if not operator.linear and not self.nonlinear:
            raise InputError(f"{name} needs a linear operator, which {operator} is not; {_taken_by(lambda cls: True)}")
        if self.differentiates and not operator.differentiable:
            raise InputError(
                f"{name} follows the gradient of the residual, which is 0 for {operator}; "
                f"{_taken_by(lambda cls: not cls.differentiates or cls.without_gradient)}"
            )
        if operator.sigma == 0 and self.noise == "needed":
            raise InputError(f"{name} divides by the noise of the observation: give {operator} a sigma above 0")

    def exact_version(self, covariance: Tensor, operator: Operator) -> Posterior | None:
        """The method with the options under which its limit of many steps is p(x0 | y), for Gaussian data and a linear
        operator; None if there are none. ``check`` measures what this and ``exact_for`` state.

        Args:
            covariance: (d, d), of data of any mean.
            operator: for samples (d,).
        """
        return None

    def draw(self, task: Task) -> Draws:
        """Draws one sample for each row of the task's observations."""
        raise NotImplementedError

    def rows(self) -> int:
        """How many samples the model gets at a time for one draw: the number of particles, where there are some."""
        return 1

    def __str__(self) -> str:
        return posteriors.format(self)


posteriors: Registry[Posterior] = Registry("posterior", Posterior)


def _taken_by(fits: Callable[[type[Posterior]], bool]) -> str:
    """The methods for nonlinear operators whose class fits, in words."""
    classes: dict[str, type[Posterior]] = {name: posteriors.info(name).cls for name in posteriors.names()}
    names = [name for name, cls in classes.items() if cls.nonlinear and fits(cls)]
    return f"these take it: {', '.join(names)}" if names else "no method takes it"


class DenoiserPosterior(Posterior):
    """A method that changes the prediction of the model, and runs under every solver."""

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
    """One evaluation of the model at x (B, *), its derivatives, and the observations y (B, *m).

    Attributes:
        x: with gradients, a leaf of the graph or a part of the caller's.
        node: numbers that multiply x: floats, or tensors (B, 1, ..., 1).
        graph: whether the prediction keeps the graph from x.
        told: the warnings that the solve has given already.
    """

    model: Model
    operator: Operator
    y: Tensor
    x: Tensor
    node: Node[Any]
    conditions: Mapping[str, Tensor]
    graph: bool
    told: set[str]

    @cached_property
    def found(self) -> Prediction:
        """The prediction of p(x0) at x."""
        return self.model.predict(self.x, self.node, **self.conditions)

    @cached_property
    def x0(self) -> Tensor:
        """D (B, *), the model's x0 as a number; with a graph only if the result keeps it."""
        return self.found.x0 if self.graph else self.found.x0.detach()

    def vjp(self, v: Tensor) -> Tensor:
        """J^T v (B, *) for v (B, *), with the derivative J of x0 by x. J is symmetric for exact models."""
        return self.gradient(self.found.x0, v)

    def gradient(self, out: Tensor, v: Tensor) -> Tensor:
        """The derivative (B, *) by x of ``out`` . v, both (B, *n), where a row of ``out`` depends on that of x alone.

        Raises:
            InputError: ``out`` has no gradient.
        """
        if not out.requires_grad:
            raise InputError(
                "this method differentiates the model and the operator, of which one has no gradient: it detaches its "
                "result, or runs under no_grad; ddnm and jfps need none"
            )
        add_vjps(len(self.x))
        library("torch.fx.experimental.symbolic_shapes")  # which the first product would import, with sympy
        (found,) = torch.autograd.grad(out, self.x, v, retain_graph=True, create_graph=self.graph)
        # autograd may return a single row with another order in memory, in which later sums round differently
        return found.clone(memory_format=torch.contiguous_format)

    def moved(self, dx0: Tensor) -> Prediction:
        """The prediction with x0 moved by dx0 (B, *), and eps after it."""
        return Prediction(self.found.x0 + dx0, self.found.eps - (self.node.alpha / self.node.sigma) * dx0)

    def warn(self, what: str, details: str) -> None:
        """Warns of something, once in a solve; the details are those of its first time."""
        if what not in self.told:
            self.told.add(what)
            warnings.warn(f"{what}: {details}", stacklevel=2)


class Conditioned(ModelWrapper):
    """A model of p(x0 | y): y (B, *m) travels with the samples, as the condition "observation".

    Args:
        model: the model of p(x0).
        operator: A, with its noise.
        y: the measurement (*m), or one for each sample (B, *m).
        method: how the prediction is changed.
        shape: the shape of one sample; by default the model's.
        ode_density: let ``log_prob`` compute the density of the method's own ODE, which is that of p(x0 | y) only for
            data for which the method is exact.

    Raises:
        InputError: the shape is not known; the method does not take the operator; y is no observation of it.
    """

    def __init__(
        self,
        model: ModelLike,
        operator: Operator,
        y: Array,
        method: DenoiserPosterior,
        shape: Sequence[int] | int | None = None,
        ode_density: bool = False,
    ) -> None:
        super().__init__(model)
        self.ode_density, self.density = ode_density, f"ode of {method}"
        self.shape, self.operator, self.method = sample_shape(self.model, shape), operator, method
        method.check(operator, self.shape)
        self.given = {**self.given, OBSERVATION: observations(operator, y, self.shape)}
        self.told: set[str] = set()

    def check_density(self) -> None:
        super().check_density()
        if not self.ode_density:
            raise InputError(
                f"the ODE of {self.method} has a density of its own, which is not p(x0 | y): "
                "scoresde.condition(..., ode_density=True) allows it"
            )

    def predict(self, x: Tensor, node: Node | Node[Tensor], **conditions: Tensor) -> Prediction:
        given = {**self.given, **conditions}
        y = given.pop(OBSERVATION).to(x)
        y = y.expand(len(x), *y.shape[1:])
        if not self.method.differentiates:
            return self.method.predict(Ask(self.model, self.operator, y, x, node.like(x), given, True, self.told))
        if x.is_cuda and torch.cuda.is_current_stream_capturing():
            raise InputError(f"{self.method} differentiates the model, which a CUDA graph cannot: leave out cuda_graph")
        graph = torch.is_grad_enabled() and x.requires_grad
        with gradients(True):
            leaf = x if graph else recordable(x).detach().requires_grad_()
            y, given = recordable(y), {name: recordable(value) for name, value in given.items()}
            ask = Ask(self.model, self.operator, y, leaf, node.like(x), given, graph, self.told)
            found = self.method.predict(ask)
        return found if graph else Prediction(found.x0.detach(), found.eps.detach())


def sample_shape(model: Model, shape: Sequence[int] | int | None) -> tuple[int, ...]:
    """The shape of one sample that the caller gave, or by default the model's.

    Raises:
        InputError: there is none, it is no shape, or the model has another one.
    """
    if shape is None:
        if model.shape is None:
            raise InputError("shape is missing: pass the shape of one sample, such as shape=(2,) or shape=(3, 32, 32)")
        return model.shape
    found = shape_of(shape)
    if model.shape is not None and found != model.shape:
        raise InputError(f"shape is {found}, but the model's samples have the shape {model.shape}")
    return found


def observations(operator: Operator, y: Array, shape: tuple[int, ...]) -> Tensor:
    """Observations (n, *m), floats, of samples of a shape: y itself, or y (*m) as one row.

    Raises:
        InputError: y is neither, or is not finite.
    """
    wanted, found = operator.shape(shape), tensor_of("the observation", y)
    given = tuple(found.shape)
    if given == wanted:
        found = found.unsqueeze(0)
    if tuple(found.shape[1:]) != wanted or found.ndim != len(wanted) + 1 or not len(found):
        raise InputError(
            f"{operator} observes samples {shape} as y {wanted}, or (n, {str(wanted)[1:]} for n of them; got the shape "
            f"{given}"
        )
    if found.is_complex() or not torch.isfinite(found).all():
        raise InputError("the observation must contain finite real numbers only")
    return found if found.is_floating_point() else found.double()
