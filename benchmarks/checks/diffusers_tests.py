"""diffusers' tests of its schedulers, on ``DiffusersScheduler``: python -m benchmarks.checks.diffusers_tests CHECKOUT

CHECKOUT is a copy of diffusers' repository with its tests, at a commit near the installed version. For every class that
has a counterpart here, a stand-in takes its place: a ``DiffusersScheduler`` of the class's solver and config. The tests
then run unchanged, and benchmarks/checks/results/diffusers_tests.json receives the counts by class and by reason of
failure.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

import solvers
from scoresde.interop import DiffusersScheduler
from scoresde.io.result_files import environment, write_json
from solvers import Node
from solvers.foreign import diffusers as labels

RESULTS = Path(__file__).parent / "results" / "diffusers_tests.json"
# classes whose state is x / alpha; a stand-in converts at its border, because some tests step from the network's input
DIVIDED = (
    "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler", "LMSDiscreteScheduler", "DPMSolverSDEScheduler",
)  # fmt: skip
FEW = 15  # with fewer steps some classes lower the order at the end


def plain(value: Any) -> Any:
    """An array as a list, anything else as it is."""
    return value.tolist() if isinstance(value, np.ndarray) else value


class StandIn(DiffusersScheduler):
    """A ``DiffusersScheduler`` with the constructor and the conventions of the class ``theirs`` of diffusers.

    The differences that it hides are those that docs/interop.md lists: options of ``step`` that are options of a solver
    here, states that diffusers divides by alpha, a lower order below 15 steps, and timesteps that are not in the list,
    which most classes of diffusers take for the last one.
    """

    theirs: Any
    name: str
    accepted: frozenset[str]
    positions: tuple[str, ...]

    def __init__(self, **flags: Any) -> None:
        self._source = self.theirs(**flags)
        super().__init__(self._spec(), self._source)
        if defaults := self.accepted - flags.keys():  # diffusers' own constructors record them
            self.register_to_config(_use_default_values=sorted(defaults))

    def _spec(self, steps: int = FEW, **more: Any) -> str:
        """The spec of the class's solver for a number of steps."""
        config = {**self._source.config, **more}
        known = labels.FLAGS | labels.MODEL_FLAGS
        flags = {key: plain(value) for key, value in config.items() if key in known and value is not None}
        if self.name.startswith(("DPMSolverMultistep", "DEIS", "EDMDPM")):
            flags["lower_order_final"] = bool(flags.get("lower_order_final")) and steps < FEW
        return labels.read(self.name, ", ".join(f"{key}={value!r}" for key, value in flags.items()))[0]

    @classmethod
    def from_config(
        cls, config: Any = None, return_unused_kwargs: bool = False, trust: bool = False, **changed: Any
    ) -> Any:
        given = {key: value for key, value in config.items() if key not in config.get("_use_default_values", ())}
        made = cls(**{key: value for key, value in {**given, **changed}.items() if key in cls.accepted})
        # as in diffusers, entries that the class does not know remain for the next class
        hidden = {key: value for key, value in given.items() if key not in cls.accepted and key not in made.config}
        made.register_to_config(**hidden)
        return (made, {}) if return_unused_kwargs else made

    def set_timesteps(self, num_inference_steps: int | None = None, *places: Any, **options: Any) -> None:
        given = next((v for k in ("timesteps", "sigmas") if (v := options.get(k)) is not None), None)
        self._solver = solvers.make(self._spec(num_inference_steps or (FEW if given is None else len(given))))
        super().set_timesteps(num_inference_steps, *places, **options)

    def step(
        self, model_output: Any, timestep: Any, sample: Any, *places: Any, generator: Any = None, **options: Any
    ) -> Any:
        options = {"generator": generator, **dict(zip(self.positions, places, strict=False)), **options}
        if (eta := options.pop("eta", 0.0)) and f"eta={float(eta)}" not in str(self._solver):
            self._solver = solvers.make(self._spec(eta=eta))
            self._program = self._trace(self._program.grid)
        listed = self.num_inference_steps is None or self._entries.places(timestep)
        return super().step(model_output, timestep if listed else self.timesteps[-1], sample, **options)


