"""Texts about the registered kinds of guidance: the table, and a card for each."""

from __future__ import annotations

import json

from ..guidance import linear, nonlinear  # noqa: F401  # which register the kinds
from ..guidance.base import guidances
from .cards import aligned, documented, options_of
from .cards import card as described
from .posterior_scores import scores

HEAD = ("name", "kind", "forwards", "prediction", "paper")
LEGEND = """\
linear    a sum of predictions with weights whose sum is 1: the same for every output of the network
forwards  evaluations of the network for one prediction, inside of an interval
c, u      the prediction with conditions, and without.  scale s = 1 is c, s = 0 is u; w= of cfg is read as s - 1
Guided samples do not have the law p(x) p(c|x)^s: docs/guidance.md
scoresde guidances NAME: everything about one kind"""

NEEDS = {"negative": 'negative={"y": rows}', "autoguidance": "bad=worse", "classifier": "classifier=log_p"}
LAWS = {"tilted": "p(x) p(c|x)^s", "ode": "cfg, ODE", "sde": "cfg, SDE"}


def measured() -> str:
    """What cfg samples next to p(x) p(c|x)^s, a line for each scale; "" if the package contains no measurements.

    The numbers are those of benchmarks/conditions/guidance.py, of which ``benchmarks/readme.py`` writes scores.json.
    """
    rows = scores().get("guidance", ())
    lines = ["mean and deviation for p = 1/2 N(-1, 1/4) + 1/2 N(1, 1/4) and c its right half, with exact scores"]
    for row in rows:
        found = (f"{name} {row[key][0]:.3f}, {row[key][1]:.3f}" for key, name in LAWS.items())
        lines.append(f"s = {row['scale']:g}: {'; '.join(found)}")
    return "\n".join(lines) if rows else ""


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
    more = NEEDS.get(info.name, "")
    call = ", ".join(filter(None, ["denoiser", json.dumps(name), more]))
    facts = {
        "prediction": info.formula,
        "kind": info.kind,
        "forwards": f"{info.evaluations} for one prediction",
        "options": options_of(info),
        "note": info.note,
        "measured": measured() if info.name in ("cfg", "tilt") else "",
        "reference": info.reference,
        "command": "" if more else f'scoresde sample --workdir=runs/m --class=7 --guidance="{name}" --out=s/',
        "Python": f'scoresde.sample(denoiser, seeds=64, condition={{"y": labels}}, guidance={json.dumps(name)})'
        if info.kind == "particles"
        else f"scoresde.guide({call})",
    }
    return described(info.name, documented(info).summary, facts)
