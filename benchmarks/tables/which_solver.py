"""The table "Which solver?" of docs/start.md, from the results of benchmarks/defaults.py and steps_vs_quality.py."""

from __future__ import annotations

from typing import Any

from scoresde.sampling.plan import SAMPLER
from scoresde.show import solver_cards

FEW, NOISY, PLAIN = ("gradient_estimation", "kl_optimal"), "er_sde", "ddpm"


def table(defaults: dict[str, Any], steps: dict[str, Any]) -> str:
    """A row for each purpose: what to use, and the measured reason."""

    def pair(kind: str, names: tuple[str, str]) -> dict[str, Any]:
        return next(p for p in defaults["ranking"][kind] if (p["solver"], p["grid"]) == names)

    def distance(solver: str, nfe: int) -> float:
        row = next(
            r for r in steps["rows"] if (r["problem"], r["solver"], r["nfe_budget"]) == ("digits", solver, nfe)
        )  # fmt: skip
        return float(row["sliced_wasserstein"])

    own, usual = pair("all", SAMPLER), pair("all", ("dpmpp_2m", "karras"))
    few, own_few, bad = pair("others", FEW), pair("others", SAMPLER), pair("eps", FEW)
    problems = len(defaults["header"]["problems"])
    lines = [
        (
            "samples",
            f"the default, `{SAMPLER[0]}` on `{SAMPLER[1]}`",
            f"its distance to the exact solution is {own['times_best']:.1f} times the smallest of "
            f"{len(defaults['ranking']['all'])} pairs of solver and grid in the mean over {problems} models and 5 to "
            f"50 NFE, at worst {own['largest']:.0f} times (`dpmpp_2m` on `karras`: {usual['times_best']:.1f}, at worst "
            f"{usual['largest']:.0f})",
        ),
        (
            "samples with 5 to 8 NFE, from a network that predicts x0, v, a velocity, or EDM's output",
            f"`{FEW[0]}` on `{FEW[1]}`",
            f"{few['by_nfe']['5']:.1f} and {few['by_nfe']['8']:.1f} times the smallest at 5 and 8 NFE, where the "
            f"default has {own_few['by_nfe']['5']:.1f} and {own_few['by_nfe']['8']:.1f}; not for networks that "
            f"predict eps, where it has {bad['by_nfe']['5']:.1f} and {bad['by_nfe']['8']:.1f}",
        ),
        (
            "samples with fresh noise at every step",
            f"`{NOISY}`",
            f"sliced Wasserstein distance {distance(NOISY, 10):.3f} at 10 NFE and {distance(NOISY, 20):.3f} at 20 on "
            f"the digits, where `{PLAIN}` has {distance(PLAIN, 10):.3f} and {distance(PLAIN, 20):.3f}, and fresh data "
            f"{steps['header']['floor']['digits'][0]:.3f}",
        ),
    ]
    return solver_cards.markdown(("for", "use", "because"), lines)
