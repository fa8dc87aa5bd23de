"""Bayes' classifier of a conditional model: p(c | x) from the likelihood of data under each class."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from solvers import InputError

from ..data.rows import Batch
from .run import Run
from .score import Unfinished, check_bound, evaluate


@dataclass(frozen=True, eq=False)
class ClassPosterior:
    """p(c | x) = p(x | c) / sum_k p(x | k) of samples, where all classes are equally probable beforehand.

    Attributes:
        log_likelihood: log p(x | c) in nats (N, K), NaN where a solve failed.
        classes: the classes of the data (N,); K where there is none.
    """

    log_likelihood: Tensor
    classes: Tensor

    @property
    def log_posterior(self) -> Tensor:
        """log p(c | x) in nats (N, K)."""
        return self.log_likelihood.log_softmax(1)

    @property
    def scored(self) -> Tensor:
        """The samples (N,) that have a class and a likelihood under each of them."""
        known = self.classes < self.log_likelihood.shape[1]
        return known & self.log_likelihood.isfinite().all(1)

    @property
    def predicted(self) -> Tensor:
        """The most probable class of each sample (N,)."""
        return self.log_likelihood.argmax(1)

    def facts(self) -> dict[str, Any]:
        """Means over the scored samples, with their standard errors.

        They are the accuracy; the cross-entropy in nats; the confidence, which is the probability of the most probable
        class, and equals the accuracy on average if the probabilities are right; the probability of the right class;
        and its log p(x | c) in nats.
        """
        rows, n = self.scored, int(self.scored.sum())
        right = (self.predicted == self.classes)[rows].double()
        log_p, own = self.log_posterior[rows], self.classes[rows, None]
        loss = -log_p.gather(1, own)[:, 0]
        numbers = {
            "accuracy": right,
            "cross_entropy": loss,
            "confidence": log_p.exp().amax(1),
            "probability": (-loss).exp(),
            "log_likelihood": self.log_likelihood[rows].gather(1, own)[:, 0],
        }
        means = {name: float(value.mean()) if n else None for name, value in numbers.items()}
        spread = {f"{name}_stderr": float(v.std() / math.sqrt(n)) if n > 1 else None for name, v in numbers.items()}
        return {"scored": n, **means, **spread}

    def arrays(self) -> dict[str, Tensor]:
        """What ``classes.npz`` contains."""
        return {
            "log_likelihood": self.log_likelihood,
            "log_posterior": self.log_posterior,
            "classes": self.classes,
            "predicted": self.predicted,
        }

    def __str__(self) -> str:
        facts = self.facts()
        if not facts["scored"]:
            return "no sample has a class and a likelihood under each"
        shown = {n: f"{facts[n]:.4f}" + (f" +- {e:.4f}" if (e := facts[f"{n}_stderr"]) is not None else "")
                 for n in ("accuracy", "cross_entropy", "confidence")}  # fmt: skip
        counts = "\n".join(
            f"  class {c}: {int(self.scored[mine].sum())} samples, "
            f"{float((self.predicted == c)[mine & self.scored].double().mean()):.4f} right"
            for c in range(self.log_likelihood.shape[1])
            if bool((mine := self.classes == c)[self.scored].any())
        )
        return (
            f"the most probable class is right for {shown['accuracy']} of {facts['scored']} samples, with a mean "
            f"probability of {shown['confidence']}; cross-entropy {shown['cross_entropy']} nats\n{counts}"
        )


def class_posterior(
    run: Run, rows: Batch, split: str, folder: Path | None = None, share: tuple[int, int] = (1, 1)
) -> ClassPosterior | Unfinished:
    """Computes log p(x | c) of samples (N, *) under every class, with a run's ``likelihood`` section.

    Each class has the same dequantisation and the same probes. If the config names a bound, or the states are discrete,
    the bound replaces the ODE: its noise is the same for all classes, and unlike that of probes it largely cancels.

    Args:
        rows: samples with their conditions; all but the class stay as they are.
        folder, share: see ``evaluate``; each class has a folder of shards in ``folder``.

    Raises:
        InputError: the run has no single condition of classes; see also ``evaluate``.
    """
    there = [condition for condition in run.card.conditions if condition.kind == "class"]
    if len(there) != 1:
        has = ", ".join(condition.name for condition in run.card.conditions) or "none"
        raise InputError(f"--class=all needs a run with one condition of classes; the conditions of this run: {has}")
    name, count, ode = there[0].name, there[0].classes, run.config.likelihood.bound is None
    bounded = not ode or run.config.process is not None  # discrete states have only a bound
    check_bound(run.config.likelihood.bound)
    found, missing = list[Tensor](), list[Unfinished]()
    if folder is not None:
        folder.mkdir(exist_ok=True)
    for c in range(count):
        given = {**rows.conditions, name: torch.full_like(rows.conditions[name], c)}
        own = None if folder is None else folder / f"class_{c}"
        result = evaluate(run, rows.x, split, own, share, given, ode=ode)
        if isinstance(result, Unfinished):
            missing.append(result)
        else:
            found.append(result["bound" if bounded else "ode"].nats.double().cpu())
    if missing:
        total = missing[0].total
        return Unfinished(sum(m.done for m in missing) + total * len(found), total * count)
    return ClassPosterior(torch.stack(found, 1), rows.conditions[name].cpu())
