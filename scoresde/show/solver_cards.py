"""Texts about the registered solvers: the table, the families, methods with several names, a card for each solver.

Facts come from the registry, costs are counted, and measured orders come from ``solvers/conformance/orders.json``,
which ``benchmarks/accuracy/solver_orders.py`` writes. The documentation and the command line print the texts made here.
"""

from __future__ import annotations

import inspect
import json
import math
import re
import shlex
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any

import solvers
from solvers import Info, InputError, Solver, resolve
from solvers.conformance.problems import PATHS, VP
from solvers.foreign.diffusers import CLASSES
from solvers.foreign.names import SOLVERS as LABELS
from solvers.registry.normalise import normalise
from solvers.types.solver import SPACES

from ..sampling.plan import DISCRETE, FEW_STEPS, NAMED, OWN, SAMPLER
from .cards import WIDTH, accepted, entry
from .solver_costs import INCONSISTENT, STEPS, cost

GROUPS = {
    "one-step": "One-step methods of the ODE",
    "multistep": "Multistep methods of the ODE, which reuse earlier predictions",
    "sde": "Methods that draw noise",
    "wrapper": "Wrappers around other solvers; numbers are for the default options",
    "adaptive": "Adaptive methods, with different steps for each sample; order and NFE are per inner step",
    "black box": "Integrators of other libraries; order and NFE are per inner step",
    "discrete": "Methods for discrete states: tokens such as letters, levels and bits",
    "decoder": "Decoders of discrete states, which are no consistent samplers: they prefer likely tokens",
}
LEGEND = """\
order     declared; "2 of 4": a method of order 4 that its start, weights or options limit to 2; its card says why
measured  smallest and largest over VP, sub-VP, VE, EDM and rectified flow: order of the error on a mixture, or of the
          covariance on Gaussian data for methods that draw noise; of discrete states, of the total variation over a
          uniform, an absorbing and a birth-death process; "-": not measured
NFE/step  model evaluations per step;  start: additional evaluations of the first steps;  native: what the method
          interpolates
paper     with its arXiv number.  scoresde solvers NAME: everything about one solver"""


@dataclass(frozen=True)
class Row:
    """One row of the table of solvers, as text."""

    group: str
    name: str
    kind: str
    order: str
    measured: str
    evaluations: str
    startup: str
    noise: str
    native: str
    paper: str

    @property
    def cells(self) -> tuple[str, ...]:
        """The cells of the row, without its group."""
        return (
            self.name, self.kind, self.order, self.measured, self.evaluations, self.startup, self.noise, self.native,
            self.paper,
        )  # fmt: skip


HEAD = ("name", "kind", "order", "measured", "NFE/step", "start", "noise", "native", "paper")


@lru_cache(maxsize=1)
def orders() -> dict[str, dict[str, float]]:
    """The measured orders by spec and path; empty if the package contains no measurements."""
    source = files("solvers.conformance").joinpath("orders.json")
    found: dict[str, dict[str, float]] = json.loads(source.read_text("utf-8"))["orders"] if source.is_file() else {}
    return found


def group(solver: Solver) -> str:
    """The group of a solver in the table: a key of ``GROUPS``.

    A method whose nominal order exceeds its evaluations per step must use earlier predictions.
    """
    info = solvers.solvers.info_of(solver)
    if solver.space == "discrete":
        return "discrete" if info.consistent else "decoder"
    if info.kind.startswith("black box"):
        return "black box"
    if any(hint is Solver for hint in typing.get_type_hints(info.cls).values()):
        return "wrapper"
    if solver.adaptive:
        return "adaptive"
    if solver.stochastic:
        return "sde"
    return "multistep" if solver.nominal_order > solver.evaluations else "one-step"


def short(reference: str) -> str:
    """The first paper of a reference, abbreviated.

    >>> short("Lu et al. 2022, arXiv:2211.01095, algorithm 2; more"), short("Kutta 1901; Hairer 1993")
    ('Lu 2022, 2211.01095', 'Kutta 1901')
    """
    clause = reference.split(";")[0]
    match = re.match(r"(.+?) (\d{4})\b(?:, (?:arXiv:)?([\d.]+\d|k-diffusion))?", clause)
    if not match:
        return clause.split(",")[0]
    authors, year, where = match.groups()
    first = re.split(r",| et al\.", authors)[0] + (" et al." if "," in authors else "")
    return f"{first} {year}" + (f", {where}" if where else "")


def order_text(solver: Solver) -> str:
    """The order, and the nominal order if it is higher: "2 of 4"."""
    order, own = solver.order, solver.nominal_order
    if order == math.inf:
        return "exact"
    return f"{order:g} of {own:g}" if order < own else f"{order:g}"


def measured_text(spec: str) -> str:
    """The lowest and the highest measured order of a spec.

    >>> measured_text("unheard_of")
    '-'
    """
    values = [f"{value:.2f}" for value in sorted(orders().get(spec, {}).values())]
    return "-" if not values else values[0] if values[0] == values[-1] else f"{values[0]}-{values[-1]}"


