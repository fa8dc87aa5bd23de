"""``trajectory``: the exact solution of a model's probability-flow ODE, against which solvers are chosen and tuned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

import solvers
from solvers import Node, SeededNoise

from ..io.inputs import Array, Seeds, conditions_of, device_of, draws_of
from ..models.faults import checked_model
from ..models.problem import Diffusion
from ..paths.base import ModelLike
from .sample import sample


def trajectory(
    denoiser: ModelLike,
    shape: Sequence[int] | None,
    seeds: Seeds,
    steps: int = 96,
    *,
    condition: Mapping[str, Array] | None = None,
    batch_size: int | None = None,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> tuple[Diffusion, solvers.Trajectory]:
    """The exact solution of the probability-flow ODE from the starts of some seeds, and the problem that it solves.

    RK4 in equal steps of log(alpha / sigma), then one step to sigma = 0; 4 evaluations a step. The starts are those of
    ``sample`` with the same seeds.

    >>> import scoresde, solvers
    >>> model = scoresde.targets.Empirical(torch.tensor([[-1.0], [0.5], [1.0]])).denoiser(scoresde.VP())
    >>> problem, truth = trajectory(model, (1,), range(64))
    >>> error = truth.errors("ddim", problem, truth.place("karras", 20)).mean().sqrt()
    >>> bool(error < 0.1), bool(truth.errors("rk4", problem, truth.nodes).max() < 1e-12)
    (True, True)

    Args:
        shape: the shape of one sample; None if the model knows it.
        seeds: one per sample.
        steps: steps from t_max to t_min.
        condition, batch_size, device, progress: as for ``sample``.
        dtype: the dtype of the states.

    Returns:
        the problem, whose network the caller puts into evaluation mode, and the trajectory.

    Raises:
        InputError: the model has no ODE; see ``sample``.
    """
    model = checked_model(denoiser)
    given, lengths, _ = draws_of(seeds, shape, None, model.shape)
    found: dict[Node, list[Tensor]] = {}

    def record(x: Tensor, node: Node) -> None:
        found.setdefault(node, []).append(x.clone())

    made = sample(
        denoiser, lengths, given, "rk4", "logsnr(end=zero)", steps, condition=condition, hooks=[record],
        batch_size=batch_size, dtype=dtype, device=device, progress=progress, on_failure="raise",
    )  # fmt: skip
    first = made.nodes[0]
    start = (first.alpha**2 + first.sigma**2) ** 0.5 * SeededNoise(given, lengths, dtype, device_of(device)).initial()
    states = torch.stack([start, *(torch.cat(parts) for parts in found.values())])
    conditions = conditions_of(condition, len(given), device_of(device), model.conditions, model.given)
    spent = int(made.nfe_per_sample.sum())
    return Diffusion(model, conditions), solvers.Trajectory(model.sde, made.nodes, states, spent)
