"""``Restored``: the result of ``restore``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .failures import Failure
from .pictures import save_samples

PICTURES = 10  # the most observations, and the most draws of each, in a picture


@dataclass(frozen=True, repr=False)
class Restored:
    """Draws of p(x0 | y) for n observations, S for each; ``save`` writes them to a file.

    Attributes:
        x: the draws (n, S, *).
        y: the observations (n, *m).
        seeds: the seed of each draw (S,), the same for every observation.
        nfe: NFE, what the solver asked for a draw; the largest.
        forwards, vjps: evaluations of the network, and vector-Jacobian products through it: means over the draws,
            counted at the network.
        log_evidence: an estimate of log p(y) (n,) in nats, the log of the mean over the draws; None for methods without
            one.
        effective: the least effective number of particles (n,) over the draws and the steps; None for methods without
            particles.
        posterior, operator, solver, grid: canonical specs.
        steps: the number of steps.
        seconds: wall-clock time.
        failures: the draws that failed, numbered by observation, then by seed; their rows of ``x`` are NaN.
    """

    x: Tensor
    y: Tensor
    seeds: tuple[int, ...]
    nfe: int
    forwards: float
    vjps: float
    posterior: str
    operator: str
    solver: str
    grid: str
    steps: int
    seconds: float
    log_evidence: Tensor | None = None
    effective: Tensor | None = None
    failures: tuple[Failure, ...] = ()

    @property
    def mean(self) -> Tensor:
        """The mean (n, *) of the draws that did not fail."""
        return torch.nanmean(self.x, 1)

    @property
    def deviation(self) -> Tensor:
        """The standard deviation (n, *) of the draws that did not fail; NaN for a single draw."""
        gaps = self.x - self.mean.unsqueeze(1)
        count = (~gaps.isnan()).sum(1)
        return (gaps.square().nansum(1) / (count - 1)).sqrt()

    def save(
        self, path: str | Path, low: float = -1.0, high: float = 1.0, pictures: Sequence[int] | None = None
    ) -> None:
        """Writes the draws to a file, whose ending decides the format.

        ``.npz`` contains x (n, S, *), mean and deviation (n, *), y, the seeds, and the evidence and effective numbers
        of particles where there are some; ``.npy`` contains x; ``.png`` has a row for each observation: the mean, then
        draws, which must be pictures (1, H, W) or (3, H, W).

        Args:
            low, high: the values of black and white in a picture.
            pictures: the observations in the picture; by default the first 10.

        Raises:
            InputError: a different ending; samples that are not pictures; a folder that does not exist.
        """
        known = {"log_evidence": self.log_evidence, "effective": self.effective}
        arrays: dict[str, Tensor | np.ndarray] = {
            "x": self.x,
            "mean": self.mean,
            "deviation": self.deviation,
            "y": self.y,
            "seeds": np.array(self.seeds),
            **{name: value for name, value in known.items() if value is not None},
        }
        rows = list(range(len(self.x)))[:PICTURES] if pictures is None else list(pictures)
        shown = torch.cat([self.mean.unsqueeze(1), self.x[:, :PICTURES]], 1)[rows]
        save_samples(path, arrays, shown.flatten(0, 1), low, high, shown.shape[1])

    def __repr__(self) -> str:
        network = "" if self.forwards == self.nfe else f" ({self.forwards:g} forwards)"
        products = f", {self.vjps:g} VJPs" if self.vjps else ""
        cost = f"{self.nfe} NFE{network}{products}, {self.seconds:.2f} s"
        lines = [
            f"Restored: x {tuple(self.x.shape)}, {self.x.dtype}, on {self.x.device}",
            f"  {self.posterior} of {self.operator}",
            f"  {self.solver} on {self.grid}, {self.steps} steps, {cost}",
        ]
        if self.log_evidence is not None:
            lines.append(f"  log p(y) = {', '.join(f'{v:.2f}' for v in self.log_evidence.tolist()[:5])} nats")
        if self.effective is not None:
            lines.append(f"  at least {float(self.effective.min()):.1f} effective particles")
        if self.failures:
            lines.append(f"  {len(self.failures)} of {self.x.shape[0] * self.x.shape[1]} draws failed")
        return "\n".join(lines)
