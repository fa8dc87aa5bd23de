"""What commands that use a run do alike: the folder of their results, and the record of what made them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from solvers import InputError

from ..data.dataset import DataCard
from ..io.result_files import environment, writable, write_json
from ..runs import build
from ..runs.run import Run


def record(path: Path, command: str, run: Run, **facts: Any) -> None:
    """Writes a JSON file with everything that a reader needs to make the same files again."""
    document = {
        "command": command,
        **facts,
        "step": run.step,
        "average": run.average and run.average.facts(),
        "config": run.config.to_dict(),
        "environment": environment(device=build.device_of(run.config)),
    }
    write_json(path, document)


def results_folder(arguments: argparse.Namespace, *names: str) -> Path:
    """The folder ``--out``, in which a command writes files of these names; created if needed.

    Raises:
        InputError: it already contains one of them, and ``--overwrite`` is not given.
    """
    out: Path = arguments.out
    if (there := [name for name in names if (out / name).exists()]) and not arguments.overwrite:
        raise InputError(
            f"{out} already contains {', '.join(there)}: use a different --out, or add --overwrite to replace what is "
            "there"
        )
    return writable(out)


def say_average(run: Run) -> None:
    """A note on the average of the weights, if one was named."""
    if run.config.sampling.ema is not None:
        print(f"weights: {run.average}")


def say_if_other(card: DataCard, trained: DataCard) -> None:
    """A note if the data are not those of the run: its held-out samples may then be among those it was trained on."""
    if found := trained.differences(card):
        print(f"note: the data are not those that the run was trained on: {', '.join(found)}", file=sys.stderr)