class Divided(StandIn):
    """A stand-in for a class whose state is x / alpha."""

    @property
    def init_noise_sigma(self) -> Any:
        first = self.sigmas.max()
        return first if self.config["timestep_spacing"] in ("linspace", "trailing") else (first**2 + 1) ** 0.5

    def scale_model_input(self, sample: Any, timestep: Any = None, **ignored: Any) -> Any:
        (node,) = self._nodes_of(torch.as_tensor(timestep).flatten()[:1])
        return sample * node.alpha

    def step(
        self, model_output: Any, timestep: Any, sample: Any, *places: Any, generator: Any = None, **options: Any
    ) -> Any:
        if self.num_inference_steps is None:
            self._place(self._reading.all_nodes(self.config), self.timesteps.device)
        here = self._entries.places(timestep) or [len(self._entries) - 1]
        running = None if self._run is None else self._run.place
        place = running if running in here else next((i for i in here if self._entries.begins(i)), here[0])
        alphas = [node.alpha for node in (*self._entries.nodes, self._program.end)]
        options["generator"] = generator
        found = super().step(model_output, timestep, sample * alphas[place], *places, **options)
        if isinstance(found, tuple):
            return (found[0] / alphas[place + 1], *found[1:])
        found.prev_sample = found.prev_sample / alphas[place + 1]
        return found

    def add_noise(self, original_samples: Any, noise: Any, timesteps: Any) -> Any:
        node = Node.stack(self._nodes_of(torch.as_tensor(timesteps).flatten())).like(original_samples)
        return super().add_noise(original_samples, noise, timesteps) / node.alpha


def stand_in(name: str) -> type[StandIn]:
    """The stand-in for a class of diffusers, under its name."""
    theirs = getattr(diffusers.schedulers, name)
    parameters = inspect.signature(theirs.__init__).parameters.keys() - {"self", "kwargs"}
    steps = [*inspect.signature(theirs.step).parameters] if "step" in dir(theirs) else []
    base = Divided if name in DIVIDED else StandIn
    found = {"theirs": theirs, "name": name, "accepted": frozenset(parameters), "positions": tuple(steps[4:])}
    return type(name, (base,), found)


# why a test fails, by what its name and its error contain; the first that fits
REASONS: tuple[tuple[str, str], ...] = (
    (
        r"no attribute '(_get_variance|step_prk|step_plms|prk_timesteps|batch_step_no_noise|previous_timestep)'",
        "the test reads methods that only the class has",
    ),
    (r"at least three nodes", "a chain of one or two betas is refused"),
    (r"betas must lie between 0 and 1", "betas above 1 are refused"),
    (r"use fewer", "more steps than the network has, where diffusers repeats timesteps, are refused"),
    (r"variance_type", "a variance that the network learned, or an unknown one, is refused"),
    (r"timestep_type", "EDM's preconditioning on a chain of betas is refused"),
    (r"solver_type=heun", "order 3 with solver_type=heun, which changes only the order 2 of its start, is refused"),
    (r"names no path", "the class has a path of its own, and the config does not say so"),
    (r"use_karras_sigmas has no counterpart on a flow", "levels of a chain on the path of a flow are refused"),
    (r"_inverse", "the class runs from data to noise; here scoresde.encode does"),
    (r"score_sde_ve", "Langevin's steps depend on norms, so the method has no program"),
    (r"prev_timestep", "step(prev_timestep=...) is refused: the list of timesteps says where a step goes"),
    (r"passing_both", "set_timesteps accepts a number of steps if it agrees with the list"),
    (r"dpm_sde", "the class draws its noise from a Brownian path of its own"),
    (r"sasolver.*full_loop", "SASolverScheduler draws at every step, here a draw is made only where it is used"),
    (r"dpm_single.*(with_noise|uneven)", "a single-step solver that begins part-way begins a new pair of steps"),
    (r"lms.*with_noise", "LMSDiscreteScheduler, begun part-way, uses weights of orders for which it has no history"),
)
NUMBERS = re.compile(r"abs\(\(([-\d.e]+) - ([-\d.e]+)\)\)")
ROUNDED = "their tables are in float32, and a level between two nodes has its label on a line there, on a cubic here"
CLOSE = 1e-3  # relative difference of the sums that ROUNDED explains; measured: 7e-4 at most


