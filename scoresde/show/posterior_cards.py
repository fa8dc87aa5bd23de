"""Texts about the methods that draw from p(x0 | y) and about the operators: the tables, and a card for each."""

from __future__ import annotations

import json
import re

from ..operators.base import LARGEST, Operator, operators
from ..posterior.base import Posterior, posteriors
from ..sampling.restore import GRID, STEPS
from .cards import aligned, card, documented, options_of
from .posterior_scores import measured
from .solver_cards import short

POSTERIOR_HEAD = ("name", "kind", "exact for", "noise", "operators", "gradient of", "paper")
POSTERIOR_LEGEND = """\
kind       denoiser: changes the prediction, under every solver; hook: changes the state after each step; solver, loop:
           takes steps of its own; particles: many for each draw, with weights
exact for  data for which it draws from p(x0 | y), under conditions that its card states; "-": none, its draws are
           approximate for any number of steps
noise      any sigma of the operator; needed: it divides by sigma; ignored: it draws as if sigma were 0
scoresde posteriors NAME: everything about one method.  scoresde operators: what may be observed"""
OPERATOR_HEAD = ("name", "kind", "y")
OPERATOR_LEGEND = """\
Every operator has an option sigma, the standard deviation of the noise in the units of the data: y = A(x) + sigma n.
Names of files are .npy files, and paths need quotes: inpaint(mask='folder/mask.npy', sigma=0.05)
scoresde operators NAME: everything about one operator.  scoresde posteriors: the methods that take them"""
NOISE = {
    "any": "any sigma of the operator, 0 too",
    "needed": "sigma above 0: the method divides by it",
    "ignored": "any sigma, but the method draws as if it were 0",
}
MEASURED = "SW: distance to exact draws (that of other exact draws); docs/posteriors.md"
GRADIENTS = {
    "": "none",
    "model": "the model, by vector-Jacobian products at every evaluation",
    "operator": "the operator alone",
}


def posterior_table() -> str:
    """The table of all methods."""
    rows = [POSTERIOR_HEAD]
    for name in posteriors.names():
        info = posteriors.info(name)
        method: type[Posterior] = info.cls
        exact = re.split(r",| of | and operators for ", method.exact_for)[0] or "-"
        rows.append((
            name, info.kind, exact, method.noise, "any" if method.nonlinear else "linear",
            method.differentiates or "-", short(info.reference),
        ))  # fmt: skip
    return f"{aligned(rows)}\n\n{POSTERIOR_LEGEND}"


def posterior_card(name: str) -> str:
    """Everything about one method, from its name or spec.

    Raises:
        InputError: an unknown name or an invalid option.
    """
    made = posteriors.make(name)
    info = posteriors.info_of(made)
    summary, details, _ = documented(info)
    facts = {
        "": details,
        "formula": info.formula,
        "kind": info.kind,
        "exact for": made.exact_for or "nothing: its draws are approximate for any number of steps",
        "operators": "linear and others" if made.nonlinear else "linear",
        "noise": NOISE[made.noise],
        "gradients": GRADIENTS[made.differentiates],
        "solver": f"{made.solver} on {GRID}, {STEPS} steps, by default"
        + ("" if made.budgeted else "; its evaluations follow from its options, not from nfe"),
        "options": options_of(info),
        "aliases": ", ".join(info.aliases),
        "note": info.note,
        "measured": measured(info.name) and f"{measured(info.name)}\n{MEASURED}",
        "reference": info.reference,
        "command": f'scoresde restore --workdir=runs/m --operator="inpaint(mask=mask.npy, sigma=0.05)" '
        f'--observation=y.npy --posterior="{name}" --out=r/',
        "Python": f"scoresde.restore(denoiser, operator, y, {json.dumps(name)})",
    }
    return card(str(made), summary, facts)


def operator_table() -> str:
    """The table of all operators."""
    rows = [OPERATOR_HEAD]
    for name in operators.names():
        info = operators.info(name)
        rows.append((name, info.kind, info.formula.removeprefix("y = ")))
    return f"{aligned(rows)}\n\n{OPERATOR_LEGEND}"


def operator_card(name: str) -> str:
    """Everything about one operator, from its name or spec.

    Raises:
        InputError: an unknown name, or an invalid option.
    """
    info = operators.info_of(operators.make(name)) if "(" in name else operators.info(name)
    summary, details, _ = documented(info)
    kind: type[Operator] = info.cls
    facts = {
        "": details,
        "formula": f"{info.formula}, plus sigma n",
        "kind": info.kind,
        "SVD": _svd(kind),
        "gradients": "" if kind.differentiable else "0 everywhere: methods that follow them refuse it",
        "options": options_of(info),
        "aliases": ", ".join(info.aliases),
        "note": info.note,
        "reference": info.reference,
    }
    return card(info.name, summary, facts)


def _svd(kind: type[Operator]) -> str:
    if not kind.linear:
        return ""
    own = kind.svd is not Operator.svd
    return "known for samples of every size" if own else f"computed, of samples of at most {LARGEST} numbers"
