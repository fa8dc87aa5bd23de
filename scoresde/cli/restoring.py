"""The command restore: draws of p(x0 | y) from a trained model, with their mean, their deviation and a page."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from solvers import InputError
from solvers.files import write_atomically
from solvers.libraries import without_traces

from ..guidance.guided import Guided
from ..io.result_files import environment, fingerprint, replacing
from ..posterior.base import posteriors
from ..runs import build, restoration
from ..runs.restoration import Observed
from ..runs.run import Run, load_run
from ..sampling.parts import Parts
from ..sampling.pictures import is_image
from ..sampling.restore import chosen
from ..sampling.restore import restore as draw
from ..sampling.restored import Restored
from .current_folder import import_drawing
from .results import record, results_folder, say_average

RESULTS = ("restored.npz", "observation.npy", "truth.npy", "restored.png", "restore.html", "restored.json")


def restore(arguments: argparse.Namespace, overrides: list[str], command: str) -> None:
    """Draws samples given observations: restored.npz, restored.png, restore.html and restored.json."""
    run = load_run(arguments.workdir, overrides, ("sampling", "device", "data.path"))
    say_average(run)
    out = results_folder(arguments, *RESULTS)
    parts = Parts(out / "parts", restoration.facts_of(run), arguments.overwrite)
    with run.origin.limits():
        seen = restoration.observed(
            run, arguments.measure, arguments.truth, arguments.limit, arguments.measure_seed,
            arguments.observation is not None,
        )  # fmt: skip
        result, facts = _drawn(run, seen, arguments, parts)
    facts |= {"observations": restoration.scores(seen, result)}
    with replacing(out, RESULTS) as aside:
        result.save(aside / "restored.npz")
        np.save(aside / "observation.npy", seen.y.numpy())
        if seen.truth is not None:
            np.save(aside / "truth.npy", seen.truth.numpy())
        if is_image(result.mean):
            result.save(aside / "restored.png", run.card.low, run.card.high)
        _write_page(aside / "restore.html", f"Restored: {arguments.workdir}", run, seen, result, facts, command)
        record(aside / "restored.json", command, run, **facts)
    parts.remove()
    print(_line(seen, result, facts), out / "restore.html", sep="\n")


def _drawn(run: Run, seen: Observed, arguments: argparse.Namespace, parts: Parts) -> tuple[Restored, dict[str, Any]]:
    """The draws, and the facts about them for the record."""
    section = run.config.sampling
    if section.noise != "seeded":
        raise InputError(f"restore draws from seeded noise, so sampling.noise={section.noise} cannot be set")
    method = posteriors.make(section.posterior) if section.posterior else chosen(seen.operator)
    model, solver = build.guided_by(run.denoiser, section, run.config)
    given = restoration.conditions_of(run, len(seen.y), arguments.classes, section.condition)
    try:
        result = draw(
            model, seen.operator, seen.y, method, seeds=arguments.seeds, solver=solver, grid=section.grid or None,
            steps=section.steps, nfe=section.nfe, forwards=section.forwards, condition=given.rows,
            batch_size=max(1, section.batch_size // method.rows()), device=build.device_of(run.config), progress=True,
            parts=parts,
        )  # fmt: skip
    except KeyboardInterrupt:
        raise KeyboardInterrupt(parts.note()) from None
    facts: dict[str, Any] = {
        "operator": result.operator,
        "observed": seen.source,
        "posterior": result.posterior,
        "exact_for": method.exact_for,
        "solver": result.solver,
        "grid": result.grid,
        "steps": result.steps,
        "nfe": result.nfe,
        "forwards": result.forwards,
        "vjps": result.vjps,
        "seeds": arguments.seeds,
        "seconds": result.seconds,
        "samples": fingerprint(result.x),
        "observation": fingerprint(seen.y),
        "failed": [failure._asdict() for failure in result.failures],
    }
    if isinstance(model, Guided):
        facts["guidance"] = str(model.guidance)
    return result, facts | ({"conditions": given.facts} if given.facts else {})


def _write_page(
    path: Path, title: str, run: Run, seen: Observed, result: Restored, facts: Mapping[str, Any], command: str
) -> None:
    import_drawing()
    with without_traces():
        from ..show import restore_page  # here, so that the other commands do not wait for matplotlib

    device = build.device_of(run.config)
    header = {**environment(device), "run": f"step {run.step} of {run.config.sde}, {run.config.model.network}"}
    shown = restore_page.Shown(
        seen.operator, result, seen.truth, facts["observations"], (run.card.low, run.card.high), facts["exact_for"]
    )
    header |= {
        name: facts[name] for name in ("observed", "guidance", "conditions", "seeds", "samples") if name in facts
    }
    write_atomically(path, restore_page.page(title, shown, header, command, run.config.to_dict()))


def _line(seen: Observed, result: Restored, facts: Mapping[str, Any]) -> str:
    """The result in a sentence."""
    n, draws = result.x.shape[:2]
    of = "an observation" if n == 1 else f"{n} observations"
    scores = facts["observations"]
    residual = sum(one["residual"] for one in scores) / n
    unit = "residual" if seen.operator.sigma > 0 else "rms of y - A x"
    effective = [one["effective"] for one in scores if "effective" in one]
    few = f"; at least {min(effective):.1f} effective particles" if effective else ""
    cost = f"{result.nfe} NFE, {result.forwards:g} forwards, {result.vjps:g} VJPs a draw, {result.seconds:.2f} s"
    return (
        f"{draws} draw{'s' * (draws > 1)} for {of} of {result.operator} by {result.posterior}, {result.solver} on "
        f"the grid {result.grid}; {unit} {residual:.3g}{few}; {cost}"
    )
