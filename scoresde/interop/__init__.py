"""Foreign loops, driven by this library's solvers.

``DiffusersScheduler`` is a scheduler object for diffusers' pipelines, ``sample_function`` a sampler with k-diffusion's
signature. Both drive ``Program.steps``, so they serve every linear solver of the registry, and no solver is written
twice. Needs diffusers for the first only, which is imported when it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from solvers import InputError

from .k_diffusion import sample_function

if TYPE_CHECKING:
    from .diffusers_scheduler import DiffusersScheduler

__all__ = ["DiffusersScheduler", "sample_function"]


def __getattr__(name: str) -> Any:
    # SchedulerMixin is what a pipeline asks this module for when it loads a scheduler from here
    if name in ("DiffusersScheduler", "SchedulerMixin"):
        try:
            from . import diffusers_scheduler
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] != "diffusers":
                raise
            raise InputError(f'{name} needs diffusers: pip install "scoresde[images]"') from None
        return getattr(diffusers_scheduler, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
