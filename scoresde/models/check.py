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

from ..io.inputs import Array, conditions_of, tensor_of
from .denoiser import Denoiser
from .evaluation import evaluation
from .faults import Fault, data_faults, setting_faults, state_faults
from .hypotheses import REVERSED, Comparison, Hypothesis, Probe, Scores, best_of, blindness, compare, fitting, scales
from .model import as_model
from .time_labels import LABELS

_MATERIAL = 0.03  # scores closer than this do not distinguish two hypotheses: 3 % of the error
_BETTER = -0.05  # a score above this is not better than the trivial predictor
_SURE = -0.2  # a score below this shows what a network is: 0.82 times the error of the trivial predictor
# above it, another setting must be better by a margin in score and gain, and its gain be below a limit, as measured in
# docs/decisions.md
_MARGIN, _GAIN = 0.1, -0.5
_WORST = 0.2  # a score above this is too far from the trivial predictor to show anything
_BLIND = 1e-5  # rounding changes the output by less


@dataclass(frozen=True)
class Finding:
    """One property of a model.

    Attributes:
        what: the property, such as "time label".
        given: what the denoiser states; empty if ``advice`` says it.
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
        if not self.given:
            return f"{self.what}: {self.advice}"
        shown = f"{self.what}: {self.given}" + (f" -> {self.best}" if self.best != self.given else "")
        if self.sure < 1:
            shown += f" ({min(99, math.floor(100 * self.sure))} % sure)"
        if self.also:
            shown += f" (as good: {', '.join(self.also)})"
        return f"{shown}: {self.advice}" if self.wrong else shown


@dataclass(frozen=True, repr=False)
class Check:
    """The result of ``check``; printing it shows a line per property.

    Attributes:
        findings: the properties: prediction, time label, data, and faults of the model and of the data.
        score: the mean over noise levels of log(denoising error / error of the best predictor that knows only the mean
            and the variance of the data), for the denoiser as it is. Below 0 is better than that predictor.
        best_score: the same for the hypothesis that fits best.
        undertrained: empty if the network is trained enough to show its settings; otherwise a sentence that says how
            far it is from that, and what to do.
    """

    findings: tuple[Finding, ...]
    score: float
    best_score: float
    undertrained: str = ""

    @property
    def ok(self) -> bool:
        """Whether nothing should be changed and the network is trained enough to show that."""
        return not self.undertrained and not self.wrong

    @property
    def wrong(self) -> tuple[Finding, ...]:
        """The findings that ask for a change."""
        return tuple(finding for finding in self.findings if finding.wrong)

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        verdict = "change " + ", ".join(finding.what for finding in self.wrong) if self.wrong else "nothing to change"
        if self.undertrained:
            verdict = f"{verdict}, as far as an undertrained network shows" if self.wrong else "undertrained"
            verdict = f"{verdict}: {self.undertrained}"
        errors = f"denoising error over that of mean and variance alone: {math.exp(self.score):.2f}"
        if self.best_score < self.score - _MATERIAL:
            errors += f", with the best options {math.exp(self.best_score):.2f}"
        return "\n".join([verdict, errors, *(f"  {finding}" for finding in self.findings)])


def check(denoiser: Any, x: Array, condition: Mapping[str, Array] | None = None) -> Check:
    """Looks at a model with a few samples of its data.

    It compares denoising errors at ten noise levels, under all hypotheses about the network's output, its time label
    and the scale of its data. The cost is about 30 evaluations of the network for each sample and level, up to 130 if
    nothing fits. Eight samples are usually enough. The result is sure of a network whose error is below 0.82 times that
    of the predictor that knows only mean and variance. From there to 0.95 times, and above, it names another setting
    only if that fits clearly better; above, it calls the network undertrained. The network of data that are nearly
    normal cannot be better than that predictor, and is called undertrained as well.

    Args:
        denoiser: a ``Denoiser``. Of any other model, only the errors and the data are checked.
        x: samples of the data (B, *), B of at least 2, as the model is used with them: a tensor or a numpy array.
            float64 becomes the dtype of the model, or float32 if it has none.
        condition: keyword arguments of the network, each (B, *).

    Raises:
        InputError: x is not a batch of at least two finite samples, or the network rejects it under every label.
    """
    model, x, notes = as_model(denoiser), *_samples(x)
    conditions = conditions_of(condition, len(x), x.device, model.conditions)
    notes += _noted(data_faults(model, x))
    if not isinstance(denoiser, Denoiser):
        return _unknown(model, x, conditions, notes)
    notes += _noted([*setting_faults(denoiser), *state_faults(denoiser)])
    if any(part.training for module in denoiser.modules for part in module.modules()):
        notes.append(_fine("mode", "training; this check and every solve run the network in evaluation mode"))
    with evaluation(denoiser), torch.no_grad():
        denoiser, x, shaped = _shaped(denoiser, x, conditions)
        compared = compare(denoiser, x, conditions)
        scores, given = compared.scores, Hypothesis(denoiser.predicts, denoiser.label)
        if not scores:
            raise InputError(f"the network rejects samples of shape {tuple(x.shape[1:])} under every time label")
        best = _preferred(compared, given)
        found = [*_compared(compared, given, best), _time(denoiser, x, conditions, best), *shaped, *notes]
    score = float(scores[given].mean()) if given in scores else math.inf
    best_score = float(scores[best].mean())
    return Check(tuple(found), score, best_score, _undertrained(best_score))


def _undertrained(score: float) -> str:
    """What to do about a network with this score of its best settings; empty if it is better than trivial."""
    if score <= _BETTER:
        return ""
    return (
        f"its error is {math.exp(score):.2f} times that of mean and variance alone; the settings are sure below "
        f"{math.exp(_SURE):.2f} and visible below {math.exp(_BETTER):.2f}. Was it trained on these data? Train it "
        "longer and check again; the network of data that are nearly normal never gets there"
    )


def _fine(what: str, text: str) -> Finding:
    return Finding(what, text, text)


def _noted(faults: list[Fault]) -> list[Finding]:
    return [Finding(fault.what, "", "", 1.0, fault.text) for fault in faults]


def _samples(x: Any) -> tuple[Tensor, list[Finding]]:
    try:
        x = tensor_of("x", x)
    except InputError:
        raise InputError(f"check needs at least two finite samples (B, *), got {type(x).__name__}") from None
    if x.ndim < 2 or len(x) < 2 or not torch.isfinite(x).all():
        raise InputError(f"check needs at least two finite samples (B, *), got shape {tuple(x.shape)}")
    if x.is_floating_point():
        return (x.float() if x.dtype == torch.float64 else x), []
    advice = "networks are trained on floats, usually on x / 127.5 - 1"
    return x.float(), [Finding("data type", str(x.dtype), "float32", 1.0, advice)]


def _preferred(compared: Comparison, given: Hypothesis) -> Hypothesis:
    """The hypothesis that fits best, or the given one if that fits as well or the network shows too little."""
    scores = compared.scores
    best = best_of(scores, lambda each: _shows(compared, each, given))
    if best is None or (given in scores and not _better(scores, best, given)):
        return given
    # of several that fit as well, one that differs from the given one in the fewest options
    ties = [each for each in scores if not _better(scores, best, each) and _shows(compared, each, given)]

    def changes(each: Hypothesis) -> int:
        return sum(a != b for a, b in zip(_options(each), _options(given), strict=True))

    return min(ties, key=lambda each: (changes(each), float(scores[each].mean())))


def _shows(compared: Comparison, each: Hypothesis, given: Hypothesis) -> bool:
    """Whether the scores show that a hypothesis fits better than the given one, or it is the given one.

    With little training, the best score is often that of a hypothesis under which the network's output hardly matters,
    such as "v" of an output near zero. The gain of such a hypothesis is near 0, and that of the true one is below it.
    """
    scores, gains = compared.scores, compared.gains
    score, gain = float(scores[each].mean()), float(gains[each].mean())
    if each == given or score < _SURE:
        return True
    if score > _WORST or gain > _GAIN:
        return False
    return given not in scores or all(_better(of, each, given, _MARGIN) for of in (scores, gains))


def _options(each: Hypothesis) -> tuple[str, str, str]:
    return each.predicts, each.label, each.data


def _better(scores: Scores, one: Hypothesis, other: Hypothesis, least: float = _MATERIAL) -> bool:
    """Whether one hypothesis fits better than another by more than chance and by a material amount."""
    difference = scores[other] - scores[one]
    deviation = float(difference.std()) / math.sqrt(len(difference))
    return float(difference.mean()) > max(least, 2 * deviation)


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


def _compared(compared: Comparison, given: Hypothesis, best: Hypothesis) -> list[Finding]:
    """What the scores show about prediction, time label and the scale of the data."""
    if best == given and float(compared.scores[best].mean()) > _BETTER:  # undertrained: nothing fits better than this
        guess = best_of(compared.scores, lambda each: float(compared.gains[each].mean()) < -_MATERIAL)
        found = [_fine("prediction", given.predicts), _fine("time label", given.label)]
        if guess and (given not in compared.scores or _better(compared.scores, guess, given, _MARGIN)):
            error = math.exp(float(compared.scores[guess].mean()))
            found.append(_fine("less error, but too little to be sure", f"{guess} ({error:.2f})"))
        return found
    scores = {each: of for each, of in compared.scores.items() if _shows(compared, each, best)}
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
    return Check(tuple(notes), score, score, _undertrained(score))