def row(name: str) -> Row:
    """The row of a solver in the table."""
    solver, info = solvers.make(name), solvers.info(name)
    start = (
        "-" if solver.adaptive or solver.space == "discrete" else f"{solvers.startup(solver, VP):+d}".replace("+0", "0")
    )
    noise = "yes" if solver.stochastic else "eta" if "eta" in info.options else "no"
    kind = re.sub(r"^(black box|adaptive) ", "", info.kind).replace(" + ", "+")
    each = f"{solver.evaluations}/event" if solver.order == math.inf else str(solver.evaluations)
    return Row(
        group(solver), name, kind, order_text(solver), measured_text(str(solver)), each, start, noise, info.native,
        short(info.reference),
    )  # fmt: skip


def rows(names: Iterable[str] | None = None) -> list[Row]:
    """The table of the registry, by group and within a group by name."""
    made = [row(name) for name in (solvers.names() if names is None else names)]
    return sorted(made, key=lambda line: list(GROUPS).index(line.group))


def table(lines: Sequence[Row]) -> str:
    """The table as text."""
    widths = [max(len(cell) for cell in column) for column in zip(HEAD, *(line.cells for line in lines), strict=True)]

    def joined(cells: Sequence[str]) -> str:
        return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()

    text = [joined(HEAD)]
    for key, title in GROUPS.items():
        members = [joined(line.cells) for line in lines if line.group == key]
        text += ["", title, *members] if members else []
    return "\n".join([*text, "", LEGEND])


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *lines))


def families(lines: Sequence[Row]) -> str:
    """A Markdown table with a row for each group: names, orders, evaluations per step."""

    def span(texts: Iterable[str]) -> str:
        words = {re.split("[ /]", text)[0] for text in texts}
        values = sorted(float(word) for word in words - {"exact"})
        spanned = f"{values[0]:g}" if len(values) == 1 else f"{values[0]:g} to {values[-1]:g}"
        return f"{spanned}, exact" if "exact" in words else spanned

    made = []
    for key, title in GROUPS.items():
        members = [line for line in lines if line.group == key]
        if members:
            names = ", ".join(f"`{line.name}`" for line in members)
            made.append(
                (title, names, span(line.order for line in members), span(line.evaluations for line in members))
            )
    return markdown(("", "solvers", "order", "NFE/step"), made)


def equalities() -> list[tuple[str, str]]:
    """The pairs of canonical specs that the registry declares equal. A test proves each pair."""
    pairs = []
    for name in solvers.names():
        for claim in solvers.info(name).equals:
            left, separator, right = claim.partition(" = ")
            pairs.append((left, right) if separator else (name, claim))
    return [(str(solvers.make(left)), str(solvers.make(right))) for left, right in pairs]


def equal_methods() -> list[list[str]]:
    """The groups of specs that are the same method, shortest specs first."""
    classes: list[set[str]] = []
    for pair in map(set, equalities()):
        touched = [known for known in classes if known & pair]
        classes = [known for known in classes if not known & pair] + [pair.union(*touched)]
    return sorted(sorted(known, key=lambda spec: (len(spec), spec)) for known in classes)


def spellings(info: Info) -> list[str]:
    """The aliases and labels of a solver, as "label = spec" if the label includes options."""
    found = {normalise(alias): alias for alias in info.aliases}
    for label, spec in {**LABELS, **CLASSES}.items():
        if spec.partition("(")[0] == info.name and label != info.name:
            found.setdefault(normalise(label), label if spec == info.name else f"{label} = {spec}")
    return sorted(found.values(), key=lambda text: (" = " in text, text.lower()))


def description(info: Info) -> tuple[str, str]:
    """The first paragraph of the class's docstring, and the other paragraphs without "Raises"."""
    text = inspect.getdoc(info.cls) or ""
    if text.startswith(f"{info.cls.__name__}("):  # written by dataclass, where the author wrote none
        return "", ""
    first, *others = [" ".join(part.split()) for part in text.replace("``", "").split("\n\n")]
    return first, "\n".join(re.sub("^Args: ", "Options: ", part) for part in others if not part.startswith("Raises"))


def declared(solver: Solver) -> str:
    """What a solver declares: order, evaluations and noise, in words."""
    noise = "draws noise" if solver.stochastic else "deterministic"
    each = f"{solver.evaluations} evaluation{'s' if solver.evaluations > 1 else ''}"
    if solver.order == math.inf:
        return f"exact, {each} per event, {noise}"
    return f"order {order_text(solver)}, {each} per {'inner step' if solver.adaptive else 'step'}, {noise}"


