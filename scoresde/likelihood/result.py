"""What a likelihood is: its value, what it may be off by, what it is made of and what it cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from scipy.stats import t as student
from torch import Tensor

from solvers import InputError


@dataclass(frozen=True)
class LogProb:
    """Log-likelihoods and what they are made of.

    Attributes:
        nats: (B,) float64, the sum of the budget.
        stderr: (B,) nats, the standard error of what was drawn: of an ODE's value that of the probes of the trace, of
            a bound that of its paths or of its times and noise. 0 where nothing was, NaN where a single draw tells
            nothing.
        nfe: model evaluations per sample, the largest of the batch: forward passes.
        nfe_per_sample: (B,).
        products: vector-Jacobian products per sample, the largest of the batch; each costs about a backward pass.
        latent: the states (B, *) at t_max.
        budget: (B,) nats each: ``prior`` log p_T(x_T), ``divergence`` integral, ``truncation`` (the change of scale
            at t_min), ``dequantisation`` (minus the log-density of the noise in units of the bin: 0 for uniform
            noise), ``offset`` (the log of the bin's volume, where a bin width is known); of several draws the means,
            and ``importance``, what weighting them gained over their mean.
        bin_width: distance between neighbouring levels of the data, None for continuous data.
        kind: what the number is.
        freedom: (B,) degrees of freedom of ``stderr``, float64, one less than the draws whose spread it is; None where
            they are not known.
        stderr_of: what ``stderr`` is the standard error of, in words; empty where nothing was drawn.
        solver_error: (B,) nats, more than what the solver errs, see ``solver_error.bound``; None where it was not
            asked for.
        terms: of a chain's bound, (B, N + 1) nats, see ``chain.chain_bound``; None otherwise.
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
    products: int = 0
    freedom: Tensor | None = None
    stderr_of: str = ""
    solver_error: Tensor | None = None

    @property
    def dimensions(self) -> int:
        """Numbers in one sample."""
        return math.prod(self.latent.shape[1:])

    @property
    def bits_per_dim(self) -> Tensor:
        """-log2 P(level) / d (B,), where P is the mass of a sample's bin.

        Raises:
            InputError: no bin width is known, so the data have no bits.
        """
        if self.bin_width is None:
            raise InputError("bits/dim need the bin width of discrete data; give log_prob(bin_width=...) or use .nats")
        return -self.nats / (self.dimensions * math.log(2))

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Bounds (B,) of what nats would be without the chance of the draws: nats -+ q stderr, q of Student's law with
        ``freedom`` degrees. NaN where the standard error or its freedom is not known. What the solver errs is beside
        it.

        Raises:
            InputError: a level that is not between 0 and 1.
        """
        if not 0 < level < 1:
            raise InputError(f"level must lie between 0 and 1, got {level!r}")
        freedom = torch.zeros_like(self.nats) if self.freedom is None else self.freedom
        q = torch.as_tensor(student.ppf(0.5 + level / 2, freedom.detach().cpu().numpy())).to(self.nats)
        half = torch.where(self.stderr == 0, 0.0, q * self.stderr)
        return self.nats - half, self.nats + half

    def __str__(self) -> str:

        def mean(values: Tensor, digits: int) -> str:
            values, count = values.detach(), len(values)
            error = f" +- {float(values.std()) / math.sqrt(count):.{digits}f}" if count > 1 else ""
            return f"{float(values.mean()):.{digits}f}{error}"

        lines = [f"log p = {mean(self.nats, 3)} nats (mean of {len(self.nats)}), {self.kind}"]
        if self.bin_width is not None:
            lines.append(f"bits/dim = {mean(self.bits_per_dim, 4)}")
        lines += [f"  {name:15s} {float(part.mean()):12.3f} nats" for name, part in self.budget.items()]
        if self.stderr_of:
            known = self.stderr[~self.stderr.isnan()]
            size = f"{float(known.mean()):.3g} nats a sample" if len(known) else "not known"
            lines.append(f"  standard error of {self.stderr_of}: {size}")
        if self.solver_error is not None:
            worst, average = float(self.solver_error.max()), float(self.solver_error.mean())
            lines.append(f"  solver's error: {average:.3g} nats a sample, {worst:.3g} at most")
        trace = f", trace {self.divergence}" if self.divergence else ""
        work = f"{self.nfe} NFE" + (f", {self.products} vector-Jacobian products" if self.products else "")
        lines.append(f"  {self.solver} on {self.grid}{trace}, {work}, {self.seconds:.1f} s")
        return "\n".join(lines)


def degrees(draws: int, like: Tensor) -> Tensor:
    """The degrees of freedom (B,) of the spread of so many draws of each of ``like`` (B,)."""
    return torch.full((len(like),), draws - 1, dtype=torch.float64, device=like.device)


def standard_error(draws: Tensor) -> Tensor:
    """Of the mean of independent draws (B, m), (B,): NaN of a single one."""
    m = draws.shape[1]
    return draws.std(1) / math.sqrt(m) if m > 1 else math.nan * draws[:, 0]


def error_of_mean(values: Tensor) -> float:
    """The standard error of the mean of values (B,); NaN of a single one."""
    if len(values) < 2:
        return math.nan
    equal = bool((values == values[0]).all())  # whose mean may round to another
    return 0.0 if equal else float(values.double().std()) / math.sqrt(len(values))


def uncertainty(result: LogProb) -> dict[str, float]:
    """What the mean of a likelihood may be off by, in nats a sample; NaN where a part is not known.

    ``samples``: its standard error over samples (which holds that of the probes and of the dequantiser's draws);
    ``trace``: the standard error of the probes; ``solver``: the mean of ``solver_error``, NaN where it was not asked
    for. ``of_these`` = sqrt(trace^2 + solver^2) is of the mean of these very samples at their draws, ``total`` =
    sqrt(samples^2 + solver^2) of the mean over the distribution that they come from; both without the solver's part
    where that is not known.
    """
    samples = error_of_mean(result.nats)
    trace = float(result.stderr.double().square().sum().sqrt()) / len(result.nats)
    solver = math.nan if result.solver_error is None else float(result.solver_error.double().mean())
    part = 0.0 if math.isnan(solver) else solver
    of_these, total = math.hypot(trace, part), math.hypot(samples, part)
    return {"samples": samples, "trace": trace, "solver": solver, "of_these": of_these, "total": total}
