"""``settings.json`` in the folder of a run of ``scoresde.train``: what decides the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from solvers import InputError
from solvers.files import read_json

NAME = "settings.json"


def read_settings(workdir: Path) -> dict[str, Any] | None:
    """The settings of a run of ``scoresde.train``; None if the folder contains none.

    Raises:
        InputError: the file is damaged.
    """
    path = workdir / NAME
    if not path.exists():
        return None
    found = read_json(path, "file of settings")
    if not isinstance(found, dict):
        raise InputError(f"{path} is damaged: it contains no object")
    return found
