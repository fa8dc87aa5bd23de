"""``check``: looks at a model with a few real samples, and reports what it seems to be and which option is wrong.

>>> import scoresde, torch
>>> x = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
>>> network = lambda x, label: x * torch.sigmoid(label)[:, None]  # eps of data N(0, I) where label is logit(sigma)
>>> found = check(scoresde.Denoiser(network, scoresde.VE(), predicts="eps", time_label="log_sigma"), x)
>>> found.findings[1].what, found.findings[1].given
('time label', 'log_sigma')
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from solvers import InputError
from solvers.types.answers import predicted
from solvers.types.model_output import PREDICTS

from .denoiser import Denoiser
from .evaluation import evaluation
from .faults import Fault, data_faults, setting_faults, state_faults
from .hypotheses import REVERSED, Hypothesis, Probe, Scores, best_of, blindness, compare, fitting, scales
from .model import as_model
from .time_labels import LABELS

_MATERIAL = 0.03  # scores closer than this do not distinguish two hypotheses: 3 % of the error
_BETTER = -0.05  # a score above this is not better than the trivial predictor
_BLIND = 1e-5  # rounding changes the output by less


@dataclass(frozen=True)
class Finding:
    """One property of a model.

    Attributes:
        what: the property, such as "time label".
        given: what the denoiser states.
        best: what fits best; equal to ``given`` unless something else fits better.
        sure: the probability, from 0.5 to 1, that ``best`` fits better than every other but those in ``also``.
        advice: what to change; empty if nothing.
        also: what fits as well as ``best``, to 3 % of the error.
    """

    what: str
    given: str
    best: str
    sure: float = 1.0
    advice: str = ""
    also: tuple[str, ...] = ()

    @property
    def wrong(self) -> bool:
        """Whether something should be changed."""
        return bool(self.advice)

    def __str__(self) -> str:
        shown = f"{self.what}: {self.given}" + (f" -> {self.best}" if self.best != self.given else "")
        if self.sure < 1:
            shown += f" ({min(99, math.floor(100 * self.sure))} % sure)"
        if self.also:
            shown += f" (as good: {', '.join(self.also)})"
        return f"{shown}: {self.advice}" if self.wrong else shown


@dataclass(frozen=True)
class Check:
    """The result of ``check``; printing it shows a line per property.

    Attributes:
        findings: the properties: prediction, time label, data, and faults of the model and of the data.
        score: the mean over noise levels of log(denoising error / error of the best predictor that knows only the mean
            and the variance of the data), for the denoiser as it is. Below 0 is better than that predictor.
        best_score: the same for the hypothesis that fits best.
    """

    findings: tuple[Finding, ...]
    score: float
    best_score: float

    @property
    def ok(self) -> bool:
        """Whether nothing should be changed."""
        return not any(finding.wrong for finding in self.findings)

    @property
    def wrong(self) -> tuple[Finding, ...]:
        """The findings that ask for a change."""
        return tuple(finding for finding in self.findings if finding.wrong)

    def __str__(self) -> str:
        verdict = "nothing to change" if self.ok else "change " + ", ".join(finding.what for finding in self.wrong)
        errors = f"denoising error over that of mean and variance alone: {math.exp(self.score):.2f}"
        if self.best_score < self.score - _MATERIAL:
            errors += f", with the best options {math.exp(self.best_score):.2f}"
        return "\n".join([verdict, errors, *(f"  {finding}" for finding in self.findings)])


def check(denoiser: Any, x: Tensor, condition: Mapping[str, Tensor] | None = None) -> Check:
    """Looks at a model with a few samples of its data.

    It compares denoising errors at ten noise levels, under all hypotheses about the network's output, its time label
    and the scale of its data. The cost is about 30 evaluations of the network for each sample and level, up to 130 if
    nothing fits. Eight samples are usually enough; a network that fits no hypothesis was not trained, or not on these
    data.

    Args:
        denoiser: a ``Denoiser``. Of any other model, only the errors and the data are checked.
        x: samples of the data (B, *), B of at least 2, as the model is used with them.
        condition: keyword arguments of the network, each (B, *).

    Raises:
        InputError: x is not a batch of at least two finite samples, or the network rejects it under every label.
    """
    model, x, notes = as_model(denoiser), *_samples(x)
    notes += _noted(data_faults(model, x))
    if not isinstance(denoiser, Denoiser):
        return _unknown(model, x, condition or {}, notes)
    notes += _noted([*setting_faults(denoiser), *state_faults(denoiser)])
    with evaluation(denoiser), torch.no_grad():
        denoiser, x, shaped = _shaped(denoiser, x, condition or {})
        scores = compare(denoiser, x, condition or {})
        given = Hypothesis(denoiser.predicts, denoiser.label)
        if not scores:
            raise InputError(f"the network rejects samples of shape {tuple(x.shape[1:])} under every time label")
        best = _preferred(scores, given)
        found = [*_compared(denoiser, scores, given, best), _time(denoiser, x, condition or {}, best), *shaped, *notes]
    score = float(scores[given].mean()) if given in scores else math.inf
    return Check(tuple(found), score, float(scores[best].mean()))


def _fine(what: str, text: str) -> Finding:
    return Finding(what, text, text)


def _noted(faults: list[Fault]) -> list[Finding]:
    return [Finding(fault.what, "as it is", "changed", 1.0, fault.text) for fault in faults]


def _samples(x: Tensor) -> tuple[Tensor, list[Finding]]:
    if not isinstance(x, Tensor) or x.ndim < 2 or len(x) < 2 or not torch.isfinite(x).all():
        shown = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise InputError(f"check needs at least two finite samples (B, *), got {shown}")
    if x.is_floating_point():
        return x, []
    advice = "networks are trained on floats, usually on x / 127.5 - 1"
    return x.float(), [Finding("data type", str(x.dtype), "float32", 1.0, advice)]


def _preferred(scores: Scores, given: Hypothesis) -> Hypothesis:
    """The hypothesis that fits best, or the given one if that fits as well."""
    best = best_of(scores)
    if best is None or (given in scores and not _better(scores, best, given)):
        return given
    # of several that fit as well, one that differs from the given one in the fewest options
    ties = [each for each in scores if not _better(scores, best, each)]

    def changes(each: Hypothesis) -> int:
        return sum(a != b for a, b in zip(_options(each), _options(given), strict=True))

    return min(ties, key=lambda each: (changes(each), float(scores[each].mean())))


def _options(each: Hypothesis) -> tuple[str, str, str]:
    return each.predicts, each.label, each.data


def _better(scores: Scores, one: Hypothesis, other: Hypothesis) -> bool:
    """Whether one hypothesis fits better than another by more than chance and by a material amount."""
    difference = scores[other] - scores[one]
    deviation = float(difference.std()) / math.sqrt(len(difference))
    return float(difference.mean()) > max(_MATERIAL, 2 * deviation)


def _rivals(scores: Scores, best: Hypothesis, option: int) -> tuple[float, tuple[str, ...]]:
    """How sure an option of the best hypothesis is, and its other values that fit as well."""
    values = dict.fromkeys(_options(each)[option] for each in scores)
    values.pop(_options(best)[option])
    closest: dict[str, Hypothesis] = {}
    for each in sorted(scores, key=lambda each: -float(scores[each].mean())):
        closest[_options(each)[option]] = each  # the last one of a value fits best
    also = tuple(value for value in values if not _better(scores, best, closest[value]))
    other = best_of(scores, lambda each: _options(each)[option] not in (*also, _options(best)[option]))
    if other is None:
        return 1.0, also
    difference = scores[other] - scores[best]
    deviation = math.hypot(float(difference.std()) / math.sqrt(len(difference)), _MATERIAL)
    return max(0.5, 0.5 * (1 + math.erf(float(difference.mean()) / deviation / math.sqrt(2)))), also


def _compared(denoiser: Denoiser, scores: Scores, given: Hypothesis, best: Hypothesis) -> list[Finding]:
    """What the scores show about prediction, time label and the scale of the data."""
    if float(scores[best].mean()) > _BETTER:
        advice = "no hypothesis denoises better than mean and variance alone: is it trained, and on these data?"
        return [
            Finding("prediction", given.predicts, "nothing", 1.0, advice),
            _fine("time label", given.label),
        ]
    names = ("prediction", "time label", "data")
    found = []
    for option, what in enumerate(names):
        stated, fits = _options(given)[option], _options(best)[option]
        advice = "" if stated == fits else _advice(option, fits)
        sure, also = _rivals(scores, best, option)
        found.append(Finding(what, stated, fits, sure, advice, also))
    return found


def _advice(option: int, fits: str) -> str:
    """What to change so that an option fits."""
    if option == 2:
        return f"pass {fits} of these data as x"
    if option == 1:
        if fits == REVERSED:
            return "its time runs from noise to data: wrap it, lambda x, t: network(x, 1 - t)"
        return f"time_label={fits!r}" if fits in LABELS else fits
    if fits in PREDICTS:
        return f"predicts={fits!r}"
    return f"its output is the negative of {fits[1:]}: wrap it, lambda x, t: -network(x, t), with predicts={fits[1:]!r}"


def _shaped(denoiser: Denoiser, x: Tensor, conditions: Mapping[str, Tensor]) -> tuple[Denoiser, Tensor, list[Finding]]:
    """The denoiser and the data as the network accepts them: channels first, a learned variance if there is one."""
    orders = [("as given", x)]
    if x.ndim == 4 and x.shape[3] in (1, 3, 4):
        orders.append(("channels first", x.movedim(3, 1)))
    first: Exception | None = None
    for order, moved in orders:
        for learned in (denoiser.learned_variance, not denoiser.learned_variance):
            made = replace(denoiser, learned_variance=learned)
            probe = Probe.of(made, moved[:2], {name: value[:2] for name, value in conditions.items()})
            try:
                probe.evaluate(probe.label(denoiser.label))
            except (InputError, RuntimeError, ValueError) as error:
                first = first or error
                continue
            found = []
            if order != "as given":
                found.append(Finding("channels", "last", "first", 1.0, "pass x.movedim(-1, 1), samples (C, H, W)"))
            if learned != denoiser.learned_variance:
                advice = f"learned_variance={learned}"
                found.append(Finding("learned variance", str(not learned), str(learned), 1.0, advice))
            return made, moved, found
    raise InputError(f"the network rejects the data: {first}") from first


def _time(denoiser: Denoiser, x: Tensor, conditions: Mapping[str, Tensor], best: Hypothesis) -> Finding:
    """Whether the output depends on the time label."""
    moved = scales(x).get(best.data)
    data = x if moved is None else moved(x)
    probe, fits = Probe.of(denoiser, data, conditions), fitting(denoiser, best)
    change = blindness(probe, best.label, fits.sigma_data if fits.predicts == "edm" else None)
    if change > _BLIND:
        return _fine("time", f"the label changes the output by {100 * change:.3g} %")
    return Finding("time", "the label changes nothing", "blind", 1.0, "the network ignores its time label")


def _unknown(model: Any, x: Tensor, conditions: Mapping[str, Tensor], notes: list[Finding]) -> Check:
    """The check of a model whose network is not known: only its errors as it is."""
    stand_in = Denoiser(lambda x, label: x, model.sde, time_label="t")
    with evaluation(model), torch.no_grad():
        probe = Probe.of(stand_in, x, conditions)
        score = float(probe.score(predicted(model.predict, probe.x, probe.node, probe.conditions).x0).mean())
    if score > _BETTER:
        advice = "it denoises no better than mean and variance alone: is it trained, and on these data?"
        notes = [Finding("prediction", type(model).__name__, "nothing", 1.0, advice), *notes]
    return Check(tuple(notes), score, score)
