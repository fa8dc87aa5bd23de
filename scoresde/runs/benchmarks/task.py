"""A benchmark: what its rows share, the facts that decide them, and the header of its results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from solvers import InputError

from ...benchmark.features import features_of
from ...benchmark.metrics import METRICS, few_samples
from ...benchmark.runner import Terms
from ...benchmark.store import FOLDER, Store
from ...benchmark.token_metrics import meaningful
from ...io.result_files import environment, fingerprint
from ...models.model import as_model
from .. import build
from .sources import REFERENCES, Subject

TRUTH_STEPS, KEEP = 64, 12


@dataclass(frozen=True)
class Scoring:
    """How a benchmark scores samples.

    Attributes:
        metrics: names; None for the default ones.
        features: the spec of the features that are compared; None for the numbers of the samples.
        round: whether samples are rounded to the levels of the data first.
    """

    metrics: tuple[str, ...] | None = None
    features: str | None = None
    round: bool = False


@dataclass(frozen=True)
class Task:
    """A benchmark of a subject.

    Attributes:
        terms: what its rows share.
        facts: what decides the numbers of its rows, as plain JSON types.
        subject: what it measures.
    """

    terms: Terms
    facts: dict[str, Any]
    subject: Subject

    @classmethod
    def of(cls, subject: Subject, seeds: Sequence[int], scoring: Scoring) -> Task:
        """The benchmark of a subject on its real samples, if it has any.

        Raises:
            InputError: an unknown metric; features that cannot be made; rounding of continuous data; a reference of
                another shape than the model's samples.
        """
        metrics, reference, train = scoring.metrics, subject.reference, subject.train
        if reference is None and (metrics or scoring.features or scoring.round):
            raise InputError("metrics, features and rounding need real samples to compare with: add --reference=FILE")
        if metrics is None and reference is not None and as_model(subject.denoiser, None).space == "discrete":
            known = None if train is None else train.some(min(REFERENCES, len(train))).x
            metrics = tuple(meaningful(reference, known))
        given = subject.conditions(len(seeds))
        device = build.device_of(subject.config)
        terms = Terms.of(
            subject.denoiser, reference, seeds, subject.shape, metrics=metrics, truth_steps=TRUTH_STEPS, keep=KEEP,
            features=None if scoring.features is None else features_of(scoring.features), condition=given,
            rounding=Rounding.of(subject) if scoring.round else None, device=device, dtype=subject.dtype,
            batch_size=subject.config.sampling.batch_size,
        )  # fmt: skip
        versions = environment(device, subject.dtype)
        facts = {
            **subject.facts,
            "seeds": list(seeds),
            "conditions": {name: fingerprint(rows) for name, rows in sorted(given.items())},
            "metrics": list(terms.metrics),
            "features": scoring.features,
            "conversion": str(terms.rounding) if terms.rounding else "none",
            "kind of device": device.type,
            **{name: versions[name] for name in ("scoresde", "torch", "dtype")},
        }
        return cls(terms, json.loads(json.dumps(facts, default=str)), subject)

    def kept_in(self, out: Path, overwrite: bool = False) -> Task:
        """The benchmark with its finished rows in a folder of results."""
        return replace(self, terms=replace(self.terms, store=Store(out / FOLDER, self.facts, overwrite)))

    @property
    def caution(self) -> str:
        """What a reader must know of distances of features of few samples; "" if nothing."""
        terms, reference = self.terms, self.terms.reference
        if reference is None:
            return ""
        return few_samples(list(terms.metrics), terms.features, len(terms.seeds), len(reference))

    def header(self, command: str, scoring: Scoring, exact: bool) -> dict[str, Any]:
        """All that the rows share, with what a reader needs to draw them again.

        Args:
            exact: whether a row has an error, for which the exact solution was computed.
        """
        truth = self.terms.truth if exact else None
        return {
            "command": command,
            "source": self.subject.source.record(),
            **self.facts,
            "scoring": asdict(scoring),
            "exact solution": truth and {"steps": TRUTH_STEPS, "error": truth.error, "nfe": truth.nfe},
            **self.subject.about,
            **({"caution": self.caution} if self.caution else {}),
        }


@dataclass(frozen=True)
class Rounding:
    """Rounds samples to the levels of discrete data: from ``low`` to ``high`` in steps of ``width``."""

    low: float
    high: float
    width: float

    @classmethod
    def of(cls, subject: Subject) -> Rounding:
        """The rounding of a subject's samples.

        Raises:
            InputError: its data are continuous.
        """
        if subject.bin_width is None:
            raise InputError("--round rounds samples to the levels of the data, and these data have none")
        return cls(subject.low, subject.high, subject.bin_width)

    def __call__(self, x: Tensor) -> Tensor:
        levels = ((x.double() - self.low) / self.width).round()
        return (self.low + levels * self.width).clamp(self.low, self.high).to(x.dtype)

    def __str__(self) -> str:
        count = round((self.high - self.low) / self.width) + 1
        return f"rounded to {count} levels from {self.low:g} to {self.high:g}"


def scoring_of(document: Mapping[str, Any]) -> Scoring:
    """The scoring in the header of a benchmark's results.

    Raises:
        KeyError, TypeError: there is none, or a part is of another type.
    """
    found = document["scoring"]
    metrics, features = found["metrics"], found["features"]
    if metrics is not None and not (isinstance(metrics, list) and all(name in METRICS for name in metrics)):
        raise TypeError(f"metrics are {metrics!r}")
    if (features is not None and type(features) is not str) or type(found["round"]) is not bool:
        raise TypeError(f"the scoring is {found!r}")
    return Scoring(None if metrics is None else tuple(metrics), features, found["round"])
