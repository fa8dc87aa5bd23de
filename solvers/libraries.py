"""Libraries that are imported where they are first used, without the traces that some imports leave.

scipy, sympy and diffusers add filters to the warnings, and rich draws from the generator of ``random``.
"""

from __future__ import annotations

import contextlib
import random
import sys
import warnings
from collections.abc import Iterator
from importlib import import_module
from typing import Any


@contextlib.contextmanager
def without_traces() -> Iterator[None]:
    """A block whose imports leave the filters of warnings and the generator of ``random`` as they were."""
    state = random.getstate()
    try:
        with warnings.catch_warnings():
            yield
    finally:
        random.setstate(state)


def library(name: str) -> Any:
    """A library, or a part of one such as "scipy.optimize"; imported at the first call."""
    if (found := sys.modules.get(name)) is not None:
        return found
    with without_traces():
        return import_module(name)
