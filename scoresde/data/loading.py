"""Data sets by name, by path, or from an object. No loader unpickles: it returns the data or raises an error."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from solvers import InputError
from solvers.errors import unknown

from ..io.inputs import tensor_of
from .assembly import assembled
from .columns import is_file, picked, requested, with_files
from .dataset import DataCard, Dataset
from .foreign import of_huggingface, of_torch
from .sources import PATHLESS, SOURCES, source_of
from .storage import Array, ImageOptions, Numbers, Part, Raw, Request, TokenOptions
from .tokens import requested_tokens, tokenised


def load(
    data: Any,
    path: str = "",
    seed: int = 0,
    test_fraction: float = 1 / 6,
    bin_width: float | None = None,
    card: DataCard | None = None,
    labels: str = "auto",
    classes: int | None = None,
    images: ImageOptions | None = None,
    tokens: TokenOptions | None = None,
) -> Dataset:
    """Reads a data set: by its name, from a path, or from an object.

    Args:
        data: one of the names ``sources.SOURCES``: "digits", "idx", "cifar", "images", "file", "huggingface", or of
            tokens "text", "bytes", "heartbeat"; "auto" for what is at the path. Or a ``Path``, as "auto" with that
            path; a tensor or an array (N, *); a mapping with such an ``x`` and columns; a torch Dataset with a length,
            whose items are samples, pairs of a sample and a label, or mappings; a data set of Hugging Face's library.
            The items of the last two are read when they are asked for if they are many.
        path: the file or folder of a name.
        seed: the seed of the shuffled split. A source with its own split keeps that split and its order.
        test_fraction: the share of the rows that go to the test split, rounded; each split gets at least one row.
        bin_width: the distance between the levels of a "file", whose numbers then stay as they are.
        card: the card of the data that a model was trained on; the numbers are scaled as they were then.
        labels: the columns that become conditions, separated by commas: names in the source, or .npy files with one row
            per sample; "off" for none; "auto" for the classes of a folder that contains only sub-folders.
        classes: how many classes there are; None for as many as occur.
        images: how files of images become arrays of one shape.
        tokens: how samples become tokens, the states of a discrete process; None for numbers.

    Raises:
        InputError: the name is unknown; the file is missing, unreadable or damaged; the object is none of these; the
            data are empty, not numbers, not finite, or fewer than two rows; a bin width is given for data whose levels
            are known; a column is missing, or has other rows than the samples, or numbers that are no condition.
    """
    if isinstance(data, Path):
        data, path = "auto", str(data)
    columns = requested(labels)
    if isinstance(data, str):
        name = source_of(path) if data == "auto" else data
        source = f"{name} data {path!r}" if path else f"{name} data"
        asked = None if tokens is None else requested_tokens(name, tokens, card, test_fraction)
        raw = _of_name(name, Request(path, columns, labels.strip() == "auto", images or ImageOptions(), asked))
    else:
        if path or images:
            raise InputError("a path and options of images belong to the name of a data set, not to an object")
        name, source = type(data).__name__, f"data ({type(data).__name__})"
        raw = _of_object(data, [column for column in columns if not is_file(column)])
    raw = with_files(raw, columns, source)
    if tokens is not None:
        if bin_width is not None:
            raise InputError(f"tokens have no bins: leave out bin_width={bin_width:g}")
        return tokenised(name, raw, source, tokens, seed, test_fraction, card, classes)
    return assembled(name, raw, source, seed, test_fraction, bin_width, card, classes)


def load_whole(text: str) -> Dataset:
    """A data set by its path, or by a name that needs none, without a split of our own: both splits are all its rows.

    A source that has a train and a test split keeps them.

    Raises:
        InputError: see ``load``.
    """
    there = os.path.exists(text)  # also False for a name that is too long
    if not there and text.isidentifier() and text not in PATHLESS:
        raise unknown("file or data set", text, PATHLESS)
    name, path = (text, "") if not there and text in PATHLESS else (source_of(text), text)
    raw = _of_name(name, Request(path, ()))
    raw = raw if raw.test is not None else replace(raw, test=raw.train)
    return assembled(name, raw, f"{name} data {path!r}" if path else f"{name} data")


def _of_name(name: str, request: Request) -> Raw:
    if name not in SOURCES:
        raise unknown("data set", name, SOURCES)
    given = [f.name for f in fields(ImageOptions) if getattr(request.images, f.name) != f.default]
    if given and name != "images":
        raise InputError(f"data.{given[0]} is for the data set 'images', folders of images; {name!r} does not use it")
    return SOURCES[name](request)


def _of_object(data: Any, columns: list[str]) -> Raw:
    if type(data).__module__.partition(".")[0] == "datasets":
        return of_huggingface(data, columns)
    if isinstance(data, (Tensor, np.ndarray)):
        return Raw(Part(_array(data), picked(columns, {}, "an array")))
    if not isinstance(data, Mapping):
        return of_torch(data, columns)
    if "x" not in data:
        raise InputError(f"a mapping of arrays needs 'x', the samples; it has {', '.join(map(str, data)) or 'none'}")
    others: dict[str, Numbers] = {str(name): _array(value) for name, value in data.items() if name != "x"}
    return Raw(Part(_array(data["x"]), picked(columns, others, "the mapping")))


def _array(value: Any) -> Array:
    """A tensor or an array as an array; bfloat16 numbers as float32."""
    if isinstance(value, np.ndarray):
        return value
    tensor = tensor_of("the data", value).detach().cpu()
    if tensor.is_complex() or tensor.is_quantized:
        raise InputError(f"the data are {tensor.dtype}, and not real numbers")
    found: Array = (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()
    return found
