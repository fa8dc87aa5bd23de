"""Runs: the config and its overrides, the objects built from it, the run's folder, likelihood scores."""

from ..data import DataCard
from .run import Run, load_run

__all__ = ["DataCard", "Run", "load_run"]