class Recorder:
    """A plugin of pytest that keeps the outcome of every test, with the reason of a failure."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, str]] = []

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            crash = report.longrepr.reprcrash.message if report.failed and "reprcrash" in dir(report.longrepr) else ""
            self.rows.append((report.nodeid, report.outcome, f"{report.nodeid} {crash}"))


def reason(text: str) -> str:
    """Why a test fails: the first reason that fits its name and error."""
    for pattern, words in REASONS:
        if re.search(pattern, text):
            return words
    numbers = [float(number) for number in found.groups()] if (found := NUMBERS.search(text)) else [1.0, 0.0]
    return ROUNDED if abs(numbers[0] - numbers[1]) < CLOSE * abs(numbers[1]) else "unexplained"


def main() -> int:
    """Runs the tests and writes the result file; 1 if a failure is unexplained."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout", type=Path, help="a copy of diffusers' repository")
    parser.add_argument(
        "--only", nargs="+", default=None, metavar="FILE", help="run these test files, keep the rows of others"
    )
    checkout, only = (given := parser.parse_args()).checkout.resolve(), given.only
    torch.set_num_threads(1)
    for name in labels.CLASSES:
        if name in dir(diffusers.schedulers) and name in dir(diffusers):
            setattr(diffusers, name, stand_in(name))
    found = re.search(r'version="([\w.]+)"', (checkout / "setup.py").read_text(encoding="utf-8"))
    version = found[1] if found else "unknown"
    folder = checkout / "tests" / "schedulers"
    files = sorted(folder.glob("test_scheduler_*.py"))
    chosen = [
        file for file in files if (tested(file) if only is None else file.stem.removeprefix("test_scheduler_") in only)
    ]
    recorder = Recorder()
    arguments = ["-q", "--rootdir", str(checkout), "-p", "no:cacheprovider", "--no-header", "--tb=no", "-W", "ignore"]
    pytest.main([*arguments, *map(str, chosen)], plugins=[recorder])
    measured = summary(recorder.rows)
    for row in measured:
        print(row)
    for _name, outcome, text in recorder.rows:
        if outcome == "failed" and reason(text) == "unexplained":
            print("unexplained:", text)
    kept = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"] if only else []
    again = {row["tests"] for row in measured}
    rows = sorted([*measured, *(row for row in kept if row["tests"] not in again)], key=lambda row: row["tests"])
    header = {**environment(), "diffusers": diffusers.__version__, "tests": version}
    write_json(RESULTS, {"header": header, "rows": rows})
    return int(any("unexplained" in row["reasons"] for row in rows))


def tested(file: Path) -> bool:
    """Whether a test file tests a class that has a counterpart here."""
    found = re.search(r"scheduler_classes = \((\w+),", file.read_text(encoding="utf-8"))
    return found is not None and found[1] in labels.CLASSES


def summary(rows: list[tuple[str, str, str]]) -> list[dict[str, Any]]:
    """The counts of outcomes by test file, and of failures by file and reason."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    reasons: dict[str, Counter[str]] = defaultdict(Counter)
    for name, outcome, text in rows:
        file = Path(name.partition("::")[0]).stem.removeprefix("test_scheduler_")
        counts[file][outcome] += 1
        if outcome == "failed":
            reasons[file][reason(text)] += 1
    return [
        {
            "tests": file,
            **{outcome: counts[file][outcome] for outcome in ("passed", "failed", "skipped")},
            "reasons": dict(sorted(reasons[file].items())),
        }
        for file in sorted(counts)
    ]


if __name__ == "__main__":
    sys.exit(main())
