"""Runs: a config and its overrides, the objects built from it, a run's folder, its likelihood scores."""

from .config import DataCard
from .run import Run, load_run

__all__ = ["DataCard", "Run", "load_run"]
