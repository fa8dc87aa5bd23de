"""The page ``training.html`` of a run, made from the files in its folder alone."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from solvers import InputError
from solvers.files import read_bytes, write_atomically
from solvers.libraries import without_traces

from ..result_files import environment
from ..training import log
from .config import flat
from .saved import saved
from .watch import pictures

PAGE = "training.html"
_LARGEST_PICTURE = 2**24  # bytes


def write_page(workdir: Path) -> Path:
    """Writes the page of a run; returns its path.

    Raises:
        InputError: the folder contains no run, or a damaged one.
    """
    with without_traces():
        from ..show.training_page import page  # here, because matplotlib takes a second

    there = saved(workdir)
    lines, evaluations = log.records(workdir), log.records(workdir, log.EVALUATIONS)
    config, card = there.config.to_dict(), asdict(there.card)
    config_facts = dict(flat(there.config))
    data = {"name": config_facts["data.name"], "path": config_facts["data.path"], **card}
    changes = [f"from {change.get('from')}: {_listed(change)}" for change in there.changes]
    text = page(
        f"Training: {workdir}",
        lines,
        evaluations,
        _grids(workdir),
        batch_size=there.config.training.batch_size,
        blocks={
            "What was read": {key: value for key, value in data.items() if value not in ("", None)},
            "What was trained": {
                "network": config_facts["model.network"],
                "output": config_facts["model.predicts"],
                "path": config_facts["sde"],
                "loss": config_facts["training.loss"],
                **({"changes": changes} if changes else {}),
                **environment(),
            },
        },
        command=there.commands,
        config=config,
    )
    write_atomically(workdir / PAGE, text)
    return workdir / PAGE


def _listed(change: Mapping[str, Any]) -> str:
    pairs = ((name, value) for name, value in change.items() if isinstance(value, list) and len(value) == 2)
    return ", ".join(f"{name}={new} instead of {old}" for name, (old, new) in pairs)


def _grids(workdir: Path) -> list[Any]:
    """The pictures of samples in the folder; what is not a picture is left out."""
    from PIL import Image

    from ..show.training_page import Grid

    found = []
    for step, path in pictures(workdir):
        try:
            content = read_bytes(path, "picture", _LARGEST_PICTURE)
            with Image.open(io.BytesIO(content), formats=("PNG",)) as picture:
                found.append(Grid(step, content, picture.width, picture.mode in ("L", "RGB")))
        except (InputError, OSError, SyntaxError, Image.DecompressionBombError):  # PIL raises SyntaxError of some
            continue
    return found
