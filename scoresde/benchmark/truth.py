"""The exact solution of the probability-flow ODE, and the distance of samples from it.

Deterministic solvers all approximate the same map. Their distance to its exact solution is their error, and it
distinguishes two solvers long before a distance between sample sets does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from solvers import InputError, Node, generator, make, solve
from solvers.errors import positive_integer

from ..models.evaluation import evaluation
from ..models.problem import Diffusion
from ..paths.base import ModelLike
from ..sampling.batches import batches_of
from ..sampling.plan import Plan, PlanRequest
from ..sampling.sample import sample
from .metrics import Estimate

_RESAMPLES = 400  # for the interval of an error; each costs a mean of N numbers


@dataclass(frozen=True)
class Truth:
    """The exact solution of the probability-flow ODE from the starts of some seeds.

    Attributes:
        x: the solution after the last step to sigma = 0, E[x0 | x_t] at t_min (N, *).
        at_t_min: the solution at t_min (N, *).
        error: root-mean-square distance per dimension between ``at_t_min`` and a solve with half as many steps. It
            exceeds the error of ``at_t_min`` if twice the steps at least halve that error.
        nfe: model evaluations per sample, for all solves together.
    """

    x: Tensor = field(repr=False)
    at_t_min: Tensor = field(repr=False)
    error: float
    nfe: int


def ode_solution(
    denoiser: ModelLike,
    shape: Sequence[int],
    seeds: Sequence[int],
    steps: int = 128,
    *,
    condition: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
    batch_size: int | None = None,
) -> Truth:
    """Solves the ODE accurately from the same starts as the samplers.

    Uses Heun's method with n, n / 2 and n / 4 equal steps of log(alpha / sigma). Richardson extrapolation
    (4 x_n - x_{n/2}) / 3 removes the leading error; the same with n / 2 and n / 4 steps estimates the remaining error.

    Args:
        shape: the shape of one sample.
        seeds: one per sample.
        steps: n, from t_max to t_min; a multiple of four.
        condition, device, batch_size: as for ``sample``.
        dtype: the dtype of the state.

    Raises:
        InputError: steps is not a positive multiple of four; see also ``sample``.
    """
    if positive_integer("steps", steps) % 4:
        raise InputError(f"the steps of the exact solution must be a multiple of four, got {steps}")

    plan = Plan.make(denoiser, PlanRequest("heun", "logsnr", steps))
    fine, half, quarter = (
        sample(
            denoiser, shape, seeds, plan=plan.in_steps(steps // part),
            condition=condition, dtype=dtype, device=device, batch_size=batch_size, on_failure="raise",
        )
        for part in (1, 2, 4)
    )  # fmt: skip
    at_t_min = (4 * fine.x - half.x) / 3
    coarser = (4 * half.x - quarter.x) / 3
    x = _to_data(denoiser, at_t_min, fine.nodes[-1], condition or {}, batch_size)
    error = float((at_t_min - coarser).double().square().mean().sqrt())
    return Truth(x.cpu(), at_t_min.cpu(), error, fine.nfe + half.nfe + quarter.nfe + 1)


def _to_data(
    denoiser: ModelLike, x: Tensor, node: Node, condition: Mapping[str, Tensor], batch_size: int | None
) -> Tensor:
    """The samplers' last step, from x (N, *) at ``node`` to sigma = 0."""
    problem, method = Diffusion(denoiser, condition), make("heun")
    ends = (node, denoiser.sde.clean)
    with evaluation(denoiser), torch.no_grad():
        return torch.cat([solve(method, problem.select(b), x[b], ends).x for b in batches_of(len(x), batch_size)])


def exact_end(truth: Truth, plan: Plan) -> Tensor | None:
    """The exact solution at the end of the plan; None if the plan and the solution cover different ranges.

    A solver with nodes or a grid of its own, a tuned program or ``few``, may step to sigma = 0 from above t_min.
    It has no limit of many steps that would end elsewhere, so its outcome is compared with the exact one.
    """
    start, end, sde = plan.nodes[0], plan.nodes[-1], plan.sde
    last = plan.nodes[-2] if end.sigma == 0 else end
    grid = plan.solver.own_grid
    own = end.sigma == 0 and (plan.solver.nodes is not None or (grid is not None and plan.grid == str(grid)))
    if start.t != sde.t_max or (last.t != sde.t_min and len(plan.nodes) > 2 and not own):
        return None
    return truth.x if end.sigma == 0 else truth.at_t_min


def check_truth(truth: Truth | None, count: int) -> None:
    """Rejects an exact solution from other starts.

    Raises:
        InputError: it has another number of samples.
    """
    if truth is not None and len(truth.x) != count:
        raise InputError(f"the exact solution has {len(truth.x)} samples for {count} seeds")


def error_of(x: Tensor, exact: Tensor) -> Estimate:
    """Root-mean-square distance per dimension, with the 95 % percentile interval over resampled samples."""
    squares = (x.double() - exact.to(x.device).double()).flatten(1).square().mean(1)
    draws = torch.randint(len(squares), (_RESAMPLES, len(squares)), generator=generator(0, 2))
    again = squares[draws].mean(1).sqrt()
    low, high = again.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Estimate(float(squares.mean().sqrt()), low, high, tuple(again.tolist()))
