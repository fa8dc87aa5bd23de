"""Samples of p(x) p(c|x)^s: particles under classifier-free guidance, with weights for what that is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import torch
from torch import Tensor

from solvers import BrownianNoise, Hook, InputError, Node, Prediction, SeededNoise, Solution, Solver

from ..guidance.guided import Guided
from ..guidance.linear import CFG, Tilt
from ..models.model import Model, ModelWrapper
from ..models.per_sample import row_sums
from ..models.problem import Diffusion
from ..operators.nonlinear import Custom
from .base import Task
from .particles import Cloud, Look, View, repeated, run_particles

NOTHING = Custom(lambda x: x.flatten(1)[:, :0])  # observes no number


def tilt_of(model: Model) -> Tilt | None:
    """The rule of a model that ``guide`` made with ``tilt``; None of other models."""
    while isinstance(model, ModelWrapper):
        if isinstance(model, Guided) and isinstance(model.guidance, Tilt):
            return model.guidance
        model = model.model
    return None


def tilt_default(model: Model, x_init: object, nfe: int | None, forwards: int | None) -> tuple[str, str] | None:
    """The default solver and grid of a model that ``guide`` made with ``tilt``; None for other models.

    Raises:
        InputError: its particles are to start from one state, or evaluations are limited for one of them.
    """
    if tilt_of(model) is None:
        return None
    if any(given is not None for given in (x_init, nfe, forwards)):
        raise InputError(
            "tilt moves many particles for each sample, from the prior: leave out x_init, nfe and forwards"
        )
    return "ddpm", "logsnr(end=zero)"


def with_cfg(model: Model, scale: float) -> Model:
    """The model with cfg instead of ``tilt``."""
    assert isinstance(model, ModelWrapper)
    made = copy(model)
    if isinstance(made, Guided) and isinstance(made.guidance, Tilt):
        made.guidance = CFG(scale)
    else:
        made.model = with_cfg(model.model, scale)
    return made


def tilted_cloud(rule: Tilt, task: Task) -> Cloud:
    """The particles of a task whose model ``guide`` made with ``tilt``; nothing is observed.

    ``log_evidence`` estimates the log of the integral of p(x) (p(x|c) / p(x))^s.
    """
    conditions, s = repeated(task.conditions, rule.particles), rule.scale

    def look(model: Model) -> Look:
        with_c, without = with_cfg(model, 1.0), with_cfg(model, 0.0)

        def view(x: Tensor, node: Node) -> View:
            c, u = with_c.predict(x, node, **conditions), without.predict(x, node, **conditions)
            gap = c.eps - u.eps
            found = Prediction(u.x0 + s * (c.x0 - u.x0), u.eps + s * gap, c.nu)
            return View(found, rate=s * (s - 1) * row_sums(gap.square()))

        return view

    return run_particles(task, "tilt", rule.particles, rule.resample, look)


def tilted(
    rule: Tilt,
    problem: Diffusion,
    x: Tensor,
    solver: Solver,
    nodes: Sequence[Node],
    noise: SeededNoise,
    hooks: Sequence[Hook],
) -> Solution:
    """One sample for each row of x (B, *), which gives their number, shape and dtype alone.

    Raises:
        InputError: the noise is that of Brownian paths; see also ``run_particles``.
    """
    if isinstance(noise, BrownianNoise):
        raise InputError("tilt draws noise for each particle: leave out noise='brownian'")
    task = Task(
        problem.model, NOTHING, x.new_zeros(len(x), 0), tuple(x.shape[1:]), solver, tuple(nodes), noise.seeds,
        problem.conditions, hooks,
    )  # fmt: skip
    cloud = tilted_cloud(rule, task)
    drawn, none = cloud.draws(), torch.zeros(len(x), dtype=torch.long)
    return Solution(drawn.x, nodes[-1], drawn.nfe, cloud.steps, None, none, none, drawn.failed, drawn.effective)
