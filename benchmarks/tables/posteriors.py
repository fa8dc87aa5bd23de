"""The tables of docs/posteriors.md and the README about posterior methods, made from posteriors.json; readme.py writes
them, and the rows that the cards of the methods show.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from scoresde.show.solver_cards import markdown

Row = dict[str, Any]
MIXTURES = ("P(4, 0.1)", "P(1, 0.1)", "P(4, 0.01)")
LINEAR, OTHERS = ("inpaint", "block_means"), ("phase", "tanh", "quantise")
REFERENCES = {"truth": "exact draws", "exact": "the posterior's denoiser", "unconditional": "no observation"}
DIGITS_NAMES = {"block_means": "block means", "inpaint": "top half"}
SDE = "dpmpp_2m_sde"
# of the README: what a row says, and its method and solver on the mixtures and on digits
SHORT = {
    "exact draws against exact draws": ("truth", "", "truth", ""),
    "exact posterior, `dpmpp_2m_sde`": ("exact", SDE, "exact", SDE),
    "`tds`, 250 particles (digits 800)": ("tds(particles=250)", "ddpm", "tds(particles=800, variance=0.293)", "ddpm"),
    "`mmps`": ("mmps", SDE, "mmps", SDE),
    "`dps`": ("dps", SDE, "dps", SDE),
    "`ddrm(renoise=fixed)`": ("ddrm(renoise=fixed)", "ddim", "ddrm(renoise=fixed)", "ddim"),
    "`pigdm`": ("pigdm", SDE, "pigdm(variance=0.293)", SDE),
    "`ddnm`": ("ddnm", SDE, "ddnm", SDE),
    "no observation": ("unconditional", SDE, "unconditional", SDE),
}


def title(row: Row) -> str:
    """What a row is: the method, and how particles became draws."""
    method: str = REFERENCES.get(row["method"]) or f"`{row['method'].replace(', variance=0.293', '')}`"
    method = method.replace("(variance=0.293)", "")  # of all digits
    loop = " in equal steps of t" if row["grid"] == "t" else ""
    runs = (
        f", {row['runs']} runs" if row["runs"] > 1 else ", one for each draw" if "particles=16" in row["method"] else ""
    )
    return method + loop + runs


def number(value: float) -> str:
    """A score with two digits or three, or a power of ten.

    >>> number(0.0784), number(0.217), number(3.41), number(211.4), number(61000.0), number(-0.02)
    ('0.078', '0.217', '3.41', '211', '6e+04', '-0.02')
    """
    if abs(value) >= 1000:
        return f"{value:.0e}"
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3f}" if 0 <= value < 1 else f"{value:.2f}"


def cell(row: Row | None, names: Sequence[str]) -> str:
    """The sliced distance with its standard error, and other scores."""
    if row is None:
        return ""
    values, errors = row["scores"], row["errors"]
    others = [number(values[name]) for name in names]
    lost = f", {values['failed']:.0f} lost" if values["failed"] else ""
    return ", ".join([f"{number(values['sw'])} ± {number(errors['sw'])}", *others]) + lost


def by_problem(rows: Iterable[Row], problems: Sequence[str]) -> dict[tuple[str, ...], dict[str, Row]]:
    """The rows of some problems by what they are, in the order of the first problem's sliced distance."""
    found: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:
        if row["problem"] in problems:
            family = title(row).replace("particles=125", "particles=250")
            found.setdefault((family, row["solver"]), {})[row["problem"]] = row

    def place(item: tuple[tuple[str, ...], dict[str, Row]]) -> tuple[int, float]:
        (name, _), own = item
        first = next(own[problem] for problem in problems if problem in own)
        return (0 if name == REFERENCES["truth"] else 1), first["scores"]["sw"]

    return dict(sorted(found.items(), key=place))


def table(rows: Iterable[Row], problems: Sequence[str], heads: Sequence[str], names: Sequence[str]) -> str:
    """A row for each method and solver, a column for each problem."""
    lines = []
    for (name, solver), own in by_problem(rows, problems).items():
        first = next(iter(own.values()))
        cost = f"{first['forwards']:.0f} + {first['vjps']:.0f}" if first["vjps"] else f"{first['forwards']:.0f}"
        cells = [cell(own.get(problem), names) for problem in problems]
        lines.append((name, f"`{solver}`" if solver else "", cost if first["steps"] else "", *cells))
    return markdown(("method", "solver", "evaluations", *heads), lines)


def short(document: dict[str, Any]) -> str:
    """The README's table: a few methods, sliced distances and multiples of exact draws'."""
    found = {(row["problem"], row["method"], row["solver"]): row for row in document["rows"]}
    problems = ("P(4, 0.1)", "P(1, 0.1)", "digits, inpaint")
    lines = []
    for name, (method, solver, other, its) in SHORT.items():
        cells = []
        for problem in problems:
            row = found[(problem, other, its) if problem.startswith("digits") else (problem, method, solver)]
            noise, value = found[problem, "truth", ""]["scores"]["sw"], row["scores"]["sw"]
            cells.append(f"{value:.3f}" if name.startswith("exact draws") else f"{value:.3f} ({value / noise:.1f}x)")
        row = found["P(4, 0.1)", method, solver]
        cost = f"{row['forwards']:.0f} + {row['vjps']:.0f}" if row["vjps"] else f"{row['forwards']:.0f}"
        lines.append((name, cost if row["steps"] else "", *cells))
    return markdown(
        ("", "evaluations", "mixture, 4 numbers seen", "mixture, 1 number seen", "digits, top half seen"), lines
    )


def tables(document: dict[str, Any]) -> dict[str, str]:
    """The marked parts of docs/posteriors.md."""
    rows = document["rows"]
    digits = ("tv", "class_tv")
    names = {kind: f"digits, {kind}" for kind in (*LINEAR, *OTHERS)}
    return {
        "mixtures": table(rows, MIXTURES, MIXTURES, ("tv", "chi2", "dlogp")),
        "linear digits": table(
            rows, [names[kind] for kind in LINEAR], [DIGITS_NAMES[kind] for kind in LINEAR], (*digits, "resid")
        ),
        "nonlinear digits": table(rows, [names[kind] for kind in OTHERS], OTHERS, (*digits, "resid")),
    }


def cards(document: dict[str, Any]) -> dict[str, list[Row]]:
    """The rows that the cards show: by method, its default options first."""
    kept = ("problem", "method", "solver", "steps", "draws")
    scores = ("sw", "tv", "chi2", "class_tv")
    noise = {row["problem"]: row["scores"]["sw"] for row in document["rows"] if row["method"] == "truth"}
    found: dict[str, list[Row]] = {}
    for row in document["rows"]:
        if row["method"] in REFERENCES or row["problem"] not in ("P(4, 0.1)", "digits, inpaint"):
            continue
        name = row["method"].partition("(")[0]
        short = {key: round(row["scores"][key], 3) for key in scores if key in row["scores"]}
        found.setdefault(name, []).append(
            {**{k: row[k] for k in kept}, **short, "exact": round(noise[row["problem"]], 3)}
        )
    return dict(sorted(found.items()))
