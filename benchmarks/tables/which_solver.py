"""The table "Which solver?" of docs/start.md, from the results of defaults.py, few.py and steps_vs_quality.py."""

from __future__ import annotations

from statistics import geometric_mean
from typing import Any

from scoresde.sampling.plan import FEW_STEPS, SAMPLER
from scoresde.show import solver_cards

NOISY, PLAIN = "er_sde", "ddpm"


def table(defaults: dict[str, Any], steps: dict[str, Any], few: dict[str, Any]) -> str:
    """A row for each purpose: what to use, and the measured reason."""

    def pair(kind: str, names: tuple[str, str]) -> dict[str, Any]:
        return next(p for p in defaults["ranking"][kind] if (p["solver"], p["grid"]) == names)

    def distance(solver: str, nfe: int) -> float:
        row = next(
            r for r in steps["rows"] if (r["problem"], r["solver"], r["nfe_budget"]) == ("digits", solver, nfe)
        )  # fmt: skip
        return float(row["sliced_wasserstein"])

    def ratio(to: str, nfe: int) -> float:
        rows = [row for row in few["rows"] if (row["kind"], row["nfe"]) == ("trained", nfe)]
        return geometric_mean(row["few"] / row[to] for row in rows)

    own, usual = pair("all", SAMPLER), pair("all", ("dpmpp_2m", "karras"))
    networks = len({row["model"] for row in few["rows"] if row["kind"] == "trained"})
    problems = len(defaults["header"]["problems"])
    lines = [
        (
            "samples with more than 12 NFE",
            f"the default, `{SAMPLER[0]}` on `{SAMPLER[1]}`",
            f"its distance to the exact solution is {own['times_best']:.1f} times the smallest of "
            f"{len(defaults['ranking']['all'])} pairs of solver and grid in the mean over {problems} models and 5 to "
            f"50 NFE, at worst {own['largest']:.0f} times (`dpmpp_2m` on `karras`: {usual['times_best']:.1f}, at worst "
            f"{usual['largest']:.0f})",
        ),
        (
            "samples with 4 to 12 NFE",
            f"the default, `{FEW_STEPS}`",
            f"its distance to the exact solution is {ratio('default', 5):.2f}, {ratio('default', 8):.2f} and "
            f"{ratio('default', 10):.2f} times that of `{SAMPLER[0]}` on `{SAMPLER[1]}` at 5, 8 and 10 NFE, and "
            f"{ratio('best', 5):.2f}, {ratio('best', 8):.2f} and {ratio('best', 10):.2f} times that of the best solver "
            f"and grid in hindsight, in the mean over {networks} trained networks that it was not tuned on "
            "([one program for many models](programs.md#one-program-for-many-models))",
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
