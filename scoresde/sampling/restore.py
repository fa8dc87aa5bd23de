"""``restore``: draws of p(x0 | y) for observations y, by any method, under any solver.

>>> import scoresde, torch
>>> prior = scoresde.targets.Gaussian(torch.zeros(2), torch.tensor([4.0, 1.0])).denoiser(scoresde.VP())
>>> seen = scoresde.operators.Inpaint(torch.tensor([True, False]), sigma=1.0)
>>> found = restore(prior, seen, torch.tensor([2.0]), "mmps", samples=500, steps=50)
>>> found.x.shape, found.posterior  # of x0 given y = 2: mean 1.6, variance 0.8
(torch.Size([1, 500, 2]), 'mmps')
>>> round(found.mean[0, 0].item(), 1), round(found.deviation[0, 0].item() ** 2, 1)
(1.6, 0.8)
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from solvers import Grid, Hook, InputError, Node, Solver, generator

from ..io.inputs import Array, Seeds, conditions_of, device_of, dtype_of, seeds_of
from ..io.result_files import fingerprint
from ..models.counting import counted
from ..models.evaluation import evaluation
from ..models.faults import checked_model
from ..models.model import Model
from ..operators.base import Operator, operators
from ..paths.base import ModelLike
from ..posterior.base import Posterior, Task, observations, posteriors, sample_shape
from .batches import Batching
from .failures import Watch, check_how, failures_of, lost, report, without
from .parts import Part, Parts, joined
from .plan import Plan, PlanRequest
from .restored import Restored

GRID, STEPS = "logsnr(end=zero)", 100


def restore(
    denoiser: ModelLike,
    operator: str | Operator,
    y: Array,
    posterior: str | Posterior | None = None,
    *,
    samples: int = 16,
    seeds: Seeds | None = None,
    solver: str | Solver | None = None,
    grid: str | Grid | None = None,
    steps: int | None = None,
    nfe: int | None = None,
    forwards: int | None = None,
    condition: Mapping[str, Array] | None = None,
    shape: Sequence[int] | int | None = None,
    batch_size: int | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str = torch.float32,
    progress: bool = False,
    on_failure: str = "warn",
    parts: Parts | None = None,
) -> Restored:
    """Draws of p(x0 | y) for each of n observations; draw k depends on seed k and its observation only.

    Args:
        operator: how y was observed, a name or spec such as "inpaint(mask=mask.npy, sigma=0.05)"; sigma is the noise
            in the units of the data.
        y: one observation (*m), or n of them (n, *m).
        posterior: a method or spec, see ``posterior.names()``. The default is ``mmps`` for linear operators with noise,
            ``pigdm`` without noise, and ``dps`` for others, with a warning.
        samples: the number of draws S for each observation, with the seeds 0 to S - 1; or pass ``seeds``.
        solver, grid, steps, nfe, forwards: see ``scoresde.plan``. The default is the method's solver, most
            often ``dpmpp_2m_sde``, on ``logsnr(end=zero)`` in 100 steps.
        condition: conditions of the model, each with one row for each observation (n, *).
        shape: the shape of one sample; by default the model's.
        device, dtype, batch_size, progress, on_failure: as in ``sample``; a batch has ``batch_size`` draws.
        parts: where finished batches are written, and from where the same call resumes; its facts must contain what
            identifies the model.

    Raises:
        InputError: see ``scoresde.plan``; the observation is not what the operator makes of samples; the method does
            not take the operator; all draws fail; ``parts`` contains batches of another restoration.
    """
    check_how(on_failure)
    model, seen = checked_model(denoiser, True), operators.make(operator)
    lengths = sample_shape(model, shape)
    method = chosen(seen) if posterior is None else posteriors.make(posterior)
    method.check(seen, lengths)
    batching = Batching(batch_size, device_of(device), dtype_of(dtype), progress)
    rows = observations(seen, y, lengths).to(batching.device, batching.dtype)
    plan = plan_of(model, method, PlanRequest(solver, grid, steps, nfe, forwards=forwards))
    conditions = conditions_of(condition, len(rows), batching.device, model.conditions, model.given)
    drawn = seeds_of(samples if seeds is None else seeds)
    return _Restoration(method, model, seen, rows, lengths, plan, drawn, conditions, batching).run(on_failure, parts)


def plan_of(model: Model, method: Posterior, request: PlanRequest) -> Plan:
    """The plan of a restoration: by default the method's solver on ``logsnr(end=zero)`` in 100 steps.

    Raises:
        InputError: a budget of evaluations is given for a method that makes others than those of the grid.
    """
    if not method.budgeted and (request.nfe, request.forwards) != (None, None):
        raise InputError(
            f"{method} makes evaluations of its own: set its options, and steps instead of nfe or forwards"
        )
    if request == PlanRequest():
        request = request._replace(steps=STEPS)
    made = Plan.make(model, request.or_default((method.solver, GRID if request.solver is None else None)))
    made.warn_of_width(model.output)
    return made


def chosen(operator: Operator) -> Posterior:
    """The default method for an operator, with a warning if its spread is wrong."""
    if operator.linear:
        return posteriors.make("mmps" if operator.sigma > 0 else "pigdm")
    made = posteriors.make("dps")
    if operator.differentiable:  # others are refused by its check
        warnings.warn(
            f"{operator} is not linear: the draws are those of {made}, whose spread is not the posterior's; name a "
            "method to choose another one",
            stacklevel=3,
        )
    return made


@dataclass(frozen=True)
class _Restoration:
    """The draws of ``restore``: a method, a model, and n observations with their conditions, each (n, *)."""

    method: Posterior
    model: Model
    operator: Operator
    y: Tensor
    shape: tuple[int, ...]
    plan: Plan
    seeds: Sequence[int]
    conditions: Mapping[str, Tensor]
    batching: Batching

    def task(self, rows: slice, hooks: Sequence[Hook]) -> Task:
        """The task of some of the draws, which are numbered by observation, then by seed."""
        places = range(rows.start, rows.stop)
        which = torch.tensor([i // len(self.seeds) for i in places], device=self.y.device)
        return Task(
            self.model,
            self.operator,
            self.y[which],
            self.shape,
            self.plan.solver,
            self.plan.nodes,
            [self.seeds[i % len(self.seeds)] for i in places],
            {name: value[which] for name, value in self.conditions.items()},
            hooks,
        )

    def facts(self) -> dict[str, Any]:
        """All that decides the draws, except for the model, as JSON types."""
        probe = torch.randn(1, *self.shape, dtype=torch.float64, generator=generator(0))  # whose A x identifies A
        return {
            "the operator": [str(self.operator), fingerprint(self.operator(probe))],
            "the observations": fingerprint(self.y),
            "the method": str(self.method),
            "the solver": f"{self.plan.solver} on {self.plan.grid}, {self.plan.steps} steps",
            "the seeds": list(self.seeds),
            "the shape": list(self.shape),
            "the size of a batch": self.batching.batch_size,
            "the device and dtype": f"{self.y.device.type} {self.y.dtype}",
            **{f"the condition {name}": fingerprint(rows) for name, rows in sorted(self.conditions.items())},
        }

    def part(self, rows: slice, advance: Hook) -> Part:
        """The draws of one batch."""
        began, watch = time.perf_counter(), Watch(self.plan)
        with counted() as count:
            found = self.method.draw(self.task(rows, (watch, advance)))
        failures = failures_of(lost(found.x), rows.start, found.failed, watch.reasons)
        if failures:
            found = found._replace(x=without(found.x, lost(found.x), torch.nan), failed={})
        named = tuple(one._replace(seed=self.seeds[one.sample % len(self.seeds)]) for one in failures)
        return Part(found, named, count.forwards, count.vjps, time.perf_counter() - began)

    def run(self, on_failure: str, parts: Parts | None) -> Restored:
        """All draws, in batches."""
        if not self.seeds:
            raise InputError("there are no seeds: at least one draw is needed")
        n, draws, plan = len(self.y), len(self.seeds), self.plan
        kept = parts.knowing(self.facts()) if parts else None
        batches, done = self.batching.rows(n * draws), list[Part]()
        bar = self.batching.bar(plan.steps * len(batches), str(self.method))

        def advance(x: Tensor, node: Node) -> None:
            bar.update()

        with evaluation(self.model), bar, torch.no_grad():
            for number, rows in enumerate(batches):
                if (part := kept.read(number) if kept else None) is not None:
                    bar.update(plan.steps)
                else:
                    part = self.part(rows, advance)
                    if kept:
                        kept.write(number, part)
                done.append(part)
        found, failures, forwards, vjps, seconds = joined(done, self.y)
        report(failures, n * draws, on_failure, f"{self.method} with {plan.solver} on {plan.grid}")
        evidence, effective = (None if v is None else v.view(n, draws) for v in (found.log_evidence, found.effective))
        return Restored(
            x=found.x.view(n, draws, *self.shape),
            y=self.y,
            seeds=tuple(self.seeds),
            nfe=int(found.nfe.max()),
            forwards=forwards / (n * draws),
            vjps=vjps / (n * draws),
            log_evidence=None if evidence is None else _log_mean(evidence),
            effective=None if effective is None else _least(effective),
            posterior=str(self.method),
            operator=str(self.operator),
            solver=str(plan.solver),
            grid=plan.grid,
            steps=plan.steps,
            seconds=seconds,
            failures=failures,
        )


def _log_mean(values: Tensor) -> Tensor:
    """The logarithm (n,) of the mean of exp(values) (n, S), without the NaN of draws that failed."""
    known = ~values.isnan()
    sums = torch.logsumexp(torch.where(known, values, -math.inf), 1)
    return torch.where(known.any(1), sums - known.sum(1).log(), math.nan)


def _least(values: Tensor) -> Tensor:
    """The least (n,) of values (n, S), without the NaN of draws that failed."""
    known = ~values.isnan()
    return torch.where(known.any(1), torch.where(known, values, math.inf).amin(1), math.nan)
