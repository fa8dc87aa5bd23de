"""The tables of docs/ddpm_and_sde.md, made from benchmarks/chains/results/ddpm_and_sde.json; readme.py writes them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from scoresde.show.solver_cards import markdown

Rows = list[dict[str, Any]]


def pick(rows: Rows, study: str, **wanted: Any) -> Rows:
    """The rows of a study that contain all of these values."""
    return [row for row in rows if row["study"] == study and all(row[key] == value for key, value in wanted.items())]


def over(rows: Rows, key: str, study: str, **wanted: Any) -> dict[int, float]:
    """A number by N."""
    return {row["N"]: row[key] for row in pick(rows, study, **wanted)}


def kinds(rows: Rows, study: str, *keys: str) -> list[Any]:
    """The different values of some columns in a study, in their order."""
    return list(dict.fromkeys(tuple(row[key] for key in keys) for row in pick(rows, study)))


def table(head: Iterable[object], lines: Iterable[Iterable[object]]) -> str:
    return markdown(tuple(map(str, head)), [tuple(map(str, line)) for line in lines])


def percent(value: float) -> str:
    return f"{100 * value:.2g} %"


def small(value: float) -> str:
    return "0" if value == 0 else f"{value:.0e}"


def embeddings(rows: Rows) -> str:
    head = {"exact": "`exact`", "song": "`song`", "ho": "`ho`", "ho, i / (N - 1)": "`ho`, index i at i / (N - 1)"}
    lines = []
    for n in (100, 1000, 10_000, 100_000):
        cells = []
        for name in head:
            (row,) = pick(rows, "embeddings", embedding=name, N=n)
            alpha, sigma = row["alpha"], row["sigma"]
            cells.append(f"{small(alpha)}, {small(sigma)}" if name == "exact" else f"{alpha:.1e}, {percent(sigma)}")
        lines.append((n, *cells))
    return table(("N", *head.values()), lines)


def labels(rows: Rows) -> str:
    known = {(row["label"], row["N"]): row for row in pick(rows, "labels")}
    lines = []
    for (label,) in kinds(rows, "labels", "label"):
        line = [f"`{label}`", f"{known[label, 1000]['first']:.4g}, {known[label, 1000]['last']:.4g}"]
        for n in (100, 1000):
            row, right = known[label, n], known["index", n]
            lost, wider = row["bits"] - right["bits"], (1 + row["spread"]) / (1 + right["spread"]) - 1
            line += [f"{lost:.1g}" if lost < 1 else f"{lost:.0f}", f"{100 * wider:+.1f} %" if wider else "0"]
        lines.append(line)
    columns = [f"{what}, N = {n}" for n in (100, 1000) for what in ("bits/dim lost", "spread")]
    return table(("label shown", "first, last of 1000", *columns), lines)


def strong(rows: Rows) -> str:
    names = {
        "euler_maruyama": "`euler_maruyama`",
        "reverse_diffusion": "`reverse_diffusion`",
        "ddpm": "`ddpm(variance=beta_tilde)`",
        "2 N steps": "itself with 2 N steps",
    }
    lines, steps = [], sorted({row["N"] for row in pick(rows, "strong")})
    for beside, name in names.items():
        found = over(rows, "difference", "strong", beside=beside)
        order = math.log(found[steps[0]] / found[steps[-1]]) / math.log(steps[-1] / steps[0])
        lines.append((name, *(f"{found[n]:.4f}" for n in steps), f"{order:.2f}"))
    return table(("compared solver", *(f"N = {n}" for n in steps), "order"), lines)


def spreads(rows: Rows) -> str:
    counts, lines = (25, 100, 1000), []
    for variance, solver in kinds(rows, "spreads", "variance", "solver"):
        found = over(rows, "error", "spreads", variance=variance, solver=solver)
        lines.append(
            (f"{variance:g}", f"`{solver}`", *("0" if abs(found[n]) < 1e-12 else f"{found[n]:+.1e}" for n in counts))
        )
    return table(("data variance", "chain", *(f"N = {n}" for n in counts)), lines)


def gaps(rows: Rows) -> str:
    optimal, beta, tilde = (
        over(rows, "gap", "gaps", variance=0.25, kernel=kernel) for kernel in ("optimal", "beta", "beta_tilde")
    )
    lines = [(n, f"{optimal[n]:.0e}", f"{beta[n]:.1e}", f"{tilde[n]:.4f}") for n in beta]
    return table(("N", "`optimal`", "`beta`", "`beta_tilde`"), lines)


def sums(rows: Rows) -> str:
    lines = [
        (row["N"], f"{row['sum']:.6f}", f"{row['integral']:.6f}", f"{row['sum'] - row['integral']:.2e}")
        for row in pick(rows, "sums")
    ]
    return table(("N", "sum", "integral", "difference"), lines)


def tables(rows: Rows) -> dict[str, str]:
    """Every table by the name of its marker in the page."""
    return {each.__name__: each(rows) for each in (embeddings, labels, strong, spreads, gaps, sums)}


def digits(found: dict[str, Any]) -> dict[str, str]:
    """The tables of benchmarks/chains/results/digits_chains.json by marker name."""
    names = {"digits_ddpm": "DDPM, 1000 steps", "digits_smld": "SMLD, 232 noise scales"}

    def cell(part: dict[str, float]) -> str:
        return f"{part['mean']:.4f} ± {part['stderr']:.4f}"

    samples = []
    for name, title in names.items():
        for row in found[name]["samples"]:
            distance = row["sliced_wasserstein"]
            interval = f"{distance['value']:.3f} ({distance['low']:.3f} to {distance['high']:.3f})"
            samples.append((title, f"`{row['solver']}`", f"`{row['grid']}`", row["nfe"], interval))
    bounds = {kernel: f"the chain's bound, `{kernel}`" for kernel in ("beta", "beta_tilde", "optimal")}
    values = {"ode": "the ODE's value", **bounds, "continuous": "the continuous bound"}
    scores = [(text, *(cell(found[name]["bits_per_dim"][key]) for name in names)) for key, text in values.items()]
    parts = {
        "beta - optimal": "`beta` instead of `optimal`",
        "optimal - continuous": "steps instead of continuous time, and the last step's decoder",
        "continuous - ode": "the SDE's bound instead of the ODE's value",
        "beta - ode": "total",
    }
    between = [(text, *(cell(found[name]["parts"][key]) for name in names)) for key, text in parts.items()]
    between.append(
        ("change of the ODE's value with half the steps", *(f"{found[name]['ode_error']:.4f}" for name in names))
    )
    head = ("", *names.values())
    return {
        "digits samples": table(("model", "solver", "grid", "NFE", "sliced Wasserstein distance"), samples),
        "digits scores": table(head, scores),
        "digits parts": table(head, between),
    }


def learned(found: dict[str, Any]) -> dict[str, str]:
    """The tables of benchmarks/chains/results/learned_schedule.json by marker name."""
    names = {
        "fixed": "fixed line",
        "linear": "learned line",
        "monotone": "learned, monotone",
        "control": "fixed line, the learned ends",
    }
    lines, controls = [], []
    for block in ("256 levels", "17 levels"):
        for key, title in names.items():
            row = found[block][key]
            bits, gap = row["bits_per_dim"], row["minus_fixed"]
            difference = "" if key == "fixed" else f"{gap['mean']:.3f} ± {gap['stderr']:.3f}"
            parts = (f"{row['parts'][part] + 0.0:.4g}" for part in ("prior", "diffusion", "decoder"))
            ends = ", ".join(f"{end:.2f}" for end in row["ends"])
            value = f"{bits['mean']:.3f} ± {bits['stderr']:.3f}"
            lines.append((block, title, ends, value, difference, *parts, f"{row['one_sample_variance']['mean']:.2f}"))
        gap = found[block]["monotone"]["minus_control"]
        controls.append(f"{-gap['mean']:.3f} ± {gap['stderr']:.3f}")
    head = "first ends", "path", "ends after training", "bound, bits/dim", "difference", "prior", "diffusion", "decoder"
    return {
        "learned schedules": table((*head, "variance"), lines),
        "learned control": f"The control is worse than the monotone path by {' and '.join(controls)} bits/dim.",
    }
