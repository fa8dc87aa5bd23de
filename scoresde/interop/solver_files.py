"""``import_solver``: the tables that other projects have published, in a user's file, as programs.

A file is data: tensors by ``torch.load(weights_only=True)``, arrays of .npz, .npy and .safetensors files, JSON, or a
text of numbers. Pickles of whole objects are not read, because to read them runs code that they contain.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import torch

from solvers import InputError, Program
from solvers.errors import unknown
from solvers.files import finite, read_bytes, read_json, read_text, write_atomically
from solvers.program import json_format
from solvers.program.analysis import depth
from solvers.tuning.published import PublishedTable, published_table
from solvers.tuning.published_entries import SETTINGS

from ..io.array_files import FAULTS, read_array, read_arrays, read_tensors
from ..paths.base import SDE, as_sde

LARGEST = 16 * 2**20  # bytes; the largest published table has 17 thousand
_WHAT = "solver's table"
_INSIDE = ("model", "predictor", "state_dict")  # where some files have their numbers
_PICKLE, _ZIP = b"\x80", b"PK\x03\x04"  # the first bytes of a pickle and of an archive
_BARE = {"gits": "t_steps", "ld3": "best_t_steps"}  # the name of the numbers in a file that has no names
# for the user to run where the file is trusted; "predictor" and "model" are the names in these projects' snapshots
_CONVERT = (
    "where you trust it, unpickle it inside of its own project, and write its numbers with torch.save("
    "{**m.state_dict(), **{k: v for k, v in vars(m).items() if isinstance(v, (int, float, str))}}, 'table.pt'), "
    "m being its predictor"
)


@dataclass(frozen=True)
class ImportedSolver:
    """A table of another project as a program on a path.

    Attributes:
        program: the solver, which runs with any model on this path.
        table: the numbers without a path, the paper, the settings, and how many numbers were fitted.
        converted: a line on the noise levels and what was converted.
        source: the name of the file.
    """

    program: Program
    table: PublishedTable
    converted: str
    source: str

    @property
    def depth(self) -> int:
        """The sequential depth: EPD's parallel evaluations count once. A run here makes all ``program.nfe`` in turn."""
        return depth(self.program)

    def save(self, path: str | Path) -> None:
        """Writes the program; ``solver="file:PATH"`` then names it in a config, in a command and in Python.

        Raises:
            InputError: the file cannot be written.
        """
        facts = {
            "imported": self.table.kind,
            "source": self.source,
            "reference": self.table.reference,
            "settings": dict(self.table.settings),
            "nfe": self.program.nfe,
            "depth": self.depth,
            "parameters": self.table.parameters,
            "teacher": f"that of {self.table.kind}",
        }
        note = f"{self.table.kind}'s table in {self.source}: {self.converted}"
        try:
            write_atomically(path, json_format.write(self.program, note, {"tuning": finite(facts)}))
        except OSError as error:
            raise InputError(f"cannot write the program {str(path)!r}: {error.strerror}") from None

    def __str__(self) -> str:
        numbers = f"{self.program.nfe} NFE, sequential depth {self.depth}, {self.table.parameters} fitted numbers"
        lines = [f"{self.table.kind} ({self.table.reference}): {numbers}", self.converted]
        settings, assumed = self.table.settings, [name for name in self.table.assumed if name != "sampler_stu"]
        if assumed:
            shown = ", ".join(
                f"{name}={settings[name]:g}" if isinstance(settings[name], float) else f"{name}={settings[name]}"
                for name in assumed
            )
            lines.append(f"the file does not say, and this is assumed: {shown}")
        return "\n".join(lines)


