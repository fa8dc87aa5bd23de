"""Data sets: read from files, described by a card, delivered as rows of samples with their conditions."""

from .conditions import Condition
from .dataset import DataCard, Dataset, spread
from .levels import channels_place
from .loading import load
from .prefetch import prefetch
from .rows import Batch, Rows, StoredRows, TensorRows
from .sources import source_of
from .storage import ImageOptions, TokenOptions

__all__ = [
    "Batch",
    "Condition",
    "DataCard",
    "Dataset",
    "ImageOptions",
    "Rows",
    "StoredRows",
    "TensorRows",
    "TokenOptions",
    "channels_place",
    "load",
    "prefetch",
    "source_of",
    "spread",
]
