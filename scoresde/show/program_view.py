"""A program shown to people: its rows as text, and its response to start, outputs and noise as a picture."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from solvers import Node, Program, response
from solvers.libraries import without_traces
from solvers.program.analysis import Matrix
from solvers.program.instructions import Combine, Draw, Evaluate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 118
ANNOTATED = 8  # steps up to which the picture shows its numbers
LABELLED = 30  # rows or columns up to which each is labelled
_NO_BREAK = "\u00a0"  # within a term, which stays on one line
_SOFT, _EMPTY = "#62676e", "#e4e6e9"


def register_names(program: Program) -> list[str]:
    """The names of the registers.

    xT is the start; x1, x2, ... are the states at the ends of the steps; y1, ... are the states between them at which
    the model is evaluated; m1, ... are its outputs; z1, ... are the draws of noise; p1, ... are sums that several rows
    read.
    """
    ends = {state.register: f"x{step}" for step, state in enumerate(program.states, 1)}
    shown = {i.x for i in program.instructions if isinstance(i, Evaluate)}
    names, counts = ["xT"], dict.fromkeys("ymzp", 0)
    for register, instruction in enumerate(program.instructions, 1):
        letter = {Evaluate: "m", Draw: "z", Combine: "y" if register in shown else "p"}[type(instruction)]
        if letter in "yp" and register in ends:
            names.append(ends[register])
            continue
        counts[letter] += 1
        names.append(f"{letter}{counts[letter]}")
    return names


def peak(program: Program) -> int:
    """The largest number of registers that are needed at the same time."""
    alive = most = 1
    for dying in program.last_use:
        alive += 1
        most = max(most, alive - len(dying))
        alive -= len(dying)
    return most


def text(program: Program, title: str = "") -> str:
    """The program as text: for each step its last node and its rows, with coefficients to five digits."""
    names = register_names(program)
    draws = f"{program.draws} draws" if program.stochastic else "no noise"
    facts = f"{_steps(program)}, {program.nfe} NFE, {draws}, at most {peak(program)} registers alive at once"
    legend = [f"xT start, x state after a step, m the model's output ({program.output.name})"]
    for letter, meaning in (("y", "state between"), ("z", "noise"), ("p", "sum that several rows read")):
        legend += [f"{letter} {meaning}"] if f"{letter}1" in names else []
    about = textwrap.wrap(", ".join(legend), WIDTH)
    lines = [title or program.solver, facts, *about, "", f"start       {_place(program.start)}"]
    done = 0
    for step, state in enumerate(program.states, 1):
        lines += ["", f"step {step:<3d} to {_place(program.nodes[state.node])}"]
        lines += [_row(program, k, names) for k in range(done, state.register)]
        done = state.register
    return "\n".join(lines)


def _steps(program: Program) -> str:
    return f"{len(program.states)} step{'s' * (len(program.states) > 1)}"


def _place(node: Node) -> str:
    return f"t={node.t:.5g}  alpha={node.alpha:.5g}  sigma={node.sigma:.5g}  lam={node.lam:.5g}"


def _row(program: Program, k: int, names: Sequence[str]) -> str:
    instruction, nodes = program.instructions[k], program.nodes
    if isinstance(instruction, Combine):
        formula = ""
        for register, c in sorted(instruction.terms, key=lambda term: ("xypmz".index(names[term[0]][0]), -term[0])):
            sign = ("-" if c < 0 else "") if not formula else f" {'-' if c < 0 else '+'}{_NO_BREAK}"
            formula += f"{sign}{'' if abs(c) == 1 else f'{abs(c):.5g}{_NO_BREAK}'}{names[register]}"
    elif isinstance(instruction, Evaluate):
        formula = f"model({names[instruction.x]}, t={nodes[instruction.node].t:.5g})"
    else:
        formula = f"noise(t={nodes[instruction.t].t:.5g} -> {nodes[instruction.s].t:.5g})"
    start = f"  {names[k + 1]} = "
    lines = textwrap.wrap(formula, WIDTH, initial_indent=start, subsequent_indent=" " * len(start))
    return "\n".join(lines).replace(_NO_BREAK, " ")


def _response(program: Program) -> tuple[tuple[list[str], list[str]], Matrix]:
    """The states at evaluations and at the ends of steps, as linear combinations of the inputs.

    Returns:
        ((the names of the S states, the names of the 1 + P + Q inputs), coefficients (S, 1 + P + Q)): the inputs are
        the start, the model's P outputs and the Q draws.
    """
    names = register_names(program)
    inputs = sorted((name for name in names if name[0] in "mz"), key=lambda name: (name[0], int(name[1:])))
    ends = {state.register for state in program.states}
    states = [k for k, name in enumerate(names) if k in ends or name[0] == "y"]
    return ([names[k] for k in states], ["xT", *inputs]), response(program).registers[states]


def size(program: Program) -> tuple[float, float]:
    """Width and height in inches of a program's picture: cells large enough for numbers, or small enough for a page."""
    rows, columns = _response(program)[1].shape
    page = min(0.36, 10 / max(rows, columns))
    wide, tall = (0.5, 0.34) if len(program.states) <= ANNOTATED else (page, page)
    return max(wide * columns, 3.5) + 2.0, max(tall * rows, 1.6) + 1.0


