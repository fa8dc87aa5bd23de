"""The programs of benchmarks/tuning/tuned_programs.py as files, for the boards of the models that they were tuned on.

They were tuned on VP. A board on another path has the same numbers there, by ``Table.program``, from the noise level at
which that path begins; a program whose second state has more noise has no row there. A trained network has its programs
if it has the weights that they were tuned on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

import scoresde
from benchmarks.tuning import tuned_programs
from scoresde.runs.run import Run
from solvers import InputError, Program, Table
from solvers.files import write_document
from solvers.program import json_format

PATHS = {**dict.fromkeys(("mixture", "digits", "mnist"), ("vp", "ve", "flow")), "trained": ("vp",)}


@cache
def _document() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(tuned_programs.RESULTS.read_text(encoding="utf-8"))
    return found


def table_of(row: dict[str, Any]) -> Table:
    """The numbers of a tuned program, from its row of tuned_programs.json."""
    program = Program.from_json(json.dumps(row["program"]))
    # the states stand at the nodes of the program's grid, and its predictions elsewhere
    return replace(Table.of(program), ratios=torch.tensor([n.ratio for n in program.grid], dtype=torch.float64))


def fitted(nfe: int) -> int:
    """How many numbers ``tune_program`` fits: inner nodes, labels, coefficients of predictions and of the start."""
    return (nfe - 1) + nfe + nfe * (nfe + 1) // 2 + nfe


def rows_of(problem: str, path: str, run: Run | None = None) -> list[dict[str, Any]]:
    """The rows of the programs tuned on a problem; none if its network has other weights than they were tuned on."""
    if path not in PATHS.get(problem, ()):
        return []
    known = _document()["header"]["models"].get(problem)
    if run is not None and tuned_programs.words_of(run) != known:
        print(f"{problem}_{path}: no tuned programs, which are of {known}; this is {tuned_programs.words_of(run)}")
        return []
    return [row for row in _document()["rows"] if (row["target"], row["variant"]) == (problem, "all")]


def write(
    problem: str, path: str, sde: scoresde.SDE, folder: Path, nfe: Sequence[int], run: Run | None = None
) -> list[str]:
    """Writes the programs of a board into a folder; returns their specs."""
    specs = []
    for row in rows_of(problem, path, run):
        if row["nfe"] not in nfe:
            continue
        try:
            table = table_of(row).begun_at(sde(sde.t_max).ratio)
        except InputError as reason:  # the path begins at less noise than the program's second state
            print(f"{problem}_{path}: no program of {row['nfe']} evaluations: {reason}")
            continue
        target = next(target for target in tuned_programs.TARGETS if target.name == problem)
        tuning = {
            "solver": row["solver"],
            "nfe": row["nfe"],
            "model": _document()["header"]["models"][problem],
            "path": _document()["header"]["sde"],
            "seeds": [[seeds.start, seeds.stop] for seeds in (tuned_programs.seeds_of(target, k) for k in range(3))],
            "parameters": fitted(row["nfe"]),
            "costs": {name: row[name] for name in ("seconds", "forwards", "vjps", "teacher")},
        }
        program = table.program(sde, solver=row["program"]["solver"])
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{problem}_{path}_nfe{row['nfe']}.json"
        write_document(file, "program", json_format.write(program, facts={"tuning": tuning}))
        specs.append(f"file:{file}")
    return specs
