"""The loss with its network as one module, which can be wrapped for several processes and run in mixed precision."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from solvers import InputError, Node
from solvers.noise.draws import Draws

from ..models.condition_noise import noised
from ..models.denoiser import Denoiser
from ..models.known_networks import unwrapped
from ..models.model import as_model
from ..paths.base import ModelLike
from .losses import Loss


class Objective(nn.Module):
    """The loss of a denoiser as a function of clean data: ``forward(x0, conditions, draws)`` returns (B,).

    Its parameters and buffers are those of the network and of what the loss learns.

    Args:
        denoiser: the model whose predictions enter the loss; any object, which calls the network as it likes.
        network: the network inside the denoiser.
        loss: the loss.
        precision: the dtype of the network's products, see ``options.PRECISIONS``; None for that of the network.
    """

    def __init__(
        self, denoiser: ModelLike, network: nn.Module, loss: Loss, precision: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.network = network
        self.learned = loss.state(denoiser.sde)
        if self.learned is not None:
            self.learned.to(next(network.parameters()).device)
        self.condition_noise = as_model(denoiser).condition_noise
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
        noise, known = self.condition_noise.after(draws.step), as_model(denoiser).conditions

        def numbers(levels: Tensor, count: int) -> Tensor:
            like = next(conditions[c.name] for c in known if c.kind != "class" and c.name in conditions)
            return draws.normal("condition_noise", (count,), like.dtype, like.device)

        return noised(noise, conditions, known, self.nodes(draws), denoiser.sde, numbers)

    def nodes(self, draws: Draws) -> Node[Tensor]:
        """The nodes (B,) at which the loss is computed with these numbers."""
        denoiser, loss = self.asked
        return loss.nodes(denoiser.sde, draws, self.learned)


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
    what: str, step: int, rows: Sequence[int], levels: Sequence[float], losses: Sequence[float], last: str
) -> InputError:
    """The error of an update whose loss or gradient is not finite.

    Args:
        what: "loss" or "gradient".
        step: the number of the update.
        rows: the numbers of the batch's rows in the data.
        levels: their noise levels sigma / alpha.
        losses: their losses.
        last: the name of the last checkpoint, or "".
    """
    found = [i for i, value in enumerate(losses) if value - value != 0] or list(range(len(rows)))
    shown = ", ".join(f"{rows[i]} at {levels[i]:.3g}" for i in found[:8])
    more = f" and {len(found) - 8} more" * (len(found) > 8)
    kept = f"; the last good checkpoint is {last}" if last else ""
    return InputError(
        f"the {what} is not finite at step {step}: rows of the data and their noise levels sigma / alpha: "
        f"{shown}{more}{kept}; try a lower learning_rate or clip"
    )
