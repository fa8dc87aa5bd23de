"""The base class of training losses, and denoising score matching (Vincent 2011).

A loss of denoising score matching is three choices. The *output* of the network (``Denoiser.predicts``) is the quantity
in which it answers. The *weighting* is the weight of its error at each noise level. The *time sampler* decides how
often a noise level is seen.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from solvers import InputError, Node, Registry
from solvers.noise.draws import Draws
from solvers.registry.options import Options
from solvers.registry.ranges import Range
from solvers.types.answers import predicted, raw_output

from ..models.classifier import Classifier
from ..models.model import Model, as_model
from ..paths import importance  # noqa: F401  (registers its time samplers)
from ..paths.base import SDE, ModelLike
from ..paths.time_samplers import TimeSampler, Uniform
from .weightings import ScoreMatching, Weighting


class Loss(Options):
    """A training loss; a frozen dataclass whose fields are its options.

    Attributes:
        space: the space of the states of the models that it trains.
    """

    space: ClassVar[str] = "gaussian"

    def __call__(
        self, denoiser: Any, x0: Tensor, draws: Draws, state: nn.Module | None = None, **conditions: Tensor
    ) -> Tensor:
        """The loss of each sample (B,), a mean over its dimensions.

        Args:
            denoiser: the model.
            x0: clean data (B, *), on the denoiser's device.
            draws: the only source of times and noise, of the same rows of the batch.
            state: what ``Loss.state`` returned.
            conditions: conditions of the samples, passed to the denoiser, each (B, *).
        """
        raise NotImplementedError

    def nodes(self, sde: SDE, draws: Draws, state: nn.Module | None = None) -> Node[Tensor]:
        """The nodes (B,) at which the loss of the rows is evaluated, float64 on the CPU."""
        raise NotImplementedError

    def state(self, sde: SDE) -> nn.Module | None:
        """What the loss learns (parameters) or remembers (buffers); None if that is nothing."""
        return None

    def remember(self, state: nn.Module | None, draws: Draws, losses: Tensor) -> None:
        """Puts the losses of an update into the state, after the update and once for each.

        Args:
            state: as it was when the losses were computed.
            draws: the numbers of the whole batch, ``Draws.of(seed, step, batch_size)``.
            losses: what the loss returned for the whole batch (B,), in the order of the places, on any device. They
                are the same on all processes, so that the state is.
        """

    def __str__(self) -> str:
        return losses.format(self)


losses: Registry[Loss] = Registry("loss", Loss)


class TimedLoss(Loss):
    """The base class of losses at one random time for each sample; a subclass has the option ``times``."""

    times: TimeSampler

    def nodes(self, sde: SDE, draws: Draws, state: nn.Module | None = None) -> Node[Tensor]:
        return sde(self.times.sample(sde, draws, _part(state, "times")))

    def state(self, sde: SDE) -> nn.Module | None:
        times = self.times.state()
        return None if times is None else nn.ModuleDict({"times": times})

    def remember(self, state: nn.Module | None, draws: Draws, losses: Tensor) -> None:
        part = _part(state, "times")
        if part is not None:
            self.times.remember(part, self.times.fractions(draws), losses)

    def drawn(self, sde: SDE, draws: Draws, state: nn.Module | None) -> tuple[Node[Tensor], Tensor | None]:
        """The nodes (B,) of the rows, and the factors (B,) of their losses or None."""
        t, factor = self.drawn_times(sde, draws, state)
        return sde(t), factor

    def drawn_times(self, sde: SDE, draws: Draws, state: nn.Module | None) -> tuple[Tensor, Tensor | None]:
        """The times (B,) of the rows, and the factors (B,) of their losses or None."""
        return self.times.weighted_at(sde, self.times.fractions(draws), _part(state, "times"))


@dataclass(frozen=True)
class WeightedLoss(TimedLoss):
    """The base class of losses that are a weighted error at one random time for each sample.

    Args:
        weighting: the weight of the error of eps.
        times: the sampler of times on the path.
    """

    weighting: Weighting = field(default=ScoreMatching())
    times: TimeSampler = field(default=Uniform())

    def state(self, sde: SDE) -> nn.Module | None:
        parts = {"weighting": self.weighting.state(), "times": self.times.state()}
        kept = {name: part for name, part in parts.items() if part is not None}
        return nn.ModuleDict(kept) if kept else None

    def weighted(
        self, error: Tensor, scale: Any, model: Model, node: Node[Tensor], factor: Tensor | None, state: Any
    ) -> Tensor:
        """The loss (B,) of errors (B,).

        Args:
            error: mean squares over the dimensions.
            scale: the squared error of eps divided by ``error``, a number or (B,).
            node, factor: from ``drawn``.

        Raises:
            InputError: the weighting needs a denoiser with ``sigma_data``.
        """
        weight = torch.as_tensor(self.weighting.of_eps(model.sde, node, model.sigma_data) * scale)
        value = self.weighting.applied(weight.to(error) * error, node, _part(state, "weighting"))
        return value if factor is None else factor.to(value) * value


def _part(state: nn.Module | None, name: str) -> nn.Module | None:
    """The part of ``TimedLoss.state`` of that name, or None."""
    return state[name] if isinstance(state, nn.ModuleDict) and name in state else None


@losses.register("dsm", reference="Vincent 2011; Song et al. 2021, arXiv:2011.13456, eq. 7")
@dataclass(frozen=True)
class DSM(WeightedLoss):
    """Denoising score matching: E w(t) |eps_model - eps|^2, a mean over dimensions, at x = alpha x0 + sigma eps.

    The error is measured in the network's own output, where it has no rounding errors from a conversion, and multiplied
    by the weight that this output needs.
    """

    def __call__(
        self, denoiser: ModelLike, x0: Tensor, draws: Draws, state: nn.Module | None = None, **conditions: Tensor
    ) -> Tensor:
        """See ``Loss``.

        Raises:
            InputError: a weighting that needs a denoiser with ``sigma_data``.
        """
        model = as_model(denoiser)
        node, ratio = self.drawn(model.sde, draws, state)
        eps = draws.normal_like(x0)
        wide = node.like(x0)
        out = raw_output(model.raw, wide.alpha * x0 + wide.sigma * eps, node, conditions)
        error = (out - model.output.target(x0, eps, wide)).square().flatten(1).mean(1)
        # eps = c x + d out, so an error of the output is an error d times as large of eps
        factor: Any = model.output.read(1.0, 0.0, node).eps
        return self.weighted(error, factor**2, model, node, ratio, state)


@losses.register("sliced", reference="Song et al. 2019, arXiv:1905.07088, eq. 8")
@dataclass(frozen=True)
class Sliced(WeightedLoss):
    """Sliced score matching with variance reduction, at x = alpha x0 + sigma eps: E w sigma^2 (2 v' J v + |s|^2) + w.

    s is the model's score, J its Jacobian by x and v a vector of random signs. In terms of eps = -sigma s the loss is
    w (|eps|^2 - 2 sigma v' (d eps / d x) v + 1), as a mean over dimensions. By partial integration, its expectation and
    its expected gradient are those of ``dsm`` with the same weighting and times. It costs a derivative of the network,
    whose own gradient is needed, and has the larger variance: it is not meant for training at scale.

    Args:
        probes: how many vectors v.
    """

    probes: Annotated[int, Range(1, 1000)] = 1

    def __call__(
        self, denoiser: ModelLike, x0: Tensor, draws: Draws, state: nn.Module | None = None, **conditions: Tensor
    ) -> Tensor:
        """See ``Loss``."""
        model = as_model(denoiser)
        node, factor = self.drawn(model.sde, draws, state)
        wide = node.like(x0)
        signs = draws.normal("probes", (self.probes, *x0.shape[1:]), x0.dtype, x0.device).sign()
        wanted = torch.is_grad_enabled()
        with torch.enable_grad():
            x = (wide.alpha * x0 + wide.sigma * draws.normal_like(x0)).requires_grad_()
            # an operation between, because a network's checks take a leaf for a tensor of the user's
            eps = predicted(model.predict, 1 * x, node, conditions).eps
            traces = []
            for v in signs.unbind(1):
                (product,) = torch.autograd.grad((eps * v).sum(), x, create_graph=wanted, retain_graph=True)
                traces.append((product * v).flatten(1).mean(1))
            trace = torch.stack(traces).mean(0)
            error = eps.square().flatten(1).mean(1) - 2 * wide.sigma.flatten() * trace + 1
        return self.weighted(error if wanted else error.detach(), 1.0, model, node, factor, state)


@losses.register("classifier", reference="Dhariwal and Nichol 2021, arXiv:2105.05233, section 4; arXiv:2011.13456")
@dataclass(frozen=True)
class CrossEntropy(Loss):
    """-log p(c | x_t) in nats of a ``Classifier``, at x = alpha x0 + sigma eps; 0 of a sample without a class.

    In a run, this loss makes the network a classifier of the data's condition of classes.

    Args:
        times: the sampler of times on the path; one without a memory.
    """

    times: TimeSampler = field(default=Uniform())

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.times.state() is not None:
            raise InputError(f"classifier: times={self.times} remembers losses; use uniform, lognormal or logsnr")

    def nodes(self, sde: SDE, draws: Draws, state: nn.Module | None = None) -> Node[Tensor]:
        return sde(self.times.sample(sde, draws))

    def __call__(
        self, denoiser: Any, x0: Tensor, draws: Draws, state: nn.Module | None = None, **conditions: Tensor
    ) -> Tensor:
        """See ``Loss``; ``denoiser`` is the classifier.

        Raises:
            InputError: it is not a ``Classifier``.
        """
        if not isinstance(denoiser, Classifier):
            raise InputError(f"the loss classifier trains a scoresde.Classifier, got a {type(denoiser).__name__}")
        node = self.nodes(denoiser.sde, draws)
        wide = node.like(x0)
        return -denoiser(wide.alpha * x0 + wide.sigma * draws.normal_like(x0), node, **conditions)