def picture(program: Program, title: str = "") -> Figure:
    """The response as a picture: a row for each state, with its coefficients of the start, the outputs and the noise.

    Zero coefficients are grey. The colour scale is logarithmic over three decades and linear around 0, so that small
    coefficients are visible; up to ``ANNOTATED`` steps the picture also shows the numbers.
    """
    with without_traces():
        from matplotlib.colors import SymLogNorm  # here, so that the text of a program does not wait for matplotlib
        from matplotlib.figure import Figure

    from .charts import drawn

    (rows, columns), matrix = _response(program)
    figure = Figure(figsize=size(program), layout="constrained")
    axes = figure.add_subplot(facecolor=_EMPTY)
    limit = float(np.abs(matrix).max()) or 1.0
    norm = SymLogNorm(limit / 1000, linscale=0.3, vmin=-limit, vmax=limit)
    image = axes.imshow(np.ma.masked_equal(matrix, 0), cmap="RdBu_r", norm=norm, aspect="auto")
    if noted := len(program.states) <= ANNOTATED:
        for (i, j), c in np.ndenumerate(matrix):
            if c:
                color = "white" if abs(norm(c) - 0.5) > 0.34 else "black"
                axes.text(j, i, _short(c), ha="center", va="center", fontsize=7, color=color)
    _label(axes, program, rows, columns, noted)
    outputs, noise = f"outputs of the model ({program.output.name})", ", and noise" * program.stochastic
    axes.set_xlabel(f"the start, {outputs}{noise}: their coefficients in each state", fontsize=8, color=_SOFT)
    heading = textwrap.fill(
        f"{drawn(title or program.solver, 300)}: {_steps(program)}", int(12 * figure.get_figwidth())
    )
    axes.set_title(heading, fontsize=9.5, loc="left", pad=8, parse_math=False)
    unit = 10.0 ** math.floor(math.log10(limit))
    ticks = [sign * unit / scale for sign in (-1, 1) for scale in (1, 10, 100)]
    bar = figure.colorbar(image, ax=axes, aspect=40, pad=0.02, ticks=[0, *ticks], format="%g")
    bar.ax.minorticks_off()
    bar.ax.tick_params(labelsize=8, labelcolor=_SOFT, color=_SOFT)
    bar.outline.set_visible(False)
    return figure


def _label(axes: Any, program: Program, rows: Sequence[str], columns: Sequence[str], every: bool) -> None:
    """Writes the names of the rows and columns, and separates the start, the outputs and the noise."""
    names = register_names(program)
    ends = {names[state.register]: program.nodes[state.node] for state in program.states}
    named = [_symbol(name) + (_when(ends[name]) if name in ends else "") for name in rows]
    tall, wide = (1 if every else -(-len(names) // LABELLED) for names in (rows, columns))
    axes.set_yticks(range(0, len(rows), tall), named[::tall], fontsize=8)
    axes.set_xticks(range(0, len(columns), wide), [_symbol(name) for name in columns[::wide]], fontsize=8)
    axes.tick_params(length=0, labeltop=True, labelbottom=False, labelcolor=_SOFT)
    axes.spines[:].set_visible(False)
    for k in range(1, len(columns)):
        if columns[k][0] != columns[k - 1][0]:
            axes.axvline(k - 0.5, color="white", lw=4)


def _when(node: Node) -> str:
    return f"  t={node.t:.3g}" if node.sigma > 0 else "  sigma=0"


def _short(c: float) -> str:
    """A number with two digits, short enough for a cell."""
    digits = f"{c:.0f}" if abs(c) >= 100 else f"{c:.2g}" if abs(c) >= 1e-3 else f"{c:.1e}"
    return digits.replace("e-0", "e-")


def _symbol(name: str) -> str:
    return f"${name[0]}_{{{name[1:]}}}$"
