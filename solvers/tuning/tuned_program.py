"""``TunedProgram``: the result of ``tune_program``, with its errors, those of untuned solvers, and its costs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import InputError
from ..files import finite, write_document
from ..program import json_format
from ..program.program import Program
from .grids import installed
from .table import Table

PROGRAM, START, FEW, FLOOR = "tuned program", "start", "few", "floor"
_WRONG = 0.25  # of the standard deviation of exact outcomes
_SHOWN = 5  # untuned solvers and grids in the printed table, the best ones


class Error(NamedTuple):
    """The distance of outcomes from the exact ones, per coordinate.

    Attributes:
        rms: the root of its mean square over the samples.
        median: its median over the samples.
        wrong: the share of the samples for which it is above a quarter of the standard deviation of exact outcomes. A
            sample that starts near a divide may end in a different part of the data.
    """

    rms: float
    median: float
    wrong: float

    @staticmethod
    def of(squares: Tensor, exact: Tensor) -> Error:
        """The error of samples with mean square distances (B,) per coordinate from exact outcomes (B, *)."""
        roots, spread = squares.sqrt(), float(exact.double().std(0, correction=0).square().mean().sqrt())
        median = float(roots.sort().values[[(len(roots) - 1) // 2, len(roots) // 2]].mean())
        return Error(math.sqrt(float(squares.mean())), median, float((roots > _WRONG * spread).double().mean()))


class Costs(NamedTuple):
    """The costs of a tuning.

    Attributes:
        seconds: the wall time of the whole tuning, without that of its references.
        forwards: evaluations of the model, of all samples together, by the tuning; in a backward pass every evaluation
            is made a second time and counted again.
        vjps: products of a vector with the model's Jacobian.
        teacher: evaluations of the model by the references.
    """

    seconds: float
    forwards: int
    vjps: int
    teacher: int


@dataclass(frozen=True)
class TunedProgram:
    """A program found by ``tune_program``, with its errors and those of what it is compared with.

    Attributes:
        program: the program, for the path and the output of the model that it was tuned on.
        table: its numbers, which make a program of any Gaussian path: ``table.program(schedule)``.
        solver: the spec of the solver whose coefficients it started from.
        start: the noise levels sigma / alpha of the grid that it started from.
        nfe: model evaluations of a solve.
        free: the groups of numbers that were free.
        loss: the spec of the loss.
        samples: the numbers of samples for tuning, for validation, and held out.
        tuning: errors on the tuning samples by name: "tuned program"; "start", the solver on the grid from which it
            started, a tuned grid by default; the untuned solvers by the specs of solver and grid; "few", which was
            tuned to other models, where it has a table; and "floor", the least error that any last row can have with
            the start and the predictions of the tuned program, by least squares on these very samples.
        validation: the same on the samples that ended the tuning.
        held_out: the same on samples that the tuning did not use; empty without held-out samples.
        costs: seconds and evaluations.
        iterations: the number of iterations.
    """

    program: Program
    table: Table = field(repr=False, compare=False)
    solver: str
    start: tuple[float, ...]
    nfe: int
    free: tuple[str, ...]
    loss: str
    samples: tuple[int, int, int]
    tuning: Mapping[str, Error] = field(repr=False)
    validation: Mapping[str, Error] = field(repr=False)
    held_out: Mapping[str, Error] = field(repr=False)
    costs: Costs = field(repr=False, compare=False)
    iterations: int = field(repr=False)

    @property
    def errors(self) -> Mapping[str, Error]:
        """The errors that count: those on held-out samples, or without these those on validation samples."""
        return self.held_out or self.validation

    @property
    def best_untuned(self) -> str:
        """The name of the untuned solver and grid with the least error, chosen in hindsight on the same samples."""
        untuned = set(self.errors) - {PROGRAM, START, FEW, FLOOR}
        return min(sorted(untuned), key=lambda name: self.errors[name].rms)

    def save(self, path: str | Path, **facts: Any) -> None:
        """Writes the program to a file; ``solver="file:PATH"`` then names it in a config, in a command and in Python.

        Args:
            path: the file.
            facts: further entries about the tuning, such as ``seeds`` and the model; values that JSON can represent.

        Raises:
            InputError: the file cannot be written, or a fact has the name of an entry that the file has already.
        """
        named = {PROGRAM, START, FEW, FLOOR, self.best_untuned}
        own = {
            "solver": self.solver,
            "start": self.start,
            "nfe": self.nfe,
            "free": self.free,
            "loss": self.loss,
            "samples": dict(zip(("tuning", "validation", "held_out"), self.samples, strict=True)),
            "best_untuned": self.best_untuned,
            "errors": {
                part: {name: error._asdict() for name, error in found.items() if name in named}
                for part, found in (
                    ("tuning", self.tuning), ("validation", self.validation), ("held_out", self.held_out)
                )
            },
            "costs": self.costs._asdict(),
            "iterations": self.iterations,
            "versions": {"scoresde": installed("scoresde"), "torch": torch.__version__},
        }  # fmt: skip
        for name in facts:
            if name in own:
                raise InputError(f"the program's file has {name!r} of its own; use a different name")
        others = [name for name in (self.best_untuned, FEW) if name in self.errors]
        compared = ", ".join(f"{name} has {self.errors[name].rms:.4g}" for name in others)
        note = f"{self.program.solver}: RMS error {self.errors[PROGRAM].rms:.4g}, {compared}"
        text = json_format.write(self.program, note, {"tuning": finite({**own, **facts})})
        write_document(path, "program", text)

    def __str__(self) -> str:
        titles = ("tuning", "validation", "held out")
        parts = [(t, n, found) for t, n, found in zip(titles, self.samples, self._parts, strict=True) if found]
        lines = [
            f"{self.nfe} NFE from {self.solver}, free: {', '.join(self.free)}; loss {self.loss}",
            f"{self.costs.seconds:.1f} s, {self.iterations} iterations, {self.costs.forwards:,} evaluations, "
            f"{self.costs.vjps:,} VJPs, {self.costs.teacher:,} evaluations for the references",
            f"{'RMS error per coordinate':36s}" + "".join(f"{f'{t} ({n})':>18s}" for t, n, _ in parts)
            + f"{'median':>10s}{'wrong':>8s}",
        ]  # fmt: skip
        untuned = sorted(set(self.errors) - {PROGRAM, START, FEW, FLOOR}, key=lambda name: self.errors[name].rms)
        shown = [PROGRAM, START, *untuned[:_SHOWN], *({FEW} & set(self.errors)), FLOOR]
        for name in shown:
            last = self.errors[name]
            values = "".join(f"{found[name].rms:18.4g}" for _, _, found in parts)
            lines.append(f"{name:36s}{values}{last.median:10.3g}{last.wrong:8.1%}")
        return "\n".join(lines)

    @property
    def _parts(self) -> tuple[Mapping[str, Error], ...]:
        return self.tuning, self.validation, self.held_out
