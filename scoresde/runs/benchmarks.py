"""The benchmark of a run: what its rows share, the facts that decide them, and the header of its results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from solvers import InputError

from ..benchmark.features import features_of
from ..benchmark.metrics import METRICS
from ..benchmark.runner import Terms
from ..benchmark.store import FOLDER, Store
from ..benchmark.token_metrics import meaningful
from ..data.dataset import DataCard, Dataset
from ..io.result_files import environment, fingerprint
from . import build, conditions
from .run import Run
from .score import weights_of

REFERENCES = 10_000  # samples with which a benchmark compares, of a data set that has more
TRUTH_STEPS, KEEP, DTYPE = 64, 12, torch.float32


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
    """A benchmark of a run.

    Attributes:
        terms: what its rows share.
        facts: what decides the numbers of its rows, as plain JSON types.
        data: the data, of which the test split is the reference.
    """

    terms: Terms
    facts: dict[str, Any]
    data: Dataset

    @classmethod
    def of(cls, run: Run, data: Dataset, seeds: Sequence[int], scoring: Scoring) -> Task:
        """The benchmark of a run on its held-out data.

        Raises:
            InputError: an unknown metric; features that cannot be made; rounding of continuous data; a reference of
                another shape than the model's samples.
        """
        reference = data.test.first(REFERENCES).x
        metrics = scoring.metrics
        if metrics is None and run.config.process is not None:
            metrics = tuple(meaningful(reference, data.train.some(min(REFERENCES, len(data.train))).x))
        given = conditions.of_test(data.test, len(seeds))
        section, device = run.config.sampling, build.device_of(run.config)
        terms = Terms.of(
            run.denoiser, reference, seeds, run.card.shape, metrics=metrics, truth_steps=TRUTH_STEPS, keep=KEEP,
            features=None if scoring.features is None else features_of(scoring.features), condition=given,
            rounding=Rounding.of(run.card) if scoring.round else None, batch_size=section.batch_size, device=device,
            dtype=DTYPE,
        )  # fmt: skip
        network = run.denoiser.network
        assert isinstance(network, nn.Module)
        versions = environment(device, DTYPE)
        facts = {
            "path": run.config.process or run.config.sde,
            "prediction": run.config.model.predicts,
            "step": run.step,
            "average": run.average and run.average.facts(),
            "weights": weights_of(network),
            "reference": f"held-out {run.config.data.name}, {len(reference)} samples, {fingerprint(reference)}",
            "seeds": list(seeds),
            "conditions": {name: fingerprint(rows) for name, rows in sorted(given.items())},
            "metrics": list(terms.metrics),
            "features": scoring.features,
            "conversion": str(terms.rounding) if terms.rounding else "none",
            "kind of device": device.type,
            **{name: versions[name] for name in ("scoresde", "torch", "dtype")},
        }
        return cls(terms, json.loads(json.dumps(facts, default=str)), data)

    def kept_in(self, out: Path, overwrite: bool = False) -> Task:
        """The benchmark with its finished rows in a folder of results."""
        return replace(self, terms=replace(self.terms, store=Store(out / FOLDER, self.facts, overwrite)))

    def header(
        self, run: Run, command: str, workdir: str, overrides: Sequence[str], scoring: Scoring, exact: bool
    ) -> dict[str, Any]:
        """All that the rows share, with what a reader needs to draw them again.

        Args:
            exact: whether a row has an error, for which the exact solution was computed.
        """
        truth = self.terms.truth if exact else None
        return {
            "command": command,
            "workdir": workdir,
            "overrides": list(overrides),
            "network": run.config.model.network,
            **self.facts,
            "scoring": asdict(scoring),
            "exact solution": truth and {"steps": TRUTH_STEPS, "error": truth.error, "nfe": truth.nfe},
            "config": run.config.to_dict(),
        }


@dataclass(frozen=True)
class Rounding:
    """Rounds samples to the levels of discrete data: from ``low`` to ``high`` in steps of ``width``."""

    low: float
    high: float
    width: float

    @classmethod
    def of(cls, card: DataCard) -> Rounding:
        """The rounding of a run's samples.

        Raises:
            InputError: its data are continuous.
        """
        if card.bin_width is None:
            raise InputError("--round rounds samples to the levels of the data, and the data of this run have none")
        return cls(card.low, card.high, card.bin_width)

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
