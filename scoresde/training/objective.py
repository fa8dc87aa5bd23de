"""The loss with its network as one module, which can be wrapped for several processes and run in mixed precision; and
what training asks of data and does to conditions."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from solvers import InputError, Node
from solvers.noise.draws import Draws

from ..data.conditions import Condition, dropped
from ..data.rows import Batch
from ..io.inputs import samples_of, tensor_of
from ..models.condition_noise import noised
from ..models.denoiser import Denoiser
from ..models.faults import Fault, data_faults
from ..models.known_networks import unwrapped
from ..models.model import Model, as_model
from ..paths.base import ModelLike
from ..sampling.discrete import tokens_of
from .losses import Loss, losses


class Objective(nn.Module):
    """The loss of a denoiser as a function of clean data: ``forward(x0, conditions, draws)`` returns (B,).

    Its parameters and buffers are those of the network and of what the loss learns.

    Args:
        denoiser: the model whose predictions enter the loss; any object, which calls the network as it likes.
        network: the network inside the denoiser.
        loss: the loss.
        precision: the dtype of the network's products, see ``options.PRECISIONS``; None for that of the network.

    Raises:
        InputError: the loss is of another space than the denoiser's states.
    """

    def __init__(
        self, denoiser: ModelLike, network: nn.Module, loss: Loss, precision: torch.dtype | None = None
    ) -> None:
        super().__init__()
        check_space(loss, as_model(denoiser, None))
        self.network = network
        self.learned = loss.state(denoiser.sde)
        if self.learned is not None:
            self.learned.to(next(network.parameters()).device)
        self.condition_noise = as_model(denoiser, None).condition_noise
        if self.condition_noise is not None and isinstance(denoiser, Denoiser):
            denoiser = replace(denoiser, condition_noise=None)  # it receives conditions that have their noise already
        # in a tuple: a denoiser that is a module itself would enter its weights a second time
        self.asked = (denoiser, loss)
        self.precision = precision

    def forward(self, x0: Tensor, conditions: Mapping[str, Tensor], draws: Draws) -> Tensor:
        """The loss of each sample (B,).

        Args:
            x0: clean data (B, *).
            conditions: by the name of the network's argument.
            draws: the random numbers of these rows.
        """
        denoiser, loss = self.asked
        conditions = self._noised(denoiser, conditions, draws)
        if self.precision is None:
            return loss(denoiser, x0, draws, self.learned, **conditions)
        with torch.autocast(x0.device.type, self.precision):
            return loss(denoiser, x0, draws, self.learned, **conditions).float()

    def _noised(self, denoiser: ModelLike, conditions: Mapping[str, Tensor], draws: Draws) -> Mapping[str, Tensor]:
        """The conditions with the noise of this update, at the nodes of the loss."""
        if self.condition_noise is None:
            return conditions
        noise, known = self.condition_noise.after(draws.step), as_model(denoiser, None).conditions

        def numbers(levels: Tensor, count: int) -> Tensor:
            like = next(conditions[c.name] for c in known if c.kind != "class" and c.name in conditions)
            return draws.normal("condition_noise", (count,), like.dtype, like.device)

        return noised(noise, conditions, known, self.nodes(draws), denoiser.sde, numbers)

    def nodes(self, draws: Draws) -> Node[Tensor]:
        """The nodes (B,) at which the loss is computed with these numbers."""
        denoiser, loss = self.asked
        return loss.nodes(denoiser.sde, draws, self.learned)

    def levels(self, draws: Draws) -> list[float]:
        """The noise levels (B,) of these nodes; of discrete states their times."""
        nodes = self.nodes(draws)
        found = nodes.t if self.asked[1].space == "discrete" else nodes.ratio
        levels: list[float] = torch.as_tensor(found).expand(len(draws)).tolist()
        return levels

    @property
    def level(self) -> str:
        """What ``levels`` are, in words."""
        return "times" if self.asked[1].space == "discrete" else "noise levels sigma / alpha"


@dataclass(frozen=True)
class Conditioning:
    """A change of a batch, for ``prepared(changes=...)``; each sample has numbers of its own in [0, 1).

    Attributes:
        conditions: those that a sample may lose.
        dropout: the probability that it loses all together, see ``dropped``.
        self_conditioning: half of the samples get the network's own estimate (Chen et al. 2023, arXiv:2208.04202,
            algorithm 1), see ``SelfConditioned``.
        dropout_each: the probability that it loses one alone, for each of several.

    Raises:
        InputError: a probability is outside [0, 1), or there is nothing to lose.
    """

    conditions: tuple[Condition, ...]
    dropout: float = 0.0
    self_conditioning: bool = False
    dropout_each: float = 0.0

    def __post_init__(self) -> None:
        for name, value in (("condition_dropout", self.dropout), ("condition_dropout_each", self.dropout_each)):
            if not 0 <= value < 1:
                raise InputError(f"{name} must lie in [0, 1), got {value!r}")
            if value and not self.conditions:
                raise InputError(f"{name}={value:g}, but the data have no conditions: set data.labels")
        if self.dropout_each and len(self.conditions) == 1:
            raise InputError(
                f"condition_dropout_each={self.dropout_each:g} is for several conditions, the data have "
                f"{self.conditions[0].name} alone: use condition_dropout"
            )

    def __call__(self, batch: Batch, draws: Draws) -> Batch:
        conditions = dropped(batch.conditions, self.conditions, self.dropout, draws, self.dropout_each)
        if self.self_conditioning:
            chosen = draws.uniform("conditions", 2)[:, 1] < 0.5
            conditions["with_estimate"] = chosen.to(batch.x)
        return Batch(batch.x, conditions)


def numbers_of(model: Model, data: Any) -> Tensor:
    """Training data (N, *) for a model as a tensor; of discrete states in the dtype that they have.

    Raises:
        InputError: they are no tensor; of Gaussian states, they are not finite floats.
    """
    name = "the training data"
    return tensor_of(name, data) if model.space == "discrete" else samples_of(name, data)


def faults_of(model: Model, x: Tensor, bin_width: float | None) -> list[Fault]:
    """The faults of data x (N, *) for a model, see ``data_faults``; tokens have no scale.

    Raises:
        InputError: they are no tokens of the model's process; tokens with a bin width.
    """
    if model.space != "discrete":
        return data_faults(model, x, bin_width)
    tokens_of("the training data", x, model.sde, masked=False)
    if bin_width is not None:
        raise InputError(
            f"bin_width={bin_width:g} spreads levels over their bins, but {model.sde} has tokens: leave it out"
        )
    return []


def check_space(loss: Loss, model: Model) -> None:
    """Accepts a loss for the states of a model.

    Raises:
        InputError: it is of another space.
    """
    if loss.space != model.space:
        kinds: dict[str, Any] = {name: losses.info(name).cls for name in losses.names()}
        raise InputError(
            f"the loss {losses.info_of(loss).name} is for {loss.space} states, but the model has {model.space} states; "
            f"use one of {', '.join(name for name, kind in kinds.items() if kind.space == model.space)}"
        )


@contextlib.contextmanager
def training_mode(network: nn.Module, compiled: bool = False) -> Iterator[None]:
    """A block in which the network is in training mode; if it fails, every part gets its mode back.

    No gradient remains after it.

    Args:
        network: the network.
        compiled: run it through ``torch.compile`` in the block; it remains the same object with the same names.
    """
    modes = [(part, part.training) for part in network.modules()]
    network.train()
    own = unwrapped(network)
    try:
        if compiled:
            own.compile()
        yield
    except BaseException:
        for part, mode in modes:
            part.training = mode
        raise
    finally:
        if compiled:
            own._compiled_call_impl = None
        for p in network.parameters():
            p.grad = None


@contextlib.contextmanager
def buffers_kept(module: nn.Module) -> Iterator[None]:
    """A block after which the buffers of a module, such as running statistics, are those of before."""
    kept = [
        (part._buffers, name, tensor, tensor.clone())
        for part in module.modules()
        for name, tensor in part._buffers.items()
        if tensor is not None
    ]
    try:
        yield
    finally:
        for place, name, tensor, copy in kept:
            place[name] = tensor.copy_(copy)


def parts_of(length: int, count: int) -> list[slice]:
    """``length`` rows in ``count`` parts, one after the other, whose lengths differ by one at most."""
    ends = [length * i // count for i in range(count + 1)]
    return [slice(first, last) for first, last in itertools.pairwise(ends)]


def not_finite(
    what: str, step: int, rows: Sequence[int], levels: Sequence[float], losses: Sequence[float], last: str, level: str
) -> InputError:
    """The error of an update whose loss or gradient is not finite.

    Args:
        what: "loss" or "gradient".
        step: the number of the update.
        rows: the numbers of the batch's rows in the data.
        levels: their noise levels or times.
        losses: their losses.
        last: the name of the last checkpoint, or "".
        level: what the levels are, in words.
    """
    found = [i for i, value in enumerate(losses) if value - value != 0] or list(range(len(rows)))
    shown = ", ".join(f"{rows[i]} at {levels[i]:.3g}" for i in found[:8])
    more = f" and {len(found) - 8} more" * (len(found) > 8)
    kept = f"; the last good checkpoint is {last}" if last else ""
    return InputError(
        f"the {what} is not finite at step {step}: rows of the data and their {level}: "
        f"{shown}{more}{kept}; try a lower learning_rate or clip"
    )
