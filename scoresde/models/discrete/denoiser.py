"""``DiscreteDenoiser``: reads the output of a network as laws of clean tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from solvers import InputError
from solvers.errors import unknown
from solvers.types.answers import call
from solvers.types.process import DiscretePrediction, Process, ProcessNode

from ...data.conditions import Condition
from ...paths.discrete.base import make_process
from ..counting import add_forwards
from ..model import condition_error
from ..reachable import reachable_modules
from .model import DiscreteModel

Predicts = Literal["x0_logits", "x0_loo_logits", "log_score"]


@dataclass(frozen=True)
class DiscreteDenoiser(DiscreteModel):
    """A network of discrete states, with all that is needed to read its output as laws of clean tokens.

    Args:
        network: called as ``network(x, t, **conditions)`` with tokens x (B, *), int64, and times t (B,), float32;
            without ``time`` as ``network(x, **conditions)``. It returns (B, *, S), S the number of the process's
            values; logits may leave out the mask.
        process: the process that it was trained on, or its spec such as "absorbing(27)".
        predicts: its output. "x0_logits": of the clean token given the whole state, its own noisy token included, as a
            network learns that sees it. "x0_loo_logits": of the clean token given the other tokens, as in the losses of
            D3PM and of multinomial diffusion, which multiply by the own token's likelihood. "log_score": log p_t(x with
            y in this place) / p_t(x) (Lou et al. 2023, arXiv:2310.16834). For masked tokens the first two are equal; in
            general samples are wrong, at any number of steps, if one is mistaken for the other.
        time: whether the network receives the time.
        shape: the shape of one sample, if it is known.
        conditions: the conditions that the network takes, if they are known.

    Raises:
        InputError: ``predicts`` or the process is unknown; the network is not callable.
    """

    network: Callable[..., Tensor] = field(repr=False)
    process: Process
    predicts: Predicts = "x0_logits"
    time: bool = True
    shape: tuple[int, ...] | None = None
    conditions: tuple[Condition, ...] = ()

    def __post_init__(self) -> None:
        if not callable(self.network) or isinstance(self.network, (Process, type)):
            raise InputError(f"the first argument of DiscreteDenoiser is a network, got {self.network!r}")
        object.__setattr__(self, "process", make_process(self.process))
        if self.predicts not in get_args(Predicts):
            raise unknown("prediction", self.predicts, get_args(Predicts))
        if self.shape is not None:
            object.__setattr__(self, "shape", tuple(self.shape))

    @property
    def time_free(self) -> bool:
        return not self.time and self.process.mask is not None and self.process.mixture

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        return reachable_modules(self.network)

    def predict(  # type: ignore[override]
        self, x: Tensor, node: ProcessNode[Any], **conditions: Tensor
    ) -> DiscretePrediction:
        """The laws (B, *, S) of the clean tokens at x (B, *), float64, from one evaluation of the network."""
        out = self.raw_output(x, node.t, conditions).double()
        if self.predicts == "log_score":
            own = out.gather(-1, x[..., None])
            ratios = torch.exp(out - own)
            return DiscretePrediction(self.process.x0_of_ratios(ratios, x, node), ratios)
        law = self.law(out)
        if self.predicts == "x0_loo_logits":
            return DiscretePrediction(self.process.x0_of_loo(law, x, node), own=law)
        return DiscretePrediction(self.process.possible(law, x, node), own=law)

    def log_x0(self, x: Tensor, node: ProcessNode[Any], **conditions: Tensor) -> Tensor:
        """The logarithms (B, *, S) of the laws of the clean tokens at x (B, *), from one evaluation of the network.

        They are made from the logits without a detour through probabilities, which may round to 0.

        Raises:
            InputError: the network predicts the concrete score.
        """
        if self.predicts == "log_score":
            raise InputError("the network predicts log_score, of which score_entropy is the loss")
        logits = self.raw_output(x, node.t, conditions)[..., : self.process.states].double()
        seen = self.process.transition(self.process.clean, node, x).columns(x)[..., : self.process.states]
        own = seen if self.predicts == "x0_loo_logits" else (seen > 0).double()
        rest = self.process.values - self.process.states
        return nn.functional.pad(torch.log_softmax(logits + own.log(), -1), (0, rest), value=-torch.inf)

    def law(self, logits: Tensor) -> Tensor:
        """The law (B, *, S) with these logits (B, *, states or S); the mask has the probability 0."""
        states, values = self.process.states, self.process.values
        law = torch.softmax(logits[..., :states], -1)
        return law if states == values else nn.functional.pad(law, (0, values - states))

    def raw_output(self, x: Tensor, t: float | Tensor, conditions: dict[str, Tensor]) -> Tensor:
        """The network's output (B, *, S or states) at x (B, *) and one time, or times (B,).

        Raises:
            InputError: it has another shape.
        """
        add_forwards(len(x))
        label = torch.as_tensor(t, dtype=torch.float32, device=x.device).expand(len(x))
        try:
            if self.time:
                out: Tensor = call("the network", self.network, x, label, conditions)
            else:
                out = self.network(x, **conditions)
        except TypeError as error:
            raise condition_error(error, self.network, conditions) from error
        counts = {self.process.values} | ({self.process.states} if self.predicts != "log_score" else set())
        if not isinstance(out, Tensor) or out.shape[:-1] != x.shape or out.shape[-1] not in counts:
            given = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            wanted = " or ".join(str((*x.shape, count)) for count in sorted(counts))
            raise InputError(f"the network returns {given} for tokens {tuple(x.shape)}, needed {wanted}")
        return out