def examples(solver: Solver, grid: str | None = None, spec: str = "") -> tuple[str, str]:
    """A command and a line of Python that use the solver, with a budget of 20 evaluations where possible.

    Args:
        spec: the name to use for the solver; needed if its own name is known only after its module is imported.
    """
    budget = {"nfe": STEPS}
    if solver.adaptive:
        budget = {}
    elif solver.space == "gaussian":
        try:
            solvers.steps_of_nfe(solver, solvers.grids.make(grid or NAMED), VP, STEPS)
        except InputError:
            budget = {"steps": STEPS}
    options: Mapping[str, Any] = {"solver": spec or str(solver), **({"grid": grid} if grid else {}), **budget}
    command = [f"--{key}={value}" for key, value in options.items()]
    workdir = "runs/heartbeat" if solver.space == "discrete" else "runs/digits"
    command = ["scoresde sample", f"--workdir={workdir}", "--out=samples", *map(shlex.quote, command)]
    python = ", ".join(f"{key}={json.dumps(value)}" for key, value in options.items())
    python = f", {python}" if python else ""
    return _wrapped(command), f"scoresde.sample(denoiser, shape, seeds=range(16){python})"


def grid_text(solver: Solver, grid: str | None) -> str:
    """The grid that a card's solver runs on if the user names none, in words; ``grid`` is the one in its label."""
    other = "--grid=NAME chooses another"
    if solver.space == "discrete":
        times = "; the result is exact on every grid" if solver.order == math.inf else ""
        return f"{DISCRETE[1]}, equal steps in the time of the process{times}; {other}"
    if solver.nodes is not None:
        return OWN
    if grid is not None:
        return f"{grid}, which the name contains; {other}"
    if solver.adaptive:
        return "one interval over the whole range, in which it chooses its steps; --grid=NAME names several"
    if solver.own_grid is not None:
        budgets = "the default where no solver is named, at the budgets of its tables; " * (str(solver) == FEW_STEPS)
        return f"{solver.own_grid}, its own; {budgets}{other}"
    default = f"; the default sampler, where no solver is named, is {' on '.join(SAMPLER)}"
    return f"{NAMED}, the default of a named solver; {other}{default * (str(solver) == SAMPLER[0])}"


def _wrapped(words: Sequence[str], width: int = WIDTH - 14) -> str:
    """A command wrapped into lines that a shell reads as one."""
    lines = [""]
    for word in words:
        if len(lines[-1]) + 1 + len(word) > width and lines[-1]:
            lines.append("")
        lines[-1] += f"{' ' if lines[-1] else ''}{word}"
    return " \\\n".join(lines)


def card(label: str) -> str:
    """Everything about one solver, as text; ``label`` may be a spec, an alias, or a label that names a grid.

    Raises:
        InputError: an unknown solver or an invalid option.
    """
    head, grid = (label, None) if ":" in label else resolve(label)
    solver = solvers.make(head)
    info, spec = solvers.solvers.info_of(solver), str(solver)
    summary, details = description(info)
    shown = label if ":" in label else spec  # its own name is known only after its module is imported
    command, python = examples(solver, grid, shown)
    noise = (
        "draws noise" if solver.stochastic else "deterministic" + (", noise by eta" if "eta" in info.options else "")
    )
    options = {
        f"{name} = {solvers.registry.spec.write(value)}": accepted(info, name) for name, value in info.options.items()
    }
    width = max(map(len, options), default=0)
    variants = [f"{other}: {_orders_of(other)}" for other in orders() if other.startswith(f"{info.name}(")]
    same = [other for known in equal_methods() if spec in known for other in known if other != spec]
    facts = {
        "": details,
        "formula": info.formula,
        "kind": f"{info.kind or 'not declared'}, {noise}; native form {info.native}",
        "order": INCONSISTENT
        if not solver.consistent
        else "exact; its draws are tested against the exact law"
        if solver.order == math.inf
        else "\n".join([f"{order_text(solver)} declared; measured {_orders_of(spec, shown)}", *variants]),
        "NFE": cost(solver),
        "grid": grid_text(solver, grid),
        "options": "\n".join(f"{text.ljust(width)}   {values}" for text, values in options.items()) or "none",
        "aliases": ", ".join(spellings(info)),
        "also": _shared(info, solver.space),
        "equals": ", ".join(same) + (" (the same coefficients)" if same else ""),
        "note": info.note,
        "reference": info.reference,
        "command": command,
        "Python": python,
    }
    title = f"{spec}{f' on the grid {grid}' if grid else ''}"
    return "\n".join([entry(title, summary), *(entry(f"  {key}", text) for key, text in facts.items() if text)])


def _shared(info: Info, space: str) -> str:
    """The names of another space that mean this solver in its own, or the solvers that this name means in another."""
    if info.shared:
        return f"{', '.join(info.shared)}, where the model has {space} states"
    meant = {other: solvers.solvers.shared_names(other).get(info.name) for other in SPACES}
    return ", ".join(f"{name}, where the model has {other} states" for other, name in meant.items() if name)


def _orders_of(spec: str, name: str = "") -> str:
    """The measured orders of a spec; without any, the command that measures ``name``."""
    found = orders().get(spec, {})
    if not found:
        return f'- (scoresde check-solver "{name or spec}" measures it)'
    if len({f"{value:.2f}" for value in found.values()}) == 1 and len(found) == len(PATHS):
        return f"{next(iter(found.values())):.2f} on every path"
    return ", ".join(f"{value:.2f} ({path})" for path, value in found.items())
