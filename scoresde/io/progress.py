"""The progress of long computations: a bar on a terminal or in a notebook, and a line every so often in a log."""

from __future__ import annotations

import sys
from typing import Any

import torch
from tqdm import std
from tqdm.auto import tqdm as auto

EVERY = 30.0  # seconds between two lines in a log


class Lines(std.tqdm):  # type: ignore[misc]
    """Progress as whole lines, which a log keeps readable; nothing is written before the first ``EVERY`` seconds."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        form = "{desc}: {n_fmt} of {total_fmt}, {rate_fmt}, {elapsed} passed, {remaining} left{postfix}"
        super().__init__(*arguments, **{**options, "mininterval": EVERY, "maxinterval": EVERY, "bar_format": form})

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Writes the present state as a line."""
        if self.n > self.initial and self._time() - self.start_t >= EVERY:
            self.fp.write(f"{self}\n")
            self.fp.flush()
        return True

    def close(self) -> None:
        """Ends the progress without a last line; the caller prints its result."""
        self.disable = True


def bar(steps: Any = None, **options: Any) -> Any:
    """A progress bar, as tqdm's; without a terminal or a notebook, lines instead of frames.

    Args:
        steps: an iterable; None if the caller reports its steps with ``update``.
        options: those of tqdm, such as ``total``, ``desc`` and ``disable``.
    """
    notebook = any(kind.__module__ == "tqdm.notebook" for kind in auto.__mro__)
    kind = auto if notebook or sys.stderr.isatty() else Lines
    return kind(steps, **{"leave": False, **options})


def memory_of(device: torch.device) -> dict[str, str]:
    """The most memory of an accelerator that tensors took so far, for the end of a bar; nothing on the CPU."""
    if device.type == "cuda":
        used = torch.cuda.max_memory_allocated(device)
    elif device.type == "mps":
        used = torch.mps.driver_allocated_memory()
    else:
        return {}
    return {"memory": f"{used / 2**30:.1f} GiB"}
