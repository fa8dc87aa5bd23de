"""This library's solvers inside the sampling loops of other libraries.

``DiffusersScheduler`` is a scheduler object for diffusers' pipelines, ``sample_function`` a sampler with k-diffusion's
signature. Both drive ``Program.steps``, so they support every linear solver of the registry without a second
implementation. Only ``DiffusersScheduler`` needs diffusers, and its first use imports it. In the other
direction, ``import_solver`` reads the tables of solvers that other projects have tuned.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from solvers import InputError
from solvers.libraries import without_traces

from .k_diffusion import sample_function
from .solver_files import ImportedSolver, import_solver

if TYPE_CHECKING:
    from .diffusers_scheduler import DiffusersScheduler

__all__ = ["DiffusersScheduler", "ImportedSolver", "import_solver", "sample_function"]


def __getattr__(name: str) -> Any:
    # a pipeline that loads a scheduler from this module also looks up SchedulerMixin here
    if name in ("DiffusersScheduler", "SchedulerMixin"):
        try:
            with without_traces():
                from . import diffusers_scheduler
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] != "diffusers":
                raise
            raise InputError(f'{name} needs diffusers: pip install "scoresde[images]"') from None
        return getattr(diffusers_scheduler, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
