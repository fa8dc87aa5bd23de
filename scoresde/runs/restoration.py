"""What a run restores: the operator, the observations and their truth, from files or measured from data."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from solvers import InputError

from ..data.dataset import DataCard
from ..io.array_files import read_array
from ..io.inputs import tensor_of
from ..io.result_files import environment
from ..operators.base import Operator, measure, operators
from ..posterior.base import observations
from ..sampling.restored import Restored
from . import build
from .conditions import NONE, Chosen, choose
from .config import flat
from .run import Run
from .score import weights_of

TEST = "test"  # instead of a file: held-out data of the run
_FEW = 4  # held-out samples that are measured by default


class Observed(NamedTuple):
    """What is to be restored.

    Attributes:
        operator: A, with its noise.
        y: the observations (n, *m).
        truth: the samples (n, *) that were observed, if they are known.
        source: where y comes from, in words.
    """

    operator: Operator
    y: Tensor
    truth: Tensor | None
    source: str


def observed(
    run: Run,
    measured: str | None = None,
    truth: Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    given: bool = False,
) -> Observed:
    """The operator and the observations of a config's section ``sampling``.

    Args:
        measured: a .npy file of samples (*) or (n, *), or "test" for held-out data of the run: the observations are
            made from them, in place of the file ``sampling.observation``.
        truth: a .npy file with the samples that were observed, one or one for each observation.
        limit: use only the first observations; by default 4 of held-out data, and all of a file.
        seed: that of the noise of measured observations.
        given: whether the command names a file of observations, which ``measured`` would replace.

    Raises:
        InputError: there is no operator, or not exactly one source of observations; a file cannot be read, or its
            arrays have other shapes.
    """
    section, shape = run.config.sampling, run.card.shape
    if section.operator is None:
        raise InputError("no operator: add --operator, such as --operator='downsample(2, sigma=0.05)'")
    operator = operators.make(section.operator)
    if measured is not None:
        if truth is not None:
            raise InputError("--measure knows the truth: leave out --truth")
        if given:
            raise InputError("--measure makes the observation from data: leave out --observation")
        x = _held_out(run, limit or _FEW) if measured == TEST else samples_in(measured, "data", run.card)[:limit]
        y = measure(operator, x.double(), seed).float()
        return Observed(operator, y, x, f"measured from {measured}, noise of seed {seed}")
    if section.observation is None:
        raise InputError(
            "no observation: add --observation=FILE.npy; or --measure=FILE.npy or --measure=test, which make it from "
            "data by the operator"
        )
    there = read_array(section.observation, "observation")
    y = observations(operator, tensor_of("the observation", there), shape)[:limit]
    if truth is None:
        return Observed(operator, y, None, section.observation)
    x = samples_in(truth, "truth", run.card)
    if len(x) not in (1, len(y)):
        raise InputError(f"{truth} has {len(x)} samples for {len(y)} observations: give one, or one for each")
    return Observed(operator, y, x.expand(len(y), *shape), section.observation)


def _held_out(run: Run, count: int) -> Tensor:
    return build.load_data(run.config, run.card).test.first(count).x.float()


def samples_in(path: str | Path, what: str, card: DataCard) -> Tensor:
    """The samples (n, *) of a .npy file that contains (n, *) or one sample (*).

    Raises:
        InputError: the file cannot be read, or has other shapes, numbers that are not finite, or another scale.
    """
    found = tensor_of(f"the {what}", read_array(path, what))
    given = tuple(found.shape)
    found = found.unsqueeze(0) if given == card.shape else found
    if tuple(found.shape[1:]) != card.shape or not len(found):
        raise InputError(
            f"{path}: samples of this run have the shape {card.shape}; the {what} must have it too, or (n, "
            f"{str(card.shape)[1:]} for n samples; got {given}"
        )
    found = found.float()
    if not torch.isfinite(found).all():
        raise InputError(f"{path}: the {what} must contain finite numbers only")
    low, high, margin = float(found.min()), float(found.max()), card.high - card.low
    if card.levels is not None and (low < card.low - margin or high > card.high + margin):
        raise InputError(
            f"{path}: the {what} ranges from {low:g} to {high:g}, but the samples of this run from {card.low:g} to "
            f"{card.high:g}: scale it like the training data"
        )
    return found


def conditions_of(run: Run, count: int, classes: Sequence[int | None] | None, given: str | None) -> Chosen:
    """The conditions of ``count`` observations; those that are not given are left out, if the run was trained for it.

    Raises:
        InputError: the run was not trained without a condition that is not given; see also ``conditions.choose``.
    """
    left = [c.name for c in run.card.conditions if not re.search(rf"(^|\s){c.name}=", given or "")]
    if classes is not None:
        left = [c.name for c in run.card.conditions if c.name in left and c.kind != "class"]
    if left and not (given or "").endswith(".npz"):
        if not run.config.model.condition_dropout:
            raise InputError(
                f"this run was trained with the condition {left[0]} for every sample, and cannot leave it out: add "
                f"--condition {left[0]}=VALUE"
            )
        given = " ".join([*([given] if given else []), *(f"{name}={NONE}" for name in left)])
    return choose(run.card.conditions, count, classes, given)


def facts_of(run: Run) -> dict[str, Any]:
    """Everything about a run that decides its draws, as JSON types."""
    network = run.denoiser.network
    assert isinstance(network, nn.Module)
    decides = ("sde", "model", "sampling.guidance", "sampling.fresh_conditions")
    given = {n: v for n, v in flat(run.config.to_dict()) if n in decides or n.partition(".")[0] in decides}
    versions = environment()
    return {
        "the checkpoint's step": run.step,
        "the weights": weights_of(network),
        **given,
        "scoresde": versions["scoresde"],
        "torch": versions["torch"],
    }


def residuals(operator: Operator, y: Tensor, x: Tensor) -> Tensor:
    """|y - A(x)|^2 / (m sigma^2) (n, S) of draws x (n, S, *), for observations y (n, *m) of m numbers each.

    Its mean is 1 over draws of the posterior and over observations, with the deviation sqrt(2 / m) at the truth. Of an
    operator without noise: the root of |y - A(x)|^2 / m.
    """
    gap = (operator(x.flatten(0, 1)).view(*x.shape[:2], -1) - y.flatten(1).unsqueeze(1)).double()
    square = gap.square().mean(2)
    return square / operator.sigma**2 if operator.sigma > 0 else square.sqrt()


def scores(seen: Observed, found: Restored) -> list[dict[str, float]]:
    """Of each observation: the residuals of its draws, and what is known beyond, as JSON types.

    ``rmse`` and ``draw_rmse`` are the distances of the mean and of the draws from the truth, root mean squares.
    """
    x, y = found.x.cpu(), found.y.cpu()
    there = residuals(seen.operator, y, x)
    rows = []
    for i, draws in enumerate(x):
        kept = torch.isfinite(there[i])
        values = there[i][kept]
        row = {"residual": float(values.mean()), "least": float(values.min()), "most": float(values.max())}
        row["residual_of_mean"] = float(residuals(seen.operator, y[i : i + 1], found.mean[i : i + 1, None].cpu()))
        if found.log_evidence is not None:
            row["log_evidence"] = float(found.log_evidence[i])
        if found.effective is not None:
            row["effective"] = float(found.effective[i])
        if seen.truth is not None:
            row["residual_of_truth"] = float(residuals(seen.operator, y[i : i + 1], seen.truth[i : i + 1, None]))
            gaps = draws[kept] - seen.truth[i]
            row["rmse"] = float(gaps.mean(0).square().mean().sqrt())
            row["draw_rmse"] = float(gaps.square().mean().sqrt())
        rows.append(row)
    return rows
