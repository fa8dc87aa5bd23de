"""Files of arrays that say what they belong to, and whose damage is found: the parts of a long computation.

Such a file is a .npz file with facts, as JSON, and in the same place the names and fingerprints of all its arrays. Zip
files have checksums of their parts, but none of the list of the parts: without the fingerprints, one flipped bit there
would rename an array or drop it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from solvers import InputError
from solvers.files import parse_json

from .array_files import read_arrays
from .result_files import write_arrays


def write_checked(path: Path, arrays: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Writes arrays with the facts that they belong to; the file is complete or absent."""
    made = {name: np.asarray(array) for name, array in arrays.items()}
    manifest = {name: digest(array) for name, array in made.items()}
    write_arrays(path, **made, facts=as_text({"evaluation": facts, "arrays": manifest}))


def read_checked(path: Path, what: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arrays of a file, whose names and contents are those that were written, and the facts.

    Args:
        what: the kind of file, for messages.

    Raises:
        InputError: the file cannot be read or is damaged; the message is the reason alone.
    """
    try:
        arrays: dict[str, Any] = read_arrays(path, what)
        document = parse_json(str(arrays.pop("facts")[()]))
        evaluation, manifest = document["evaluation"], document["arrays"]
        if arrays.keys() != manifest.keys():
            raise InputError(f"its arrays are {', '.join(arrays)} instead of {', '.join(manifest)}")
        for name, array in arrays.items():
            if digest(array) != manifest[name]:
                raise InputError(f"the fingerprint of {name} is not the recorded one")
        return {name: arrays[name] for name in manifest}, dict(evaluation)
    except (InputError, KeyError, ValueError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__} {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(reason.removeprefix(f"cannot read the {what} {str(path)!r}: ")) from None


def as_text(document: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    """A JSON document as an array of one text."""
    return np.array(json.dumps(document))


def digest(array: np.ndarray[Any, Any]) -> str:
    """A fingerprint of an array's shape, type and content."""
    found = hashlib.sha256(f"{array.shape} {array.dtype.str} ".encode())
    found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:16]
