"""The page ``training.html`` of a run, made from the files in its folder alone"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from solvers import InputError
from solvers.files import read_bytes, write_atomically
from solvers.libraries import without_traces

from ..io.result_files import environment
from ..training import log
from .saved import NAME, Saved, saved
from .settings import read_settings
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

    facts = _facts_of_config(workdir) if (workdir / NAME).exists() else _facts_of_settings(workdir)
    lines, evaluations = log.records(workdir), log.records(workdir, log.EVALUATIONS)
    text = page(f"Training: {workdir}", lines, evaluations, _grids(workdir), **facts)
    write_atomically(workdir / PAGE, text)
    return workdir / PAGE


def _facts_of_config(workdir: Path) -> dict[str, Any]:
    """What the page shows of a run of the command line."""
    there = saved(workdir)
    return {
        "batch_size": there.config.training.batch_size,
        "blocks": {"What was read": _data(there), "What was trained": _trained(there)},
        "command": there.commands,
        "config": there.config.to_dict(),
    }


def _facts_of_settings(workdir: Path) -> dict[str, Any]:
    """What the page shows of a run of ``scoresde.train``."""
    settings = read_settings(workdir) or {}
    size = settings.get("batch_size")
    shown = {name: value for name, value in settings.items() if value is not None}
    return {"batch_size": size if type(size) is int else 0, "blocks": {"What was trained": {**shown, **environment()}}}


def _data(there: Saved) -> dict[str, Any]:
    """The facts about the data."""
    card, source = there.card, there.config.data
    facts = {
        "data": " ".join(filter(None, (source.name, source.path))),
        "samples": f"{card.samples[0]:,} to train, {card.samples[1]:,} held out",
        "shape of a sample": str(card.shape),
        "shown range": f"{card.low:.4g} to {card.high:.4g}",
        "mean": f"{card.mean:.4g}",
        "standard deviation": f"{card.deviation:.4g}",
    }
    if card.levels is not None:
        facts["levels"] = f"whole numbers from {card.levels[0]} to {sum(card.levels)}, scaled to [-1, 1]"
    if card.bin_width is not None:
        facts["distance between levels"] = f"{card.bin_width:.4g}"
    facts["conditions"] = "; ".join(map(str, card.conditions)) or "none"
    return {**facts, "fingerprints": ", ".join(card.fingerprints)}


def _trained(there: Saved) -> dict[str, Any]:
    """The settings that decide most, what was changed on the way, and the software that made the page."""
    cfg = there.config
    changes = [f"from {change.get('from')}: {_listed(change)}" for change in there.changes]
    weighting, times = cfg.training.weighting, cfg.training.times
    return {
        "network": cfg.model.network,
        "output": cfg.model.predicts,
        "path": cfg.sde,
        "loss": cfg.training.loss,
        **({"weighting": weighting} if weighting else {}),
        **({"times": times} if times else {}),
        "averages": cfg.training.averages,
        **{f"change {number}": text for number, text in enumerate(changes, 1)},
        **environment(),
        "device": cfg.device,
    }


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