def import_solver(
    path: str | Path,
    kind: str,
    sde: SDE | str = "edm",
    *,
    output: str = "x0",
    solver: str | None = None,
    table_sde: SDE | str | None = None,
    quantity: Literal["x0", "eps"] | None = None,
    **settings: Any,
) -> ImportedSolver:
    """The program of a table that another project has published, from a file.

    Args:
        path: .pt, .pth, .npz, .npy, .safetensors, .json or .txt.
        kind: "amed", "dyweight", "epd", "gits" or "ld3"; see ``solvers.tuning.published.published_table``.
        sde: the path of the model that will run the program. All paths have the same noise levels sigma / alpha.
        output: the model's output, to which the program's coefficients apply.
        solver: of "ld3" and "gits", whose files have nodes only.
        table_sde: of "ld3": the path whose times the file contains; sigma = t by default.
        quantity: of "ld3": what the solver keeps of an evaluation, "x0" or "eps"; by default what its formula has.
        settings: what the file does not contain, or other values: ``afs``, ``num_steps``, ``t_steps``,
            ``schedule_type``, ``schedule_rho``, ``sigma_min``, ``sigma_max``, ``scale_dir``, ``scale_time``, ``fcn``.

    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "times.txt"
    >>> _ = path.write_text("[80, 10.9836, 3.8811, 1.584, 0.5666, 0.1698, 0.002]")
    >>> print(import_solver(path, "gits"))
    gits (Chen et al. 2024, arXiv:2405.11326, section 4): 6 NFE, sequential depth 6, 5 fitted numbers
    sigma / alpha from 80 to 0.002, on edm

    Raises:
        InputError: the file cannot be read, is a pickle, or has another layout; the kind or a setting is unknown; the
            path does not reach the table's noise levels.
    """
    for name in settings:
        if name not in SETTINGS:
            raise unknown("setting of a table", name, SETTINGS)
    entries = {**read_entries(path, _BARE.get(kind, "numbers")), **settings}
    within = None if table_sde is None else as_sde(table_sde)
    table = published_table(kind, entries, solver=solver, path=within, quantity=quantity)
    program, line = table.program(as_sde(sde), output)
    return ImportedSolver(program, table, line, Path(path).name)


def read_entries(path: str | Path, bare: str = "numbers") -> dict[str, Any]:
    """The numbers and settings in a file by name; ``bare`` names the numbers of a file without names.

    Raises:
        InputError: the file cannot be read, is of another type, or contains more than tensors, numbers and texts.
    """
    suffix = Path(path).suffix.lower()
    if suffix in (".pt", ".pth"):
        found = _tensors(path)
    elif suffix == ".npz":
        found = {name: array.item() if array.ndim == 0 else array for name, array in read_arrays(path, _WHAT).items()}
    elif suffix == ".npy":
        found = read_array(path, _WHAT, LARGEST)
    elif suffix == ".safetensors":
        found = read_tensors(path, _WHAT, LARGEST)[0]
    elif suffix == ".json":
        found = read_json(path, _WHAT)
    elif suffix == ".txt":
        found = _numbers(path)
    elif suffix in (".pkl", ".pickle"):
        raise InputError(f"{str(path)!r} is a pickle, which may run code when it is read: {_CONVERT}")
    else:
        raise InputError(f"{str(path)!r} is not a .pt, .pth, .npz, .npy, .safetensors, .json or .txt file")
    if not isinstance(found, Mapping):
        return {bare: found}
    inside: Mapping[Any, Any] = next((found[name] for name in _INSIDE if isinstance(found.get(name), Mapping)), {})
    return {**{str(k): v for k, v in found.items() if k not in _INSIDE}, **{str(k): v for k, v in inside.items()}}


def _tensors(path: str | Path) -> Any:
    content = read_bytes(path, _WHAT, LARGEST)
    if content.startswith(_PICKLE):  # a whole file in the format of torch before 1.6, or of pickle
        raise InputError(f"{str(path)!r} is a pickle, which may run code when it is read: {_CONVERT}")
    if not content.startswith(_ZIP):
        raise InputError(f"cannot read the {_WHAT} {str(path)!r}: torch.save did not write it")
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (*FAULTS, UnpicklingError):
        raise InputError(
            f"{str(path)!r} is damaged, or contains more than tensors, numbers and texts, which is not read because it "
            f"may run code: {_CONVERT}"
        ) from None


def _numbers(path: str | Path) -> list[float]:
    """The numbers of a text, separated by blanks or commas, with or without brackets."""
    words = re.split(r"[\s,]+", read_text(path, _WHAT).strip().strip("[]()").strip())
    try:
        return [float(word) for word in words]
    except ValueError:
        raise InputError(f"cannot read the {_WHAT} {str(path)!r}: it is not a list of numbers") from None
