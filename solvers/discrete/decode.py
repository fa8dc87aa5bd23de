"""``decode``: tokens are filled in by a rule, such as the surest first. Most rules do not sample from the model's law.

A step draws a candidate for every open token, and keeps some of them. Open are masked tokens, and known ones that the
step takes back first; or known tokens and candidates stand in one order, and the last of both are masked. The rules are
options, so that published decoders are presets: ``maskgit``, ``sundae``, ``p2``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..errors import InputError
from ..registry.options import named
from ..registry.ranges import NonNegative, Range, Share
from ..types.process import DiscretePrediction, Process, ProcessNode
from ..types.solver import Noise, Step, solvers
from ..types.transition import one_hot
from .base import DiscreteSolver, Moves, Product, Uniform, evaluated, follow
from .entropy_bounded import at_masked_share


class Kept(NamedTuple):
    """What a decoder remembers of tokens (B, *).

    Attributes:
        confidence: the log-probability of each token when it was kept; infinite if it was known at the start.
        still: how many steps in a row (B,) have changed nothing.
    """

    confidence: Tensor
    still: Tensor


@solvers.register(
    "decode",
    kind="decoder",
    order=0,
    native="x0",
    consistent=False,
    reference="Chang et al. 2022, arXiv:2202.04200 (maskgit); Savinov et al. 2021, arXiv:2112.06749 (sundae); "
    "Nie et al. 2025, arXiv:2502.09992 (blocks); Peng et al. 2025, arXiv:2502.03540 (p2)",
    formula="y ~ x0 for every open token; of these candidates the first in the order are kept, until the share of "
    "masked tokens is gamma(t / t_max), gamma = cos(pi / 2 (1 - u)) or u",
    note="with order=random, margin, entropy or left_to_right, commit=linear or cosine and remask=none it samples from "
    "the model's law if every step keeps one token. A sample is evaluated only if it has open tokens",
)
@dataclass(frozen=True)
class Decode(DiscreteSolver):
    """Fills in the masked tokens in an order, many at once; or draws a share of all tokens again in every step.

    Args:
        by: ``order`` in specs. Which candidates are kept first: evenly at random; those of the highest probability
            (confidence); where the law has the largest difference of its two highest probabilities (margin), or the
            least entropy; from left to right.
        commit: how many tokens are known after a step: 1 - gamma of those that were masked at the start. ``all`` keeps
            every candidate.
        remask: the tokens that a step takes back before the model is evaluated: none, evenly at random, or those kept
            with the lowest probability; or, after that (planned), those that the order puts behind candidates, by the
            laws of ``plan``. Tokens that are known at the start stay.
        share: the share of the known tokens that a step takes back, at random or by confidence.
        eta: of planned: a factor of the logarithms by which known tokens are ordered. The larger, the more of them are
            taken back; at 0 they stay.
        block: the number of tokens of a block; blocks are filled from left to right in equal times. 0 for one block.
        randomness: the scale of Gumbel noise on the logarithm by which candidates are ordered, times t / t_max.
        patience: after so many steps in a row that changed nothing a sample stays as it is; 0 for never.
    """

    by: Literal["random", "confidence", "margin", "entropy", "left_to_right"] = named("order", "confidence")
    commit: Literal["cosine", "linear", "all"] = "cosine"
    remask: Literal["none", "random", "confidence", "planned"] = "none"
    share: Share = 0.1
    eta: NonNegative = 1.0
    block: Annotated[int, Range(0)] = 0
    randomness: NonNegative = 0.0
    patience: Annotated[int, Range(0)] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.remask == "planned" and self.by in ("entropy", "left_to_right"):
            raise InputError(
                f"decode: remask=planned compares logarithms of probabilities, which order={self.by} has not: use "
                "confidence, margin or random"
            )

    @property
    def consistent(self) -> bool:
        """Whether the kept places do not depend on the candidates, and every kept token stays."""
        return self.by != "confidence" and self.commit != "all" and self.remask == "none"

    @property
    def restartable(self) -> bool:
        return self.remask in ("none", "random") and not self.patience

    def check(self, process: Process) -> None:
        if process.mask is None and (self.commit != "all" or self.remask in ("none", "planned") or self.block):
            raise InputError(
                f"{self} fills in masked tokens, which {process} does not have: use commit=all with remask=random or "
                "confidence and without blocks, such as sundae"
            )
        if process.mask is not None and not process.mixture:
            raise InputError(f"{self} keeps tokens that are not masked, which may be noise on {process}: use tweedie")

    def init(self, problem: Any, x: Tensor, nodes: Any) -> Kept:
        self.check(problem.path)
        known = torch.full(x.shape, -math.inf, dtype=torch.float64, device=x.device)
        if problem.path.mask is not None:
            known = known.masked_fill(x != problem.path.mask, math.inf)
        return Kept(known, torch.zeros(len(x), dtype=torch.long, device=x.device))

    def step(self, problem: Any, x: Tensor, t: Any, s: Any, carry: Any, noise: Noise | None) -> Step:
        assert noise is not None  # see solve: the solver is stochastic

        def uniform() -> Tensor:
            return noise(t, s)

        return follow(self._decoded(problem, x, t, s, carry, uniform), uniform)

    def to_data(self, problem: Any, x: Tensor, t: Any, s: Any, carry: Any, noise: Noise | None) -> Step:
        return self.step(problem, x, t, s, carry, noise)

    def moves(self, problem: Any, x: Tensor, t: ProcessNode, s: ProcessNode, carry: Kept) -> Moves:
        return self._decoded(problem, x, t, s, carry, self._no_kernel)

    end = moves

    def _no_kernel(self) -> Tensor:
        raise InputError(f"{self} orders tokens by random numbers: it has no exact kernel")

    def _decoded(self, problem: Any, x: Tensor, t: ProcessNode, s: ProcessNode, carry: Kept, uniform: Uniform) -> Moves:
        process, before = problem.path, x
        taken = self._taken_back(x, process, s, carry, uniform)
        waiting, t_left = taken, s.t / process.t_max
        if process.mask is not None:
            x = x.masked_fill(taken, process.mask)
            waiting = x == process.mask
        count, behind = self._goal(waiting, carry, 1 - t_left)
        waiting, known = waiting & ~behind, self._in_question(x, process, carry, behind)
        rows = (waiting.flatten(1).any(1) & (count + known.flatten(1).sum(1) > 0)).cpu().nonzero()[:, 0]
        law, part = one_hot(x, process.prior.to(x.device)), problem.select(rows)
        if len(rows):
            node = t if process.mask is None else at_masked_share(process, x[rows])
            found = evaluated(part, x[rows], node)
            law[rows] = torch.where(waiting[rows][..., None], found.x0, law[rows])
        y = yield Product(law, x)
        if len(rows) and self.remask == "planned":
            law[rows] = torch.where(known[rows][..., None], self.plan(part, y[rows], found), law[rows])
        confidence = law.gather(-1, y[..., None])[..., 0].log()
        scores = self._scores(law, confidence, uniform)
        scores = torch.where(known, self.eta * scores if self.eta else math.inf, scores)
        if self.randomness and self.by != "random":
            scores = scores - self.randomness * t_left * torch.log(-torch.log(uniform()))
        chosen = self._first(scores, waiting | known, count + known.flatten(1).sum(1))
        x = torch.where(chosen, y, x.masked_fill(known, process.mask or 0))
        still = torch.where((x == before).flatten(1).all(1), carry.still + 1, 0)
        return Step(x, Kept(torch.where(chosen & waiting, confidence, carry.confidence), still))

    def _in_question(self, x: Tensor, process: Process, carry: Kept, behind: Tensor) -> Tensor:
        """Which known tokens (B, *) stand in one order with the candidates."""
        if self.remask != "planned":
            return torch.zeros_like(behind)
        return (carry.confidence < math.inf) & (x != process.mask) & ~behind

    def plan(self, problem: Any, y: Tensor, found: DiscretePrediction) -> Tensor:
        """The laws (B, *, S) by which known tokens are ordered: those that the network itself gives them.

        A subclass may ask another model, as it returns log-probabilities of y.

        Args:
            problem: that of these samples.
            y: the samples (B, *) with all their candidates.
            found: the prediction for the samples before.
        """
        own: Tensor | None = found.own
        return one_hot(y, found.x0) if own is None else own

    def _taken_back(self, x: Tensor, process: Process, s: ProcessNode, carry: Kept, uniform: Uniform) -> Tensor:
        """Which known tokens (B, *) the step takes back; none in the last step of masked ones."""
        if self.remask in ("none", "planned") or (process.mask is not None and s.clean):
            return torch.zeros_like(x, dtype=torch.bool)
        scores = uniform().flatten(1)
        free = carry.confidence.flatten(1) < math.inf
        if process.mask is not None:
            free &= x.flatten(1) != process.mask
        count = torch.ceil if process.mask is None else torch.floor  # without masks, a step changes something
        number = count(self.share * free.sum(1).double())
        if self.patience:
            number = torch.where(carry.still >= self.patience, 0, number)
        scores = scores.masked_fill(~free, math.inf)
        if self.remask == "confidence":  # the random numbers decide between equals
            places = scores.argsort(1)
            kept = carry.confidence.flatten(1).masked_fill(~free, math.inf).gather(1, places)
            scores = torch.zeros_like(scores).scatter(1, places, _ranks(kept))
        return ((_ranks(scores) < number[:, None]) & free).view_as(x)

    def _goal(self, waiting: Tensor, carry: Kept, passed: float) -> tuple[Tensor, Tensor]:
        """How many waiting tokens (B, *) a step keeps of each sample (B,), and which places are in later blocks.

        Args:
            passed: the share of the time that has passed after the step.
        """
        flat = waiting.flatten(1)
        if self.commit == "all" and not self.block:
            return flat.sum(1), torch.zeros_like(waiting)
        size = flat.shape[1]
        block = min(self.block, size) or size
        blocks = math.ceil(size / block)
        now = max(0, math.ceil(passed * blocks - 1e-9) - 1)
        within = passed * blocks - now  # of the present block
        gamma = {"linear": 1 - within, "cosine": math.cos(0.5 * math.pi * within), "all": 0.0}[self.commit]
        places = torch.arange(size, device=flat.device) // block
        free = carry.confidence.flatten(1) < math.inf  # not known at the start
        left = free & (places == now)
        wanted = (free & (places < now)).sum(1) + left.sum(1) - torch.floor(gamma * left.sum(1).double() + 1e-9).long()
        behind = (places > now).expand_as(flat).view_as(waiting)
        return (wanted - (free & ~flat).sum(1)).clamp_min(0), behind

    def _scores(self, law: Tensor, confidence: Tensor, uniform: Uniform) -> Tensor:
        """The numbers (B, *) by which tokens are kept, the highest first."""
        if self.by == "random":
            return torch.log(uniform())
        if self.by == "margin":
            two = law.topk(2, -1).values
            return torch.log(two[..., 0] - two[..., 1])
        if self.by == "entropy":
            return -torch.log(torch.special.entr(law).sum(-1))
        if self.by == "confidence":
            return confidence
        places = torch.arange(confidence[0].numel(), device=law.device).double().view_as(confidence[0])
        return -places.expand_as(confidence)

    def _first(self, scores: Tensor, waiting: Tensor, count: Tensor) -> Tensor:
        """Which waiting tokens (B, *) are the first ``count`` (B,) in the order; earlier blocks come first."""
        flat = waiting.flatten(1)
        ranks = _ranks(-scores.flatten(1))
        if self.block:
            ranks = ranks + len(flat[0]) * (torch.arange(len(flat[0]), device=ranks.device) // self.block)
        ranks = _ranks(ranks.masked_fill(~flat, math.inf))
        return ((ranks < count[:, None]) & flat).view_as(waiting)


def _ranks(scores: Tensor) -> Tensor:
    """The ranks (B, d) of numbers in their row, 0 for the lowest; of equals, the earlier one comes first."""
    places = scores.argsort(dim=1, stable=True)
    ranks = torch.arange(scores.shape[1], dtype=torch.float64, device=scores.device).expand(scores.shape)
    return torch.zeros_like(ranks).scatter(1, places, ranks)
