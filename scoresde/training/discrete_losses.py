"""Losses of discrete states: tokens x0 (B, *), nats per token.

``discrete_bound``, ``score_entropy`` and ``masked`` are unbiased estimates of the bounds that
``scoresde.discrete_bound`` evaluates: of a chain of N steps, in continuous time, and in continuous time for masks.
``score_entropy`` is also the bound of uniform noise in terms of laws that do not see their own token (Schiff et al.
2024, arXiv:2412.10193), with a network that predicts ``x0_loo_logits``. ``flow_kl`` bounds the likelihood of another
reverse process, and the others bound nothing.

A time sampler other than uniform weights the terms, unless it is wrapped in ``importance`` or ``adaptive``.
``discrete_bound(times=adaptive(bins=100))`` draws the steps in proportion to sqrt(E L^2), as multinomial diffusion
does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from solvers import InputError, Node
from solvers.discrete.base import Product
from solvers.noise.draws import Draws
from solvers.registry.ranges import NonNegative, Range
from solvers.time_grids.network_steps import train_timesteps
from solvers.types.process import Process, ProcessNode

from ..bounds.discrete_terms import clock_rate, hazard, noised, prior_term, score_entropy, step_term, uniforms
from ..models.discrete.denoiser import DiscreteDenoiser
from ..models.discrete.model import DiscreteModel
from ..models.model import as_model
from ..paths.base import SDE
from ..paths.time_samplers import LowDiscrepancy, TimeSampler
from .losses import TimedLoss, losses


class DiscreteLoss(TimedLoss):
    """The base class of losses of discrete states; a subclass has ``of`` and the option ``times``."""

    space: ClassVar[str] = "discrete"

    def __call__(
        self, denoiser: Any, x0: Tensor, draws: Draws, state: nn.Module | None = None, **conditions: Tensor
    ) -> Tensor:
        """See ``Loss``; nats per token, float32.

        Raises:
            InputError: the model or its process does not suit the loss; x0 are floats.
        """
        model = as_model(denoiser, "discrete")
        if x0.is_floating_point():
            raise InputError(f"{losses.info_of(self).name} trains on tokens, which are whole numbers, got {x0.dtype}")
        t, factor = self.drawn_times(model.sde, draws, state)
        value = self.of(model, x0.long(), t, draws, conditions) / x0[0].numel()  # type: ignore[arg-type]
        return (value if factor is None else factor.to(value) * value).float()

    def of(self, model: DiscreteModel, x0: Tensor, t: Tensor, draws: Draws, conditions: dict[str, Tensor]) -> Tensor:
        """The loss (B,) at times t (B,), a sum over the tokens of x0 (B, *)."""
        raise NotImplementedError


def _drawn(process: Process, x0: Tensor, t: Tensor, draws: Draws) -> tuple[ProcessNode[Any], Tensor]:
    """The nodes (B,) of times, and noisy states (B, *) there."""
    at = process(t)
    return at, noised(process, x0, at, uniforms(draws, x0, 2))


def _span(process: Process) -> float:
    return process.t_max - process.t_min


@losses.register("discrete_bound", reference="Austin et al. 2021, arXiv:2107.03006, eq. 1 and 5")
@dataclass(frozen=True)
class DiscreteBound(DiscreteLoss):
    """An unbiased estimate of the bound of the reverse chain of N steps, from one random step per sample.

    The term of the step is multiplied by N. Steps are equal in t, so that the process's schedule is alpha_bar of i / N.

    Args:
        steps: N; by default the process's own number, or 1000.
        cross_entropy: the factor of -log p(x0 | x), which is added to each step's term; above 0 this is the hybrid loss
            of D3PM: 0.001 for images and 0.01 for text in the paper.
        times: the sampler of the steps: a time stands for the step around it.
    """

    steps: Annotated[int, Range(1)] | None = None
    cross_entropy: NonNegative = 0.0
    times: TimeSampler = field(default=LowDiscrepancy())

    def nodes(self, sde: SDE, draws: Draws, state: nn.Module | None = None) -> Node[Tensor]:
        t, _ = self.drawn_times(sde, draws, state)
        return sde(self._step(sde, t)[0])

    def _step(self, process: Any, t: Tensor) -> tuple[Tensor, Tensor, int]:
        """The ends (B,) of the steps around times t (B,), the later one first, and N."""
        steps = train_timesteps(process, self.steps)
        index = ((t - process.t_min) / _span(process) * steps).long().clamp(0, steps - 1)
        return (index + 1) / steps * process.t_max, index / steps * process.t_max, steps

    def of(self, model: DiscreteModel, x0: Tensor, t: Tensor, draws: Draws, conditions: dict[str, Tensor]) -> Tensor:
        if isinstance(model, DiscreteDenoiser) and model.predicts == "log_score":
            raise InputError("discrete_bound trains laws of clean tokens; of log_score the loss is score_entropy")
        process = model.process
        end, start, steps = self._step(process, t.double())
        at, x = _drawn(process, x0, end, draws)
        found = model.predict(x, at, **conditions)
        value = step_term(process, found, x0, x, at, process(start))
        if self.cross_entropy:
            clean = found.x0.gather(-1, x0[..., None])
            value = value - self.cross_entropy * clean.log().flatten(1).sum(1)
        return steps * value + prior_term(process, x0)


@losses.register("score_entropy", reference="Lou et al. 2023, arXiv:2310.16834, theorem 3.6")
@dataclass(frozen=True)
class ScoreEntropy(DiscreteLoss):
    """An unbiased estimate of the bound in continuous time, from one random time per sample.

    Args:
        times: the sampler of times.
    """

    times: TimeSampler = field(default=LowDiscrepancy())

    def of(self, model: DiscreteModel, x0: Tensor, t: Tensor, draws: Draws, conditions: dict[str, Tensor]) -> Tensor:
        process = model.process
        at, x = _drawn(process, x0, t, draws)
        value = score_entropy(process, model.predict(x, at, **conditions), x0, x, at)
        return (_span(process) * clock_rate(process, t)).to(value) * value + prior_term(process, x0)


@losses.register(
    "masked",
    aliases=("mdlm", "md4"),
    reference="Sahoo et al. 2024, arXiv:2406.07524; Shi et al. 2024, arXiv:2406.04329",
    formula="E -alpha' / (1 - alpha) sum_{masked tokens} -log p(x0 | x)",
)
@dataclass(frozen=True)
class Masked(DiscreteLoss):
    """The cross entropy of the masked tokens, weighted so that it is an unbiased estimate of the bound.

    Args:
        times: the sampler of times.
    """

    times: TimeSampler = field(default=LowDiscrepancy())

    def of(self, model: DiscreteModel, x0: Tensor, t: Tensor, draws: Draws, conditions: dict[str, Tensor]) -> Tensor:
        process = model.process
        if process.mask is None or not process.mixture:
            raise InputError(f"masked trains on masks alone, got {process}: use absorbing, or the loss score_entropy")
        at, x = _drawn(process, x0, t, draws)
        entropy = _cross_entropy(model.log_x0(x, at, **conditions), x0)
        masked = x == process.mask
        value = torch.where(masked, entropy, 0.0).flatten(1).sum(1)
        some = masked.flatten(1).any(1)  # the weight is infinite at t = 0, where none is masked
        weight = (_span(process) * hazard(process, t)).to(value)
        return torch.where(some, weight, 0.0) * value


@losses.register(
    "flow_kl",
    reference="Shaul et al. 2024, arXiv:2412.03487; Gat et al. 2024, arXiv:2407.15595",
    formula="E -alpha' / (1 - alpha) (1[x = x0] - p(x | x) - 1[x != x0] log p(x0 | x))",
)
@dataclass(frozen=True)
class FlowKL(DiscreteLoss):
    """The bound of discrete flow matching's own reverse process along mixture paths, from one time per sample.

    Of masks it equals ``masked``. Of other noise, flow matching's reverse process makes fewer jumps than the reverse of
    the forward process, so that this is another bound than ``score_entropy``.

    Args:
        times: the sampler of times.
    """

    times: TimeSampler = field(default=LowDiscrepancy())

    def of(self, model: DiscreteModel, x0: Tensor, t: Tensor, draws: Draws, conditions: dict[str, Tensor]) -> Tensor:
        process = model.process
        if not process.mixture:
            raise InputError(f"flow_kl is of mixtures of data and one law, got {process}: use the loss score_entropy")
        t = t.clamp_min(1e-12 * process.t_max)  # where the weight is finite
        at, x = _drawn(process, x0, t, draws)
        log_x0 = model.log_x0(x, at, **conditions)
        own = log_x0.gather(-1, x[..., None])[..., 0]
        value = torch.where(x == x0, -torch.expm1(own), _cross_entropy(log_x0, x0) - torch.exp(own))
        return (_span(process) * hazard(process, t)).to(value) * value.flatten(1).sum(1)


@losses.register("cross_entropy", formula="E -log p(x0 | x)")
@dataclass(frozen=True)
class TokenCrossEntropy(DiscreteLoss):
    """The cross entropy of the clean tokens given the noisy state, all times alike.

    Args:
        times: the sampler of times.
    """

    times: TimeSampler = field(default=LowDiscrepancy())

    def of(self, model: DiscreteModel, x0: Tensor, t: Tensor, draws: Draws, conditions: dict[str, Tensor]) -> Tensor:
        at, x = _drawn(model.process, x0, t, draws)
        return _cross_entropy(model.log_x0(x, at, **conditions), x0).flatten(1).sum(1)


@losses.register("reweighted", aliases=("rdm",), reference="Zheng et al. 2023, arXiv:2302.05737")
@dataclass(frozen=True)
class Reweighted(DiscreteLoss):
    """The cross entropy of tokens that have changed, times a weight that falls with the share of the time.

    Args:
        weight: "linear", 1 - t / t_max; "inverse", t_max / t, which is ``masked`` if alpha = 1 - t; "constant", 1.
        times: the sampler of times.
    """

    weight: Literal["linear", "inverse", "constant"] = "linear"
    times: TimeSampler = field(default=LowDiscrepancy())

    def of(self, model: DiscreteModel, x0: Tensor, t: Tensor, draws: Draws, conditions: dict[str, Tensor]) -> Tensor:
        t = t.clamp_min(1e-12 * model.process.t_max)  # where 1 / t is finite
        at, x = _drawn(model.process, x0, t, draws)
        entropy = _cross_entropy(model.log_x0(x, at, **conditions), x0)
        share = t / model.process.t_max
        weights = {"linear": 1 - share, "inverse": 1 / share, "constant": torch.ones_like(share)}
        return weights[self.weight].to(entropy) * torch.where(x == x0, 0.0, entropy).flatten(1).sum(1)


@losses.register("sundae", reference="Savinov et al. 2021, arXiv:2112.06749")
@dataclass(frozen=True)
class Sundae(DiscreteLoss):
    """The mean cross entropy of the clean tokens given a noisy state, and given the network's own samples from it.

    Each further state is drawn from the network's laws at the one before, without a gradient. With ``uniform`` and
    alpha = 1 - t this is SUNDAE: a random share of the tokens, uniform in (0, 1), is drawn again. The network gets no
    time, and the model has no likelihood.

    Args:
        unrolled: how many states: the noisy one and those that follow from it.
        times: the sampler of times.
    """

    unrolled: Annotated[int, Range(1, 100)] = 2
    times: TimeSampler = field(default=LowDiscrepancy())

    def of(self, model: DiscreteModel, x0: Tensor, t: Tensor, draws: Draws, conditions: dict[str, Tensor]) -> Tensor:
        if not isinstance(model, DiscreteDenoiser) or model.time or model.predicts != "x0_logits":
            raise InputError("sundae trains a network without time: DiscreteDenoiser(..., 'x0_logits', time=False)")
        process, uniform = model.process, uniforms(draws, x0, 2 * self.unrolled)
        at = process(t)
        x, total = noised(process, x0, at, uniform), torch.zeros(len(x0), dtype=torch.float64, device=x0.device)
        for k in range(self.unrolled):
            logits = model.raw_output(x, t, conditions).double()[..., : process.states]
            total = total + _cross_entropy(torch.log_softmax(logits, -1), x0).flatten(1).sum(1)
            if k + 1 < self.unrolled:
                x = Product(model.law(logits.detach()), x).draw(uniform)
        return total / self.unrolled


def _cross_entropy(log_law: Tensor, x0: Tensor) -> Tensor:
    """-log law(x0) (B, *) of laws (B, *, S)."""
    return -log_law.gather(-1, x0[..., None])[..., 0]
