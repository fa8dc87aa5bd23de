"""Denoising errors of a network under hypotheses about it: its output, its time label, the scale of its data.

A network read correctly denoises better than a predictor that knows only the mean and the variance of the data,

    x0 = m + alpha s^2 / (alpha^2 s^2 + sigma^2) (x - alpha m),

and a network read wrongly does worse. All hypotheses see the same noise, so that their errors can be compared sample by
sample. The *score* of a hypothesis is the mean over levels of log(error / error of that predictor); 0 is no better than
the predictor. Its *gain* is the mean over levels of log(error / error with an output of zero): it is below 0 as soon as
a network that is read correctly has learned anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from solvers import InputError, Node, Output, generator
from solvers.types.model_output import PREDICTS

from .denoiser import Denoiser
from .time_labels import LABELS

LEVELS = 10
_LEAST, _MOST = 0.05, 8.0  # the range of sigma / (alpha s) where denoising errors distinguish the hypotheses
_BOUND = 5.0  # the largest score, positive or negative, of a sample at one level
_ODD = 0.1  # the margin in the score for each unusual part of a hypothesis
# (node, sde, N) -> label (B,)
Label = Callable[[Any, Any, int], Any]
REVERSED = "1 - t"
_LABELS: dict[str, Label] = {
    **{name: label.of for name, label in LABELS.items()},
    REVERSED: lambda node, sde, n: sde.t_max + sde.t_min - node.t,
}


@dataclass(frozen=True)
class Hypothesis:
    """What a network might be: the name of its output, with a minus for the negative, its label, and its data's scale.

    ``data`` is a name in ``scales``; "as given" is the data that were passed.
    """

    predicts: str
    label: str
    data: str = "as given"

    def __str__(self) -> str:
        return f"{self.predicts} with label {self.label}, data {self.data}"


Scores = dict[Hypothesis, Tensor]
"""The scores, or the gains, (B,) of the samples under each hypothesis."""


@dataclass(frozen=True)
class Comparison:
    """The scores and the gains of the same hypotheses."""

    scores: Scores
    gains: Scores

    def __or__(self, other: Comparison) -> Comparison:
        return Comparison(self.scores | other.scores, self.gains | other.gains)


def scales(x: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
    """Other scales that the data x (B, *) of a network may have had, by name, each with the map from x to them."""
    low, high, mean, std = float(x.min()), float(x.max()), float(x.mean()), float(x.std())
    found: dict[str, Callable[[Tensor], Tensor]] = {}
    if low >= 0 and high <= 1:
        found |= {"2 x - 1": lambda x: 2 * x - 1, "255 x": lambda x: 255 * x}
    elif low >= 0 and 2 < high <= 255:
        found |= {"x / 127.5 - 1": lambda x: x / 127.5 - 1, "x / 255": lambda x: x / 255}
    elif low >= -1 and high <= 1:
        found |= {"(x + 1) / 2": lambda x: (x + 1) / 2, "127.5 (x + 1)": lambda x: 127.5 * (x + 1)}
    if std > 0:
        centred = f"(x {'-' if mean >= 0 else '+'} {abs(mean):.3g})"
        found[f"{centred} / {std:.3g}"] = lambda x: (x - mean) / std
        found[f"{centred} / {2 * std:.3g}"] = lambda x: (x - mean) / (2 * std)
    if x.ndim == 4 and x.shape[1] in (4, 16):  # the latents of Stable Diffusion, whose factor is often forgotten
        found |= {"0.18215 x": lambda x: 0.18215 * x, "x / 0.18215": lambda x: x / 0.18215}
    if x.ndim == 4 and x.shape[1] == 3:
        found["channels in reverse"] = lambda x: x.flip(1)
    return found


@dataclass(frozen=True)
class Probe:
    """Noised data at several levels, at which a network is evaluated under every hypothesis.

    Attributes:
        x0: the data (B, *), repeated for every level.
        x: the noised data at ``node``, of tensors (B * levels,).
        trivial: the squared error (B * levels,) of the predictor that knows only mean and variance.
    """

    denoiser: Denoiser
    conditions: Mapping[str, Tensor]
    x0: Tensor
    x: Tensor
    node: Node[Tensor]
    trivial: Tensor

    @staticmethod
    def of(denoiser: Denoiser, data: Tensor, conditions: Mapping[str, Tensor]) -> Probe:
        """The probe for data (B, *); its noise is fixed."""
        node, count = _nodes(denoiser, float(data.std())), len(data)
        levels = len(node.t)
        x0 = data.repeat(levels, *(1,) * (data.ndim - 1))
        each = Node(*(v.repeat_interleave(count) for v in (node.t, node.alpha, node.sigma, node.dalpha, node.dsigma)))
        noise = torch.randn(x0.shape, generator=generator(0), dtype=torch.float64).to(x0)
        wide: Any = each.like(x0)
        x = wide.alpha * x0 + wide.sigma * noise
        mean, variance = data.mean(), data.var()
        share = wide.alpha * variance / (wide.alpha**2 * variance + wide.sigma**2)
        trivial = _squares(mean + share * (x - wide.alpha * mean) - x0)
        given = {name: value.repeat(levels, *(1,) * (value.ndim - 1)) for name, value in conditions.items()}
        return Probe(denoiser, given, x0, x, each, trivial)

    def label(self, name: str) -> Tensor:
        """The labels (B * levels,) by the name of a rule."""
        of, denoiser = _LABELS[name], self.denoiser
        return of(self.node, denoiser.sde, denoiser.train_timesteps).to(self.x.device)  # type: ignore[no-any-return]

    def evaluate(self, label: Tensor, sigma_data: float | None = None) -> Tensor:
        """The network's output (B * levels, *); with ``sigma_data`` inside EDM's preconditioning."""
        wide: Any = self.node.like(self.x)
        x = self.x
        if sigma_data is not None:
            x = x / (wide.alpha * (wide.ratio**2 + sigma_data**2) ** 0.5)
        return self.denoiser.evaluate_network(x, label, dict(self.conditions))

    def score(self, x0: Tensor, than: Tensor | None = None) -> Tensor:
        """The score (B,) of predictions x0 (B * levels, *); with predictions ``than``, against those."""
        tiny = 1e-12
        base = self.trivial if than is None else _squares(than - self.x0)
        ratio = torch.log((_squares(x0 - self.x0) + tiny) / (base + tiny))
        bounded = torch.nan_to_num(ratio, nan=_BOUND).clamp(-_BOUND, _BOUND)
        return bounded.view(len(torch.unique(self.node.t)), -1).mean(0)

    def read(self, label: str, data: str) -> Comparison:
        """The scores and gains under all hypotheses with one label; empty if the network rejects it."""
        found = Comparison({}, {})
        given = self.denoiser.sigma_data
        try:
            plain, inside = self.evaluate(self.label(label)), self.evaluate(self.label(label), given)
        except (InputError, RuntimeError, IndexError, ValueError):
            return found
        wide: Any = self.node.like(self.x)
        for name in PREDICTS:
            out = (inside if name == "edm" else plain).to(self.x.dtype)
            for sign, shown in ((1, name), (-1, f"-{name}")):
                if name == "edm" and sign < 0:
                    continue
                x0, none = (Output(name, given).read(f * out, self.x, wide).x0 for f in (sign, 0))
                each = Hypothesis(shown, label, data)
                found.scores[each], found.gains[each] = self.score(x0), self.score(x0, none)
        return found


def compare(denoiser: Denoiser, data: Tensor, conditions: Mapping[str, Tensor]) -> Comparison:
    """The scores and gains of all hypotheses; on other scales only with the labels that fit best on the given one."""
    probe = Probe.of(denoiser, data, conditions)
    found = Comparison({}, {})
    for label in _LABELS:
        found |= probe.read(label, "as given")
    ranked = sorted(found.scores, key=lambda each: float(found.scores[each].mean()))
    labels = dict.fromkeys([denoiser.label, *(each.label for each in ranked[:12])])
    for name, map_ in scales(data).items():
        moved = Probe.of(denoiser, map_(data), conditions)
        for label in labels if ranked and float(found.scores[ranked[0]].mean()) < -0.1 else _LABELS:
            found |= moved.read(label, name)
    return found


def blindness(probe: Probe, label: str, sigma_data: float | None) -> float:
    """The relative change of the output when the labels of the levels are permuted; 0 if the network ignores them."""
    labels = probe.label(label)
    out = probe.evaluate(labels, sigma_data)
    moved = probe.evaluate(labels.roll(len(labels) // 2), sigma_data)
    return float((moved - out).norm() / out.norm().clamp_min(1e-30))


def fitting(denoiser: Denoiser, best: Hypothesis) -> Denoiser:
    """The denoiser with the output and the label of a hypothesis that it can state; otherwise as it is."""
    if best.predicts not in PREDICTS or best.label not in LABELS:
        return denoiser
    return replace(denoiser, predicts=best.predicts, time_label=best.label)


def _nodes(denoiser: Denoiser, std: float) -> Node[Tensor]:
    """Nodes where the hypotheses differ, evenly spaced in lam; on a chain its own, whose labels are whole numbers."""
    sde = denoiser.sde
    first, last = sde(sde.t_min).ratio, sde(sde.t_max).ratio
    low, high = max(first, _LEAST * std), min(last, _MOST * std)
    if not low < high:
        low, high = first, last
    lams = torch.linspace(-torch.tensor(low).log().item(), -torch.tensor(high).log().item(), LEVELS).tolist()
    times = [min(max(sde.t_of_lam(lam), sde.t_min), sde.t_max) for lam in lams]
    count = sde.num_train_timesteps
    if count is not None:
        times = [min(max(round(t * count), 1), count) / count for t in times]
    return Node.stack(sde.nodes(sorted(set(times))))


def _squares(error: Tensor) -> Tensor:
    return error.double().square().flatten(1).mean(1)


def best_of(scores: Scores, keep: Callable[[Hypothesis], bool] = lambda each: True) -> Hypothesis | None:
    """The hypothesis with the least mean score among those to ``keep``; unusual ones must be better by a margin."""
    names: Iterable[Hypothesis] = filter(keep, scores)
    return min(names, key=lambda each: float(scores[each].mean()) + _ODD * unusual(each), default=None)


def unusual(each: Hypothesis) -> int:
    """How many unusual parts a hypothesis has: the negative of an output, time that runs backwards."""
    return each.predicts.startswith("-") + (each.label == REVERSED)
