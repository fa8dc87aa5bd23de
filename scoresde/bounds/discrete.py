"""The variational bound of a model of discrete states: of its reverse chain of N steps, or in continuous time.

The terms are those of ``discrete_terms``. Which term of a chain, or which time, a draw evaluates is spread evenly over
each set of draws, so that a set of as many draws as the chain has steps contains each term once.

With ``importance`` = K > 1, whole trajectories are drawn from q, and the bound is that of Burda et al. 2015
(arXiv:1509.00519): log (1/K) sum_k p(trajectory) / q(trajectory | x0). It rises with K to log p(x0) of the chain.

>>> from scoresde.models.discrete import DiscreteEmpirical
>>> from scoresde.paths.discrete import Absorbing
>>> target = DiscreteEmpirical(torch.tensor([[0, 1], [1, 0], [1, 1]]))
>>> bound = discrete_bound(target.denoiser(Absorbing(2)), target.data, draws=512)
>>> abs(float((bound.nats - target.log_prob(target.data)).mean())) < 4 * float(bound.stderr.square().mean() / 3) ** 0.5
True
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

import solvers
from solvers import InputError
from solvers.discrete.base import Product
from solvers.errors import positive_integer
from solvers.noise.uniform import UniformNoise
from solvers.types.process import Process, ProcessNode
from solvers.types.transition import one_hot

from ..io.inputs import Array, Seeds, conditions_of
from ..likelihood.inputs import seeds_of
from ..likelihood.result import LogProb, degrees, standard_error, with_counts
from ..models.counting import counted
from ..models.discrete.denoiser import DiscreteDenoiser
from ..models.discrete.model import DiscreteModel
from ..models.evaluation import evaluation
from ..models.model import as_model
from ..paths.time_samplers import LowDiscrepancy
from ..sampling.batches import Batching
from ..sampling.discrete import tokens_of
from ..sampling.failures import check_how
from .continuous import fractions_of
from .discrete_terms import clock_rate, noised, noisy_law, prior_term, score_entropy, step_term
from .parts import reported, rows_of, total

PARTS = ("prior", "diffusion", "reconstruction", "importance")


def discrete_bound(
    model: Any,
    x: Array,
    steps: int | None = None,
    *,
    draws: int = 64,
    sets: int = 4,
    importance: int = 1,
    grid: str = "uniform",
    seeds: Seeds | None = None,
    condition: Mapping[str, Array] | None = None,
    batch_size: int | None = None,
    progress: bool = False,
    on_failure: str = "warn",
) -> LogProb:
    """Variational lower bound, in nats, of log p(x) under a model of discrete states.

    Its budget contains ``prior``, minus the divergence of q(x_T | x) from the prior; ``diffusion``, minus the terms of
    the steps or their integral; ``reconstruction``, log p(x | x_1) of the step to the data, 0 in continuous time; with
    several trajectories also ``importance``, the gain of their weights over their mean.

    Args:
        model: a ``DiscreteDenoiser`` or another model of discrete states.
        x: data (B, *), whole numbers.
        steps: N, for the bound of the reverse chain of N steps of ``grid``, which ``tweedie`` samples; None for the
            bound in continuous time, and of a process of steps for its own number.
        draws, sets: model evaluations per sample, in independent sets whose spread gives the standard error.
        importance: K; if it is above 1, each set evaluates K trajectories of N steps each, and ``draws`` is not used.
        grid: the rule for the nodes of the chain.
        seeds, batch_size, on_failure: as in ``log_prob``.

    Raises:
        InputError: the states of the model are not discrete, or it has no likelihood, such as SUNDAE's; x are no tokens
            of its process; ``draws`` is no multiple of ``sets``; trajectories without steps; all samples fail.
    """
    check_how(on_failure)
    known = _with_likelihood(model)
    x = tokens_of("x", x, known.process, masked=False)
    conditions = conditions_of(condition, len(x), x.device, known.conditions, known.given)
    own = seeds_of(seeds, len(x))
    nodes, nfe = _work(known.process, steps, grid, draws, sets, importance)
    began, batching, parts = time.perf_counter(), Batching(batch_size, progress=progress), []
    batches = batching.rows(len(x))
    bar = batching.bar(nfe * len(batches), "bound")
    with bar, evaluation(known), torch.no_grad(), counted() as work:
        for rows in batches:
            part = _Bound(known, x[rows], own[rows], rows_of(conditions, rows), nodes, bar.update)
            parts.append(part.stratified(draws, sets) if importance == 1 else part.weighted(importance, sets))
    found, latent = (torch.cat(each) for each in zip(*parts, strict=True))  # found (B, sets, parts)
    budget = dict(zip(PARTS, found.mean(1).unbind(1), strict=False))
    nats, seconds = total(budget), time.perf_counter() - began
    what = "the reverse process" if nodes is None else f"the reverse chain of {len(nodes) - 1} steps"
    weighted = f", importance-weighted, of {importance} trajectories" if importance > 1 else ""
    return reported(with_counts(LogProb(
        nats, standard_error(found.sum(2)), nfe, latent, budget, "discrete bound",
        "times spread evenly" if nodes is None else grid, "", seconds, 1.0, f"lower bound, of {what}{weighted}",
        freedom=degrees(sets, nats), stderr_of="the draws of noisy states",
    ), work), on_failure)  # fmt: skip


def _with_likelihood(model: Any) -> DiscreteModel:
    """The model, if it has a likelihood.

    Raises:
        InputError: it has none, or its states are not discrete.
    """
    found = as_model(model, "discrete")
    if isinstance(found, DiscreteDenoiser) and not found.time and found.process.mask is None:
        raise InputError(
            f"a network without time on {found.process}, as of sundae, has no likelihood: its samples are those of no "
            "reverse process"
        )
    return found  # type: ignore[return-value]  # models of discrete states


def _work(
    process: Process, steps: int | None, grid: str, draws: int, sets: int, importance: int
) -> tuple[list[ProcessNode] | None, int]:
    """The nodes of the chain, from noise to data, None in continuous time; and the evaluations for each sample.

    Raises:
        InputError: numbers that do not fit together, or a grid that does not end at the data.
    """
    if positive_integer("draws", draws) % positive_integer("sets", sets):
        raise InputError(f"draws must be a multiple of sets, got {draws} and {sets}")
    steps = process.num_train_timesteps if steps is None else steps
    if steps is None:
        if positive_integer("importance", importance) > 1:
            raise InputError(f"importance={importance} weights trajectories of a chain: give its number of steps")
        return None, draws + sets * (process.t_min > 0)
    nodes: list[Any] = list(solvers.grid(grid, process, positive_integer("steps", steps)))
    if not nodes[-1].clean:
        raise InputError(f"the grid {grid} ends at t={nodes[-1].t:g}: the chain of a bound ends at the data, t=0")
    trajectories = sets * positive_integer("importance", importance)
    return nodes, draws if importance == 1 else trajectories * (len(nodes) - 1)


@dataclass(frozen=True)
class _Bound:
    """The bound of a batch of samples.

    Attributes:
        x0: (B, *).
        seeds: one for each sample.
        nodes: of the chain, from noise to data; None in continuous time.
        advance: called after each evaluation of the model.
    """

    model: DiscreteModel
    x0: Tensor
    seeds: Sequence[int]
    conditions: Mapping[str, Tensor]
    nodes: Sequence[ProcessNode] | None
    advance: Callable[[], Any]

    def stratified(self, draws: int, sets: int) -> tuple[Tensor, Tensor]:
        """The parts of the bound by each set (B, sets, 3) in nats, and states (B, *) at t_max."""
        process, count = self.model.process, len(self.x0)
        source, u = self._source(), fractions_of(LowDiscrepancy(), self.seeds, draws, sets)
        between, first = torch.zeros_like(u), torch.zeros_like(u)
        for k in range(draws):
            if self.nodes is None:
                span = process.t_max - process.t_min
                times = process.t_min + span * u[:, k]
                at = self._at(times)
                x = noised(process, self.x0, at, source.draw)
                term = score_entropy(process, self.model.predict(x, at, **self.conditions), self.x0, x, at)
                between[:, k] = span * clock_rate(process, times) * term.cpu()
            else:
                steps = len(self.nodes) - 1
                index = (u[:, k] * steps).long().clamp_max(steps - 1)
                term = steps * self._step(index, source)
                first[:, k] = torch.where(index == 0, term, 0.0)
                between[:, k] = term - first[:, k]
            self.advance()
        first = first.view(count, sets, -1).mean(2)
        if self.nodes is None and process.t_min > 0:
            first = torch.stack([self._reconstruction(source) for _ in range(sets)], 1)
        prior = prior_term(process, self.x0).cpu()[:, None].expand(count, sets)
        found = -torch.stack([prior, between.view(count, sets, -1).mean(2), first], 2)
        return found, noised(process, self.x0, self._last(), source.draw)

    def _step(self, index: Tensor, source: UniformNoise) -> Tensor:
        """The term (B,) of the step from the node index + 1, counted from the data, to the node index."""
        assert self.nodes is not None
        times = torch.tensor([node.t for node in self.nodes[::-1]], dtype=torch.float64)
        t, s = self._at(times[index + 1]), self._at(times[index])
        x = noised(self.model.process, self.x0, t, source.draw)
        found = self.model.predict(x, t, **self.conditions)
        return step_term(self.model.process, found, self.x0, x, t, s).cpu()

    def _reconstruction(self, source: UniformNoise) -> Tensor:
        """-log p(x0 | x) (B,) at t_min, where the integral ends."""
        process = self.model.process
        at = self._at(torch.full((len(self.x0),), process.t_min, dtype=torch.float64))
        x = noised(process, self.x0, at, source.draw)
        self.advance()
        found = self.model.predict(x, at, **self.conditions)
        return step_term(process, found, self.x0, x, at, process.clean).cpu()

    def weighted(self, count: int, sets: int) -> tuple[Tensor, Tensor]:
        """The parts of the bound by each set of ``count`` trajectories (B, sets, 4), and states (B, *) at t_max."""
        source, made = self._source(), [list[Tensor]() for _ in range(sets)]
        latent = self.x0
        for each in made:
            for _ in range(count):
                logs, latent = self._trajectory(source)
                each.append(logs)
        logs = torch.stack([torch.stack(each, 1) for each in made], 1)  # (B, sets, K, 3)
        whole = logs.sum(3)
        gain = torch.logsumexp(whole, 2) - math.log(count) - whole.mean(2)
        return torch.cat([logs.mean(2), gain[:, :, None]], 2), latent

    def _trajectory(self, source: UniformNoise) -> tuple[Tensor, Tensor]:
        """log p - log q (B, 3) of the parts of one trajectory of each sample, drawn from q, and its start (B, *)."""
        assert self.nodes is not None
        process, x0 = self.model.process, self.x0
        clean = one_hot(x0, process.prior.to(x0.device))
        law = noisy_law(process, x0, self._last())
        x = start = Product(law, x0).draw(source.draw)
        prior = _log_ratio(process.prior.to(law).expand_as(law), law, x)
        logs = []
        for t, s in pairwise(self.nodes):
            model = process.posterior(self.model.predict(x, t, **self.conditions).x0, x, t, s)
            law = process.posterior(clean, x, t, s)
            x = Product(law, x).draw(source.draw)
            logs.append(_log_ratio(model, law, x))
            self.advance()
        between = torch.stack([torch.zeros_like(prior), *logs[:-1]]).sum(0)
        return torch.stack([prior, between, logs[-1]], 1).cpu(), start

    def _source(self) -> UniformNoise:
        return UniformNoise(self.seeds, tuple(self.x0.shape[1:]), torch.float64, self.x0.device)

    def _at(self, t: Tensor) -> ProcessNode[Any]:
        return self.model.process(t)

    def _last(self) -> ProcessNode[Any]:
        return self.model.process(self.model.process.t_max)


def _log_ratio(p: Tensor, q: Tensor, x: Tensor) -> Tensor:
    """log p(x) - log q(x) (B,) of states x (B, *) under laws of independent tokens (B, *, S)."""
    chosen = x[..., None]
    return (p.gather(-1, chosen).log() - q.gather(-1, chosen).log()).flatten(1).sum(1)
