"""Data sets: read from files, described by a card, delivered as rows of samples with their conditions."""

from .conditions import Condition
from .dataset import DataCard, Dataset, channels_place, load, spread
from .rows import Batch, Rows, TensorRows

__all__ = ["Batch", "Condition", "DataCard", "Dataset", "Rows", "TensorRows", "channels_place", "load", "spread"]
