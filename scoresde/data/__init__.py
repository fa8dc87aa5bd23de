"""Data sets: read from files, described by a card, delivered as rows of samples with their conditions."""

from .conditions import Condition
from .dataset import DataCard, Dataset, load, spread
from .levels import channels_place
from .rows import Batch, Rows, TensorRows

__all__ = ["Batch", "Condition", "DataCard", "Dataset", "Rows", "TensorRows", "channels_place", "load", "spread"]
