"""Texts about the registered kinds of guidance: the table, and a card for each."""

from __future__ import annotations

from ..guidance import linear, nonlinear  # noqa: F401  # which register the kinds
from ..guidance.base import guidances
from .cards import aligned, options_of
from .cards import card as described

HEAD = ("name", "kind", "forwards", "prediction", "paper")
LEGEND = """\
linear    a sum of predictions with weights whose sum is 1: the same for every output of the network
forwards  evaluations of the network for one prediction, inside of an interval
c, u      the prediction with conditions, and without.  scale s = 1 is c, s = 0 is u; w= is read as scale - 1
Guided samples do not have the law p(x) p(c|x)^s: docs/guidance.md
scoresde guidances NAME: everything about one kind"""


def table() -> str:
    """The table of all kinds."""
    rows = [HEAD]
    for name in guidances.names():
        info = guidances.info(name)
        rows.append((name, info.kind, str(info.evaluations), info.formula, info.reference))
    return f"{aligned(rows)}\n\n{LEGEND}"


def card(name: str) -> str:
    """Everything about one kind, from its name or spec.

    Raises:
        InputError: an unknown name or an invalid option.
    """
    info = guidances.info_of(guidances.make(name))
    facts = {
        "prediction": info.formula,
        "kind": info.kind,
        "forwards": f"{info.evaluations} for one prediction",
        "options": options_of(info),
        "note": info.note,
        "reference": info.reference,
        "Python": f'scoresde.guide(denoiser, "{name}")',
    }
    return described(info.name, info.summary, facts)
