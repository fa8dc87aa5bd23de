"""Methods that move K particles for each sample, with weights: right in the limit of many, for every prior.

The particles follow a stochastic solver whose prediction is guided. A particle's weight makes up for what the guidance
does wrong; where few particles have most of the weight, all are drawn again from the weighted ones, inside of each
sample alone. One particle of each sample is the draw; draws of different seeds are independent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Annotated, Literal, NamedTuple

import torch
from torch import Tensor

from solvers import InputError, Node, Prediction, Solver
from solvers.loop import run_hooks
from solvers.registry.ranges import Fraction, Positive, Range
from solvers.types.schedule import Schedule

from ..models.evaluation import gradients, recordable
from ..models.model import Model
from ..models.per_sample import row_sums
from ..operators.base import Operator, log_likelihood
from .base import Ask, Draws, Posterior, Task, posteriors
from .denoisers import spread
from .kernel import Answer, advance, check_solver, kernel


class View(NamedTuple):
    """What a method sees at particles (n, *), where n = B K.

    Attributes:
        found: the prediction that a step without guidance has; with the correction below it is the guided one.
        log_target: how much the method likes them at this node (n,), a log-density up to a constant; None if it does
            not say.
        dx0: the correction of x0, whose effect on the density of the step is weighed; None if there is none.
        rate: the growth (n,) of the log-weight for each unit of log(alpha / sigma); None if there is none.
    """

    found: Prediction
    log_target: Tensor | None = None
    dx0: Tensor | None = None
    rate: Tensor | None = None

    def at(self, rows: Tensor) -> View:
        """The view at some particles."""
        found, *others = self
        nu = None if found.nu is None else found.nu[rows]
        return View(
            Prediction(found.x0[rows], found.eps[rows], nu), *(None if part is None else part[rows] for part in others)
        )


Look = Callable[[Tensor, Node], View]


class Cloud(NamedTuple):
    """All particles of B samples at the end of a run.

    Attributes:
        x: (B, K, *).
        log_weights: (B, K), float64, up to a constant of each sample.
        uniform: a number in (0, 1) for each sample (B,), a function of its seed.
        log_evidence: the log (B,) of the mean weight, over the whole run, in nats.
        effective: the least effective number of particles (B,), from 1 to K.
        steps: how many steps a particle made.
        failed: why samples have no particle left, by row; their evidence and effective number are NaN.
    """

    x: Tensor
    log_weights: Tensor
    uniform: Tensor
    log_evidence: Tensor
    effective: Tensor
    steps: int
    failed: Mapping[int, str]

    def chosen(self, uniform: Tensor) -> Tensor:
        """Particles (B, n, *) drawn from the weighted ones, at numbers (B, n) in [0, 1]."""
        return torch.stack([x[i] for x, i in zip(self.x, places(self.log_weights, uniform), strict=True)])

    def draws(self) -> Draws:
        """One particle of each sample, drawn with its own number; NaN of the samples that failed."""
        asked = torch.full((len(self.x),), self.x.shape[1] * self.steps)
        x = self.chosen(self.uniform[:, None])[:, 0]
        x[list(self.failed)] = math.nan
        return Draws(x, asked, self.log_evidence, self.effective, self.failed)


def places(log_weights: Tensor, uniform: Tensor) -> Tensor:
    """The places (B, n) of numbers (B, n) in [0, 1] among weights (B, K) laid end to end."""
    ends = torch.softmax(log_weights, 1).cumsum(1)
    return torch.searchsorted(ends / ends[:, -1:], uniform).clamp_max(log_weights.shape[1] - 1)


class Weights:
    """The log-weights (B, K) of particles, float64, which are drawn again where the effective number is small.

    A sample whose particles are all dead has failed: the reason is kept, and its other numbers mean nothing.
    """

    def __init__(self, count: int, particles: int, device: torch.device) -> None:
        self.log = torch.zeros(count, particles, dtype=torch.float64, device=device)
        self.evidence = self.log.new_zeros(count)
        self.least = self.log.new_full((count,), float(particles))
        self.failed: dict[int, str] = {}

    def add(self, change: Tensor) -> None:
        """Adds a change (B K,) of the log-weights; one that is not a number ends the particle."""
        self.log = torch.nan_to_num(self.log + change.double().view_as(self.log), -math.inf, -math.inf, -math.inf)

    def effective(self, node: Node) -> Tensor:
        """The effective number (B,) of particles, (sum w)^2 / sum w^2, after a look for samples of dead ones only."""
        dead = (self.log == -math.inf).all(1)
        for row in dead.nonzero().flatten().tolist():
            reason = (
                f"lost all {self.log.shape[1]} particles at sigma / alpha = {node.ratio:.4g}: every weight is 0 or not "
                "a number"
            )
            self.failed.setdefault(row, reason)
        self.log = torch.where(dead[:, None], 0.0, self.log)
        self.evidence, self.least = (torch.where(dead, math.nan, part) for part in (self.evidence, self.least))
        found = torch.exp(2 * torch.logsumexp(self.log, 1) - torch.logsumexp(2 * self.log, 1))
        self.least = torch.minimum(self.least, found)
        return found

    def drawn_again(self, share: float, uniform: Tensor, node: Node) -> Tensor | None:
        """The particles (B K,) that continue, if a sample has fewer effective ones than ``share`` of K; else None.

        Systematic resampling with one uniform number (B,) for each sample. Their weights become equal, and the mean of
        those before is a factor of the evidence.
        """
        count = self.log.shape[1]
        few = self.effective(node) < share * count
        if not bool(few.any()):
            return None
        own = torch.arange(count, device=self.log.device)
        chosen = places(self.log, (own + uniform[:, None]) / count)
        chosen = torch.where(few[:, None], chosen, own)
        self.evidence = torch.where(few, self.evidence + self.log_mean(), self.evidence)
        self.log = torch.where(few[:, None], 0.0, self.log)
        return (chosen + count * torch.arange(len(chosen), device=chosen.device)[:, None]).flatten()

    def log_mean(self) -> Tensor:
        """The log (B,) of the mean weight of each sample."""
        return torch.logsumexp(self.log, 1) - math.log(self.log.shape[1])


def run_particles(
    task: Task,
    name: str,
    count: int,
    resample: float,
    look: Callable[[Model], Look],
    log_end: Callable[[Tensor], Tensor] | None = None,
) -> Cloud:
    """Moves ``count`` particles of each sample along the nodes of a task.

    Their noise source has numbers for one particle more, of which the first decides which particles continue.

    Args:
        name: what messages call the method.
        count: K.
        resample: particles are drawn again where the effective number is below this share of K.
        look: the function that views the particles, with a model of a part of the nodes.
        log_end: the log-density (n,) of the last states x (n, *) beyond that of the prior; by default 0.

    Raises:
        InputError: the steps of the solver have no density; a hook replaces the particles.
    """
    solver, path = task.solver, task.model.sde
    check_solver(name, solver, task.nodes, path)
    task.model.check_solver(solver)
    noise = task.noise(count + 1)
    x = task.start(noise)[:, :count].flatten(0, 1)
    weights, steps = Weights(len(task.seeds), count, x.device), 0
    for model, nodes in task.model.pieces(task.nodes):
        seen = look(model)
        for t, s in pairwise(nodes):
            view, numbers = seen(x, t), noise(t, s)
            if view.log_target is not None:
                weights.add(view.log_target)
            rows = weights.drawn_again(resample, _uniform(numbers), t)
            if rows is not None:
                x, view = x[rows], view.at(rows)
            x, change = stepped(solver, path, view, x, t, s, numbers[:, :count].flatten(0, 1))
            weights.add(change)
            x, replaced = run_hooks(x.view(-1, count, *x.shape[1:]), s, task.hooks)
            if replaced:
                raise InputError(f"{name}: a hook replaced the particles, whose weights are then wrong")
            x, steps = x.flatten(0, 1), steps + 1
    if log_end is not None:
        weights.add(log_end(x))
    weights.add(torch.where(torch.isfinite(x.flatten(1)).all(1), 0.0, math.nan))
    weights.effective(task.nodes[-1])
    evidence, x = weights.evidence + weights.log_mean(), x.view(-1, count, *x.shape[1:])
    return Cloud(x, weights.log, _uniform(noise.draw()), evidence, weights.least, steps, weights.failed)


def _uniform(numbers: Tensor) -> Tensor:
    """A uniform number (B,), float64, from the first normal one (B, K + 1, *) after those of the K particles."""
    found: Tensor = torch.special.ndtr(numbers[:, -1].flatten(1)[:, 0].double())
    return found


def stepped(
    solver: Solver, path: Schedule, view: View, x: Tensor, t: Node, s: Node, z: Tensor
) -> tuple[Tensor, Tensor]:
    """The particles (n, *) at s, and the change (n,) of their log-weights without that of the next view.

    A step is the solver's plus c dx0, so that with the deviation d of its noise z the density of the particle without
    guidance, divided by that with it, is exp(-z . e - |e|^2 / 2) with e = c dx0 / d.
    """
    x, _ = advance(solver, Answer(path, view.found), x, t, s, z)
    change = x.new_zeros(len(x), dtype=torch.float64)
    if view.log_target is not None:
        change = change - view.log_target.double()
    if view.rate is not None:
        # to the data, log(alpha / sigma) grows without end, but eps_c - eps_u falls like sigma: the integral is 1 / 2
        change = change + view.rate.double() * (0.5 if s.clean else s.lam - t.lam)
    law = kernel(solver, path, t, s)
    if view.dx0 is None or law.deviation == 0:
        return x, change
    moved = (law.on_x0 / law.deviation) * view.dx0
    lost = row_sums(moved * (z + 0.5 * moved))
    return x + law.deviation * moved, change - lost.double()


def repeated(given: Mapping[str, Tensor], times: int) -> dict[str, Tensor]:
    """Conditions (B, *) of samples as those (B K, *) of their particles."""
    return {name: value.repeat_interleave(times, 0) for name, value in given.items()}


@posteriors.register(
    "tds", kind="particles", reference="Wu et al. 2023, arXiv:2306.17775, algorithm 1",
    formula="w *= p(x_s | x_t) / p~(x_s | x_t) p^(y | x_s) / p^(y | x_t), p^(y | x_t) = N(y; A D, s^2 I + rho^2 A A^T)",
    note="exact for every prior and operator in the limit of many particles; reports log p(y)",
)  # fmt: skip
@dataclass(frozen=True)
class TDS(Posterior):
    """Twisted diffusion sampling: particles that are guided by p^(y | x_t) and weighted by what that is wrong.

    Of linear operators, p^(y | x_t) is N(y; A D, s^2 I + rho^2 A A^T), where rho^2 is the variance of x0 given x_t for
    data of variance v; of others N(y; A(D), (s^2 + rho^2) I). With twist="point" rho is 0, as in ``naive_dps``. The
    last weight is the true likelihood, for any twist. The draw is one of the weighted particles.

    Attributes:
        particles: K for each draw. Draws of different seeds are independent.
        twist: whether p^(y | x_t) knows of the spread of x0.
        variance: v.
        resample: particles are drawn again where their effective number is below this share of K.
    """

    particles: Annotated[int, Range(2)] = 64
    twist: Literal["gaussian", "point"] = "gaussian"
    variance: Positive = 1.0
    resample: Fraction = 0.5

    exact_for = "all data and operators, in the limit of many particles"
    nonlinear = True
    noise = "needed"
    differentiates = "model"
    without_gradient = True  # the weights alone know of y then
    solver = "ddpm"
    budgeted = False

    def check(self, operator: Operator, shape: tuple[int, ...]) -> None:
        operator.shape(shape)
        if operator.sigma == 0:
            raise InputError(f"tds divides by the noise of the observation: give {operator} a sigma above 0")
        if self.twist == "gaussian" and operator.linear and operator.svd(shape) is None:
            raise InputError(f"tds needs the singular values of {operator}, unknown for {shape}; twist=point does not")

    def exact_version(self, covariance: Tensor, operator: Operator) -> TDS | None:
        return replace(self, particles=max(self.particles, 64))  # with which draws differ by less than noise

    def draw(self, task: Task) -> Draws:
        return self.cloud(task).draws()

    def rows(self) -> int:
        return self.particles

    def cloud(self, task: Task) -> Cloud:
        """All particles of a task, of which ``draw`` returns one for each sample."""
        self.check(task.operator, task.shape)
        y, conditions = task.y.repeat_interleave(self.particles, 0), repeated(task.conditions, self.particles)

        def look(model: Model) -> Look:
            return lambda x, node: self.view(Ask(model, task.operator, y, x, node, conditions, False, set()))

        end = partial(log_likelihood, task.operator, y)
        return run_particles(task, "tds", self.particles, self.resample, look, end)

    def view(self, ask: Ask) -> View:
        """The model's prediction, the twist at it, and the correction that follows the gradient of the twist."""
        with gradients(True):
            ask = replace(ask, x=recordable(ask.x).detach().requires_grad_())
            log_twist = self.log_twist(ask.operator, ask.y, ask.found.x0, ask.node)
            g = ask.gradient(log_twist, torch.ones_like(log_twist))
        found = Prediction(ask.found.x0.detach(), ask.found.eps.detach())
        return View(found, log_twist.detach(), ask.node.sigma**2 / ask.node.alpha * g)

    def log_twist(self, operator: Operator, y: Tensor, d: Tensor, node: Node) -> Tensor:
        """log p^(y | x_t) (n,) in nats, of the model's x0 d (n, *)."""
        rho2 = 0.0 if self.twist == "point" else float(spread(node, self.variance))
        noise, res = operator.sigma**2, (y - operator(d)).flatten(1)
        variances = torch.full((res.shape[1],), noise + rho2, dtype=res.dtype, device=res.device)
        if operator.linear and rho2:
            svd = operator.svd(tuple(d.shape[1:]))
            assert svd is not None
            res = svd.left(y - operator(d))
            variances[len(svd.values) :] = noise
            variances[: len(svd.values)] = noise + rho2 * svd.values.to(res) ** 2
        return -0.5 * row_sums(res**2 / variances) - 0.5 * torch.log(2 * math.pi * variances).sum()
