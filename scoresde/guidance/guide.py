"""``guide``: the entry, which checks that a rule gets the predictions that it needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from solvers import InputError, Solver
from solvers.errors import unknown
from solvers.registry.normalise import normalise

from ..io.inputs import shown
from ..models.model import Model, as_model
from ..paths.base import SDE, ModelLike
from .base import BAD, CLASSIFIED, CONDITION, NEGATIVE, NULL, Guidance, Interval, guidances, only
from .classifier import Gradient
from .guided import NEGATIVE_ROWS, Guided, Role
from .linear import CFG, CFGPP
from .nonlinear import Around

Rows = Mapping[str, Any]
_LABEL = "_cfg_pp"  # ends ComfyUI's names of solvers with CFG++


def guide(
    denoiser: ModelLike,
    guidance: str | Guidance,
    *,
    null: Rows | None = None,
    negative: Rows | None = None,
    bad: ModelLike | None = None,
    classifier: Callable[..., Tensor] | None = None,
) -> Model:
    """A guided denoiser: any solver samples it, and ``encode`` and ``log_prob`` take it as well.

    Args:
        guidance: a name or spec such as "cfg(scale=3, interval=[0.2, 5])", see ``guidances.names()``. Noise levels are
            sigma / alpha. ``scale`` 1 is the conditional prediction; ``w=`` of cfg is scale - 1.
        null: one row for each condition that means "no condition". Models that know their conditions know it.
        negative: the conditions to be avoided, by name: rows (B, *), or one row (1, *) for all samples.
        bad: a worse model on the same path, for ``autoguidance``.
        classifier: for ``classifier``: a function of (x, node) and of conditions of the samples that it names, which
            returns log p(c|x_t) (B,); or a module called with (x, t), which returns logits (B, K).

    Raises:
        InputError: the name or an option is unknown; the rule needs an argument that is missing, or does not use one
            that is given; the interval is outside of the path.
    """
    rule, model = guidances.make(guidance), as_model(denoiser)
    empty = _null_of(model, null)
    for what, value, role in (
        ("negative", negative, NEGATIVE),
        ("bad", bad, BAD),
        ("classifier", classifier, CLASSIFIED),
    ):
        if value is not None and role not in rule.roles:
            raise InputError(f"{rule} does not use {what}=; {_users_of(role)}")
    roles = {role: _role(role, rule, model, empty, negative, bad, classifier) for role in rule.roles}
    if CLASSIFIED in roles:
        roles.setdefault(NULL, _role(NULL, rule, model, empty, negative, bad, classifier))
    _check_edges(rule, model.sde)
    made = Guided(model, rule, roles, None if classifier is None else Gradient(classifier))
    if negative is not None:
        made.given = {**made.given, **{NEGATIVE_ROWS + n: _rows(n, v, model) for n, v in negative.items()}}
    return made


def with_label(
    denoiser: ModelLike, guidance: str | Guidance | None, solver: str | Solver | None
) -> tuple[ModelLike, str | Solver | None]:
    """The guided denoiser, or the denoiser itself without guidance; and the solver, without a label's CFG++.

    ComfyUI's ``euler_cfg_pp`` is ``euler`` with the x0 of cfg and the eps of the prediction without conditions: CFG++
    with the scale of cfg.

    Raises:
        InputError: see ``guide``; also if the solver's name ends with ``_cfg_pp`` and the guidance is not cfg.
    """
    label = solver if isinstance(solver, str) and normalise(solver).endswith(_LABEL) else None
    if label is not None:
        rule = None if guidance is None else guidances.make(guidance)
        if isinstance(rule, CFG) and rule.interval is None:
            rule = CFGPP(rule.scale)
        if not isinstance(rule, CFGPP):
            raise InputError(f"the solver {label!r} needs the scale of its guidance: pass guidance='cfgpp(scale=0.6)'")
        solver, guidance = normalise(label).removesuffix(_LABEL), rule
    return (denoiser if guidance is None else guide(denoiser, guidance)), solver


def _users_of(role: str) -> str:
    names = {NEGATIVE: "negative", BAD: "autoguidance", CLASSIFIED: "classifier"}
    return f"{names[role]}(scale=...) does"


def _null_of(model: Model, null: Rows | None) -> dict[str, Tensor]:
    """The rows (1, *) of the conditions that mean that there is none, as far as they are known.

    Raises:
        InputError: a name is not one of the model's conditions.
    """
    known = {condition.name: condition for condition in model.conditions}
    found = {**{name: condition.empty(1) for name, condition in known.items()}, **model.null}
    if null is None:
        return found
    if not isinstance(null, Mapping):
        raise InputError(f"null must name the conditions, such as null={{'label': 10}}; got {shown(null)}")
    for name, value in null.items():
        if known and name not in known:
            raise unknown("condition of the model", name, known)
        rows = _rows(name, value, model)
        if len(rows) != 1:
            raise InputError(f"null has {len(rows)} rows of {name!r}; give one")
        found[name] = rows
    return found


def _rows(name: str, value: Any, model: Model) -> Tensor:
    """Rows (n, *) of a condition; a number, and a row of a condition that the model knows, become one row."""
    try:
        rows = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"the condition {name} must be numbers, got {shown(value)}") from None
    condition = next((condition for condition in model.conditions if condition.name == name), None)
    if rows.ndim == 0 or (condition is not None and tuple(rows.shape) == condition.shape):
        rows = rows.unsqueeze(0)
    if condition is not None:
        condition.check(rows)
    return rows


def _role(
    role: str,
    rule: Guidance,
    model: Model,
    empty: Mapping[str, Tensor],
    negative: Rows | None,
    bad: ModelLike | None,
    classifier: Callable[..., Tensor] | None,
) -> Role:
    """How the prediction of a role is made.

    Raises:
        InputError: what it needs is missing.
    """
    if role == CONDITION:
        return Role()
    if role == CLASSIFIED:
        if classifier is None:
            raise InputError(
                f"{rule} needs a classifier: pass classifier=, a function of (x, node) that returns log p (B,)"
            )
        return Role()
    if role == BAD:
        if bad is None:
            raise InputError(f"{rule} needs a worse model: pass bad=")
        return Role(_on_the_same_path(as_model(bad), model.sde))
    if role == NEGATIVE:
        if not negative or not isinstance(negative, Mapping):
            raise InputError(f"{rule} needs the conditions to be avoided: pass negative={{name: rows}}")
        known = [condition.name for condition in model.conditions]
        if unknown_name := next((name for name in negative if known and name not in known), None):
            raise unknown("condition of the model", unknown_name, known)
        return Role(negative=True)
    if role == NULL and classifier is not None:
        return Role(rows=empty, alone=True)
    if not empty:
        raise InputError(
            f"{rule} needs the prediction without a condition, but the model states no conditions: pass "
            "null={name: row}, the row that its network was trained with as no condition"
        )
    if role == NULL:
        return Role(rows=empty)
    names = list(empty)
    i = next((i for i in range(len(names)) if role == only(i)), None)
    count = sum(name.startswith("only ") for name in rule.roles)
    if i is None or count != len(names):
        raise InputError(f"{rule} has other scales than the model conditions, which are {', '.join(names)}")
    return Role(rows={name: row for name, row in empty.items() if name != names[i]})


def _on_the_same_path(bad: Model, sde: SDE) -> Model:
    """The worse model, after a check of its path.

    Raises:
        InputError: alpha or sigma differ from those of the model at some time.
    """
    for share in (0.1, 0.5, 1.0):
        t = sde.t_min + share * (sde.t_max - sde.t_min)
        own, other = sde(t), bad.sde(t)
        if not all(math.isclose(a, b, rel_tol=1e-6) for a, b in ((own.alpha, other.alpha), (own.sigma, other.sigma))):
            raise InputError(f"bad= is a model on {bad.sde}, but the model is on {sde}; both must be on one path")
    return bad


def _check_edges(rule: Guidance, sde: SDE) -> None:
    """Rejects an interval that no noise level of the path is in.

    Raises:
        InputError: the interval begins above the path's noise, or ends below it.
    """
    while isinstance(rule, Around):
        rule = rule.inner
    if not isinstance(rule, Interval) or rule.interval is None:
        return
    low, high = sorted((sde(sde.t_min).ratio, sde(sde.t_max).ratio))
    if rule.interval[0] >= high or rule.interval[1] <= low:
        raise InputError(
            f"{rule}: its interval is outside of the path, whose noise levels sigma / alpha are {low:.4g} to {high:.4g}"
        )
