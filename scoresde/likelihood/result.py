"""``LogProb``, the result of a likelihood or bound: its value, its uncertainty, its budget and its cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from solvers import InputError
from solvers.libraries import library

from ..models.counting import Count
from ..sampling.failures import Failure, listed


@dataclass(frozen=True, repr=False)
class LogProb:
    """Log-likelihoods (or bounds) of samples, with their budget, uncertainty and cost.

    Attributes:
        nats: (B,) float64, the sum of the budget.
        stderr: (B,) nats, the standard error due to random draws. The draws are the probes of the trace for the value
            of an ODE; the paths, or the times and noise, for a bound. 0 if nothing was drawn, NaN if there was a single
            draw.
        nfe: model evaluations per sample, the largest of the batch.
        nfe_per_sample: the model evaluations of each sample (B,).
        forwards, vjps: evaluations of the network, and vector-Jacobian products through it, each of which costs about a
            backward pass: means over the samples, counted at the network, of all solves.
        calls: calls of the network, over all batches and solves.
        density: what ``nats`` are the log-density of: "model", or "guided ode", which is no density of the data.
        latent: the states (B, *) at t_max.
        budget: the terms of ``nats``, (B,) nats each: ``prior``, log p_T(x_T); ``divergence``, the integral;
            ``truncation``, the change of scale at t_min; ``dequantisation``, minus the log-density of the noise in
            units of the bin (0 for uniform noise); ``offset``, the log of the bin's volume, if the bin width is known.
            With several draws these are means, and ``importance`` is the gain of the importance weights over the mean.
        bin_width: the distance between neighbouring levels of the data; None for continuous data.
        kind: a description of the number: exact value, estimate or bound.
        freedom: (B,) degrees of freedom of ``stderr``, float64: the number of draws less one. None if it is not known.
        stderr_of: a description of the draws that ``stderr`` refers to; empty if nothing was drawn.
        solver_error: (B,) nats, an estimated bound of the solver's error, see ``solver_error.bound``; None if it was
            not requested, NaN if a coarser solve failed.
        terms: the terms (B, N + 1) of a chain's bound in nats, see ``chain.chain_bound``; otherwise None.
        failures: the samples that failed; their nats and latents are NaN.
        unit: what a dimension is called, such as "character" of a text.
    """

    nats: Tensor
    stderr: Tensor
    nfe: int
    latent: Tensor
    budget: Mapping[str, Tensor]
    solver: str
    grid: str
    divergence: str
    seconds: float
    bin_width: float | None = None
    kind: str = "exact ODE value"
    terms: Tensor | None = None
    nfe_per_sample: Tensor | None = None
    forwards: float = 0.0
    vjps: float = 0.0
    calls: int = 0
    density: str = "model"
    freedom: Tensor | None = None
    stderr_of: str = ""
    solver_error: Tensor | None = None
    failures: tuple[Failure, ...] = ()
    unit: str = "dim"

    @property
    def is_bound(self) -> bool:
        """Whether the value is a lower bound of the model's."""
        return self.kind.startswith("lower bound")

    @property
    def finite(self) -> LogProb:
        """The result for the samples that did not fail, for statistics."""
        if not self.failures:
            return self
        rows, kept = self.nats.isfinite(), dict[str, Any]()
        for field in fields(self):
            value: Any = getattr(self, field.name)
            if isinstance(value, Tensor):
                kept[field.name] = value[rows.to(value.device)]
            elif isinstance(value, Mapping):
                kept[field.name] = {name: part[rows.to(part.device)] for name, part in value.items()}
        return replace(self, **kept, failures=())

    @property
    def dimensions(self) -> int:
        """Numbers in one sample."""
        return math.prod(self.latent.shape[1:])

    @property
    def bits_per_dim(self) -> Tensor:
        """Bits per dimension (B,): -log2 P(level) / d, where P is the mass of a sample's bin.

        Raises:
            InputError: no bin width is known, so bits are not defined.
        """
        if self.bin_width is None:
            raise InputError("bits/dim need the bin width of discrete data; pass log_prob(bin_width=...) or use .nats")
        return -self.nats / (self.dimensions * math.log(2))

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """A confidence interval (two tensors (B,)) for the expectation of ``nats`` over the random draws.

        It is nats -+ q stderr, with q from Student's law with ``freedom`` degrees of freedom. NaN if the standard error
        or its freedom is not known. It does not include the error of the solver.

        Raises:
            InputError: the level is not between 0 and 1.
        """
        if not 0 < level < 1:
            raise InputError(f"level must lie between 0 and 1, got {level!r}")
        freedom = torch.zeros_like(self.nats) if self.freedom is None else self.freedom
        q = torch.as_tensor(library("scipy.stats").t.ppf(0.5 + level / 2, freedom.detach().cpu().numpy())).to(self.nats)
        half = torch.where(self.stderr == 0, 0.0, q * self.stderr)
        return self.nats - half, self.nats + half

    def __repr__(self) -> str:
        if not self.failures:
            return "\n".join(self._lines())
        total, lost = len(self.nats), len(self.failures)
        note = f"  {lost} of {total} samples failed and are left out: {listed(self.failures)}"
        return "\n".join([*(self.finite._lines() if lost < total else []), note])

    def _lines(self) -> list[str]:
        def mean(values: Tensor, digits: int) -> str:
            values, count = values.detach(), len(values)
            error = f" +- {float(values.std()) / math.sqrt(count):.{digits}f}" if count > 1 else ""
            return f"{float(values.mean()):z.{digits}f}{error}"

        of = "" if self.density == "model" else f" of the {self.density}"
        above, below = (">=", "<=") if self.is_bound else ("=", "=")
        lines = [f"log p {above} {mean(self.nats, 3)} nats (mean of {len(self.nats)}), {self.kind}{of}"]
        if self.bin_width is not None:
            lines.append(f"bits/{self.unit} {below} {mean(self.bits_per_dim, 4)}")
        lines += [f"  {name:15s} {float(part.mean()):z12.3f} nats" for name, part in self.budget.items()]
        if self.stderr_of:
            error = typical_error(self.stderr)
            size = "not known" if math.isnan(error) else f"{error:.3g} nats a sample"
            lines.append(f"  standard error of {self.stderr_of}: {size}")
        if self.solver_error is not None:
            worst, average = float(self.solver_error.max()), float(self.solver_error.mean())
            lines.append(f"  solver error: {average:.3g} nats a sample, {worst:.3g} at most")
        trace = f", trace {self.divergence}" if self.divergence else ""
        work = f"{self.nfe} NFE" + (f", {self.vjps:g} vector-Jacobian products" if self.vjps else "")
        lines.append(f"  {self.solver} on {self.grid}{trace}, {work}, {self.seconds:.1f} s")
        return lines


def with_counts(result: LogProb, count: Count) -> LogProb:
    """The result with what the network did for all its samples."""
    samples = len(result.nats)
    return replace(result, forwards=count.forwards / samples, vjps=count.vjps / samples, calls=count.calls)


def typical_error(stderr: Tensor) -> float:
    """The mean of the standard errors (B,) that are known, which every page shows; NaN if none is known."""
    known = stderr.detach().double()[~stderr.isnan()]
    return float(known.mean()) if len(known) else math.nan


def degrees(draws: int, like: Tensor) -> Tensor:
    """The degrees of freedom (B,) of the spread of ``draws`` draws, one value for each of ``like`` (B,)."""
    return torch.full((len(like),), draws - 1, dtype=torch.float64, device=like.device)


def standard_error(draws: Tensor) -> Tensor:
    """The standard error (B,) of the mean of independent draws (B, m); NaN for a single draw."""
    m = draws.shape[1]
    return draws.std(1) / math.sqrt(m) if m > 1 else math.nan * draws[:, 0]


def error_of_mean(values: Tensor) -> float:
    """The standard error of the mean of values (B,); NaN for a single value."""
    if len(values) < 2:
        return math.nan
    equal = bool((values == values[0]).all())  # the mean of equal values may differ from them by rounding
    return 0.0 if equal else float(values.double().std()) / math.sqrt(len(values))


def uncertainty(result: LogProb) -> dict[str, float]:
    """The uncertainty of the mean of a likelihood, by its parts, in nats per sample; NaN if a part is not known.

    It is about the samples that did not fail.

    - ``samples``: the standard error over samples, which already includes those of the probes and of the dequantiser.
    - ``trace``: the standard error of the probes.
    - ``solver``: the mean of ``solver_error``; NaN if it was not requested.
    - ``of_these`` = sqrt(trace^2 + solver^2): the uncertainty of the mean over these samples.
    - ``total`` = sqrt(samples^2 + solver^2): the uncertainty of the mean over the distribution of the samples.

    If the solver's part is not known, the last two omit it.
    """
    result = result.finite
    samples = error_of_mean(result.nats)
    trace = float(result.stderr.double().square().sum().sqrt()) / len(result.nats)
    solver = math.nan if result.solver_error is None else float(result.solver_error.double().mean())
    part = 0.0 if math.isnan(solver) else solver
    of_these, total = math.hypot(trace, part), math.hypot(samples, part)
    return {"samples": samples, "trace": trace, "solver": solver, "of_these": of_these, "total": total}
